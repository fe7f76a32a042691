"""The page at `/`: what `s3daemon status` shows, for a browser. Read-only; it polls `/status.json`.

It is one file, `page.html`, with its script and its style inside and nothing outside, so that a policy can name the
script by its hash and forbid everything else: whatever names of files and keys may hold, it is shown and never run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from aiohttp import web

Page = Callable[[web.BaseRequest], Awaitable[web.Response]]


def routes() -> dict[str, Page]:
    """What answers GET by path. The file is read now, not when an upgrade may have replaced it."""
    html = resources.files(__package__).joinpath("page.html").read_text("utf-8")

    async def page(_: web.BaseRequest) -> web.Response:
        return web.Response(text=html, content_type="text/html")

    return {"/": page}
