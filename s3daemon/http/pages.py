"""The read-only pages of the HTTP server.

    /              what `s3daemon status` shows, for a browser; it polls `/status.json`
    /version       the version, and the settings in force except the keys, each as its value and as text
    /healthz       200 while requests are accepted and delivered at once, else 503; the line of `status`
    /metrics       for Prometheus
    /status.json   what `s3daemon status` shows, for programs
    /transfers     with `?tag=TAG`, and `&expect=N` where known: whether all that was accepted under a tag is stored
    /transfers/ID  whether a transfer is stored

The last two answer when that is known: at the moment when the last transfer ends, or after `&timeout=SECONDS`, 30 by
default: 200 when stored, 404 when nothing is known, 502 when a file failed or was refused, 504 when it is not over.
While the service stops it is 503, and the client asks again.

Requests are accepted also while the queue is held or the store is away: a balancer, or anyone else who only wants to
know whether the daemon is running, asks for `/version`.

The page for browsers is one file, `page.html`, with its script and its style inside, so that a policy can name the
script by its hash and forbid everything else: whatever names of files and keys hold, it is shown and never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources

from aiohttp import web

from s3daemon import __version__
from s3daemon.config.settings import VARIABLES, SettingsHolder
from s3daemon.control.operations import Operations
from s3daemon.errors import Code, RequestError, quoted
from s3daemon.http.metrics import Metrics
from s3daemon.http.server import Page
from s3daemon.http.upload import fields_in, tag_of
from s3daemon.ingress.protocol import QUESTION_TIMEOUT_S, Question
from s3daemon.ingress.questions import Questions
from s3daemon.model.ids import id_of, uuid_of
from s3daemon.model.reply import Outcome, Reply

#: A quote that is left open in the environment file makes a value continue with the next line, which may hold a key.
_SECRET_NAMES = re.compile("|".join(v.name for v in VARIABLES.values() if v.secret))


def _dumps(members: object) -> str:
    """A JSON document that ends its line."""
    return json.dumps(members) + "\n"


def _text(value: object) -> str:
    """A setting as text, for clients that read nothing else: a list as words, seconds as a number."""
    if value is None:
        return "auto"  # the rate, which is found
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def page_html() -> str:
    """The page for browsers."""
    return resources.files(__package__).joinpath("page.html").read_text("utf-8")


def routes(settings: SettingsHolder, operations: Operations, metrics: Metrics, questions: Questions) -> dict[str, Page]:
    """The handlers by path. `page.html` is read now: later an upgrade may have replaced it.

    Args:
        settings: to show.
        operations: gives the state.
        metrics: for Prometheus.
        questions: answers those about transfers.
    """
    html = page_html()

    async def page(_: web.BaseRequest) -> web.Response:
        return web.Response(text=html, content_type="text/html")

    async def version(_: web.BaseRequest) -> web.Response:
        current = settings.current
        given = {v.name: getattr(current, name) for name, v in VARIABLES.items() if not v.secret}
        shown = {name: value for name, value in given.items() if not _SECRET_NAMES.search(str(value))}
        config = {name: _text(value) for name, value in shown.items()}
        members = {"name": "s3daemon", "version": __version__, "settings": shown, "config": config}
        return web.json_response(members, dumps=_dumps)

    async def healthz(_: web.BaseRequest) -> web.Response:
        condition = operations.condition()
        status = HTTPStatus.OK if condition.healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return web.Response(status=status, text=condition.line + "\n")

    async def expose(request: web.BaseRequest) -> web.Response:
        body, content_type = metrics.expose(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def status(_: web.BaseRequest) -> web.Response:
        return web.json_response(dict(await operations.status({})), dumps=_dumps)

    async def by_tag(request: web.BaseRequest) -> web.Response:
        try:
            question = _question(_query(request, "tag", "expect", "timeout"))
        except RequestError as exc:
            return _answer(Reply.failed(exc))
        return _answer(await questions.about_tag(question), tag=question.tag)

    async def by_id(request: web.BaseRequest) -> web.Response:
        try:
            timeout_s = _question(_query(request, "timeout") | {"tag": "-"}).timeout_s
        except RequestError as exc:
            return _answer(Reply.failed(exc))
        return _answer(await questions.about_transfer(id_of(request.path.rpartition("/")[2]), timeout_s))

    shown = {"/": page, "/version": version, "/healthz": healthz, "/metrics": expose, "/status.json": status}
    return {**shown, "/transfers": by_tag, "/transfers/*": by_id}


def _query(request: web.BaseRequest, *names: str) -> dict[str, str]:
    """Read the query as a form is, so that a slug of any bytes is found again.

    Raises:
        RequestError: `BadRequest`: it has a name that is not among `names`, or a name twice. What is asked there would
            be left out of the answer: *stored* to `?tag=TAG&expected=46`, though one file was requested.
    """
    found = dict[str, str]()
    for name, value in fields_in(request.rel_url.raw_query_string):
        if name not in names:
            raise RequestError(Code.BAD_REQUEST, f"{quoted(name)} is not known here; known: {', '.join(names)}")
        if found.setdefault(name, value) != value:
            raise RequestError(Code.BAD_REQUEST, f"{quoted(name)} is given twice, with different values")
    return found


def _question(query: Mapping[str, str]) -> Question:
    """Read a query.

    Raises:
        RequestError: `BadRequest`, with what is wrong.
    """
    expect, timeout = query.get("expect"), query.get("timeout", str(QUESTION_TIMEOUT_S))
    try:
        tag = query.get("tag")
        return Question.of(tag and tag_of(tag), None if expect is None else int(expect), float(timeout))
    except ValueError as exc:
        raise RequestError(Code.BAD_REQUEST, "expect and timeout must be numbers") from exc


def _answer(reply: Reply | None, **more: str) -> web.Response:
    """The response to a question; None: the service stops."""
    if reply is None:
        return web.json_response({"result": "unknown"}, dumps=_dumps, status=503, headers={"Retry-After": "1"})
    if reply.code in (Code.BAD_REQUEST, Code.UNKNOWN_TRANSFER):
        status = 400 if reply.code == Code.BAD_REQUEST else 404
    else:
        status = {Outcome.STORED: 200, Outcome.DEFERRED: 504}.get(reply.outcome, 502)
    members = {
        "result": reply.outcome.value,
        "id": reply.id and uuid_of(reply.id),
        "code": reply.code,
        "msg": reply.text,
    }
    body = {key: value for key, value in members.items() if value} | dict(reply.counts) | more
    return web.json_response(body, dumps=_dumps, status=status)
