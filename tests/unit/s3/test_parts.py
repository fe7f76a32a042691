"""Parts: large enough that there are not too many, and so few at a time that no other transfer has to wait."""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path

import pytest
from fake_sender import FakeSender
from hypothesis import given
from hypothesis import strategies as st
from lab.sending import a_file, failure, in_loop, settings_for, transfer_of

from s3daemon.errors import AttemptError
from s3daemon.model.files.source import Source
from s3daemon.model.request import Destination
from s3daemon.network.rate.pacing import Pacer
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.parts import (
    MAX_PARTS,
    LargeFile,
    PartSender,
    goes_in_parts,
    part_bytes,
    parts_at_once,
    parts_under_rate,
)
from s3daemon.spool.open_uploads import MultipartUpload, OpenUpload, OpenUploads

MIB, GIB = 1 << 20, 1 << 30


@given(st.integers(1, 50_000 * GIB), st.integers(5 * MIB, 5 * GIB))
def test_there_are_never_too_many_parts(size: int, wanted: int) -> None:
    """Parts have the size of the setting, unless S3's limit on their number makes them larger."""
    chosen = part_bytes(size, wanted)
    assert -(-size // chosen) <= MAX_PARTS
    assert chosen == wanted or (chosen > wanted and -(-size // wanted) > MAX_PARTS and chosen % MIB == 0)


@pytest.mark.parametrize(
    ("size", "threshold", "part", "expected"),
    [
        (100 * MIB, 100 * MIB, 64 * MIB, False),
        (100 * MIB + 1, 100 * MIB, 64 * MIB, True),
        (20 * MIB, 5 * MIB, 64 * MIB, False),
        (64 * MIB + 1, 5 * MIB, 64 * MIB, True),
    ],
)
def test_which_files_go_in_parts(size: int, threshold: int, part: int, expected: bool) -> None:
    """Files larger than the threshold do, unless one part would hold all of the file."""
    settings = settings_for("http://store", multipart_threshold_bytes=threshold, part_size_bytes=part)
    assert goes_in_parts(size, settings) is expected


@pytest.mark.parametrize(
    ("count", "at_once"), [(1, 1), (2, 2), (12, 12), (13, 7), (16, 8), (24, 12), (32, 11), (10_000, 12)]
)
def test_rounds_are_of_equal_width(count: int, at_once: int) -> None:
    """At most half of the connections, and no last round of a few parts that leave the link half empty."""
    assert parts_at_once(count, usable=25, files=1) == at_once


@pytest.mark.parametrize(("files", "at_once"), [(1, 12), (2, 6), (4, 3), (12, 1), (25, 1)])
def test_several_files_share_evenly(files: int, at_once: int) -> None:
    """Half of the connections are divided among them, and each file gets at least one."""
    assert parts_at_once(10_000, usable=25, files=files) == at_once


@pytest.mark.parametrize(("usable", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (1000, 500)])
def test_of_few_connections_a_file_gets_one(usable: int, at_once: int) -> None:
    """Half of the connections, rounded down, but at least one."""
    assert parts_at_once(10_000, usable=usable, files=1) == at_once


@pytest.mark.parametrize(
    ("part", "rate", "rtt_s", "most"),
    [
        (64 * MIB, 0, 0.2, math.inf),
        (5 * MIB, 50_000_000, 0.0005, 2),
        (5 * MIB, 300_000_000, 0.0005, 14),
        (64 * MIB, 50_000_000, 0.0005, 2),
        (64 * MIB, 1_000_000_000, 0.0005, 3),
        (5 * MIB, 50_000_000, 0.2, 4),
        (5 * MIB, 100_000_000, 0.2, 9),
        (64 * MIB, 100_000_000, 0.2, 3),
        (64 * MIB, 1_000_000_000, 0.2, 25),
    ],
)
def test_parts_under_a_rate(part: int, rate: int, rtt_s: float, most: float) -> None:
    """No more are in flight than are sent in a few seconds, or than it takes to fill the link; never one alone."""
    assert parts_under_rate(part, rate, rtt_s) == most


@pytest.mark.parametrize(
    ("count", "files", "most", "at_once"), [(10, 1, 2, 2), (10, 1, 4, 4), (10, 3, 2, 1), (16, 1, 25, 8), (16, 2, 7, 3)]
)
def test_a_rate_lowers_what_a_file_may_have(count: int, files: int, most: float, at_once: int) -> None:
    """All files share what the rate allows, and no file has more than it had without one."""
    assert parts_at_once(count, usable=25, files=files, most=most) == at_once


class Upload:
    """A file of six parts, its upload, and a sender that takes the parts."""

    def __init__(self, path: Path) -> None:
        self.source = Source.open(os.fspath(a_file(path, 60)))
        upload = MultipartUpload("id", "http://store", "transfer", Destination("bucket", "key"), 60, "mark", 10)
        self.open_upload = OpenUpload(upload)
        self.sender = FakeSender()
        self.parts = PartSender(self.sender)

    async def send(self) -> list[str]:
        """Send the parts; the ETags in the order of their arrival."""
        with self.parts.counted():
            file = LargeFile(transfer_of(self.source), self.source, OpenUploads(), (), Progress())
            sent = await self.parts.send(file, self.open_upload)
        return [body.etag for body in sent]


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    return Upload(tmp_path / "file")


@in_loop
async def test_only_parts_that_the_store_lacks_are_sent(upload: Upload) -> None:
    """A part with a known ETag is not sent again, and each that is sent is noted with its ETag."""
    upload.open_upload.etags = {2: "etag-2", 5: "etag-5"}
    assert sorted(await upload.send()) == ["etag-1", "etag-3", "etag-4", "etag-6"]
    assert upload.open_upload.etags == {number: f"etag-{number}" for number in range(1, 7)}


@pytest.mark.parametrize(("available", "at_once"), [(0, 1), (1, 2), (12, 6)])
@in_loop
async def test_a_part_more_only_over_a_connection_that_is_available(
    tmp_path: Path, available: int, at_once: int
) -> None:
    """While other transfers use the connections, a file keeps to its one; else it gets what is available."""
    upload = Upload(tmp_path / "file")
    upload.sender.pool.available_for_parts = available
    await upload.send()
    assert upload.sender.most_at_once == at_once


@in_loop
async def test_a_round_is_no_wider_at_its_end(upload: Upload) -> None:
    """With half of eight connections six parts go three at a time, also when only four of them are left."""
    upload.sender.pool.usable = 8
    upload.sender.later_s = 0.002
    await upload.send()
    assert upload.sender.most_at_once == 3


@in_loop
async def test_few_parts_at_a_time_under_a_rate_and_the_first_ones_first(upload: Upload) -> None:
    """What a crash costs is what is in flight: two parts, and all before them are stored."""
    upload.sender.pool.pacer = Pacer(80)  # a part of 10 bytes in a second
    arrived = await upload.send()
    assert [sorted(arrived[at : at + 2]) for at in (0, 2, 4)] == [[f"etag-{n}", f"etag-{n + 1}"] for n in (1, 3, 5)]
    assert upload.sender.most_at_once == 2


@in_loop
async def test_parts_in_flight_are_finished_when_one_fails(upload: Upload) -> None:
    """The first error is raised once all that is in flight is finished; no further part is started."""
    upload.sender.pool.available_for_parts = 2
    upload.sender.errors = {2: [AttemptError("SlowDown", "slow", status=503)]}
    error = await failure(upload.send())
    assert error.code == "SlowDown"
    assert upload.open_upload.etags.keys() == {1, 3}
    assert not upload.open_upload.abandoned


@in_loop
async def test_a_stale_connection_costs_no_attempt(upload: Upload) -> None:
    """The part is sent again, at most once for each connection there is."""
    stale = AttemptError("StaleConnection", "closed")
    upload.sender.errors = {1: [stale] * 3}
    assert "etag-1" in await upload.send()
    upload.open_upload.etags.clear()
    upload.sender.errors = {1: [stale] * (upload.sender.pool.limit + 1)}
    assert (await failure(upload.send())).code == "StaleConnection"


@in_loop
async def test_a_part_over_a_slow_connection_is_sent_again_and_no_other(upload: Upload) -> None:
    """How often, the sender decides; it costs no attempt."""
    upload.sender.errors = {2: [AttemptError("SlowConnection", "slow")] * 3}
    assert sorted(await upload.send()) == [f"etag-{n}" for n in range(1, 7)]
    assert sorted(number for number, _, _ in upload.sender.sent) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("code", ["NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall"])
@in_loop
async def test_an_unusable_upload_is_abandoned(tmp_path: Path, code: str) -> None:
    """The attempt ends at once, without waiting for parts in flight."""
    upload = Upload(tmp_path / "file")
    upload.sender.errors = {1: [AttemptError(code, "no", status=404)]}
    assert (await failure(upload.send())).code == code
    assert upload.open_upload.abandoned


@in_loop
async def test_a_part_without_an_etag_does_not_count(upload: Upload) -> None:
    """It could not be named in the completion."""
    upload.sender.etags = {3: ""}
    assert (await failure(upload.send())).code == "BadAnswer"
    assert 3 not in upload.open_upload.etags


@in_loop
async def test_a_cancelled_attempt_cancels_its_parts(upload: Upload) -> None:
    """No part goes on after the attempt has ended."""
    upload.sender.hold = asyncio.Event()
    sending = asyncio.create_task(upload.send())
    while not upload.sender.in_flight:
        await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait({sending})
    assert (sending.cancelled(), upload.sender.in_flight) == (True, 0)
