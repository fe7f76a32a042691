"""Accepted transfers on disk: durable before they are called accepted, kept until stored, or until a failure expires.

The room owns the state directory; `directory` lists its files. Where there is no runtime directory, `control` has its
socket there too. The room alone uses SQLite, and has no access to the network or to clients.
Begin with `spool`, the interface to the event loop. Below it `writer` is the thread that commits, `recovery` replaces a
damaged file, `database` has the schema and the statements, `directory` the lock and the files, `rows` the values.
`open_uploads` keeps the multipart uploads that a store may still hold, `exposures` what became of the last exposures.
"""
