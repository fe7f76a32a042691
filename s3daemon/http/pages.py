"""What the HTTP door shows to programs. All of it is read-only.

    /version       the version, and the settings in force but for the keys
    /healthz       200 while what is asked for is accepted and delivered at once, else 503; the line of `status`
    /metrics       for Prometheus
    /status.json   what `s3daemon status` shows

Requests are accepted all the same while the queue is held or the store is away: whoever only wants to know whether the
daemon is up, such as a balancer, asks for `/version`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from s3daemon import __version__
from s3daemon.config.settings import VARIABLES, Settings
from s3daemon.control.operations import Operations
from s3daemon.http.metrics import Metrics
from s3daemon.http.server import Page

#: A quote that is left open in the environment file swallows the line below it, and that may be a key's.
_SWALLOWED = re.compile("|".join(v.name for v in VARIABLES.values() if v.secret))


def routes(settings: Callable[[], Settings], operations: Operations, metrics: Metrics) -> dict[str, Page]:
    """What answers each path.

    Args:
        settings: gives those in force.
        operations: knows how things stand.
        metrics: for Prometheus.
    """

    async def version(_: web.BaseRequest) -> web.Response:
        given = {v.name: getattr(settings(), name) for name, v in VARIABLES.items() if not v.secret}
        shown = {name: value for name, value in given.items() if not _SWALLOWED.search(str(value))}
        return web.json_response({"name": "s3daemon", "version": __version__, "settings": shown})

    async def healthz(_: web.BaseRequest) -> web.Response:
        status = HTTPStatus.OK if operations.healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return web.Response(status=status, text=operations.line() + "\n")

    async def expose(request: web.BaseRequest) -> web.Response:
        body, content_type = metrics.expose(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def status(_: web.BaseRequest) -> web.Response:
        return web.json_response(dict(await operations.status({})))

    return {"/version": version, "/healthz": healthz, "/metrics": expose, "/status.json": status}
