"""The daemon put together: what starts in which order, what a reload changes, and how it all stops.

Start: the spool first, since its lock makes this daemon the only one; then the store's client, which reads from disk
all that botocore will ever need, so that an upgrade may replace the files under a running process; then what earlier
processes left, transfers and clients; and only then new clients.

Stop: no new clients; what accepted ones have to say is heard; uploads in flight are finished within the drain timeout;
clients that still wait are left to the next process, or, where the stop is for good, told that their transfers are
kept; records and rows are flushed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from s3daemon.clock import ActiveClock
from s3daemon.config.environ import of_service
from s3daemon.config.settings import Settings, differences
from s3daemon.control.client import control_path
from s3daemon.control.exposures import LOST_S
from s3daemon.control.operations import Answer, Operations, entry_of, watch_exposures
from s3daemon.control.server import ControlServer
from s3daemon.delivery.attempt import Attempts
from s3daemon.delivery.intake import Intake
from s3daemon.delivery.janitor import Janitor
from s3daemon.delivery.uploader import Uploader
from s3daemon.errors import SettingsError
from s3daemon.http.service import Http
from s3daemon.ingress.listener import name_of
from s3daemon.ingress.peer import AccessControl
from s3daemon.ingress.server import Server
from s3daemon.journal import Journal
from s3daemon.s3.endpoint import Endpoint
from s3daemon.spool.spool import Spool
from s3daemon.systemd.notify import Inherited, Manager, bind
from s3daemon.systemd.stopping import is_for_good

_log = logging.getLogger(__name__)

#: How often STATUS is brought up to date and the seconds of service are written down.
STATUS_EVERY_S, TICK_EVERY_S = 2.0, 30.0
#: Beside the drain: clients' last words and replies, the journal, the last commit.
STOP_MARGIN_S = 20.0
JOURNAL_FLUSH_S = 5.0


class Service:
    """One running daemon.

    Args:
        settings: validated.
        environ: the process's, for what systemd says in it.
        journal: takes records and log lines.
        manager: systemd.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], journal: Journal, manager: Manager) -> None:
        self._settings = settings
        self._environ = environ
        self._journal = journal
        self._manager = manager

    async def run(self, inherited: Inherited, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain.

        Raises:
            StartError, SettingsError: it cannot.
        """
        settings = self._settings
        # A call that blocks on a dead file system keeps its thread: there are as many as there can be such calls.
        threads = 2 * settings.max_clients + 4 * settings.max_connections
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads, thread_name_prefix="file"))
        self._door, doors = AccessControl(settings.allowed_users), inherited.doors
        state_dir = Path(settings.state_dir)
        self._spool = spool = Spool.open(state_dir, on_replaced=self._restore)
        try:
            listeners = [*doors.get("wire", ()), *doors.get("unix", ())] or bind(settings.host, settings.port)
            self._endpoint = Endpoint(settings)
            await self._endpoint.open()
            self._journal.hide(self._endpoint.signer.secrets)
            try:
                await self._serve(listeners, doors.get("http", []), inherited.clients, state_dir, stop)
            finally:
                await self._endpoint.close()
        finally:
            # The journal stays open: why a start failed is logged later.
            await asyncio.to_thread(self._journal.flush, JOURNAL_FLUSH_S)
            await asyncio.sleep(0)  # for the changes of the spool that the last records lead to
            await spool.close()

    async def _serve(
        self,
        listeners: list[socket.socket],
        http_listeners: list[socket.socket],
        clients: Mapping[str, socket.socket],
        state_dir: Path,
        stop: asyncio.Event,
    ) -> None:
        settings, spool = self._settings, self._spool
        service = ActiveClock(spool.active_base_s, time.monotonic)
        self._attempts = Attempts(settings, spool, self._endpoint.store)
        self._uploader = uploader = Uploader(settings, spool, self._attempts, self._journal, service)
        pending = spool.entries(failed=False)
        failures = {entry.transfer.id: entry for entry in spool.entries(failed=True)}
        exposures = watch_exposures(uploader)
        uploader.recover(pending)
        self._janitor = Janitor(spool.open_uploads, uploader.schedule.__contains__, lambda: self._attempts.store)
        self._janitor.disown()
        intake = Intake(uploader, spool, spool.last_seq)  # so that its seqs are the spool's: `restore` goes by them
        self._server = server = Server(settings, intake, self._manager, spool.mark_notified)
        server.door = self._door
        self._operations = operations = Operations(uploader, spool, server, lambda: self._endpoint.pool, exposures)
        self._http = Http(settings, self._door, intake, uploader, operations, told=spool.mark_notified)
        handlers = {
            "queue": operations.queue,
            "retry": operations.retry,
            "drop": operations.drop,
            "status": operations.status,
            "reload": self._judged_reload,
        }
        control = ControlServer(control_path(self._environ, state_dir), handlers)
        await control.start()
        server.resume(clients, failures)
        if pending:
            _log.info("%d transfers of an earlier process are taken up", len(pending))
        tasks = [asyncio.create_task(server.accept(listener)) for listener in listeners]
        tasks += [asyncio.create_task(self._janitor.run())]
        tasks += [asyncio.create_task(self._http.accept(listener)) for listener in http_listeners]
        tasks += [asyncio.create_task(self._manager.watchdog(lambda: True)), asyncio.create_task(self._report())]
        self._manager.ready(operations.line())
        where = ", ".join([*map(name_of, listeners), *(f"http {name_of(listener)}" for listener in http_listeners)])
        _log.info("serving %s on %s", settings.endpoint_url, where)
        try:
            await _until(stop, tasks)
        finally:
            await self._stop(tasks, control)

    async def _stop(self, tasks: list[asyncio.Task[None]], control: ControlServer) -> None:
        drain_s = self._settings.drain_timeout_s
        self._manager.extend(drain_s + STOP_MARGIN_S)
        self._operations.draining = f"draining for up to {drain_s:g} s"
        self._manager.stopping(self._operations.line())
        for task in tasks[:-2]:  # the watchdog and the status go on: systemd watches a stopping service too
            task.cancel()
        await asyncio.gather(self._server.stop_reading(), self._http.stop_reading())
        await self._uploader.drain(drain_s)
        for_good = bool(self._server.clients) and await asyncio.to_thread(is_for_good)
        await asyncio.gather(self._server.leave(for_good=for_good), self._http.leave())
        await control.close()
        for task in tasks:
            task.cancel()
        self._spool.save_clock(self._uploader.service.now())
        left = len(self._uploader.schedule)
        _log.info("stopped; %s", f"{left} transfers are kept for the next start" if left else "nothing is left to do")

    async def _report(self) -> None:
        """Keep STATUS and the seconds of service up to date."""
        ticked_at = time.monotonic()
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            self._operations.sample()
            await self._operations.count_failed()
            self._manager.status(self._operations.line())
            if time.monotonic() - ticked_at >= TICK_EVERY_S:
                ticked_at = time.monotonic()
                service_now = self._uploader.service.now()
                self._spool.save_clock(service_now)
                self._spool.expire(service_now, self._settings.keep_failed_s)
                self._warn_of_late(ticked_at)

    def _warn_of_late(self, now: float) -> None:
        late = [job for job in self._uploader.schedule.jobs if job.live and now - job.accepted_at > LOST_S]
        if late:
            age_s, id_ = now - late[0].accepted_at, late[0].transfer.id
            _log.warning("%d live transfers are late, the oldest, %s, is %.0f s old", len(late), id_, age_s)

    def _restore(self) -> None:
        """The spool's file was damaged and replaced: give it again what is in memory."""
        entries = [entry_of(job) for job in self._uploader.schedule.jobs]
        self._restoring = asyncio.get_running_loop().create_task(self._spool.restore(entries))

    async def _judged_reload(self, arguments: Mapping[str, object]) -> Answer:
        """Reload; STATUS shows a refusal until there is a reload that is none."""
        try:
            answer = await self._reload(arguments)
            self._operations.refused = ""
        except SettingsError as exc:
            first, *others = exc.faults
            self._operations.refused = first + (f" (and {len(others)} more)" if others else "")
            raise
        finally:
            self._manager.status(self._operations.line())
        return answer

    async def _reload(self, arguments: Mapping[str, object]) -> Answer:
        """Take new settings without dropping an upload.

        Raises:
            SettingsError: they are faulty; those before stay in force.
        """
        given = arguments.get("environ")
        environ = {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
        old, new = self._settings, Settings.from_environ({**environ, **of_service(self._environ)})
        applied, restart = differences(old, new)
        self._journal.hide(new.secrets())
        door = await asyncio.to_thread(AccessControl, new.allowed_users)
        before, endpoint = self._endpoint, Endpoint(new, self._endpoint)
        try:
            await endpoint.open()
        except SettingsError:
            await endpoint.close(before)
            raise
        self._journal.hide(endpoint.signer.secrets)
        self._settings = self._attempts.settings = self._uploader.settings = self._server.settings = new
        self._endpoint, self._attempts.store, self._server.door = endpoint, endpoint.store, door
        self._http.reload(new, door)
        self._uploader.schedule.resize(new.max_connections)
        in_flight = {job.task for job in self._uploader.schedule.running if job.task}
        self._retiring = asyncio.create_task(before.retire(endpoint, in_flight, self._janitor.leave))
        self._uploader.health.reload()
        self._uploader.schedule.end_delays()
        self._uploader.pump()
        logging.getLogger("s3daemon").setLevel(new.log_level.upper())
        _log.info("reloaded; in force: %s", ", ".join(applied) or "nothing new")
        return {"applied": applied, "restart": restart}


async def _until(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for `stop`, or for one of `tasks` to die of a bug, which then ends the service."""
    stopping = asyncio.create_task(stop.wait())
    waiting: set[asyncio.Task[Any]] = {stopping, *tasks}
    while stopping in waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
