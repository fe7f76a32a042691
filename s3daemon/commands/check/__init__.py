"""`s3daemon check`: what works and what does not, a line each, and what to do about it.

`network` and `store` check the path of a file to the store; `host` and `unit` check the kernel, the disk, the journal
and the systemd units; `system` reads that host, and `findings` prints the results. Nothing here opens the spool or
changes anything, except for one object that is put and deleted if a bucket is named. Begin with `command`, which has
the order of the checks.

Each check is given what it looks at, such as the `host` or valid `settings`, and `findings`, which takes what it finds.
"""
