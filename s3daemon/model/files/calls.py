"""Calls that may block on a file system. Files are opened in one thread, one after another; other calls have their own.

A thread for each file would cost more than opening it: each switch of threads waits for Python's lock and wakes the
event loop, so 23 files that were sent at once were open only after 30 ms. So one thread takes call after call, and
wakes the loop when none is left. When a call takes long, every call that waits behind it gets a thread of its own: a
file system that never answers delays only its own files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from s3daemon.clock import Clock
from s3daemon.errors import Code, FileError, is_caused_by, is_host_limit, one_line
from s3daemon.model.files.memory import Promptness
from s3daemon.model.files.turns import Turns

_T = TypeVar("_T")
_Call = tuple[asyncio.Future[Any], Callable[[], Any]]

#: `AT_ONCE` files are opened together, the next ones `ROUNDS` rounds of the event loop later: by then the first bytes
#: of their bodies have left.
AT_ONCE, ROUNDS = 4, 4
#: When no call has begun for this long, seconds, those that wait get threads. On a local disk a call takes 0.1 ms.
STUCK_S = 0.01
#: A call that got no descriptor is repeated for so long, and so often, seconds. A hook that waits gives up after 30 s.
OUTLAST_S, AGAIN_S = 10.0, 0.25
#: Likewise one that found what the kernel remembers of a path, where another host has put another file there. For an
#: open(2) of the path, the kernel itself would look the path up anew; for an `O_PATH` descriptor it does not.
_OUTDATED = frozenset({errno.ESTALE})


class FileCalls:
    """Carries out the calls of one event loop, in threads of its default executor.

    Attributes:
        turns: of the files that the loop opens.
        promptness: says whether they may be opened in the loop itself.
    """

    def __init__(self) -> None:
        self.turns = Turns(AT_ONCE, ROUNDS)
        self.promptness = Promptness()
        self._lock = threading.Lock()  # guards the three below
        self._waiting: deque[_Call] = deque()
        self._begun = 0
        self._worker: object = None  # the one that takes further calls
        self._results: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def run(self, call: Callable[[], _T]) -> asyncio.Future[_T]:
        """Begin a call, and return a future that gets its result or its exception."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        with self._lock:
            self._waiting.append((future, call))
            worker = None if self._worker else object()
            self._worker = worker or self._worker
        if worker:
            loop.run_in_executor(None, self._work, loop, worker)
        if self._timer is None:
            self._timer = loop.call_later(STUCK_S, self._check, loop, -1)
        return future

    def _check(self, loop: asyncio.AbstractEventLoop, begun_before: int) -> None:
        """Pass on what is done; where no call began since the last check, give the waiting ones threads."""
        self._pass_on()
        waiting: list[_Call] = []
        with self._lock:
            begun = self._begun
            if begun == begun_before:
                waiting = list(self._waiting)
                self._waiting.clear()
                self._worker = None  # the next call has another; this one ends after its call
            busy = self._worker is not None
        for call in waiting:
            loop.run_in_executor(None, self._carry_out_alone, loop, *call)
        self._timer = loop.call_later(STUCK_S, self._check, loop, begun) if busy else None

    def _work(self, loop: asyncio.AbstractEventLoop, worker: object) -> None:
        """Carry out calls until none waits, or another thread has taken over; in a thread."""
        while True:
            with self._lock:
                if self._worker is not worker:
                    break
                if not self._waiting:
                    self._worker = None
                    break
                future, call = self._waiting.popleft()
                self._begun += 1
            self._carry_out(future, call)
        self._wake(loop)

    def _carry_out(self, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
        try:
            self._results.append((future, call(), None))
        except BaseException as exc:
            self._results.append((future, None, exc))

    def _carry_out_alone(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], call: Callable[[], Any]
    ) -> None:
        self._carry_out(future, call)
        self._wake(loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
            loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        while self._results:
            future, result, error = self._results.popleft()
            if future.cancelled():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


_calls: WeakKeyDictionary[asyncio.AbstractEventLoop, FileCalls] = WeakKeyDictionary()


def file_calls() -> FileCalls:
    """Return the running loop's."""
    loop = asyncio.get_running_loop()
    if loop not in _calls:
        _calls[loop] = FileCalls()
    return _calls[loop]


async def call_in_time(call: Callable[[], _T], limit_s: float, path: str) -> _T:
    """Carry out a call in a thread of its own, and return at once what it returns: not after the files that are opened.

    Args:
        call: what to carry out.
        limit_s: how long it may take, seconds. The thread waits on; nobody waits for it.
        path: of the file in question.

    Raises:
        FileError: `ReadFailed`, it took longer.
        Exception: what `call` raised.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await asyncio.get_running_loop().run_in_executor(None, call)
    except TimeoutError as exc:
        text = f"{one_line(path)}: the file system did not answer for {limit_s:g} s"
        raise FileError(Code.READ_FAILED, text) from exc


async def outlast(
    call: Callable[[], Awaitable[_T]],
    clock: Clock = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> _T:
    """Return what `call` returns; repeat it while it fails for a limit of this host, or ESTALE, for `OUTLAST_S`.

    Args:
        call: what to carry out.
        clock: monotonic seconds.
        sleep: waits for so many seconds.

    Raises:
        Exception: what `call` raised for another reason, or at last.
    """
    until = clock() + OUTLAST_S
    while True:
        try:
            return await call()
        except Exception as exc:
            if clock() >= until or not (is_host_limit(exc) or is_caused_by(exc, _OUTDATED)):
                raise
        await sleep(AGAIN_S)
