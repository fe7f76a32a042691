"""The metrics of the present state, each a `Figure`: what they are called, mean, and are now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from s3daemon.control.operations import Operations
from s3daemon.control.status import receivers_of, uploads_of
from s3daemon.delivery.uploader import Uploader
from s3daemon.network.pool import ConnectionPool
from s3daemon.network.rate.bandwidth import Origin


class Figure(NamedTuple):
    """A metric of the present state.

    Args:
        name: without the `_total` that Prometheus appends to that of a counter.
        text: its meaning.
        value: now, or its values by that of `label`.
        label: its label; empty for none.
        counter: it only grows; else it is a gauge.
    """

    name: str
    text: str
    value: float | Mapping[str, float]
    label: str = ""
    counter: bool = False


def present(
    operations: Operations, uploader: Uploader, pool: ConnectionPool, *, refused: Mapping[str, int], http_clients: int
) -> Sequence[Figure]:
    """Return the metrics of the present state.

    Args:
        operations: gives the condition.
        uploader: has the uploads in flight.
        pool: the connections in use now.
        refused: requests that were refused, by the error's code.
        http_clients: how many clients of HTTP are being served.
    """
    condition, limit = operations.condition(), pool.bandwidth.limit
    uploads = uploads_of(uploader.schedule.running, uploader.clock())
    receivers = receivers_of(pool.open_per_address(), uploads, pool.addresses.limited)
    rates: dict[str, float] = dict.fromkeys((one.address for one in receivers), 0.0)
    for upload in uploads:
        for address in upload.receivers:
            rates[address] += upload.recent_bytes_per_s / len(upload.receivers)
    return (
        Figure("s3daemon_in_flight", "Transfers with an attempt in flight.", condition.in_flight),
        Figure("s3daemon_pending", "Accepted transfers that wait for an attempt.", condition.pending),
        Figure("s3daemon_oldest_pending_age_seconds",
            "Time since the oldest unfinished transfer was accepted; 0 if there is none.",
            condition.oldest_s or 0.0),
        Figure("s3daemon_failed_listed",
            "Transfers that failed permanently and are listed by s3daemon queue.", condition.failed),
        Figure("s3daemon_held",
            "1 while the queue is held for an error of the configuration.", bool(condition.held)),
        Figure("s3daemon_away", "1 while the store does not answer, or cannot serve.", condition.away),
        Figure("s3daemon_unreachable",
            "1 while no address of the store answers, also while nothing is sent.", bool(condition.unreachable)),
        Figure("s3daemon_failing",
            "1 while the store is not away, but nothing is stored: every attempt fails or gets no answer.",
            bool(condition.failing and not (condition.held or condition.away))),
        Figure("s3daemon_spool_refusing",
            "1 while requests are refused because the spool cannot be written.", bool(condition.spool_fault)),
        Figure("s3daemon_clients", "Clients of the line protocol that are being served.", condition.clients),
        Figure("s3daemon_http_clients",
            "Clients of HTTP that are being served, this one included.", http_clients),
        Figure("s3daemon_connections_open", "Open connections to the store.", condition.connections.open),
        Figure("s3daemon_connections_warm", "Open and idle connections to the store, for the next uploads.",
            sum(connection.is_open for connection in pool.idle())),
        Figure("s3daemon_connections_limit",
            "The most connections to the store that are opened.", condition.connections.limit),
        Figure("s3daemon_connections_opened",
            "Connections made to the store.", condition.connections.opened, counter=True),
        Figure("s3daemon_bandwidth_limit_bytes_per_second",
            "The bandwidth limit of all uploads together; 0 for no limit.", limit.rate_bps / 8),
        Figure("s3daemon_bandwidth_limit_found",
            "1 if the daemon found the bandwidth limit, now or before a restart; 0 if it was set.",
            limit.origin in (Origin.FOUND, Origin.KEPT)),
        Figure("s3daemon_receivers_disabled",
            "Addresses of the store that are temporarily disabled.", len(condition.disabled)),
        Figure("s3daemon_deferrals", "Transfers whose waiting clients were notified that the transfer is kept.",
            uploader.waiters.deferrals, counter=True),
        Figure("s3daemon_reload_refused",
            "1 after a refused reload, until a reload is accepted.", bool(condition.reload_fault)),
        Figure("s3daemon_tls_certificate_expiry_timestamp_seconds",
            "When the first certificate of the store in use expires, unix epoch; 0 without TLS.",
            pool.certificates.expiry_s),
        Figure("s3daemon_refused",
            "Requests that were refused, by the error's code.", refused, "code", counter=True),
        Figure("s3daemon_receiver_connections", "Open connections to an address of the store.",
            {one.address: one.connections for one in receivers}, "receiver"),
        Figure("s3daemon_receiver_uploads", "Attempts in flight to an address of the store.",
            {one.address: one.uploads for one in receivers}, "receiver"),
        Figure("s3daemon_receiver_disabled", "1 while an address is temporarily disabled.",
            {one.address: one.disabled for one in receivers}, "receiver"),
        Figure("s3daemon_receiver_bytes_per_second",
            "Bytes a second that an address of the store acknowledges now.", rates, "receiver"),
    )  # fmt: skip


def process() -> Iterator[Figure]:
    """Yield the metrics of the process. Names and texts are those that all clients of Prometheus use.

    The library's own collector is silent without /proc/stat, which the unit's ProcSubset=pid hides.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(list(Path("/proc/self/fd").iterdir())) - 1  # the last is the listing's own
    cpu_s, memory = time.process_time(), pages * os.sysconf("SC_PAGE_SIZE")
    yield Figure("process_cpu_seconds", "Total user and system CPU time spent in seconds.", cpu_s, counter=True)
    yield Figure("process_open_fds", "Number of open file descriptors.", descriptors)
    yield Figure("process_resident_memory_bytes", "Resident memory size in bytes.", memory)
