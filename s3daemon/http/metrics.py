"""Metrics for Prometheus: counters and histograms of the records that the journal gets, and the present state.

Each `Metrics` has a registry of its own, so tests may have several. The table of the present state is `LIVE`, and
`Operations.figures` gives its values. Durations and sizes are those of stored objects, as in `s3daemon report`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from s3daemon import __version__
from s3daemon.clock import Clock
from s3daemon.model.record import TransferRecord

_US = 1_000_000

#: Seconds. Over 200 ms a warm connection stores a small object in one round trip, below 0.25; 0.5 and 1 are two and
#: more, such as a new connection's; a burst is over after 2 to 3.5. Beyond 7 a file has missed its requirement, beyond
#: 10 its exposure is late, beyond 30 lost. The rest tells another attempt from an outage, which may last 48 hours.
SECONDS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3.5, 5, 7, 10, 15, 20, 30, 60, 300, 3600, 6 * 3600, 48 * 3600)
#: Bytes. Sidecars have 3 kB; above 64 kB a body takes its share of the bandwidth; images have 8 to 30 MB; above 100 MiB
#: an object goes in parts.
BYTES = (1e3, 4e3, 16e3, 64e3, 256e3, 1e6, 4e6, 8e6, 16e6, 32e6, 64e6, 100 * 2**20, 1e9, 5e9, 50e9)
#: Seconds; dense about 200 ms, so that a detour of the route shows.
RTT_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.18, 0.19, 0.2, 0.21, 0.22, 0.25, 0.3, 0.4, 0.6, 1)

#: The present state, by name: kind and meaning. Prometheus appends `_total` to a counter's name.
LIVE: Mapping[str, tuple[type[Metric], str]] = {
    "s3daemon_in_flight": (GaugeMetricFamily, "Transfers with an attempt in flight."),
    "s3daemon_pending": (GaugeMetricFamily, "Accepted transfers that wait for an attempt."),
    "s3daemon_oldest_pending_age_seconds": (
        GaugeMetricFamily, "Time since the oldest transfer that is not over was accepted; 0 when there is none."),
    "s3daemon_failed_listed": (GaugeMetricFamily, "Transfers that failed for good and are listed by s3daemon queue."),
    "s3daemon_held": (GaugeMetricFamily, "1 while the queue is held for an error of the configuration."),
    "s3daemon_away": (GaugeMetricFamily, "1 while the store does not answer, or cannot serve."),
    "s3daemon_spool_refusing": (GaugeMetricFamily, "1 while requests are refused because the spool cannot be written."),
    "s3daemon_clients": (GaugeMetricFamily, "Clients of the line protocol that are being served."),
    "s3daemon_http_clients": (GaugeMetricFamily, "Clients of HTTP that are being served, this one included."),
    "s3daemon_connections_open": (GaugeMetricFamily, "Open connections to the store."),
    "s3daemon_connections_warm": (
        GaugeMetricFamily, "Open and idle connections to the store, for the next uploads."),
    "s3daemon_connections_limit": (GaugeMetricFamily, "The most connections to the store that are opened."),
    "s3daemon_connections_opened": (
        CounterMetricFamily, "Connections made to the store since the settings of connections last changed."),
    "s3daemon_receivers_aside": (GaugeMetricFamily, "Addresses of the store that are temporarily disabled."),
}  # fmt: skip
#: Likewise, of the process; names and texts are those that all clients of Prometheus use. The library's own collector
#: is silent without /proc/stat, which the unit's ProcSubset=pid hides.
PROCESS: Mapping[str, tuple[type[Metric], str]] = {
    "process_cpu_seconds": (CounterMetricFamily, "Total user and system CPU time spent in seconds."),
    "process_open_fds": (GaugeMetricFamily, "Number of open file descriptors."),
    "process_resident_memory_bytes": (GaugeMetricFamily, "Resident memory size in bytes."),
    "process_start_time_seconds": (GaugeMetricFamily, "Start time of the process since unix epoch in seconds."),
}


class Metrics:
    """One daemon's metrics.

    Args:
        figures: returns the values for `LIVE`; called at each scrape.
        name: of this instance, `s3daemon` or `s3daemon@PORT`.
        wall: seconds since the epoch.
    """

    def __init__(
        self, figures: Callable[[], Mapping[str, float]], *, name: str = "s3daemon", wall: Clock = time.time
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # of each counter the time of our start, which process_start_time_seconds says
        self.registry = registry = CollectorRegistry()
        registry.register(_Live(LIVE, figures))
        started = wall()
        registry.register(_Live(PROCESS, lambda: _process() | {"process_start_time_seconds": started}))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"s3daemon_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"s3daemon_{name}", text, buckets=buckets, registry=registry)

        self._transfers = counter("transfers_total", "Transfers that are over, by outcome.", "outcome")
        self._bytes = counter("stored_bytes_total", "Bytes of the objects that were stored.")
        self._attempts = counter("attempts_total", "Attempts of the transfers that are over, the first included.")
        self._connections = counter(
            "uploads_total", "Objects stored, by whether their connection was already open (warm) or new.", "connection"
        )
        self._retransmits = counter("retransmits_total", "TCP segments sent again while objects were stored.")
        self._total = histogram("transfer_duration_seconds", "From acceptance until the object was stored.")
        self._queue = histogram("queue_duration_seconds", "From acceptance to the start of the attempt that stored it.")
        self._upload = histogram("upload_duration_seconds", "The attempt that stored it, up to the store's answer.")
        self._size = histogram("object_size_bytes", "Sizes of the objects stored.", BYTES)
        self._rtt = histogram("rtt_seconds", "Smoothed round-trip time of the upload's connection.", RTT_SECONDS)
        for outcome in ("stored", "failed"):  # rate() misses the first failure of a series that begins with it
            self._transfers.labels(outcome)
        for connection in ("new", "warm"):
            self._connections.labels(connection)
        info = GaugeMetricFamily(
            "s3daemon_build_info", "The daemon's version and its instance's name; always 1.", labels=["version", "name"]
        )
        info.add_metric([__version__, name], 1)
        registry.register(_Fixed(info))

    def see(self, record: TransferRecord) -> None:
        """Count a transfer that is over."""
        self._transfers.labels(record.outcome).inc()
        self._attempts.inc(record.attempts)
        if not record.stored:
            return
        self._bytes.inc(record.size_bytes)
        self._size.observe(record.size_bytes)
        self._total.observe(record.total_usec / _US)
        self._queue.observe(record.queue_usec / _US)
        if record.upload_usec is not None:
            self._upload.observe(record.upload_usec / _US)
        if record.rtt_usec is not None:
            self._rtt.observe(record.rtt_usec / _US)
        if record.connection:
            self._connections.labels(record.connection).inc()
        self._retransmits.inc(record.retransmits or 0)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type.

        Args:
            accept: the scraper's Accept header; without it the text format that every version reads.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _Live(Collector):
    def __init__(
        self, table: Mapping[str, tuple[type[Metric], str]], figures: Callable[[], Mapping[str, float]]
    ) -> None:
        self._table = table
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        for name, (kind, text) in self._table.items():
            yield kind(name, text, value=figures[name])  # type: ignore[call-arg]


def _process() -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "process_cpu_seconds": time.process_time(),
        "process_open_fds": len(list(Path("/proc/self/fd").iterdir())) - 1,  # the last is the listing's own
        "process_resident_memory_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
    }


class _Fixed(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric
