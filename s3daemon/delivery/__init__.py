"""Transfers from acceptance to their end: their order, the consequences of failed attempts, the clients that wait.

It decides; it touches no socket and no SQL. It gives files to `s3`, keeps transfers in the `spool` and records to the
`journal`, and files are opened only by `model.files.source`.
Begin reading with `uploader`, whose docstring has the states of a transfer; then `intake` (how one comes in),
`schedule` (which one is next), `attempt` (one try to store one) and `decision` (what follows from an error). `health/`
knows whether the endpoint is away and the keys are refused; `records` writes what became of transfers; `waiters`
answers the clients that wait; `janitor` aborts multipart uploads that no transfer needs.
"""
