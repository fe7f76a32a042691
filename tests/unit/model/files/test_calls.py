"""Calls to file systems share a thread, and wait for none that is stuck."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from lab.keeping import Clock
from lab.sending import in_loop

import s3daemon.model.files.calls
from s3daemon.errors import FileError
from s3daemon.model.files.calls import (
    OUTLAST_S,
    FileCalls,
    call_in_time,
    file_calls,
    outlast,
)


def count_wakes(monkeypatch: Any) -> list[object]:
    """The callbacks that threads pass to the running loop from now on."""
    loop, found = asyncio.get_running_loop(), list[object]()
    call_soon = loop.call_soon_threadsafe

    def counted(callback: Callable[..., object], *args: Any, **kwargs: Any) -> asyncio.Handle:
        found.append(callback)
        return call_soon(callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    return found


async def within(seconds: float, *calls: asyncio.Future[Any]) -> list[Any]:
    """What they return."""
    async with asyncio.timeout(seconds):
        return await asyncio.gather(*calls)


def test_calls_share_a_thread_and_wake_the_loop_together(monkeypatch: Any) -> None:
    """In their order. A wake for the end of the thread's work, and one for the pool's own future."""

    @in_loop
    async def test() -> None:
        calls, wakes, begin = FileCalls(), count_wakes(monkeypatch), threading.Event()
        first, *others = calls.run(begin.wait), *(calls.run(threading.get_ident) for _ in range(50))
        begin.set()
        _, *threads = await within(5, first, *others)
        assert len(set(threads)) == 1
        assert threads[0] != threading.get_ident()
        assert len(wakes) <= 2

    test()


@in_loop
async def test_a_call_that_is_stuck_delays_no_other() -> None:
    """Neither those behind it, nor those before it, nor later ones; and its own result comes when it ends."""
    calls, answers = FileCalls(), threading.Event()
    before = calls.run(lambda: "before")
    stuck = [calls.run(answers.wait) for _ in range(3)]
    behind = [calls.run(lambda: "behind") for _ in range(3)]
    try:
        assert await within(5, before, *behind) == ["before", *["behind"] * 3]
        assert await within(5, calls.run(lambda: "later")) == ["later"]
        assert not any(call.done() for call in stuck)
    finally:
        answers.set()
    assert await within(5, *stuck) == [True] * 3


@in_loop
async def test_many_stuck_calls_are_passed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a thread of its own, so that a call behind a hundred of them does not wait for one after the other.

    That would take 5 s.
    """
    monkeypatch.setattr(s3daemon.model.files.calls, "STUCK_S", 0.05)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(110))
    calls, answers = FileCalls(), threading.Event()
    stuck = [calls.run(answers.wait) for _ in range(100)]
    try:
        assert await within(2.5, calls.run(lambda: "behind")) == ["behind"]
    finally:
        answers.set()
    await within(5, *stuck)


@in_loop
async def test_an_error_is_its_caller_s() -> None:
    """The calls behind it are carried out."""
    failing, behind = file_calls().run(lambda: 1 // 0), file_calls().run(lambda: "behind")
    assert await within(5, behind) == ["behind"]
    assert isinstance(failing.exception(), ZeroDivisionError)


@in_loop
async def test_a_call_that_takes_too_long() -> None:
    """Its caller goes on with an error of the file; one that is in time has its result, or its own error."""
    answers = threading.Event()
    try:
        with pytest.raises(FileError, match=r"^/data/f: the file system did not answer for 0\.05 s$") as error:
            await call_in_time(answers.wait, 0.05, "/data/f")
    finally:
        answers.set()
    assert error.value.code == "ReadFailed"
    assert await call_in_time(lambda: 1, 5, "/data/f") == 1
    with pytest.raises(ZeroDivisionError):
        await call_in_time(lambda: 1 // 0, 5, "/data/f")


@in_loop
async def test_a_call_with_a_limit_waits_for_no_other() -> None:
    """The last check before a client's answer is not behind the files that are opened."""
    begin = threading.Event()
    opening = [file_calls().run(begin.wait), *(file_calls().run(lambda: True) for _ in range(100))]
    try:
        assert await call_in_time(lambda: 1, 5, "/data/f") == 1
        assert not opening[0].done()
    finally:
        begin.set()
    await within(5, *opening)


@in_loop
async def test_a_caller_that_waits_no_longer() -> None:
    """Its call is carried out, and its result dropped."""
    begin, done = threading.Event(), threading.Event()
    file_calls().run(begin.wait)
    left = file_calls().run(done.set)
    left.cancel()
    begin.set()
    await within(5, file_calls().run(lambda: None))
    assert done.is_set()


def test_a_loop_that_ends_leaves_nothing() -> None:
    """What is stuck when it ends finds no loop; and the calls of one loop are not another's."""
    begin, ended = threading.Event(), threading.Event()

    def be_stuck() -> None:
        begin.wait()
        ended.set()

    async def leave() -> None:
        file_calls().run(be_stuck)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    begin.set()
    assert ended.wait(5)
    del loop
    gc.collect()
    assert asyncio.run(_answer()) == "answer"


async def _answer() -> str:
    return await file_calls().run(lambda: "answer")


NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")
STALE = OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize(
    ("failures", "error", "expected"),
    [
        (0, NO_DESCRIPTOR, "done"),
        (9, NO_DESCRIPTOR, "done"),
        (9999, NO_DESCRIPTOR, "Too many open files"),
        (9, STALE, "done"),
        (1, ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
    ],
    ids=["none", "passing", "lasting", "stale", "another"],
)
@in_loop
async def test_what_may_pass_is_retried_for_a_while(failures: int, error: OSError, expected: str) -> None:
    """Another error is raised at once."""
    clock, calls = Clock(), 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        if calls <= failures:
            raise error
        return "done"

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    began = clock.now
    try:
        said = await outlast(call, clock, sleep)
    except OSError as exc:
        said = exc.strerror or ""
    assert said == expected
    assert calls <= failures + 1
    assert clock.now - began <= OUTLAST_S + 1
