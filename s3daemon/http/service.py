"""The HTTP door put together: form, pages for programs, metrics."""

from __future__ import annotations

import socket
from collections.abc import Callable

from s3daemon.config.settings import Settings
from s3daemon.control.operations import Operations
from s3daemon.delivery.intake import Intake
from s3daemon.delivery.uploader import Uploader
from s3daemon.http import page
from s3daemon.http.metrics import Metrics
from s3daemon.http.pages import routes
from s3daemon.http.server import HttpDoor, Page
from s3daemon.http.upload import Uploads
from s3daemon.ingress.peer import AccessControl


class Http:
    """One daemon's HTTP door. There whether systemd passed a socket for it or not: its counters count from the start.

    Args:
        settings: names of the door, number of clients, wait limit.
        door: says who may ask.
        intake: takes the forms.
        uploader: shows its records.
        operations: knows how things stand.
        told: called with the id of a transfer whose failure a client has received.

    Attributes:
        pages: what answers GET, by path; more may be added at any time.
    """

    def __init__(
        self,
        settings: Settings,
        door: AccessControl,
        intake: Intake,
        uploader: Uploader,
        operations: Operations,
        *,
        told: Callable[[str], None],
    ) -> None:
        self._settings = settings
        metrics = Metrics(lambda: operations.figures() | {"s3daemon_http_clients": self._door.clients})
        uploader.observers.append(metrics.see)
        self._uploads = Uploads(settings, intake, told, clock=uploader.now)
        self.pages: dict[str, Page] = routes(lambda: self._settings, operations, metrics) | page.routes()
        self._door = HttpDoor(settings, self.pages, {"/upload": self._uploads.handle})
        self.reload(settings, door)

    def reload(self, settings: Settings, door: AccessControl) -> None:
        """Put other settings in force, for the next request."""
        self._settings = self._door.settings = self._uploads.settings = settings
        self._uploads.door = door

    async def accept(self, listener: socket.socket) -> None:
        """Serve the clients of a listening, non-blocking socket until cancelled; the socket stays as it is."""
        await self._door.accept(listener)

    async def stop_reading(self) -> None:
        """Let the clients that were accepted say what they have to say."""
        await self._door.stop_reading()

    async def leave(self) -> None:
        """Tell those who wait that their transfers are kept, and see all clients out."""
        self._uploads.leave()
        await self._door.leave()
