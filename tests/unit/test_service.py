"""The supervisor: a background task that dies ends the service; one that returns or is cancelled does not."""

from __future__ import annotations

import asyncio
import threading

import pytest
from lab.sending import in_loop

from s3daemon.service import FILE_THREADS, Supervisor, Threads


async def forever() -> None:
    await asyncio.Event().wait()


async def die() -> None:
    raise ValueError("something unexpected")


async def finish() -> None:
    pass


@in_loop
async def test_a_task_that_dies_ends_the_wait_with_its_reason_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor()
    supervisor.start("the watchdog", forever())
    supervisor.start("the janitor", die())
    async with asyncio.timeout(10):
        await supervisor.wait(asyncio.Event())
    assert supervisor.died
    await supervisor.cancel()
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert record.getMessage().startswith("a bug ended the janitor: ValueError('something unexpected')")
    assert record.exc_info is not None


@in_loop
async def test_a_task_that_died_before_the_wait_counts() -> None:
    supervisor = Supervisor()
    supervisor.start("the keeper", die())
    await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await supervisor.wait(asyncio.Event())
    assert supervisor.died


@in_loop
async def test_the_wait_ends_with_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    """A task that has returned or was cancelled is not a death."""
    supervisor, stop = Supervisor(), asyncio.Event()
    supervisor.start("the watchdog of no systemd", finish())
    supervisor.start("an endpoint's keeper", forever()).cancel()
    waiting = asyncio.create_task(supervisor.wait(stop))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    stop.set()
    await asyncio.wait_for(waiting, 10)
    assert not supervisor.died
    assert caplog.records == []


@in_loop
async def test_cancelling_waits_for_every_task() -> None:
    supervisor, cleaned = Supervisor(), []

    async def clean_up() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(True)

    for _ in range(3):
        supervisor.start("a task", clean_up())
    await asyncio.sleep(0)
    await supervisor.cancel()
    assert cleaned == [True] * 3
    assert not supervisor.died


def test_there_is_a_thread_for_each_call_that_may_block() -> None:
    """Also after a reload that sets the most clients and connections that there can be."""
    assert FILE_THREADS >= 2 * 8192 + 4 * 1024


def test_a_loop_ends_though_a_call_is_blocked() -> None:
    """So the process ends, and systemd starts the next one."""
    go_on, threads = threading.Event(), Threads(1)
    blocked = threads.submit(go_on.wait, 5)

    async def finish_with_it() -> None:
        asyncio.get_running_loop().set_default_executor(threads)

    asyncio.run(finish_with_it())
    assert not blocked.done()
    go_on.set()


def test_a_call_waits_where_no_further_thread_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By TasksMax= or the kernel: it is not refused, and carried out once."""
    done: list[int] = []
    go_on = threading.Event()
    with Threads(10) as threads:
        first = threads.submit(go_on.wait)

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        later = [threads.submit(done.append, number) for number in range(3)]
        go_on.set()
        first.result(10)
        for future in later:
            future.result(10)
    assert done == [0, 1, 2]
