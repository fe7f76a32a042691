"""One file to one S3 store: signed, sent, verified; in parts where it is large.

The only room that knows aiobotocore and botocore. It sends over the connections of `network`, reads the file that it is
given, and keeps uploads in parts in `spool.open_uploads`; it knows no queue and no client.
Begin reading with `store` (`put` and `find`), then `sender`, through which every request goes: `signing/` signs it,
`body` reads the file, `answers` says what an answer means, and whether it is a success. `multipart` and `parts` are for
large files, `priming/` for new connections, `endpoint` for what a reload replaces.
"""
