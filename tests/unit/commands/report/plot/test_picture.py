"""The picture has what the figures have, and every kind of night can be drawn.

Whether it looks right was judged by eye; here its parts are counted.
"""

import html
import re
import sys
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from lab.records import START_USEC, failed, record

from s3daemon.commands.report.plot import picture as report_plot
from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import Report
from s3daemon.errors import S3daemonError
from s3daemon.model.record import TransferRecord

SECOND = 1_000_000


def report(*records: TransferRecord) -> Report:
    transfers = [ReportedTransfer(made, "node1") for made in sorted(records, key=lambda made: made.start_usec)]
    return Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by="tag")


def night(exposures: int, name: str = "exposure") -> Report:
    """Exposures of four files each, one of which is over its limit, one late, one with a failure."""
    made = []
    for number in range(exposures * 4):
        exposure = number // 4
        usec = {5: 8 * SECOND, 9: 14 * SECOND}.get(number, SECOND // 3 + number % 7 * 100_000)
        start_usec = START_USEC + exposure * 40 * SECOND + number
        what: dict[str, Any] = {"tags": (f"{name}_{exposure:05}",), "start_usec": start_usec, "total_usec": usec}
        made.append(failed(number, **what) if number == 3 else record(number, attempts=1 + (number == 9), **what))
    return report(*made)


def pixels(path: Path) -> Any:
    from matplotlib import image

    return image.imread(path)


def texts(path: Path) -> str:
    """What an SVG says: matplotlib draws letters as outlines and leaves the text as a comment."""
    return html.unescape("\n".join(re.findall("<!-- (.*?) -->", path.read_text(), re.S)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib keeps its list of fonts in the home directory, which the test run has none of."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.getbasetemp() / "matplotlib"))


def test_png(tmp_path: Path) -> None:
    """A PNG is written whose three charts carry the colours of what is within and beyond its limit."""
    report_plot.save(night(5), tmp_path / "n.png", UTC)
    picture = pixels(tmp_path / "n.png")
    height, width, _ = picture.shape
    assert (width, height) == (1200, 1650)
    thirds = [picture[height * n // 3 : height * (n + 1) // 3, :, :3] for n in range(3)]
    blue, vermillion = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)

    def has(third: Any, colour: tuple[int, int, int]) -> int:
        return int((abs(third * 255 - colour).max(axis=2) < 1.5).sum())

    assert has(thirds[0], blue) > 1000
    assert has(thirds[0], vermillion) > 1000
    assert has(thirds[1], vermillion) > 500
    assert has(thirds[2], blue) > 100
    assert has(thirds[2], vermillion) > 500


def test_svg_says_what_is_shown(tmp_path: Path) -> None:
    """Titles, limits, percentiles, exposures and failures are written in the picture."""
    report_plot.save(night(5), tmp_path / "n.svg", UTC)
    said = texts(tmp_path / "n.svg")
    for text in (
        "node1, 2026-11-23 02:13:20 to", "19 stored, 1 FAILED, 152 MB; 2 over 7 s", "How long transfers took",
        "limit 7 s", "p99 14.00 s", "over the limit: 2", "at a later attempt: 1", "failed: 1",
        "Time to the last object, by tag", "late 10 s", "exposure_00002, 14 s", "in time: 3", "incomplete: 1",
        "time of request, from 2026-11-23 on, UTC",
    ):  # fmt: skip
        assert text in said


@pytest.mark.parametrize("by", ["tag", "host", "receiver", "prefix"])
def test_names_are_drawn_as_they_are(by: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """None is read as a formula, and a letter that the font lacks is no reason for a warning."""
    transfers = [
        ReportedTransfer(record(number, tags=(name,), key=f"{name}/f", receiver=name), name)
        for number, name in enumerate(["$^{$-$$", r"$^{$-$\frac{$", "$^{$-漢"])
    ]
    made = Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by=by)
    report_plot.save(made, tmp_path / "n.svg", UTC)
    said = texts(tmp_path / "n.svg")
    assert r"$^{$-$$, $^{$-$\frac{$, $^{$-漢, 2026-11-23" in said
    assert not recwarn.list


def test_exposures_are_as_high_as_the_report_says() -> None:
    """Each is a point at its time to the last object, in order, and the line of lateness is where it belongs."""
    made = night(5)
    _, _, groups = report_plot.drawn(made, UTC).axes
    sticks, *kinds = groups.collections
    heights = [stick[1][1] for stick in sticks.get_segments()]
    assert heights == [(group.figures.to_last_usec or 0) / 1e6 for group in made.groups]
    assert sorted(float(y) for kind in kinds for _, y in kind.get_offsets()) == sorted(heights)
    assert max(heights) > 14
    assert [line.get_ydata()[0] for line in groups.lines] == [10.0]


def test_the_axis_of_a_single_moment_has_seconds() -> None:
    """One exposure, or one file, is no reason to show years."""
    _, *over_time = report_plot.drawn(report(record(1)), UTC).axes
    assert [round(86_400 * (axes.get_xlim()[1] - axes.get_xlim()[0])) for axes in over_time] == [1, 1]


def test_many_exposures(tmp_path: Path) -> None:
    """They are counted by kind, and only the worst has its name."""
    report_plot.save(night(500, "$^{$"), tmp_path / "n.svg", UTC)
    said = texts(tmp_path / "n.svg")
    assert "in time: 498" in said
    assert "late: 1" in said
    assert "incomplete: 1" in said
    assert "$^{$_00002, 14 s" in said  # the worst, and no formula
    assert "$^{$_00000" not in said
    assert (tmp_path / "n.svg").stat().st_size < 500_000


def overlaps(made: Report) -> list[tuple[str, str]]:
    """Texts of the last chart that lie upon each other, or are cut by a line of a limit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = report_plot.drawn(made, UTC)
    FigureCanvasAgg(picture)
    picture.draw_without_rendering()
    axes = picture.axes[2]
    boxes = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
    lines = [(f"line {line.get_ydata()[0]:g}", line.get_window_extent()) for line in axes.lines]
    named = {text for text, _ in boxes if text.startswith(("late", "lost", "limit"))}
    assert named
    found = [
        (a, b) for n, (a, box) in enumerate(boxes) if a for b, other in boxes[n + 1 :] if b and box.overlaps(other)
    ]
    return found + [(a, b) for a, box in boxes if a in named for b, other in lines if box.x0 < other.x1]


def outage(exposures: int, bad: slice) -> Report:
    """Exposures of two seconds, and some of many minutes."""
    made = []
    for number in range(exposures):
        start_usec, tag = START_USEC + number * 40 * SECOND, f"exposure_{number:05}"
        usec = (700 - 40 * number) * SECOND if number in range(exposures)[bad] else 2 * SECOND
        made.append(record(number, tags=(tag,), start_usec=start_usec, total_usec=usec))
    return report(*made)


@pytest.mark.parametrize("exposures", [1, 3, 16, 200])
def test_no_words_lie_upon_others(exposures: int) -> None:
    """Neither times nor names of limits, whether the night is good or has an outage in it."""
    assert overlaps(outage(exposures, slice(0, 0))) == []
    assert overlaps(outage(exposures, slice(0, 12))) == []


@pytest.mark.parametrize("exposures", [16, 60])
def test_an_outage_does_not_flatten_the_night(exposures: int) -> None:
    """The axis is logarithmic and says so; without an outage it is not."""
    *_, good = report_plot.drawn(outage(exposures, slice(0, 0)), UTC).axes
    *_, bad = report_plot.drawn(outage(exposures, slice(3, 5)), UTC).axes
    assert (good.get_yscale(), good.get_ylabel()) == ("linear", "seconds")
    assert (bad.get_yscale(), bad.get_ylabel()) == ("log", "seconds, logarithmic")
    low, high = (bad.transData.transform((0, value))[1] for value in (bad.get_ylim()[0], bad.get_ylim()[1]))
    assert bad.transData.transform((0, 2))[1] - low > (high - low) / 20


@pytest.mark.parametrize(
    "records",
    [
        (record(1, tags=("$x_1^{$",)),),
        (record(1, total_usec=0, upload_usec=0, queue_usec=0),),
        (record(1, total_usec=604_800 * SECOND), record(2, total_usec=1)),
        (record(1), failed(2, total_usec=0, tags=("none stored",))),
        (record(1, tags=("\x1b[1m", "名前", "\udcff")),),
        tuple(record(n, start_usec=START_USEC + n * 86_400 * SECOND) for n in range(40)),
    ],
    ids=["mathematics", "no time", "a week", "no object", "characters", "days"],
)
@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_odd_nights(records: tuple[TransferRecord, ...], tmp_path: Path) -> None:
    """What a night may hold is drawn and breaks nothing; the two formats differ in how they draw letters."""
    for name in ("n.png", "n.svg") if records[0].tags != ("exposure-1",) else ("n.svg",):
        report_plot.save(report(*records), tmp_path / name, UTC)
        assert (tmp_path / name).stat().st_size > 10_000


def test_what_cannot_be_drawn_is_an_error(tmp_path: Path) -> None:
    """Nothing stored, and no place for the file, are each a line."""
    with pytest.raises(S3daemonError) as caught:
        report_plot.save(report(failed(1)), tmp_path / "n.png", UTC)
    assert caught.value.code == "NothingStored"
    with pytest.raises(S3daemonError, match="No such file or directory") as caught:
        report_plot.save(report(record(1)), tmp_path / "nowhere" / "n.png", UTC)
    assert caught.value.code == "NotWritable"


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(S3daemonError, match=r"s3daemon\[report\]") as caught:
        report_plot.save(report(record(1)), tmp_path / "n.png", UTC)
    assert caught.value.code == "NoPlotting"
