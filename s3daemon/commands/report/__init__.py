"""`s3daemon report`: what became of transfers and where the time went, from the journal.

`read` gets entries (from journalctl, or from what it printed), `select` makes each transfer of them once, `stats` counts,
and `text`, `data` and `plot` show the result for people, for programs and as a picture. It reads the journal alone: it
asks neither the daemon nor the store, and opens no spool. Begin with `command`, which puts these together.
"""
