"""How many descriptors this process may have, and how many clients it can serve with them.

A daemon started by hand often gets 1024, and idle clients would take all of them: every call that needs one would fail,
to open a file, to reach the store, to write a status. So the soft limit is raised as far as it may be, and clients get
no more than leaves the others their share; those beyond wait in the backlog. A limit with which uploads alone would
take all of them is a fault of the settings: such a daemon would start, and answer nobody.
"""

from __future__ import annotations

import resource

from s3daemon.errors import SettingsError

#: What the unit sets (LimitNOFILE=), ample for the highest settings.
WANTED = 65536
#: Listening sockets, the spool, the journal, the event loop, control connections, what libraries open for a moment.
RESERVED = 96
#: Of these, what is open all the time.
_OPEN_AT_REST = 32
#: Of an upload, at the least: its connection, its file.
_LEAST_PER_CONNECTION = 2
#: Of an upload: its connection, a second descriptor of that, its file.
PER_CONNECTION = 3
#: Of a client: its connection, and its file while that is checked. There are two servers.
PER_CLIENT, SERVERS = 2, 2
#: Fewer are of no use: an instance's hooks ask for two at a time.
LEAST_CLIENTS = 4


def raise_limit() -> int:
    """Raise the soft limit to `WANTED`, if the hard one allows it; return the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return WANTED if soft == resource.RLIM_INFINITY else soft


def clients_within(limit: int, max_clients: int, max_connections: int) -> int:
    """Return how many clients each server may have at once.

    Args:
        limit: of descriptors.
        max_clients: how many the settings allow.
        max_connections: uploads at once.

    Raises:
        SettingsError: the limit does not allow so many uploads.
    """
    if limit < (least := _OPEN_AT_REST + _LEAST_PER_CONNECTION * max_connections):
        text = f"with S3DAEMON_MAX_CONNECTIONS={max_connections} the daemon needs {least} descriptors at least"
        raise SettingsError([f"{text}, and may have {limit}: raise LimitNOFILE= of the unit (ulimit -n)"])
    left = limit - RESERVED - PER_CONNECTION * max_connections
    return min(max_clients, max(LEAST_CLIENTS, left // (PER_CLIENT * SERVERS)))
