"""Clients of the listening sockets: who they are, whether they may ask, their requests and the replies.

It may touch clients' sockets, /proc/self/net/tcp and the user database, and it hands requests on to `delivery.intake`.
Begin with `server`, which serves the line protocol; `protocol` defines that without I/O. The HTTP server shares the
rest, and so would a server of one more protocol, in a room of its own beside `http`, put together in `service`:
`listener` accepts clients, `peer` looks up the user of a connection, `access` says who may ask, `refusals` counts and
logs what was refused, `waiting` keeps clients until their transfer ends, across restarts too, and `questions` answers
what became of a tag or a transfer (`send --wait-for`). A third protocol also needs a socket unit, its name in
`systemd.sockets`, and the form of its late replies in `service`.
"""
