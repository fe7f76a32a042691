"""Warm connections to the store: opened before they are needed, kept open, paced, measured, and spread over addresses.

Touches sockets and aiohttp's client, and speaks no S3. Begin with `pool`, which hands out each `connection`;
`addresses` decides where new ones lead, by what is known of each `address`; `keepalive/` keeps the idle ones ready. How
far an upload has come is in `progress`; which one is so much slower than others that it should be moved, in
`straggler`, from the `samples` of each; what the kernel reports of a socket and is set to, in `tcp`; how fast all
uploads may send, in `rate/`.
"""
