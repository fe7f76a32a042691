"""Fakes of the uploader's collaborators, and an event loop that does not wait for timers."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import select
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Concatenate, ParamSpec, TypeVar

from fake_host import settings_for
from lab.sending import without_first

from s3daemon.clock import ActiveClock
from s3daemon.config.settings import SettingsHolder
from s3daemon.control.operations import Operations
from s3daemon.delivery.attempt import Attempts
from s3daemon.delivery.intake import Intake, Ticket
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.delivery.uploader import Uploader
from s3daemon.errors import AttemptError, FileError, S3daemonError, SpoolError
from s3daemon.http.figures import Figure, present
from s3daemon.http.metrics import Metrics
from s3daemon.journal import Journal
from s3daemon.model.exposure import Exposures
from s3daemon.model.files.source import Source
from s3daemon.model.record import AttemptEnd, Field, MessageId, TransferRecord
from s3daemon.model.request import Destination, FileState, Request, Transfer
from s3daemon.network.addresses import Limited
from s3daemon.network.rate.bandwidth import Limit, Origin
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.endpoint import Start
from s3daemon.s3.store import LookupResult, Store, Stored
from s3daemon.spool.open_uploads import OpenUploads
from s3daemon.spool.rows import Entry
from s3daemon.spool.spool import Spool
from s3daemon.systemd.notify import Notifier

P = ParamSpec("P")
T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: when no descriptor is ready, the time that it would have waited is counted as passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "the loop would wait for ever"
            self.passed += timeout
        return ready


class FlyingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time leaps from timer to timer. Nothing in it may use a thread."""

    def __init__(self) -> None:
        self._flight = _JumpingSelector()
        super().__init__(self._flight)

    def time(self) -> float:
        return 1000.0 + self._flight.passed

    def run_in_executor(self, executor: object, call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(call(*args))
        except S3daemonError as exc:
            future.set_exception(exc)
        return future


def fly(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` in a FlyingLoop."""
    with asyncio.Runner(loop_factory=FlyingLoop) as runner:
        runner.run(main())


def flying(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Decorate an async test: it runs in a FlyingLoop."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        fly(lambda: test(*args, **kwargs))

    return run


def flying_with(
    make: Callable[..., T], **options: Any
) -> Callable[[Callable[Concatenate[T, P], Coroutine[Any, Any, None]]], Callable[P, None]]:
    """Decorate an async test: it runs in a FlyingLoop, and its first argument is `make(**options)`, made there.

    If that has a method `close`, it is called at the end.
    """

    def decorate(test: Callable[Concatenate[T, P], Coroutine[Any, Any, None]]) -> Callable[P, None]:
        async def with_made(*args: P.args, **kwargs: P.kwargs) -> None:
            made = make(**options)
            with closing(made) if hasattr(made, "close") else nullcontext():
                await test(made, *args, **kwargs)

        return without_first(flying(with_made), test)

    return decorate


# A fake is of its real class, so that mypy compares their methods; what it leaves out fails for want of a member.


class FakeSpool(Spool):
    """Rows in memory; refuses new ones while `full`."""

    fault = ""
    is_refusing = False

    def __init__(self) -> None:
        self.rows: dict[str, Entry] = {}
        self.open_uploads = OpenUploads()
        self.failed: dict[str, tuple[str, str]] = {}
        self.failures: dict[str, Entry] = {}
        self.started: list[str] = []
        self.full = False
        self.last_seq = 0
        self.commit: asyncio.Event | None = None

    async def add(self, transfer: Transfer, active_now_s: float, *, attempt_started: bool) -> int:
        if self.commit is not None:
            await self.commit.wait()
        if self.full:
            raise SpoolError("SpoolFull", "no space")
        self.last_seq += 1
        self.rows[transfer.id] = Entry(self.last_seq, transfer, active_now_s, attempt_started=attempt_started)
        return self.last_seq

    async def save_join(self, transfer: Transfer, *, file_changed: bool = False) -> None:
        changed = {"sent_etag": "", "file_changed": True} if file_changed else {}
        self._alter(transfer.id, transfer=transfer, **changed)

    async def start_attempt(self, transfer: Transfer, *, file_changed: bool = False) -> None:
        self.started.append(transfer.id)
        self._alter(transfer.id, transfer=transfer, attempt_started=True, sent_etag="", file_changed=file_changed)

    def record_attempt(
        self, transfer_id: str, attempts: int, *, attempt_started: bool, code: str, text: str, sent_etag: str = ""
    ) -> None:
        state = {"attempt_started": attempt_started, "sent_etag": sent_etag}
        self._alter(transfer_id, attempts=attempts, code=code, text=text, **state)

    def _alter(self, transfer_id: str, **columns: Any) -> None:
        if transfer_id in self.rows:
            self.rows[transfer_id] = replace(self.rows[transfer_id], **columns)

    def clear_failures(self, destination: Destination, before: int) -> None:
        for entry in [entry for entry in self.failures.values() if entry.seq < before]:
            if entry.transfer.destination == destination:
                del self.failures[entry.transfer.id], self.failed[entry.transfer.id]

    def remove(self, transfer_id: str, stored: TransferRecord | None = None) -> None:
        self.rows.pop(transfer_id, None)

    async def fail(self, transfer_id: str, attempts: int, code: str, text: str, active_now_s: float) -> None:
        self.failed[transfer_id] = (code, text)
        if (entry := self.rows.pop(transfer_id, None)) is not None:
            self.failures[transfer_id] = replace(entry, attempts=attempts, code=code, text=text, failed=True)

    def failed_entries(self) -> list[Entry]:
        return list(self.failures.values())

    async def retry(self, ids: Iterable[str], active_now_s: float) -> tuple[set[str], SpoolError | None]:
        found = {id_ for id_ in ids if id_ in self.failures or id_ in self.rows}
        for id_ in found & self.failures.keys():
            self.failed.pop(id_)
            self.rows[id_] = replace(self.failures.pop(id_), failed=False, accepted_active_s=active_now_s)
        return found, None


class ArrivedError(AttemptError):
    """The failure of an attempt whose object is stored all the same."""


@dataclass
class FakeStore(Store):
    """Stores in memory.

    Args:
        answer: called for each PUT: returns the error to raise, or None to store the object. An ArrivedError is
            raised although the object is stored.
        neutral: called for each neutral request: returns the error to raise, or None to accept it.
        seconds: how long each request takes.
        objects: the id of the transfer stored last, by destination.
        puts: time and transfer id of each PUT.
        avoided: the addresses that each PUT was to avoid.
        finds: transfer id of each lookup.
        ever: ids of all transfers that were ever stored.
        in_flight: PUTs now.
        most: of them at once so far.
        url: of the endpoint.
    """

    answer: Callable[[Transfer], S3daemonError | None] = lambda _: None
    neutral: Callable[[], AttemptError | None] = lambda: AttemptError("NoAnswer", "not a store's")
    seconds: float = 0.1
    objects: dict[Destination, str] = field(default_factory=dict)
    puts: list[tuple[float, str]] = field(default_factory=list)
    avoided: list[set[str]] = field(default_factory=list)
    finds: list[str] = field(default_factory=list)
    ever: set[str] = field(default_factory=set)
    in_flight: int = 0
    most: int = 0
    url: str = "http://store"

    async def put(
        self,
        transfer: Transfer,
        source: Source,
        open_uploads: OpenUploads | None = None,
        failed_addresses: Collection[str] = (),
        progress: Progress | None = None,
        *,
        on_sent: Callable[[str], None] = lambda _: None,
    ) -> Stored:
        self.avoided.append(set(failed_addresses))
        self.puts.append((asyncio.get_running_loop().time(), transfer.id))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        error = self.answer(transfer)
        if error is not None:
            if isinstance(error, ArrivedError):
                self._keep(transfer)
            raise error
        self._keep(transfer)
        return Stored(etag="", size=source.state.size, address="of the store")

    async def ask_neutrally(self) -> None:
        await asyncio.sleep(self.seconds)
        if (error := self.neutral()) is not None:
            raise error

    def _keep(self, transfer: Transfer) -> None:
        self.objects[transfer.destination] = transfer.id
        self.ever.add(transfer.id)

    async def find(
        self,
        transfer: Transfer,
        failed_addresses: Collection[str] = (),
        *,
        expected: str = "",
        source: Source | None = None,
    ) -> Stored | LookupResult:
        self.finds.append(transfer.id)
        await asyncio.sleep(self.seconds)
        if self.objects.get(transfer.destination) == transfer.id:
            return Stored(etag="", size=transfer.file_state.size)
        return LookupResult.NOT_FOUND


class FakeJournal(Journal):
    """Records and entries in memory."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.entries: list[dict[str, Any]] = []

    def write(self, fields: Sequence[Field], done: Callable[[], None] | None = None) -> bool:
        self.entries.append(dict(fields))
        if done is not None:
            done()
        return True

    def of(self, kind: MessageId) -> list[dict[str, Any]]:
        """Return the entries of a kind."""
        return [entry for entry in self.entries if entry["MESSAGE_ID"] == kind]

    def record(self, record: Any, done: Callable[[], None] | None = None) -> bool:
        self.records.append(record)
        if done is not None:
            done()
        return True


class FakeNotifier(Notifier):
    """Keeps copies of the connections, as systemd does, and says whether it `works`."""

    def __init__(self, *, works: bool = True) -> None:
        self._copies: dict[str, int] = {}
        self.works = works

    @property
    def kept(self) -> list[str]:
        """The names of what it keeps; a connection that both sides have closed it drops by itself."""
        poll = select.poll()
        for copy in self._copies.values():
            poll.register(copy, 0)
        closed = dict(poll.poll(0))
        for name in [name for name, copy in self._copies.items() if copy in closed]:
            self.forget(name)
        return list(self._copies)

    def store(self, name: str, sock: socket.socket) -> bool:
        if self.works and name not in self._copies:
            self._copies[name] = os.dup(sock.fileno())
        return self.works

    def forget(self, name: str) -> None:
        if name in self._copies:
            os.close(self._copies.pop(name))

    def next_bytes(self) -> bytes:
        """What is there to read of the only connection that is kept."""
        (copy,) = self._copies.values()
        with socket.socket(fileno=os.dup(copy)) as sock:
            return sock.recv(1000, socket.MSG_PEEK)

    def __del__(self) -> None:
        for name in list(self._copies):
            self.forget(name)


class FakeFiles:
    """A file system that knows sizes; missing files raise."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.missing: set[str] = set()

    def open(self, path: str, roots: object = (), closed: object = ()) -> Source:
        if path in self.missing:
            raise FileError("NoSuchFile", f"{path}: no such file")
        size = self.sizes.get(path, 3000)
        return Source(path, -1, FileState(size, 1, 1, 1), b"")


class House:
    """An uploader and an intake with fake collaborators, inside a running FlyingLoop.

    Args:
        spool: kept from another house, or a real one; else a new FakeSpool.
        store: kept from another house; else a new FakeStore.
        journal: another one than a new FakeJournal.
        start: runs the attempts; else nobody watches them.
        changes: settings by variable.
    """

    def __init__(
        self,
        *,
        spool: Any = None,
        store: FakeStore | None = None,
        journal: Any = None,
        start: Start | None = None,
        **changes: str,
    ) -> None:
        self.settings = settings_for("http://store", **changes)
        self.holder = SettingsHolder(self.settings)
        self.loop = asyncio.get_running_loop()
        self.spool = FakeSpool() if spool is None else spool
        self.store = FakeStore() if store is None else store
        self.journal, self.files = FakeJournal() if journal is None else journal, FakeFiles()
        clock = self.loop.time
        self.wall_offset = 1e9
        self.attempts = Attempts(self.holder, self.spool, lambda: self.store, self.files.open, clock)
        self.uploader = Uploader(
            self.holder,
            self.spool,
            self.attempts,
            self.journal,
            ActiveClock(0.0, clock),
            ask=lambda: self.store.ask_neutrally(),
            clock=clock,
            wall=self.wall,
            rng=random.Random(1),
            start=start or (lambda name, work: self.loop.create_task(work, name=name)),
        )
        last_seq = self.spool.last_seq
        self.intake = Intake(self.holder, self.uploader, self.spool, last_seq, opener=self.files.open, wall=self.wall)

    def wall(self) -> float:
        return self.loop.time() + self.wall_offset

    def request(self, file: str = "/f", key: str = "k", **more: Any) -> Request:
        return Request(file, Destination("bucket", key), **more)

    def queued(self, ticket: Ticket) -> QueuedTransfer:
        """The transfer of a ticket, which is not over."""
        found = self.uploader.schedule.get(ticket.id)
        assert found is not None
        return found


def away(_: Transfer) -> AttemptError:
    """Answer as an endpoint that refuses connections."""
    return AttemptError("ConnectionFailed", "refused")


class Pool:
    """Connections to two addresses, one of them disabled."""

    open_count, opened, limit = 3, 7, 8
    small_request = "GET"
    certificates = SimpleNamespace(expiry_s=1_800_000_000)
    addresses = SimpleNamespace(
        unexpectedly_disabled=["192.0.2.2"],
        unreachable="",
        limited={"192.0.2.2": Limited("refused", 9.0, 1.0)},
    )
    bandwidth = SimpleNamespace(limit=Limit(994_000_000, Origin.FOUND))

    def idle(self) -> list[Any]:
        return [self, self]

    def open_per_address(self) -> Counter[str]:
        return Counter({"192.0.2.1": 3})

    is_open = True


def operations_of(house: House, spool: Any, exposures: Exposures) -> Operations:
    """Return a house's operations, with two clients of the line protocol."""
    pool: Any = Pool()
    return Operations(
        house.holder,
        house.uploader,
        spool,
        lambda: pool,
        exposures=exposures,
        clients=lambda: 2,
        wall=house.wall,
    )


def figures_of(house: House, operations: Operations) -> Sequence[Figure]:
    """Return a house's metrics of the present state, with five clients of HTTP."""
    pool: Any = Pool()
    return present(operations, house.uploader, pool, refused={"NotReadable": 3}, http_clients=5)


def exposition() -> bytes:
    """Return what Prometheus reads of a house: every metric."""
    found: list[bytes] = []

    async def expose() -> None:
        house = House()
        operations = operations_of(house, house.spool, Exposures())
        made = Metrics(lambda: figures_of(house, operations))
        made.see_attempt(AttemptEnd(code="SlowDown", status=503, receiver="192.0.2.1", again=True))
        found.append(made.expose()[0])

    fly(expose)
    return found[0]
