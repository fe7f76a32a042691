"""The figures of a report are what a patient person with the same records would count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.records import START_USEC, failed, record

from s3daemon.commands.report.select import RefusedRequest, ReportedTransfer
from s3daemon.commands.report.stats import GROUPINGS, Expected, Figures, Report, Spread, busy_usec, groups, percentile
from s3daemon.model.exposure import Exposures
from s3daemon.model.record import Refusal, TransferRecord

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
        busy_usec=LIMIT + 2,  # not the wait in the queue at the beginning
        repeated=2,
        over_limit=1,
        first_usec=START_USEC - 9,
        last_usec=START_USEC - 9 + 100 * SECOND,
        last_stored_usec=START_USEC + 2 + LIMIT + 1,
        total=Spread(LIMIT, LIMIT + 1, LIMIT + 1, LIMIT + 1),
        queue=Spread(1, 3, 3, 3),
        upload=Spread(5, 5, 5, 5),
        codes=[("NoSuchBucket", 1)],
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
    ],
)
def test_grouping(how: str, names: list[str]) -> None:
    """A transfer belongs to each of its tags once, its host, its receiver, and its bucket and the path of its key."""
    made = record(1, key="2026/11/f.fits", tags=("a", "b", "a"), receiver="192.0.2.1")
    found = GROUPINGS[how](ReportedTransfer(made, "n"))
    assert [name.text for name in found] == names
    assert all(name.exposure for name in found) == (how in ("tag", "prefix"))


def test_those_in_no_group() -> None:
    """What has no tag, no host or no slash in its key is shown too."""
    bare = ReportedTransfer(record(1, key="f", tags=()), "")
    found = {how: list(GROUPINGS[how](bare)) for how in ("tag", "host", "receiver", "prefix")}
    assert found == {"tag": [("raw/", False)], "host": [("-", False)], "receiver": [("-", False)],
                     "prefix": [("raw/", True)]}  # fmt: skip


def test_the_time_to_the_last_object() -> None:
    """Of each exposure: from its first request, whichever host's, to its last object stored, whichever that is."""
    found = groups(
        [
            *seen(record(1, tags=("b",), start_usec=START_USEC + 50 * SECOND, total_usec=SECOND)),
            *seen(record(2, tags=("a",), start_usec=START_USEC, total_usec=4 * SECOND), host="x"),
            *seen(record(3, tags=("a",), start_usec=START_USEC + SECOND, total_usec=2 * SECOND), host="y"),
            *seen(failed(4, tags=("a",), start_usec=START_USEC + SECOND, total_usec=60 * SECOND)),
        ],
        GROUPINGS["tag"],
        LIMIT,
    )
    assert [(g.name.text, g.figures.to_last_usec, g.figures.stored, g.figures.failed) for g in found] == [
        ("a", 4 * SECOND, 2, 1),
        ("b", SECOND, 1, 0),
    ]


def test_late() -> None:
    """A group is late when its last object came after the time for it, incomplete when none came; not late before."""
    found = report(
        record(1, tags=("in time",), total_usec=10 * SECOND),
        record(2, tags=("late",), total_usec=10 * SECOND + 1),
        failed(3, tags=("never",)),
        by="tag",
    )
    verdicts = {group.name.text: found.verdict(group) for group in found.groups}
    assert verdicts == {"in time": "in time", "late": "late", "never": "incomplete"}
    night = report(record(1), record(2, start_usec=record(1).start_usec + 60 * SECOND), by="receiver")
    assert {night.verdict(group) for group in night.groups} == {""}


def test_files_without_a_tag_are_not_an_exposure() -> None:
    """They are grouped by folder, which may be that of a whole night: its time is not judged, its failures are."""
    hours = [record(n, tags=(), key=f"{n % 2}/f{n}", start_usec=START_USEC + n * 3600 * SECOND) for n in range(4)]
    found = report(*hours, failed(9, tags=(), key="1/g"), by="tag")
    assert [(group.name.text, found.verdict(group)) for group in found.groups] == [
        ("raw/0/", "untagged"), ("raw/1/", "incomplete"),
    ]  # fmt: skip
    assert [found.verdict(group) for group in report(*hours, by="prefix").groups] == ["lost", "lost"]


def exposures(*counts: int) -> list[TransferRecord]:
    """Exposures of so many files."""
    return [
        record(1000 * at + n, tags=(f"e{at}",), key=f"e{at}/{n}", start_usec=START_USEC + at * 60 * SECOND)
        for at, count in enumerate(counts)
        for n in range(count)
    ]


def expecting(expect: int, *records: TransferRecord) -> Report:
    return Report.of(seen(*records), limit_usec=LIMIT, late_usec=10 * SECOND, by="tag", expect=expect)


STORED, FAILED, REFUSED = "stored", "failed", "refused"


@pytest.mark.parametrize(
    ("ends", "verdict", "missing"),
    [
        ((FAILED, STORED), "in time", 0),
        ((REFUSED, STORED), "in time", 0),
        ((FAILED, REFUSED, FAILED, STORED), "in time", 0),
        ((FAILED, FAILED), "incomplete", 1),
        ((STORED, FAILED), "incomplete", 1),
        ((STORED, REFUSED), "incomplete", 1),
        ((REFUSED, FAILED), "incomplete", 1),
    ],
)
def test_what_was_stored_later_is_not_missing(ends: tuple[str, ...], verdict: str, missing: int) -> None:
    """A file that failed or was refused is missing until it is stored, as it is for `status`; it is one file."""
    transfers, refused, exposures = [], [], Exposures()
    for n, end in enumerate(ends):
        at_usec = START_USEC + n * SECOND
        if end == REFUSED:
            refused.append(RefusedRequest(("raw", "night/f.fits"), ("exposure-1",), "NotReadable", at_usec))
            exposures.refused(
                Refusal(code="NotReadable", text="no", destination="raw/night/f.fits", tag="exposure-1"), at_usec
            )
        else:
            transfers.append((record if end == STORED else failed)(n, start_usec=at_usec))
            exposures.recorded(transfers[-1])
    found = Report.of(
        seen(*transfers), limit_usec=LIMIT, late_usec=10 * SECOND, by="tag", expect=1 - missing, refused=refused
    )
    (group,), (known,) = found.groups, exposures
    assert (found.verdict(group), found.missing(group), group.figures.failed) == (verdict, missing, ends.count(FAILED))
    assert (known.verdict(START_USEC), len(known.missing)) == (verdict, missing)
    assert sum(count for _, count in group.missing.failed) == known.failed


def test_a_request_that_was_not_understood_is_in_no_exposure() -> None:
    """It counts among what was not accepted; its tag counts, its destination does not."""
    refused = [RefusedRequest(("http:", "raw/h"), tags, "BadRequest", START_USEC) for tags in ((), ("e",))]
    found = Report.of(seen(record(1, tags=())), limit_usec=LIMIT, late_usec=10 * SECOND, by="tag", refused=refused)
    assert [group.name.text for group in found.groups] == ["e", "raw/night/"]
    assert [group.name.text for group in found.by_groups("prefix").groups] == ["raw/night/"]
    assert found.refused_codes == [("BadRequest", 1)]


def test_a_file_stored_under_another_tag_is_missing() -> None:
    """Of the exposure that it was requested for; the same file of another exposure is that one's."""
    found = report(failed(1, tags=("a",)), record(2, tags=("b",), start_usec=START_USEC + SECOND), by="tag")
    assert [(group.name.text, found.verdict(group)) for group in found.groups] == [
        ("a", "incomplete"),
        ("b", "in time"),
    ]


def test_short_exposures() -> None:
    """With a number of files given, an exposure that has fewer is incomplete; a file stored twice is one file."""
    again = record(9999, tags=("e1",), key="e1/0", start_usec=START_USEC + 61 * SECOND)
    found = expecting(4, *exposures(4, 3, 5), again)
    assert [(group.files, found.missing(group), found.verdict(group)) for group in found.groups] == [
        (4, 0, "in time"), (3, 1, "incomplete"), (5, 0, "in time"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((4, 4, 4, 3, 5), (4, 3)),
        ((4, 4, 3), (0, 0)),  # too few to learn from
        ((4, 4, 4, 1, 2, 3), (0, 0)),  # not more than half
        ((), (0, 0)),
    ],
)
def test_the_number_of_files_is_learned(counts: tuple[int, ...], expected: tuple[int, int]) -> None:
    """What more than half of the exposures have, three at least, is what the others are short of."""
    assert expecting(0, *exposures(*counts)).expected == Expected(*expected)
    assert expecting(7, *exposures(*counts)).expected == Expected(7, 0)


def test_files_without_a_tag_are_not_counted() -> None:
    """Their folder has as many as it has."""
    folder = [record(n, tags=(), key=f"f{n}") for n in range(3)]
    found = expecting(4, *folder)
    assert [(found.missing(group), found.verdict(group)) for group in found.groups] == [(0, "untagged")]


def test_late_only() -> None:
    """Groups with which nothing is wrong are left out, and so are files without a tag."""
    slow = record(77, tags=("slow",), total_usec=11 * SECOND)
    found = expecting(4, *exposures(4, 3), slow, record(78, tags=()), failed(79, tags=("none",)))
    assert {group.name.text for group in found.late_only().groups} == {"e1", "slow", "none"}


def test_hosts_come_the_worst_first() -> None:
    """By failures, then by transfers over the limit, then by the longest."""
    made = {"good": [record(1)], "slow": [record(2, total_usec=6 * SECOND)], "over": [record(3, total_usec=LIMIT + 1)],
            "failing": [failed(4), record(5)]}  # fmt: skip
    transfers = [one for host, records in made.items() for one in seen(*records, host=host)]
    found = Report.of(transfers, limit_usec=LIMIT, late_usec=10 * SECOND, by="host")
    assert [group.name.text for group in found.groups] == ["failing", "over", "slow", "good"]


def test_the_slowest_are_of_many_exposures() -> None:
    """No more than two of one exposure; files without a tag are not one."""
    made = [record(n, total_usec=(n + 1) * SECOND, tags=("bad",)) for n in range(20)]
    found = report(*made, record(90, tags=("other",)), *(record(91 + n, tags=()) for n in range(3)))
    assert [one.record.tags for one in found.slowest] == [("bad",), ("bad",), ("other",), (), (), ()]


def test_report() -> None:
    """Failures are listed by code and one by one, the latest first; the slowest are the ten longest of the stored."""
    many = [record(n, total_usec=n * SECOND, tags=()) for n in range(1, 13)]
    lost = [
        failed(20, "Stalled: a", total_usec=99 * SECOND),
        failed(21, "AccessDenied: b: c", total_usec=SECOND),
        failed(22, "AccessDenied: d", total_usec=2 * SECOND),
    ]
    found = report(*many, *lost)
    assert [s.record.total_usec // SECOND for s in found.slowest] == list(range(12, 2, -1))
    assert found.figures.codes == [("AccessDenied", 2), ("Stalled", 1)]
    assert [s.record for s in found.failed] == [lost[0], lost[2], lost[1]]
    assert (found.hosts, found.by, found.groups) == (["n"], "", ())


def test_charts_have_groups() -> None:
    """For charts there are groups: those asked for, else, and instead of hosts, by tag, else by prefix."""
    assert report(record(1), by="prefix").grouped().by == "prefix"
    tagged = report(record(1), record(2, tags=())).grouped()
    assert (tagged.by, [group.name.text for group in tagged.groups]) == ("tag", ["exposure-1", "raw/night/"])
    assert report(record(1, tags=())).grouped().by == "prefix"
    assert report(record(1), by="host").grouped().by == "tag"
