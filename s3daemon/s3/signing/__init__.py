"""Requests that the store takes for ours, and what it answers, by botocore's models.

Begin with `client`, which signs whatever is sent. `put_object` makes the request that is made most, in a shorter way;
`signature` signs that.
"""
