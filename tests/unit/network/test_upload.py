"""An upload's witness: it tells what arrived after the connection is gone, and nothing arrives after its end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from lab import env, processes
from lab.loopback import connected_pair, listening, read_to_the_end

from s3daemon.network.pacing import Pacer
from s3daemon.network.progress import Progress
from s3daemon.network.tcp import forget_unsent
from s3daemon.network.upload import Upload

SIZE = 512 * 1024


@dataclass
class FakeLane:
    """Open or not."""

    is_open: bool
    receiver: str = "192.0.2.1"
    pacer: Pacer = field(default_factory=lambda: Pacer(0))


class FakeTransport(asyncio.BaseTransport):
    """Knows its socket."""

    def __init__(self, sock: socket.socket | None) -> None:
        super().__init__({"socket": sock})


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection whose second end takes little before it reads."""
    with connected_pair() as pair:
        yield pair


def upload_of(size: int, *, warm: bool = True) -> Upload:
    lane: Any = FakeLane(is_open=warm)
    return Upload(lane, size)


def deliver(here: socket.socket, there: socket.socket, size: int) -> None:
    """Send so many bytes, and an answer back that carries their acknowledgement."""
    here.sendall(b"x" * size)
    assert len(there.recv(size)) == size
    there.sendall(b"y")
    assert here.recv(1) == b"y"


def test_warm_or_new() -> None:
    """The connection is what it was when the attempt began."""
    assert [upload_of(1, warm=warm).connection for warm in (True, False)] == ["warm", "new"]


def test_before_it_began_nothing_can_have_arrived() -> None:
    """Without a connection there is nothing to tell, whatever the size."""
    upload = upload_of(0)
    assert (upload.info(), upload.acked(), upload.may_have_arrived) == (None, 0, False)
    upload.close()


def test_a_transport_without_a_socket_tells_nothing() -> None:
    """Nor is there anything to tell of what is no socket."""
    upload = upload_of(0)
    upload.begin(FakeTransport(None))
    assert not upload.may_have_arrived


def test_only_bytes_of_this_upload_count(pair: tuple[socket.socket, socket.socket]) -> None:
    """What the connection carried before is not counted; all acknowledged means that it may have arrived."""
    here, there = pair
    for size in (999, 1000):
        upload = upload_of(1000)
        upload.begin(FakeTransport(here))
        assert not upload.may_have_arrived
        deliver(here, there, size)
        assert upload.acked() == size
        assert upload.may_have_arrived is (size == 1000)
        upload.close()


def test_it_tells_after_the_connection_was_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    """The descriptor of its own outlives the transport's."""
    here, there = pair
    upload = upload_of(1000)
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    here.close()
    assert upload.may_have_arrived
    upload.close()


def test_what_was_not_acknowledged_does_not_arrive_after_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """Once the witness is gone the peer gets a reset, and never all."""
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


def test_nor_after_a_crash() -> None:
    """The kernel does not go on delivering for a daemon that was killed."""
    code = (
        "import sys, socket, time; sys.path.insert(0, sys.argv[1])\n"
        "from test_upload import FakeTransport, upload_of\n"
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


def test_a_connection_that_has_nothing_due_is_left_as_it_was(pair: tuple[socket.socket, socket.socket]) -> None:
    """When all has arrived there is nothing to take back: the connection is kept, and ends without a reset."""
    here, there = pair
    upload = upload_of(1000)
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    upload.close()
    here.close()
    assert read_to_the_end(there) == (0, False)


def test_a_reset_does_not_acknowledge_what_was_read_last(pair: tuple[socket.socket, socket.socket]) -> None:
    """All sent, some of it acknowledged, then a reset: it may have arrived. Nothing acknowledged: it has not."""
    here, there = pair
    upload = upload_of(2000)
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    untouched = upload_of(1000)
    untouched.begin(FakeTransport(here))
    forget_unsent(there)
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    here.sendall(b"x" * 1000)
    assert len(there.recv(1000)) == 1000
    there.close()
    with pytest.raises(ConnectionResetError):
        here.recv(1)
    # The kernel may be quick to acknowledge, though it was asked not to be.
    assert upload.acked() in (1000, 2000)
    assert upload.may_have_arrived
    assert untouched.may_have_arrived is (untouched.acked() == 1000)
    upload.close()
    untouched.close()


def test_progress_is_what_is_acknowledged(pair: tuple[socket.socket, socket.socket]) -> None:
    """While it runs, and when it is closed: the socket is gone then, what arrived stays."""
    here, there = pair
    progress, lane = Progress(), FakeLane(is_open=True)
    upload = Upload(cast(Any, lane), SIZE, progress)
    assert progress.acked_bytes == 0
    upload.begin(FakeTransport(here))
    deliver(here, there, 1000)
    assert (progress.acked_bytes, progress.receivers) == (1000, ["192.0.2.1"])
    upload.close()
    assert progress.acked_bytes == 0
    small = Upload(cast(Any, lane), 500, progress)
    small.begin(FakeTransport(here))
    deliver(here, there, 700)
    assert progress.acked_bytes == 500
    small.close()
    assert progress.acked_bytes == 500
