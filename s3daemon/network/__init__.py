"""Warm connections to the store: opened before they are needed, kept open, paced, measured, and spread over addresses.

Touches sockets and aiohttp's client, and speaks no S3. Begin with `pool`, which hands out each `connection`;
`addresses` decides where new ones lead, by what is known of each `address`; `lookup` finds out which addresses the name
has; `tls` what is trusted, and when certificates expire; `cause` says why no connection can be had; `keepalive/` keeps
the idle ones ready. How far uploads have come, and which one is so slow that it should be moved, is in `uploads/`; how
fast all may send, in `rate/`; what the kernel reports of a socket and is set to, in `tcp`.
"""
