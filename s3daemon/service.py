"""The daemon put together: what starts in which order, what a reload changes, and how it all stops.

Start: the spool first, since its lock makes this daemon the only one; then the store's client, which reads from disk
all that botocore will ever need, so that an upgrade may replace the files under a running process; then the control
socket; then what earlier processes left, transfers and clients; and only then new clients.

Stop: no new clients; accepted ones finish sending their requests; uploads in flight are finished within the drain
timeout; clients that still wait are left to the next process, or, when no process will follow, answered that their
transfers are kept; records and rows are flushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from s3daemon.clock import ActiveClock
from s3daemon.config.directories import own_directory
from s3daemon.config.settings import (
    MAX_CLIENTS,
    MAX_CONNECTIONS,
    Settings,
    SettingsHolder,
    differences,
    lifted,
    of_service,
    reloaded,
    unused_address,
)
from s3daemon.control.client import control_path
from s3daemon.control.exposures import watch_exposures
from s3daemon.control.operations import CommandAnswer, Operations
from s3daemon.control.server import ControlServer
from s3daemon.delivery.attempt import Attempts
from s3daemon.delivery.intake import Intake
from s3daemon.delivery.janitor import Janitor
from s3daemon.delivery.uploader import Uploader
from s3daemon.errors import Code, S3daemonError, SettingsError, SpoolError
from s3daemon.http.figures import Figure, present
from s3daemon.http.metrics import Metrics
from s3daemon.http.pages import routes
from s3daemon.http.server import HttpServer
from s3daemon.http.upload import REPLY_FORM, Forms
from s3daemon.ingress.access import AccessControl, resolve_users
from s3daemon.ingress.listener import name_of
from s3daemon.ingress.peer import PeerLookup
from s3daemon.ingress.questions import Questions
from s3daemon.ingress.refusals import Refusals
from s3daemon.ingress.server import Server
from s3daemon.ingress.waiting import WaitingClients, form_of
from s3daemon.journal import Journal
from s3daemon.model.record import MessageId
from s3daemon.model.reply import Outcome, Reply
from s3daemon.network.tls import Trust
from s3daemon.s3.endpoint import Endpoint
from s3daemon.spool.directory import UNUSED_SPOOL, has_unused_spool
from s3daemon.spool.spool import Spool
from s3daemon.systemd.descriptors import clients_within, raise_limit
from s3daemon.systemd.notify import Notifier, is_stopped_for_good
from s3daemon.systemd.sockets import PassedSockets, bind
from s3daemon.units import plural

_log = logging.getLogger(__name__)

#: How often STATUS is brought up to date, and how often the active seconds are saved.
STATUS_EVERY_S, TICK_EVERY_S = 2.0, 30.0
#: What a stop may take beside the drain: clients' requests and replies, the journal, the last commit.
STOP_MARGIN_S = 20.0
JOURNAL_FLUSH_S = 5.0
#: What a start may take when the spool is damaged: of 200 000 rows, most of them damaged, it took 15 s on an idle disk.
RECOVERY_S = 600.0
#: A call that blocks on a dead file system keeps its thread: there are as many as there can be such calls, whatever a
#: reload sets. A thread is started only when none is idle.
FILE_THREADS = 2 * MAX_CLIENTS + 4 * MAX_CONNECTIONS


class Threads(ThreadPoolExecutor):
    """Threads for calls that may block. Where the host allows no further one, a call waits until one is free.

    The standard library's own would raise an error, and carry the call out all the same later. (The method is private
    there; tried with Python 3.11 to 3.13.)
    """

    def _adjust_thread_count(self) -> None:
        with contextlib.suppress(RuntimeError):  # "can't start new thread"
            super()._adjust_thread_count()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and never wait: the event loop's end asks for that, and a file system may be dead."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


class Supervisor:
    """Background tasks by name. One that dies is logged with its reason, and ends the service.

    A task may return, and may be cancelled; only an exception counts as a death.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._died = asyncio.Event()

    @property
    def died(self) -> bool:
        """Whether a task has died."""
        return self._died.is_set()

    def start(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run `work` in a task.

        Args:
            name: for the journal, such as "the janitor".
            work: what the task does.
        """
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)
        return task

    async def wait(self, stop: asyncio.Event) -> None:
        """Wait until `stop` is set, or a task has died."""
        events = [asyncio.create_task(event.wait()) for event in (stop, self._died)]
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()

    async def cancel(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        name = self._tasks.pop(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.critical("a bug ended %s: %r; the service stops", name, exc, exc_info=exc)
            self._died.set()


class Service:
    """One running daemon.

    Args:
        settings: validated.
        environ: the process's environment, for what systemd says in it.
        journal: takes records and log lines.
        notifier: to systemd.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], journal: Journal, notifier: Notifier) -> None:
        self._settings = SettingsHolder(settings)
        self._environ = environ
        self._journal = journal
        self._notifier = notifier
        self._background = Supervisor()
        self._reloading = asyncio.Lock()

    async def run(self, passed: PassedSockets, stop: asyncio.Event) -> bool:
        """Serve until `stop` is set or a background task dies, then drain.

        Returns:
            False when a background task died; the journal has the reason.

        Raises:
            StartError, SettingsError: the service cannot start.
        """
        settings = self._settings.current
        self._descriptors = raise_limit()
        if (clients := self._max_clients(settings)) < settings.max_clients:
            text = "with %d descriptors (LimitNOFILE=, ulimit -n) %d clients are served at a time, not %d"
            _log.warning(text, self._descriptors, clients, settings.max_clients)
        executor = Threads(FILE_THREADS, thread_name_prefix="file")
        asyncio.get_running_loop().set_default_executor(executor)
        peers = PeerLookup()
        self._access = AccessControl(resolve_users(settings.allowed_users), peers)
        self._refusals = Refusals(peers, self._journal.write)
        state_dir = Path(settings.state_dir)
        self._spool = spool = Spool.open(
            state_dir, on_replaced=self._restore, on_damaged=lambda: self._notifier.extend(RECOVERY_S)
        )
        try:
            wire = [*passed.listening.get("wire", ()), *passed.listening.get("unix", ())]
            self._warn_of_unused(state_dir, wire)
            wire = wire or bind(settings.host, settings.port)
            http = passed.listening.get("http", [])
            self._endpoint = Endpoint(settings, self._background.start, hint=spool.hint)
            await self._endpoint.open()
            self._journal.hide(self._endpoint.secrets)
            try:
                self._build(state_dir, http_addresses=[name_of(sock) for sock in http])
                # Before what may take seconds: operators who ask meanwhile are answered after it. Not earlier, nor
                # during it: a transfer that they drop while it is being recovered would be sent all the same.
                self._control.start(partial(self._background.start, "accepting commands"))
                self._resume(passed.clients)
                await self._serve(wire, http, stop)
            finally:
                await self._endpoint.close()
        finally:
            await self._background.cancel()
            # The journal stays open: why a start failed is logged later.
            await asyncio.to_thread(self._journal.flush, JOURNAL_FLUSH_S)
            await asyncio.sleep(0)  # for the changes of the spool that the last records lead to
            await spool.close()
        return not self._background.died

    def _warn_of_unused(self, state_dir: Path, passed: Sequence[socket.socket]) -> None:
        """Name what an operator may take to be used: an address to listen on, and the spool of another directory."""
        if passed and (text := unused_address(self._settings.current, list(map(name_of, passed)))):
            _log.warning("%s", text)
        usual = Path(own_directory(self._environ.get("STATE_DIRECTORY", "")) or state_dir)
        if has_unused_spool(usual, state_dir):
            _log.warning("%s %s", usual / "spool.db", UNUSED_SPOOL)

    def _build(self, state_dir: Path, http_addresses: list[str]) -> None:
        """Put the parts together, each with those that it uses; none of them does anything yet."""
        spool, access, refusals = self._spool, self._access, self._refusals
        self._uploader = uploader = Uploader(
            self._settings,
            spool,
            Attempts(self._settings, spool, lambda: self._endpoint.store),
            self._journal,
            ActiveClock(spool.active_base_s, time.monotonic),
            start=self._background.start,
            ask=self._ask_neutrally,
        )
        self._janitor = Janitor(spool.open_uploads, uploader.schedule.__contains__, lambda: self._endpoint.store)
        exposures = watch_exposures(uploader, spool, refusals)
        # From the spool's last seq on, so that both count alike: `restore` relies on it.
        intake = Intake(self._settings, uploader, spool, spool.last_seq)
        failures = {entry.transfer.id: entry for entry in spool.failed_entries()}
        ended = {id_: Reply(Outcome.STORED, id_) for _, id_ in spool.kept.ended}
        ended |= {id_: Reply(Outcome.FAILED, id_, entry.code, entry.text) for id_, entry in failures.items()}
        self._waiting = waiting = WaitingClients(self._settings, intake, self._notifier, ended, failures)
        self._questions = questions = Questions(exposures, uploader.schedule.get, uploader.waiters.why, ended.items())
        max_clients = self._max_clients(self._settings.current)
        self._server = Server(
            max_clients,
            intake,
            access,
            waiting,
            spool.mark_notified,
            refusals=refusals,
            questions=questions,
            http_addresses=http_addresses,
        )
        self._operations = operations = Operations(
            self._settings,
            uploader,
            spool,
            lambda: self._endpoint.pool,
            exposures=exposures,
            clients=lambda: self._server.listener.clients,
        )
        # There whether or not systemd passed a socket for HTTP: the counters count from the start.
        metrics = Metrics(self._present, exposures=exposures, name=state_dir.name)
        uploader.outages.on_change = self._show_status
        uploader.records.observers += [questions.see, metrics.see]
        uploader.records.attempt_observers.append(metrics.see_attempt)
        self._forms = Forms(intake, access, waiting, spool.mark_notified, refusals=refusals, clock=uploader.clock)
        pages = routes(self._settings, operations, metrics, questions)
        self._http = HttpServer(self._settings, max_clients, pages, {"/upload": self._forms.handle})
        handlers = {
            "queue": operations.queue,
            "retry": operations.retry,
            "drop": operations.drop,
            "status": operations.status,
            "reload": self._reload,
        }
        self._control = ControlServer(control_path(self._environ, state_dir), handlers)
        self._listeners = (self._server.listener, self._http.listener)

    def _present(self) -> Sequence[Figure]:
        return present(
            self._operations,
            self._uploader,
            self._endpoint.pool,
            refused=self._refusals.counts,
            http_clients=self._http.listener.clients,
        )

    def _resume(self, clients: Mapping[str, socket.socket]) -> None:
        """Go on with what earlier processes left: transfers, and clients that wait for them."""
        pending = [entry for entry in self._spool.entries() if not entry.failed]
        self._uploader.recover(pending)
        self._janitor.forget_other_endpoints()
        for name, sock in clients.items():
            if form_of(name) == REPLY_FORM:
                self._http.resume(sock, partial(self._forms.resume, name, sock))
            else:
                self._server.resume(name, sock)
        if pending:
            _log.info("resuming %s of an earlier process", plural(len(pending), "transfer"))

    async def _serve(self, wire: list[socket.socket], http: list[socket.socket], stop: asyncio.Event) -> None:
        """Serve new clients until `stop` is set or a background task dies, then drain."""
        start = self._background.start
        sockets = [(name_of(sock), sock, self._server.listener) for sock in wire]
        sockets += [(f"http {name_of(sock)}", sock, self._http.listener) for sock in http]
        until_stop = [start(f"accepting clients on {name}", listener.accept(sock)) for name, sock, listener in sockets]
        until_stop.append(start("the janitor", self._janitor.run()))
        # These go on during a stop: systemd watches a stopping service too.
        start("the watchdog", self._notifier.watchdog())
        start("the status report", self._report())
        start("the count of failed transfers", self._count_failed())
        # What is loaded by now stays for good. To look through it for garbage takes 80 ms, 240 ms where others use the
        # CPU, in which nothing else is done: that made one exposure in ten late by as much.
        gc.collect()
        gc.freeze()
        await self._operations.count_failed()  # for the first line; the spool has just been read
        self._notifier.ready(self._operations.line())
        _log.info("serving %s on %s", self._settings.current.endpoint_url, ", ".join(name for name, _, _ in sockets))
        try:
            await self._background.wait(stop)
        finally:
            await self._stop(until_stop)

    def _max_clients(self, settings: Settings) -> int:
        """Return how many clients each server may have, by these settings and the limit of descriptors.

        Raises:
            SettingsError: the limit does not allow so many uploads.
        """
        return clients_within(self._descriptors, settings.max_clients, settings.max_connections)

    async def _stop(self, until_stop: list[asyncio.Task[None]]) -> None:
        drain_s = self._settings.current.drain_timeout_s
        self._notifier.extend(drain_s + STOP_MARGIN_S)
        self._operations.draining = f"draining for up to {drain_s:g} s"
        self._notifier.stopping(self._operations.line())
        for task in until_stop:
            task.cancel()
        await asyncio.gather(*(listener.stop_reading() for listener in self._listeners))
        await self._uploader.drain(drain_s)
        clients = any(listener.clients for listener in self._listeners)
        self._questions.leave()
        self._waiting.leave(for_good=clients and await asyncio.to_thread(is_stopped_for_good))
        await asyncio.gather(*(listener.drain() for listener in self._listeners))
        await self._control.close()
        await self._operations.settle()
        self._spool.save_clock(self._uploader.active_clock.now())
        self._spool.save_hint(self._endpoint.hint)
        left = len(self._uploader.schedule)
        kept = f"{plural(left, 'transfer')} kept for the next start"
        _log.info("stopped; %s", kept if left else "no transfers left")

    def _show_status(self) -> None:
        """Have systemd show the daemon's condition as it is now."""
        self._notifier.status(self._operations.line())

    async def _report(self) -> None:
        """Keep STATUS and the active seconds in the spool up to date, and notice that the store is unreachable."""
        ticked_at = time.monotonic()
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            self._operations.sample()
            addresses = self._endpoint.pool.addresses
            self._uploader.outages.note_reach(addresses.unreachable, has_answered=addresses.have_answered)
            self._show_status()
            if time.monotonic() - ticked_at >= TICK_EVERY_S:
                ticked_at = time.monotonic()
                active_now_s = self._uploader.active_clock.now()
                self._spool.save_clock(active_now_s)
                self._spool.save_hint(self._endpoint.hint)
                self._spool.expire(active_now_s, self._settings.current.keep_failed_s)
                if late := self._operations.late_line():
                    _log.warning("%s", late)

    async def _count_failed(self) -> None:
        """Keep the number of failed transfers up to date; a task of its own, since the disk may not answer."""
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            await self._operations.count_failed()

    def _restore(self) -> None:
        """Write what is in memory to the spool's new file, after a damaged one was replaced."""
        self._background.start("restoring the spool", self._write_pending())

    async def _write_pending(self) -> None:
        try:
            await self._spool.restore([queued.entry() for queued in self._uploader.schedule.transfers])
        except SpoolError as exc:
            _log.error("the transfers in memory cannot be written to the new spool: %s", exc)

    async def _ask_neutrally(self) -> None:
        """Send a neutral request to the store in use, which a reload may replace."""
        await self._endpoint.store.ask_neutrally()

    async def _retry(self, ids: set[str]) -> None:
        """Try failed transfers again for which the keys before a reload may have been at fault."""
        try:
            await self._operations.retry({"ids": sorted(ids)})
        except SpoolError as exc:
            denied = plural(len(ids), "transfer")
            _log.error("%s denied with the previous keys cannot be retried: %s", denied, exc)

    async def _reload(self, arguments: Mapping[str, object]) -> CommandAnswer:
        """Reload, one at a time; STATUS shows a refusal until a reload is accepted.

        Raises:
            S3daemonError: `NotPermitted`, systemd runs this daemon, and the command was not run by its unit. So it has
                the variables of somebody's shell, and not those of the unit's files.
        """
        # What a unit's process starts has its INVOCATION_ID too: a terminal's shell, or what a supervisor runs.
        is_of_systemd = self._environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
        if is_of_systemd and arguments.get("invocation", "") != self._environ.get("INVOCATION_ID", ""):
            unit = Path(own_directory(self._environ.get("RUNTIME_DIRECTORY", ""))).name or "s3daemon"
            text = f"a daemon that systemd runs takes its settings from its unit: systemctl reload {unit}"
            raise S3daemonError(Code.NOT_PERMITTED, text)
        try:
            async with self._reloading:
                answer = await self._put_in_force(arguments)
            self._operations.reload_fault = ""
        except SettingsError as exc:
            self._operations.reload_fault = exc.brief
            kind = {"MESSAGE_ID": MessageId.RELOAD_REFUSED.value}
            text = "the reload is refused, the previous settings stay in force: %s"
            _log.error(text, exc.text, extra={"journal": kind})
            raise
        finally:
            self._show_status()
        return answer

    async def _put_in_force(self, arguments: Mapping[str, object]) -> CommandAnswer:
        """Take new settings without dropping an upload.

        Raises:
            SettingsError: they are faulty; the present ones stay in force.
        """
        given = arguments.get("environ")
        environ = {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
        # In threads: what reads files, since their disk may not answer.
        given_to_service = {**environ, **of_service(self._environ)}
        old, read = self._settings.current, await asyncio.to_thread(Settings.from_environ, given_to_service)
        applied, restart = differences(old, read)
        new = reloaded(old, read)
        self._journal.hide(new.secrets())
        max_clients = self._max_clients(new)
        allowed = await asyncio.to_thread(resolve_users, new.allowed_users)
        before = self._endpoint
        trust = await asyncio.to_thread(Trust.read, new)
        endpoint = Endpoint(new, self._background.start, before, trust=trust)
        try:
            await endpoint.open()
        except BaseException:
            await endpoint.close(before)
            raise
        self._journal.hide(endpoint.secrets)
        applied += endpoint.reread_since(before)
        # From here on nothing is refused, and nothing waits: all of it is in force, or none.
        self._settings.current, self._endpoint = new, endpoint
        self._access.allow(allowed)
        for listener in self._listeners:
            listener.resize(max_clients)
        retiring = before.retire(endpoint, self._uploader.tasks, self._janitor.abort_all)
        self._background.start("retiring the endpoint before", retiring)
        if denied := self._uploader.reload():
            self._background.start("retrying what was denied", self._retry(denied))
        logging.getLogger("s3daemon").setLevel(new.log_level.upper())
        later = f"; at the next restart: {', '.join(restart)}" if restart else ""
        free = lifted(old, new)
        later += f"; no limit any more: {', '.join(free)}" if free else ""
        level = logging.WARNING if free else logging.INFO
        _log.log(level, "reloaded; in force: %s%s", ", ".join(applied) or "nothing new", later)
        return {"applied": applied, "restart": restart}
