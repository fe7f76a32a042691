"""How operators inspect and control the running daemon: over its control socket, or over HTTP.

It reads delivery, ingress, the spool and the connection pool; it owns the file `control` in the runtime directory.
Nothing here prints: `commands` shows on a terminal what `client` asked for, `http` serves the same status.
Begin with `server` (the protocol), then `operations` (what each command does), then the answers: `status` and, in it,
`rows` and `exposures`. `codec` writes them as JSON and reads them again.
"""
