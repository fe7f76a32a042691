"""`s3daemon check`: what works and what does not, a line each, and what to do about it.

`network` and `store` go the way of a file to the store; `host` and `unit` check the kernel, the disk, the journal and
what systemd has; `findings` prints what they find. Nothing here opens the spool or changes anything, but for one object
that is put and deleted where a bucket is named. Begin with `command`, which has the order of the checks.

Each check is given what it looks at, such as the `host` or valid `settings`, and `findings`, which takes what it finds.
"""
