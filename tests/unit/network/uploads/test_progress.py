"""Progress of uploads: what a body's descriptor tells after the connection is closed, what an attempt adds up to, and
when an upload counts as stalled."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import env, processes
from lab.loopback import connected_pair, listening, read_to_the_end

from s3daemon.network.rate.pacing import Pacer
from s3daemon.network.tcp import reset_on_close
from s3daemon.network.uploads.progress import Progress, StallWatch, Upload
from s3daemon.network.uploads.straggler import MoveHistory

SIZE = 512 * 1024


@dataclass
class FakeConnection:
    """A connection that is open or not."""

    is_open: bool
    address: str = "192.0.2.1"
    pacer: Pacer = field(default_factory=lambda: Pacer(0))
    aborted: int = 0

    def abort(self, transport: asyncio.BaseTransport | None) -> None:
        self.aborted += 1


class FakeTransport(asyncio.BaseTransport):
    """A transport that has a socket, or none."""

    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__({"socket": sock})


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection whose second end takes little before it reads."""
    with connected_pair() as pair:
        yield pair


def upload_of(size: int, *, is_open: bool = True, progress: Progress | None = None) -> Upload:
    connection: Any = FakeConnection(is_open=is_open)
    return Upload(connection, size, progress or Progress())


def deliver(here: socket.socket, there: socket.socket, size: int) -> None:
    """Send so many bytes, and an answer back that carries their acknowledgement."""
    here.sendall(b"x" * size)
    assert len(there.recv(size)) == size
    there.sendall(b"y")
    assert here.recv(1) == b"y"


@pytest.fixture
def progress() -> Progress:
    return Progress()


def test_a_connection_is_warm_or_new_as_the_upload_found_it() -> None:
    """An upload over an open connection finds it warm; one that has to connect, new."""
    assert [upload_of(1, is_open=is_open).connection_state for is_open in (True, False)] == ["warm", "new"]


def test_a_connection_was_stale_if_it_was_open_before_and_not_all_was_acknowledged(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Then a close of the idle connection may have met the first bytes on their way."""
    here, there = pair
    assert [upload_of(3, is_open=is_open).was_stale for is_open in (True, False)] == [True, False]
    upload, found = upload_of(3), []
    upload.begin(FakeTransport(here))
    for size in (1, 2):
        deliver(here, there, size)
        found.append(upload.was_stale)
    assert found == [True, False]
    upload.close()


def test_before_the_body_begins_nothing_can_have_arrived() -> None:
    """Without a connection nothing is known, whatever the size."""
    upload = upload_of(0)
    assert (upload.info(), upload.acked(), upload.may_have_arrived) == (None, 0, False)
    upload.close()


def test_without_a_socket_nothing_can_have_arrived() -> None:
    """A transport that has no socket any more carries no body."""
    upload = upload_of(0)
    upload.begin(FakeTransport(None))
    assert not upload.may_have_arrived


def test_only_bytes_of_this_upload_count(pair: tuple[socket.socket, socket.socket]) -> None:
    """What the connection carried before is not counted; when all is acknowledged the object may have arrived."""
    here, there = pair
    for size in (999, 1000):
        upload = upload_of(1000)
        upload.begin(FakeTransport(here))
        assert not upload.may_have_arrived
        deliver(here, there, size)
        assert upload.acked() == size
        assert upload.may_have_arrived is (size == 1000)
        upload.close()


def test_a_body_of_which_some_bytes_have_not_left_cannot_arrive(pair: tuple[socket.socket, socket.socket]) -> None:
    """What has left may, though it is not acknowledged yet."""
    here, _ = pair
    here.setblocking(False)
    upload = upload_of(10 * SIZE)
    was_sent = {"before it begins": upload.was_sent}
    upload.begin(FakeTransport(here))
    taken = here.send(b"x" * 10 * SIZE)
    was_sent["a part has left"] = upload.was_sent
    upload.size = min(taken, upload.acked()) or 1
    was_sent["all has left"] = upload.was_sent
    assert was_sent == {"before it begins": False, "a part has left": False, "all has left": True}
    upload.close()


def test_what_arrived_is_known_after_the_connection_was_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    """The upload's own descriptor outlives the transport's."""
    here, there = pair
    upload = upload_of(1000)
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    here.close()
    assert upload.may_have_arrived
    upload.close()


@pytest.mark.parametrize("aborted", [True, False])
def test_an_abort_ends_with_a_reset_though_all_was_acknowledged(
    pair: tuple[socket.socket, socket.socket], aborted: bool
) -> None:
    """The peer is notified by an error, also when it has not read the body yet; a kept connection ends politely."""
    here, there = pair
    upload = upload_of(10)
    transport = FakeTransport(here)
    upload.begin(transport)
    here.sendall(b"x" * 10)
    until = time.monotonic() + 10
    while not upload.may_have_arrived and time.monotonic() < until:
        time.sleep(0.01)  # a delayed acknowledgement
    assert upload.may_have_arrived
    if aborted:
        upload.abort(transport)
    here.close()
    upload.close()
    assert read_to_the_end(there)[1] is aborted


def test_what_was_not_acknowledged_does_not_arrive_after_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """When the upload is closed the peer gets a reset, and never the whole body."""
    here, there = pair
    upload = upload_of(SIZE)
    upload.begin(FakeTransport(here))
    here.setblocking(False)
    assert here.send(b"x" * SIZE) == SIZE, "the kernel took it"
    assert not upload.may_have_arrived
    here.close()
    upload.close()
    count, was_reset = read_to_the_end(there)
    assert was_reset
    assert count < SIZE


def test_nothing_arrives_after_a_crash() -> None:
    """The kernel does not go on delivering for a daemon that was killed."""
    code = (
        "import sys, socket, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_progress import FakeTransport, upload_of\n"
        f"here = socket.create_connection(('127.0.0.1', int(sys.argv[2]))); upload = upload_of({SIZE})\n"
        "upload.begin(FakeTransport(here)); here.setblocking(False)\n"
        f"print('handed over', here.send(b'x' * {SIZE}), flush=True); time.sleep(600)\n"
    )
    environ = env.clean_env(PYTHONPATH=f"{env.TREE}:{env.TREE / 'tests'}")
    with listening() as listener:
        arguments = (str(Path(__file__).resolve().parent), str(listener.getsockname()[1]))
        with processes.start(sys.executable, "-c", code, *arguments, env=environ) as sender:
            sender.wait_line(f"^handed over {SIZE}$")
            sender.stop(signal.SIGKILL)
        with listener.accept()[0] as there:
            count, was_reset = read_to_the_end(there)
    assert was_reset
    assert count < SIZE


def test_a_connection_with_nothing_outstanding_ends_without_a_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    """When all has arrived there is nothing to take back: the connection can be kept and closed in order."""
    here, there = pair
    upload = upload_of(1000)
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    upload.close()
    here.close()
    assert read_to_the_end(there) == (0, False)


def test_a_reset_does_not_acknowledge_what_was_read_last(pair: tuple[socket.socket, socket.socket]) -> None:
    """All sent, some of it acknowledged or nothing, then a reset: it may have arrived."""
    here, there = pair
    upload = upload_of(2000)
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    unacknowledged = upload_of(1000)
    unacknowledged.begin(FakeTransport(here))
    reset_on_close(there)
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    here.sendall(b"x" * 1000)
    assert len(there.recv(1000)) == 1000
    there.close()
    with pytest.raises(ConnectionResetError):
        here.recv(1)
    # The kernel may be quick to acknowledge, though it was asked not to be.
    assert upload.acked() in (1000, 2000)
    assert upload.may_have_arrived
    assert unacknowledged.may_have_arrived
    upload.close()
    unacknowledged.close()


def test_an_upload_counts_in_its_attempt(pair: tuple[socket.socket, socket.socket], progress: Progress) -> None:
    """While it runs, with what is acknowledged; once it is closed, only if it arrived whole."""
    here, there = pair
    upload = upload_of(SIZE, progress=progress)
    assert progress.acked_bytes == 0
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    assert (progress.acked_bytes, progress.addresses) == (1000, ["192.0.2.1"])
    upload.close()
    assert progress.acked_bytes == 0
    small = upload_of(500, progress=progress)
    small.begin(FakeTransport(here))
    deliver(here, there, 700)
    assert progress.acked_bytes == 500
    small.close()
    assert progress.acked_bytes == 500


@dataclass(eq=False)
class FakeUpload:
    """An upload of which so much is acknowledged."""

    size: int
    address: str = "192.0.2.1"
    got: int = 0
    is_aborted: bool = False

    def acked(self) -> int:
        return self.got


def begun(progress: Progress, *uploads: FakeUpload) -> list[Any]:
    """The uploads, after each began."""
    started: list[Any] = list(uploads)
    for upload in started:
        progress.begin(upload)
    return started


def test_progress_of_one_upload_never_passes_its_size(progress: Progress) -> None:
    """Headers and TLS are acknowledged too, but only the body counts."""
    assert (progress.acked_bytes, progress.addresses) == (0, [])
    (upload,) = begun(progress, FakeUpload(1000))
    upload.got = 400
    assert (progress.acked_bytes, progress.addresses) == (400, ["192.0.2.1"])
    upload.got = 1234
    assert progress.acked_bytes == 1000
    progress.end(upload)
    assert (progress.acked_bytes, progress.addresses) == (1000, ["192.0.2.1"])


def test_parts_add_up(progress: Progress) -> None:
    """Several at once, to several addresses; one that ended early is sent again and counts once."""
    parts = begun(progress, FakeUpload(1000), FakeUpload(1000, "192.0.2.2"), FakeUpload(500, "192.0.2.2"))
    parts[0].got, parts[1].got = 1100, 900
    assert progress.acked_bytes == 1900
    assert progress.addresses == ["192.0.2.1", "192.0.2.2"]
    progress.end(parts[0])
    progress.end(parts[1])
    assert progress.acked_bytes == 1000
    (again,) = begun(progress, FakeUpload(1000, got=1000))
    progress.end(again)
    progress.end(again)
    assert progress.acked_bytes == 2000


def test_a_body_that_was_moved_counts_once(progress: Progress) -> None:
    """Though all of it was acknowledged over the connection that it was moved away from."""
    (moved,) = begun(progress, FakeUpload(1000, got=1000, is_aborted=True))
    progress.end(moved)
    (again,) = begun(progress, FakeUpload(1000, got=1000))
    progress.end(again)
    assert progress.acked_bytes == 1000


def test_moves_of_all_bodies_add_up(progress: Progress) -> None:
    """Of a file in parts each may be moved."""
    assert progress.moves == 0
    progress.histories |= {0: MoveHistory(2), 1000: MoveHistory(1)}
    assert progress.moves == 3


def test_parts_of_an_earlier_attempt_count_as_acknowledged(progress: Progress) -> None:
    """They are in the store already."""
    progress.add_stored(3000)
    begun(progress, FakeUpload(1000, got=10))
    assert progress.acked_bytes == 3010


def test_an_upload_that_never_began_counts_nothing(progress: Progress) -> None:
    """Its end is no arrival."""
    never_begun: Any = FakeUpload(10, got=10)
    progress.end(never_begun)
    assert progress.acked_bytes == 0


def test_recent_rate(progress: Progress) -> None:
    """It is measured since the oldest of the last three samples, and is None before there is any."""
    (upload,) = begun(progress, FakeUpload(10_000))
    assert progress.recent_rate(5.0) is None
    progress.sample(10.0)
    assert progress.recent_rate(10.0) is None
    upload.got = 1000
    assert progress.recent_rate(12.0) == 500
    for now in (12.0, 14.0, 16.0):
        progress.sample(now)
    assert progress.recent_rate(17.0) == 0
    upload.got = 6000
    assert progress.recent_rate(17.0) == 1000


def test_a_file_without_an_answer(progress: Progress) -> None:
    """All of it is acknowledged, and was so when it was looked at before."""
    (upload,) = begun(progress, FakeUpload(1000, got=900))
    progress.sample(10.0)
    assert not progress.is_unanswered(1000, 12.0)
    upload.got = 1000
    assert not progress.is_unanswered(1000, 12.0), "it has only arrived"
    for now in (12.0, 14.0, 16.0):
        progress.sample(now)
    assert progress.is_unanswered(1000, 17.0)
    assert not progress.is_unanswered(5000, 17.0), "one part of several"


def test_a_part_that_was_lost_makes_no_negative_rate(progress: Progress) -> None:
    """What was acknowledged of it no longer counts; the rate is 0 then."""
    (upload,) = begun(progress, FakeUpload(1000, got=500))
    progress.sample(1.0)
    progress.end(upload)
    assert progress.recent_rate(2.0) == 0


def ticks_until_end(watch: StallWatch, acked: int, *, arrived: bool) -> int:
    """How many ticks without a change it takes."""
    return next(n for n in range(1, 10_000) if watch.tick(acked, arrived=arrived))


def test_a_stall_ends_after_its_limit() -> None:
    """Nothing acknowledged for ten seconds, in ticks of a quarter of a second; the first tick only remembers."""
    assert ticks_until_end(StallWatch(10, 60, 0.25), 5, arrived=False) == 41


def test_an_answer_has_its_own_limit() -> None:
    """Once all has arrived, the store may take for its answer as long as that limit says, however long or short."""
    assert ticks_until_end(StallWatch(10, 60, 0.25), 5, arrived=True) == 241
    assert ticks_until_end(StallWatch(10, 1, 0.25), 5, arrived=True) == 5


def test_the_time_for_the_answer_begins_with_the_arrival() -> None:
    """Waiting for the last acknowledgement is not counted as waiting for the answer."""
    watch = StallWatch(10, 60, 0.25)
    assert not any(watch.tick(5, arrived=False) for _ in range(40))
    assert ticks_until_end(watch, 5, arrived=True) == 241


def test_an_upload_that_waits_for_its_share_of_the_limit_is_not_stalled() -> None:
    """At 1 kB/s Linux may send 64 KiB at once and then nothing for a minute; the limit before the last rise counts."""
    slow, raised = StallWatch(10, 60, 0.25), StallWatch(10, 60, 0.25)
    assert not any(slow.tick(5, arrived=False, pacing_limit=1000) for _ in range(4 * 75))
    assert any(slow.tick(5, arrived=False, pacing_limit=1000) for _ in range(4))
    assert not any(raised.tick(5, arrived=False, pacing_limit=1000 * (1 + tick)) for tick in range(4 * 75))
    assert sum(1 for _ in iter(lambda: raised.tick(6, arrived=False, pacing_limit=1 << 20), True)) == 40
    assert sum(1 for _ in iter(lambda: raised.tick(6, arrived=True, pacing_limit=1000), True)) == 240


def test_a_limit_below_a_tick_is_a_tick() -> None:
    """There is always a second look."""
    assert ticks_until_end(StallWatch(0.01, 0.01, 0.25), 5, arrived=False) == 2


@given(st.lists(st.integers(0, 39), min_size=1, max_size=20))
def test_an_upload_that_moves_is_never_stalled(pauses: list[int]) -> None:
    """One byte acknowledged within every limit is enough, for as long as it takes."""
    watch = StallWatch(10, 60, 0.25)
    for acked, pause in enumerate(pauses):
        assert not any(watch.tick(acked, arrived=False) for _ in range(1 + pause))
