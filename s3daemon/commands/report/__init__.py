"""`s3daemon report`: how transfers ended and where their time went, from the journal.

`read` gets entries from journalctl or its saved output; `select` makes transfers of them, each once; `stats` computes
figures and verdicts, `why` explains delays; `text`, `data` and `plot/` show the result to people, to programs and as a
picture. The room reads only the journal: it asks neither the daemon nor the store, and opens no spool. Begin with
`command`, which puts these together.
"""
