"""Warm connections to the store: opened before they are needed, kept open, paced, measured, and spread over addresses.

Touches sockets and aiohttp's client, and knows nothing of S3. Begin with `pool`, which hands out each `connection`;
`addresses` decides where new ones lead, `keeper` keeps the idle ones ready. What an upload over a connection has
achieved is in `progress`; what the kernel is asked and told, in `tcp` and `pacing`.
"""
