"""The page in a real browser, under a strict policy: it shows what the status says, is silent on the console, asks for
nothing but its own two addresses, and shows hostile names as the text that they are."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from lab.chromium import Chromium, Tab, chromium
from lab.daemon import daemon
from lab.env import UnavailableError
from lab.flaky import FlakyS3
from lab.statuses import NOW_USEC, busy, empty, exposure, receiver, upload

from s3daemon.http.pages import page_html

HOSTILE = 'x/<img src=x onerror="document.title=1">/</script><script>alert(1)</script>\u202egpj.exe'
#: As it is, but that it asks for a status more often.
PAGE = page_html().replace("EVERY_MS = 2000,", "EVERY_MS = 200,")


def policy(html: str) -> str:
    """The strictest policy with which the page works."""
    named = {
        name: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for name in ("script", "style")
        for content in re.findall(f"<{name}>(.*?)</{name}>", html, re.DOTALL)
    }
    return (
        f"default-src 'none'; script-src 'sha256-{named['script']}'; style-src 'sha256-{named['style']}';"
        " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class StatusServer:
    """Serves the page and a status that the test may change."""

    def __init__(self) -> None:
        self.status: dict[str, Any] | None = busy()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/status.json":
            return web.json_response(self.status) if self.status else web.Response(status=503)
        if request.path != "/":
            return web.Response(status=404)
        page = web.Response(text=PAGE, content_type="text/html")
        page.headers["Content-Security-Policy"] = policy(PAGE)
        return page

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """Its address."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            runner = web.ServerRunner(web.Server(self.answer))
            await runner.setup()
            await web.SockSite(runner, listener).start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
            await runner.cleanup()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser; each test has a tab of its own."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(chromium(tmp_path_factory.mktemp("chromium")))
        except UnavailableError as missing:
            pytest.skip(str(missing))


def browsed(window: Chromium, test: Callable[[Tab, StatusServer, str], Awaitable[None]]) -> None:
    """Run a test with a tab that shows the page; it must request nothing else."""

    async def run() -> None:
        served = StatusServer()
        async with served.open() as url, window.tab() as tab:
            await tab.look_like(1280, 800)
            await tab.call("Page.navigate", url=url)
            await tab.until("document.querySelector('#figures')?.childElementCount")
            await test(tab, served, url)
            # An icon, for example, is not requested.
            assert set(tab.requests) <= {url, f"{url}status.json", "data:,"}

    asyncio.run(run())


async def text(tab: Tab, selector: str) -> str:
    """The visible text of an element."""
    found: str = await tab.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


async def shown(tab: Tab, served: StatusServer, status: dict[str, Any]) -> None:
    """Make the page show another status."""
    status["now_usec"] += 1_000_000 * (1 + len(tab.requests))
    served.status = status
    stamp = f"new Date({status['now_usec']} / 1000).toTimeString().slice(0, 8)"
    await tab.until(f"document.getElementById('when').textContent.endsWith({stamp})")


def test_a_busy_daemon_shows_everything(window: Chromium) -> None:
    """Each part is there, the bars grow, and the chart of exposures has lines at the limits."""

    async def test(tab: Tab, served: StatusServer, url: str) -> None:
        assert await text(tab, "h1") == "Delivering"
        names = await text(tab, "#exposures ul")
        assert all(exposure["name"] in names for exposure in busy()["exposures"])
        assert "camera-3" in await text(tab, "header")
        assert await text(tab, "#when") == await tab.evaluate(f"new Date({NOW_USEC} / 1000).toLocaleString('sv')")
        figures = await text(tab, "#figures")
        assert "12" in figures
        assert "25/25" in figures
        first = await text(tab, "#uploads li")
        assert first.splitlines() == [
            "raw/camera/20261123/MC_O_000123/MC_O_000123_R01.fits", "26 % of 8.39 MB · 12.5 MB/s · 0.4 s · to 192.0.2.2"
        ]  # fmt: skip
        assert "attempt 2" in await text(tab, "#uploads")
        assert await tab.evaluate("document.querySelector('#uploads .bar').getAttribute('aria-valuenow')") == "26"
        failures = await text(tab, "#failures")
        assert "NoSuchBucket: there is no bucket old-raw" in failures
        assert "temporarily disabled" in await text(tab, "#receivers")
        assert await tab.evaluate("document.querySelectorAll('#exposures > .chart rect').length") == 30
        limits = await tab.evaluate("[...document.querySelectorAll('text.late, text.lost')].map(t => t.textContent)")
        assert limits == ["10 s", "30 s"]
        said = await tab.evaluate("[...document.querySelectorAll('#exposures rect title')].map(t => t.textContent)")
        assert [sum(f"\n{word}," in one for one in said) for word in ("in time", "late", "lost", "incomplete")] == [
            22, 2, 3, 3
        ]  # fmt: skip
        assert "30 stored, 16 pending" in await text(tab, "#exposures ul")

        status = busy()
        status["uploads"][0]["acked_bytes"] = status["uploads"][0]["size_bytes"]
        del status["uploads"][1:]
        await tab.evaluate("window.first = document.querySelector('#uploads li')")
        await shown(tab, served, status)
        assert await tab.evaluate("[...document.querySelectorAll('#uploads li')].length") == 1
        assert await tab.evaluate("window.first === document.querySelector('#uploads li')")
        assert "100 %" in await text(tab, "#uploads li")
        assert tab.complaints == []

    browsed(window, test)


#: Changes to a status, and what the headline says then.
HEADLINES: list[tuple[dict[str, Any], list[str]]] = [
    ({"state": "away", "away": True}, ["The endpoint is away", "are kept and tried until the store is back"]),
    ({"state": "held", "held": "AccessDenied: no"}, ["The queue is held", "AccessDenied: no. Nothing is lost"]),
    (
        {"state": "refusing", "spool": "/var is full"},
        ["Requests are refused", "/var is full. Transfers accepted before"],
    ),
    ({"state": "stopping", "status": "draining for 20 s"}, ["The service is stopping", "draining for 20 s"]),
]


def test_the_headline_says_what_is_wrong(window: Chromium) -> None:
    async def test(tab: Tab, served: StatusServer, url: str) -> None:
        for changes, words in HEADLINES:
            await shown(tab, served, empty() | changes)
            headline = await text(tab, "#headline")
            assert all(word in headline for word in words), headline
            assert words[0] in await tab.evaluate("document.title")
        assert tab.complaints == []

    browsed(window, test)


LOST = exposure(30, 95.0)
SHORT = exposure(30, stored=44, refused=2, verdict="incomplete", reason="NotReadable: /data/f")
GOOD = exposure(30)
AWAY = {
    "state": "away",
    "away": True,
    "away_reason": "ConnectionFailed: refused",
    "since_usec": NOW_USEC - 80_000_000,
    "next_probe_s": 12.0,
}


#: Changes to a status, and the banner: its kind, its word, and a part of its text.
BANNERS: list[tuple[dict[str, Any], str, str, str]] = [
    ({}, "ok", "Ready", "Files are delivered as soon as they are requested."),
    ({"unreachable": "no"}, "away", "No address of the store answers", "accepted and kept."),
    ({"pending": 1}, "ok", "Delivering", "Files are delivered as soon as they are requested."),
    ({"exposures": [GOOD]}, "ok", "Ready", "was complete after 2.1 s."),
    ({"exposures": [LOST]}, "lost", "The last exposure was lost", f"{LOST['name']}: 46 stored"),
    ({"exposures": [LOST], "in_flight": 3}, "lost", "The last exposure was lost", "95.0 s."),
    ({"exposures": [SHORT]}, "incomplete", "The last exposure is incomplete", "44 stored, 2 refused"),
    ({"exposures": [SHORT]}, "incomplete", "The last exposure is incomplete", "NotReadable: /data/f."),
    ({"exposures": [exposure(30, 12.0)]}, "late", "The last exposure was late", "12.0 s."),
    ({"exposures": [LOST | {"pending": 3}]}, "lost", "The last exposure was lost", "3 pending"),
    ({"exposures": [exposure(29, 95.0), GOOD]}, "ok", "Ready", "1 exposure before was late, lost or incomplete"),
    ({"exposures": [GOOD, exposure(31, 9e3, verdict="untagged")]}, "ok", "Ready", f"exposure, {GOOD['name']},"),
    ({"exposures": [GOOD], "failed": 2}, "ok", "Ready", "2 transfers failed permanently."),
    ({"refused": "S3_ENDPOINT_URL: no"}, "reload", "A reload was refused", "S3_ENDPOINT_URL: no. The previous"),
    ({"exposures": [LOST], "refused": "no"}, "lost", "The last exposure was lost", ""),
    (AWAY | {"exposures": [LOST]}, "away", "The endpoint is away", "for 1m20s. The next attempt is in 12s."),
    (AWAY, "away", "The endpoint is away", "ConnectionFailed: refused. Accepted transfers are kept"),
    (
        {"state": "failing", "failing": "nothing stored for 1m00s", "exposures": [LOST]},
        "failing", "Nothing is being stored", "nothing stored for 1m00s. Accepted transfers are kept",
    ),
    (
        {"state": "failing", "failing": "nothing stored for 1m00s", "unreachable": "no address"},
        "away", "No address of the store answers", "Requests are accepted and kept.",
    ),
]  # fmt: skip


def test_the_banner(window: Chromium) -> None:
    """It shows what is most urgent: never a tick over an exposure that was lost."""

    async def test(tab: Tab, served: StatusServer, url: str) -> None:
        for changes, kind, word, text in BANNERS:
            found = await tab.evaluate(f"banner({json.dumps(empty() | changes)})")
            assert (found["kind"], found["word"]) == (kind, word), changes
            assert text in found["text"], changes

    browsed(window, test)


def test_a_daemon_that_has_just_started_has_a_page(window: Chromium) -> None:
    """It says in words that there is nothing yet, instead of showing empty boxes."""

    async def test(tab: Tab, served: StatusServer, url: str) -> None:
        await shown(tab, served, empty())
        seen = await text(tab, "main")
        assert "nothing to send" in seen
        assert "the queue is empty" in seen
        assert "None yet. An exposure is the files that are sent with one tag" in seen
        cards = "[...document.querySelectorAll('.two section')].filter(c => c.checkVisibility()).length"
        assert await tab.evaluate(cards) == 0
        assert tab.complaints == []

    browsed(window, test)


def test_markup_in_names_is_shown_as_text(window: Chromium) -> None:
    """Markup in a key, a tag, an error or a receiver is shown literally, and nothing of it runs."""

    async def test(tab: Tab, served: StatusServer, url: str) -> None:
        status = busy()
        status["uploads"] = [upload(1, key=HOSTILE, receivers=[HOSTILE])]
        for row in (*status["waiting"], *status["failures"]):
            row["destination"], row["text"], row["code"] = HOSTILE, HOSTILE, "<b>Bold"
        status["exposures"] = [exposure(1, name=HOSTILE)]
        status["receivers"] = [receiver(HOSTILE, 1, 1, disabled=True, reason=HOSTILE, limited_s=1.0, next_probe_s=1.0)]
        for name in ("held", "status", "host", "endpoint", "version"):
            status[name] = HOSTILE
        await shown(tab, served, status | {"state": "held"})
        for part in ("#uploads", "#failures", "#waiting", "#exposures ul", "#receivers", "#headline", "header"):
            found = await tab.evaluate(f"document.querySelector({json.dumps(part)}).textContent")
            assert HOSTILE in found, part
        assert await tab.evaluate("document.querySelectorAll('img, b:not(header b), script').length") == 1
        assert tab.complaints == []

    browsed(window, test)


def test_a_daemon_that_does_not_answer(window: Chromium) -> None:
    """The page shows the last status, dimmed and with its time, and recovers by itself."""

    async def test(tab: Tab, served: StatusServer, url: str) -> None:
        served.status = None
        await tab.until("document.querySelector('h1').textContent === 'The daemon does not answer'")
        assert "The status below is that of" in await text(tab, "#headline")
        assert await tab.evaluate("document.querySelectorAll('#uploads li').length") == 4
        assert await tab.evaluate("getComputedStyle(document.getElementById('figures')).opacity") < "0.5"
        await shown(tab, served, busy())
        assert await text(tab, "h1") == "Delivering"
        assert all("503" in complaint for complaint in tab.complaints)

    browsed(window, test)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_the_screen(window: Chromium, tmp_path: Path, width: int) -> None:
    """Nothing is cut off at the side, on a phone either, with names as long as S3 allows; the text is large enough."""

    async def test(tab: Tab, served: StatusServer, url: str) -> None:
        await tab.look_like(width, 800, dark=width == 360)
        status = busy()
        status["uploads"][0]["key"] = "night/" + "x" * 1000
        status["failures"][0]["text"] = "y" * 500
        status["exposures"][-1]["name"] = "z" * 128
        await shown(tab, served, status)
        assert await tab.evaluate("document.documentElement.scrollWidth") <= width
        small = "[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        assert await tab.evaluate(f"Math.min(...{small})") >= 12
        dark = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(17, 22, 28)") == (width == 360)
        await tab.photograph(tmp_path / f"page-{width}.png")  # for people, who should look at it
        assert tab.complaints == []

    browsed(window, test)


def test_the_page_of_a_daemon(window: Chromium, tmp_path: Path, s3: FlakyS3, file: Path) -> None:
    """With the server's own policy and the daemon's own status: the page shows what was stored."""

    async def run(url: str) -> None:
        async with window.tab() as tab:
            await tab.call("Page.navigate", url=url)
            await tab.until("document.querySelector('#exposures bdi')?.textContent === 'exposure-1'")
            assert await text(tab, "h1") == "Ready"
            assert "The last exposure, exposure-1, was complete after" in await text(tab, "#headline")
            assert "127.0.0.1" in await text(tab, "#receivers")
            assert tab.complaints == []

    with daemon(tmp_path / "state", s3.server, http=True) as served:
        assert served.extended(file, "any/bucket/key", tag="exposure-1")["result"] == "stored"
        asyncio.run(run(f"http://127.0.0.1:{served.http_port}/"))


def test_the_page_is_self_contained() -> None:
    """Its only address is that of SVG's namespace, so nothing is loaded from elsewhere."""
    html = page_html()
    assert re.findall(r"https?://[^\"'\s]*", html) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"src=|@import|innerHTML = |insertAdjacentHTML|document\.write|eval\(", html)
