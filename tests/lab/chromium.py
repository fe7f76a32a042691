"""A headless Chromium, controlled by its DevTools protocol: a page's content, console messages and pictures."""

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from lab.browser import browser

#: It resolves no name, and prints where its DevTools are.
_OPTIONS = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--remote-debugging-port=0")
PATIENCE_S = 30.0


class Tab:
    """One tab.

    Args:
        socket: to its DevTools.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        """What the console showed as a warning or an error, exceptions and refusals of the policy among it."""
        self.requests: list[str] = []
        """Every URL that it asked for."""

    async def read(self) -> None:
        """Read its messages until cancelled."""
        async for received in self._socket:
            message = json.loads(received.data)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] in ("warning", "error"):
                self.complaints.append(message["params"]["entry"]["text"])
            elif message["method"] == "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(message["params"]["args"]))
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """One call of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        message = await asyncio.wait_for(answer, PATIENCE_S)
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, by debugger, which the page's policy does not restrict."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(PATIENCE_S):
            while not await self.evaluate(expression):
                await asyncio.sleep(0.05)

    async def look_like(self, width: int, height: int, *, dark: bool = False) -> None:
        """Emulate a screen of that size, in CSS pixels, and a colour scheme; a narrow one is a phone's."""
        phone = width < 600
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + phone, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def photograph(self, path: Path) -> None:
        """A picture of the whole page."""
        taken = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(taken["data"]))


@dataclass(frozen=True)
class Chromium:
    """A running browser."""

    address: str
    """Of its DevTools."""
    path: str
    """Of those of the browser itself."""

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[Tab]:
        """A tab that shares nothing with others, as in a new profile, for the time of a ``with`` block."""
        async with aiohttp.ClientSession() as session, self._connected(session, self.path) as whole:
            context = (await whole.call("Target.createBrowserContext"))["browserContextId"]
            made = await whole.call("Target.createTarget", url="about:blank", browserContextId=context)
            async with self._connected(session, f"/devtools/page/{made['targetId']}") as tab:
                for domain in ("Runtime", "Log", "Network", "Page"):
                    await tab.call(f"{domain}.enable")
                yield tab
            await whole.call("Target.disposeBrowserContext", browserContextId=context)

    @asynccontextmanager
    async def _connected(self, session: aiohttp.ClientSession, path: str) -> AsyncIterator[Tab]:
        async with session.ws_connect(f"ws://{self.address}{path}", max_msg_size=1 << 26) as socket:
            connected = Tab(socket)
            reading = asyncio.create_task(connected.read())
            yield connected
            reading.cancel()


@contextmanager
def chromium(directory: Path) -> Iterator[Chromium]:
    """A browser for the time of a ``with`` block; its profile goes into the directory."""
    with browser(directory, "about:blank", *_OPTIONS) as process:
        found = process.wait_line(r"^DevTools listening on ws://([^/]+)(/\S+)", PATIENCE_S)
        yield Chromium(found[1], found[2])
