"""Metrics for Prometheus: counters and histograms of the journal's records, and gauges of the present state.

Each `Metrics` has a registry of its own, so tests may have several. Those of the present state are in `figures`.
Durations and sizes are those of stored objects, as in `s3daemon report`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from s3daemon import __version__
from s3daemon.clock import Clock
from s3daemon.http.figures import Figure, process
from s3daemon.model.exposure import LOST_S, UNTAGGED, Exposure, Name
from s3daemon.model.record import AttemptEnd, TransferRecord

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

#: Verdicts of exposures, as of `model.exposure.verdict_of`.
VERDICTS = ("in time", "late", "incomplete", "lost", UNTAGGED)
#: An exposure is over when nothing of it is pending and no object came for this long, seconds.
SETTLED_S = LOST_S
#: What counts as recent, seconds.
RECENT_S = 3600.0
#: More values of a label than this are counted as `other`: a proxy may answer with any code.
LABELS = 100
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})*\s*")


class Metrics:
    """One daemon's metrics.

    Args:
        figures: returns the present state; called at each scrape.
        exposures: the last ones.
        name: of this instance, `s3daemon` or `s3daemon@PORT`.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        figures: Callable[[], Iterable[Figure]] = tuple,
        *,
        exposures: Iterable[Exposure] = (),
        name: str = "s3daemon",
        wall: Clock = time.time,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # of each counter the time of our start, which process_start_time_seconds says
        self.registry = registry = CollectorRegistry()
        registry.register(_FigureCollector(figures))
        registry.register(_FigureCollector(self._own))
        self._known = exposures
        self._wall = wall
        self._started = wall()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"s3daemon_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"s3daemon_{name}", text, buckets=buckets, registry=registry)

        self._transfers = counter("transfers_total", "Transfers that ended, by outcome.", "outcome")
        self._bytes = counter("stored_bytes_total", "Bytes of stored objects.")
        self._attempts = counter(
            "attempts_total", "Attempts that ended, by error code; without a code if stored.", "code"
        )
        self._retries = counter("retries_total", "Attempts that are followed by another, by error code.", "code")
        self._answers = counter("answers_total", "Answers of the store to attempts, by HTTP status.", "status")
        self._receiver_bytes = counter("receiver_stored_bytes_total", "Bytes stored at an address.", "receiver")
        self._receiver_errors = counter("receiver_errors_total", "Attempts that failed at an address.", "receiver")
        self._over = counter("exposures_total", "Exposures that ended, by verdict.", "verdict")
        self._last_object = histogram("exposure_duration_seconds", "From the first request to the last object stored.")
        self._connections = counter(
            "uploads_total", "Objects stored, by connection: already open (warm) or new.", "connection"
        )
        self._retransmits = counter("retransmits_total", "TCP segments sent again while objects were stored.")
        self._total = histogram("transfer_duration_seconds", "From acceptance until the object was stored.")
        self._queue = histogram(
            "queue_duration_seconds", "From acceptance to the start of the attempt that stored the object."
        )
        self._upload = histogram(
            "upload_duration_seconds", "The attempt that stored the object, up to the store's answer."
        )
        self._size = histogram("object_size_bytes", "Sizes of the objects stored.", BYTES)
        self._rtt = histogram("rtt_seconds", "Smoothed round-trip time of the upload's connection.", RTT_SECONDS)
        self._labels = set[str]()
        self._settled = set[Name]()
        self._exposures(count=False)
        for verdict in VERDICTS:
            self._over.labels(verdict)
        self._attempts.labels("none")
        for outcome in ("stored", "failed"):  # rate() misses the first failure of a series that begins with it
            self._transfers.labels(outcome)
        for connection in ("new", "warm"):
            self._connections.labels(connection)
        about = "The daemon's version and its instance's name; always 1."
        Gauge("s3daemon_build_info", about, ("version", "name"), registry=registry).labels(__version__, name).set(1)

    def see(self, record: TransferRecord) -> None:
        """Count a transfer that is over."""
        self._transfers.labels(record.outcome).inc()
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

    def see_attempt(self, end: AttemptEnd) -> None:
        """Count an attempt that has ended."""
        code = self._label(end.code or "none")
        self._attempts.labels(code).inc()
        if end.again:
            self._retries.labels(code).inc()
        if end.status:
            self._answers.labels(str(end.status)).inc()
        if end.receiver:
            receiver = self._label(end.receiver)
            self._receiver_bytes.labels(receiver).inc(end.size_bytes)
            self._receiver_errors.labels(receiver).inc(bool(end.code))

    def _label(self, value: str) -> str:
        """Return the value of a label, `other` when there are too many."""
        if len(self._labels) < LABELS:
            self._labels.add(value)
        return value if value in self._labels else "other"

    def _exposures(self, *, count: bool = True) -> dict[str, float]:
        """Return how many recent exposures there are by verdict; and count those that are over since the last call."""
        now_usec = round(self._wall() * _US)
        recent, over = dict.fromkeys(VERDICTS, 0.0), set[Name]()
        for one in self._known:
            verdict = one.verdict(now_usec)
            recent[verdict] += now_usec - one.first_usec < RECENT_S * _US
            if one.pending or now_usec - max(one.first_usec, one.last_usec or 0) < SETTLED_S * _US:
                continue
            name = one.tagged, one.name
            over.add(name)
            if count and name not in self._settled:
                self._over.labels(verdict).inc()
                if one.tagged and (seconds := one.seconds(now_usec)) is not None:
                    self._last_object.observe(seconds)
        self._settled = over | self._settled & {(one.tagged, one.name) for one in self._known}
        return recent

    def _own(self) -> Iterator[Figure]:
        text = "Exposures whose first request came within the last hour, by verdict."
        yield Figure("s3daemon_recent_exposures", text, self._exposures(), "verdict")
        yield from process()
        text = "Start time of the process since unix epoch in seconds."
        yield Figure("process_start_time_seconds", text, self._started)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type.

        Args:
            accept: the scraper's Accept header; without it, or with a version that is not one, the text format that
                every version reads.
        """
        accept = accept.replace('"', "")
        readable = all(map(_VERSION.fullmatch, re.findall("version=([^;,]*)", accept)))  # the library fails on others
        encode, content_type = choose_encoder(accept if readable else "")
        return encode(self.registry), content_type


class _FigureCollector(Collector):
    def __init__(self, figures: Callable[[], Iterable[Figure]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for one in self._figures():
            kind = CounterMetricFamily if one.counter else GaugeMetricFamily
            family = kind(one.name, one.text, labels=[one.label] if one.label else [])
            for label, value in one.value.items() if isinstance(one.value, Mapping) else [("", one.value)]:
                family.add_metric([label] if one.label else [], value)
            yield family
