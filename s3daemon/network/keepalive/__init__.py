"""Idle connections kept ready: open, warm, and leading to an address that works.

Begin with `keeper`, which decides what is done next. `idle_limit` learns how long the server keeps an idle connection;
`asking` sends the small requests that keep them, and finds out which kind of `small_request` does.
"""
