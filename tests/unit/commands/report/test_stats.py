"""The figures of a report are what a patient person with the same records would count."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.records import START_USEC, failed, record

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import (
    Breakdown,
    Figures,
    Report,
    Spread,
    busy_usec,
    grouping,
    groups,
    percentile,
)
from s3daemon.model.record import TransferRecord

SECOND = 1_000_000
LIMIT = 7 * SECOND


def seen(*records: TransferRecord, host: str = "n") -> list[ReportedTransfer]:
    return [ReportedTransfer(made, host) for made in records]


def report(*records: TransferRecord, by: str = "") -> Report:
    return Report.of(seen(*records), limit_usec=LIMIT, late_usec=10 * SECOND, by=by)


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 100))
def test_percentile(values: list[int], percent: int) -> None:
    """Nearest rank: the smallest value that at least so many percent of all do not exceed."""
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found == min(v for v in ordered if sum(other <= v for other in ordered) * 100 >= percent * len(ordered))


def test_percentiles_by_hand() -> None:
    """Those of one to a hundred are the numbers themselves; of a single value all are it; of none there is none."""
    assert Spread.of(range(100, 0, -1)) == Spread(50, 90, 99, 100)
    assert Spread.of([7]) == Spread(7, 7, 7, 7)
    assert Spread.of([]) is None


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair)))))
def test_busy(spans: list[tuple[int, int]]) -> None:
    """Time in which something was under way counts once, however much was."""
    assert busy_usec(spans) == len({moment for begin, end in spans for moment in range(begin, end)})


def test_figures() -> None:
    """What is stored has sizes and times; what failed is counted and belongs to the period, and nothing else."""
    found = Figures.of(
        seen(
            record(1, size_bytes=10, total_usec=LIMIT, queue_usec=1, upload_usec=5),
            record(
                2,
                size_bytes=30,
                total_usec=LIMIT + 1,
                queue_usec=3,
                upload_usec=None,
                attempts=3,
                start_usec=START_USEC + 2,
            ),
            failed(3, total_usec=100 * SECOND, attempts=2, start_usec=START_USEC - 9),
        ),
        LIMIT,
    )
    assert found == Figures(
        transfers=3,
        stored=2,
        failed=1,
        size_bytes=40,
        busy_usec=LIMIT + 3,
        repeated=2,
        over_limit=1,
        first_usec=START_USEC - 9,
        last_usec=START_USEC - 9 + 100 * SECOND,
        last_stored_usec=START_USEC + 2 + LIMIT + 1,
        total=Spread(LIMIT, LIMIT + 1, LIMIT + 1, LIMIT + 1),
        queue=Spread(1, 3, 3, 3),
        upload=Spread(5, 5, 5, 5),
    )
    assert found.to_last_usec == LIMIT + 12
    assert found.rate_bytes_per_s == pytest.approx(40 / 7, rel=1e-3)


def test_figures_of_nothing() -> None:
    """Without transfers, or without a stored one, what cannot be known is None."""
    none = Figures.of([], LIMIT)
    assert (none.transfers, none.first_usec, none.total, none.to_last_usec, none.rate_bytes_per_s) == (
        0,
        None,
        None,
        None,
        None,
    )
    lost = Figures.of(seen(failed(1)), LIMIT)
    assert (lost.failed, lost.first_usec, lost.last_stored_usec, lost.to_last_usec) == (1, START_USEC, None, None)


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("tag", ["a", "b"]),
        ("host", ["n"]),
        ("receiver", ["192.0.2.1"]),
        ("prefix", ["raw/2026/11/"]),
        ("prefix:1", ["raw/2026/"]),
        ("prefix:9", ["raw/2026/11/"]),
    ],
)
def test_grouping(how: str, names: list[str]) -> None:
    """A transfer belongs to each of its tags once, its host, its receiver, and its bucket with the head of its key."""
    made = record(1, key="2026/11/f.fits", tags=("a", "b", "a"), receiver="192.0.2.1")
    assert list(grouping(how)(ReportedTransfer(made, "n"))) == names


def test_those_in_no_group() -> None:
    """What has no tag, no host or no slash in its key is shown too."""
    bare = ReportedTransfer(record(1, key="f", tags=()), "")
    assert [list(grouping(how)(bare)) for how in ("tag", "host", "receiver", "prefix")] == [["-"]] * 3 + [["raw/"]]


@pytest.mark.parametrize("how", ["", "tags", "prefix:", "prefix:0", "prefix:x", "tag:1", "host:"])
def test_no_grouping(how: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="not one of tag"):
        grouping(how)


def test_the_time_to_the_last_object() -> None:
    """Of each exposure: from its first request, whichever host's, to its last object stored, whichever that is."""
    found = groups(
        [
            *seen(record(1, tags=("b",), start_usec=START_USEC + 50 * SECOND, total_usec=SECOND)),
            *seen(record(2, tags=("a",), start_usec=START_USEC, total_usec=4 * SECOND), host="x"),
            *seen(record(3, tags=("a",), start_usec=START_USEC + SECOND, total_usec=2 * SECOND), host="y"),
            *seen(failed(4, tags=("a",), start_usec=START_USEC + SECOND, total_usec=60 * SECOND)),
        ],
        grouping("tag"),
        LIMIT,
    )
    assert [(g.name, g.figures.to_last_usec, g.figures.stored, g.figures.failed) for g in found] == [
        ("a", 4 * SECOND, 2, 1),
        ("b", SECOND, 1, 0),
    ]


def test_late() -> None:
    """A group is late when its last object came after the time for it, or none came; not when just then."""
    found = report(
        record(1, tags=("in time",), total_usec=10 * SECOND),
        record(2, tags=("late",), total_usec=10 * SECOND + 1),
        failed(3, tags=("never",)),
        by="tag",
    )
    assert {group.name for group in found.groups if found.late(group)} == {"late", "never"}
    night = report(record(1), record(2, start_usec=record(1).start_usec + 60 * SECOND), by="receiver")
    assert not any(map(night.late, night.groups))


def test_report() -> None:
    """Failures are listed by code and one by one, the latest first; the slowest are the ten longest of the stored."""
    many = [record(n, total_usec=n * SECOND) for n in range(1, 13)]
    lost = [
        failed(20, "Stalled: a", total_usec=99 * SECOND),
        failed(21, "AccessDenied: b: c", total_usec=SECOND),
        failed(22, "AccessDenied: d", total_usec=2 * SECOND),
    ]
    found = report(*many, *lost)
    assert [s.record.total_usec // SECOND for s in found.slowest] == list(range(12, 2, -1))
    assert found.codes == [("AccessDenied", 2), ("Stalled", 1)]
    assert [s.record for s in found.failed] == [lost[0], lost[2], lost[1]]
    assert (found.hosts, found.by, found.groups) == (["n"], "", ())


def test_charts_have_groups() -> None:
    """For charts there are groups: those asked for, else by tag, else by prefix."""
    assert report(record(1), by="prefix:1").grouped().by == "prefix:1"
    tagged = report(record(1), record(2, tags=())).grouped()
    assert (tagged.by, [group.name for group in tagged.groups]) == ("tag", ["-", "exposure-1"])
    assert report(record(1, tags=())).grouped().by == "prefix"


@pytest.mark.parametrize(
    ("times_s", "changes", "cause", "text"),
    [
        ((3.0, 0.2, 4.0), {}, "queued", "queued 3.000 s; 0.800 s after"),
        ((9.0, 1.0, 10.0), {"attempts": 4}, "retried", "4 attempts, the last began after 9.000 s"),
        ((9.0, 2.0, 11.0), {}, "queued", "queued 9.000 s; upload 2.000 s (4 MB/s, RTT 200 ms)"),
        ((0.0, 8.0, 8.0), {"rtt_usec": 203_456, "retransmits": 34}, "network",
         "upload 8.000 s (1 MB/s, RTT 203 ms, 34 segments sent again)"),
        ((0.0, 8.0, 8.0), {"retransmits": 1, "connection": "new"}, "network",
         "upload 8.000 s (1 MB/s, RTT 200 ms, 1 segment sent again, new connection)"),
        ((0.0, 8.0, 8.0), {"receiver": "192.0.2.1"}, "network", "upload 8.000 s (1 MB/s, RTT 200 ms, to 192.0.2.1)"),
        ((0.0, 8.0, 8.0), {"rtt_usec": None, "retransmits": None}, "network", "upload 8.000 s (1 MB/s)"),
        ((0.001, 1.0, 9.0), {}, "after", "7.999 s after the upload"),
        ((0.0, None, 0.0), {}, "queued", "queued 0.000 s"),
        # The clocks of two processes: the parts may add up to more than the whole.
        ((3.0, 2.0, 4.0), {}, "queued", "queued 3.000 s; upload 2.000 s"),
    ],
)  # fmt: skip
def test_the_longest_part_comes_first(
    times_s: tuple[float, float | None, float], changes: dict[str, Any], cause: str, text: str
) -> None:
    """The cause is the longest part; the others follow when they matter."""
    queue_usec, upload_usec, total_usec = (None if s is None else round(s * 1e6) for s in times_s)
    found = Breakdown.of(record(1, queue_usec=queue_usec, upload_usec=upload_usec, total_usec=total_usec, **changes))
    assert found.cause == cause
    assert found.text.startswith(text)
