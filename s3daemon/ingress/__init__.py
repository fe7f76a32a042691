"""The wire: clients of the listening sockets, who they are, whether they may ask, their requests and the replies.

It may touch clients' sockets, /proc/self/net/tcp and the user database, and it hands requests on to `delivery.intake`.
The HTTP server takes its clients through the same `listener` and asks the same `access`. Begin with `server`, which
serves the line protocol; `protocol` defines it without I/O, `peer` looks up whose connection one is.
"""
