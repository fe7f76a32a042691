"""`s3daemon report`: what became of transfers and where the time went, from the journal.

`read` gets entries from journalctl, or from what it printed; `select` makes transfers of them, each once; `stats`
counts and judges, `why` says what took the time; `text`, `data` and `plot/` show the result to people, to programs and
as a picture. The room reads the journal alone: it asks neither the daemon nor the store, and opens no spool. Begin with
`command`, which puts these together.
"""
