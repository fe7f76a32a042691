"""Check the store: its connections, the keys, and whether an object can be put there.

The requests use the daemon's own connections and its own client, so a request that passes here passes in the daemon.
"""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
import time
from asyncio import timeout
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import aiohttp
from yarl import URL

from s3daemon.commands.check.findings import Findings
from s3daemon.commands.check.network import reach
from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError, Code, FileError, S3daemonError, SettingsError
from s3daemon.model.files.source import Source
from s3daemon.model.request import Destination, Request, Transfer
from s3daemon.model.verdict import ACCESS_DENIED, Verdict, accuses_keys, judge, keys_after
from s3daemon.network.keepalive.small_request import find_small_request
from s3daemon.network.pool import ConnectionPool
from s3daemon.s3.answers import is_md5
from s3daemon.s3.endpoint import NO_ETAG_RISK
from s3daemon.s3.sender import Sender
from s3daemon.s3.signing.client import Signer
from s3daemon.s3.store import LookupResult, Store
from s3daemon.units import seconds

#: 33 kB: a path that drops large packets passes an object that fits into one, jumbo frames included.
_CONTENT = "Put by s3daemon check, which deletes it again.\n" * 700
#: What stores answer that do not list buckets.
_NO_LIST = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)
_T = TypeVar("_T")

_CONSEQUENCES = {
    Verdict.HOLD: "the daemon would hold its queue",
    Verdict.PERMANENT: "the daemon would give such a transfer up",
    Verdict.TRANSIENT: "the daemon would go on trying",
}


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    pool = ConnectionPool(settings)
    sender = Sender(settings, pool, Signer(settings))
    try:
        yield Store(sender)
    finally:
        await sender.close()
        await pool.close()


class StoreChecks:
    """The checks of the store, in the order in which a file depends on what they check.

    Attributes:
        rtt_s: the longest round trip to an address that answered; None when none did.
    """

    def __init__(self, settings: Settings, findings: Findings) -> None:
        self.rtt_s: float | None = None
        # One connection will do, and the same one for all that follows.
        self._settings = dataclasses.replace(settings, max_connections=1)
        self._findings = findings
        self._tries = 1
        self._neutral: AttemptError | None = None  # why no buckets were listed
        self._silent = False  # a request without keys got no answer
        self._at = ""  # of several addresses, the one where the object is put

    async def run(self, target: str) -> None:
        """Run all checks of the store.

        Args:
            target: BUCKET or BUCKET/PREFIX to put an object to, or empty.
        """
        if self._settings.verify == "no-etag":
            self._findings.warn("bucket", f"S3DAEMON_VERIFY=no-etag: {NO_ETAG_RISK}")
        answering: list[str] = []
        with self._findings.guard("connect"):
            reached = await reach(self._settings, self._findings, time.time)
            self.rtt_s = max((one.rtt_s for one in reached if one.rtt_s is not None), default=None)
            self._tries = max(1, len(reached))
            answering = [one.address for one in reached if not one.error]
            self._silent = all(one.silent for one in reached if not one.error)
            if not answering:
                self._findings.note("credentials", "not checked: the store cannot be reached")
                return
        has_keys = False
        async with _store(self._settings) as store:
            with self._findings.guard("keep-alive"):
                await self._keep_alive(store.sender.pool)
            with self._findings.guard("credentials"):
                has_keys = await self._credentials(store.sender, target)
        if not (has_keys and target):
            return
        for address in answering if len(answering) > 1 else [""]:
            at = dataclasses.replace(self._settings, receivers=(address,)) if address else self._settings
            self._at = f"{address}: " if address else ""
            async with _store(at) as store:
                with self._findings.guard("bucket"):
                    await store.sender.open()
                    await self._bucket(store, target)

    async def _keep_alive(self, pool: ConnectionPool) -> None:
        url = URL(self._settings.endpoint_url)
        try:
            if self._silent:  # it was waited for already
                raise TimeoutError
            async with pool.acquire() as connection:

                async def send(method: str) -> None:
                    async with timeout(self._settings.stall_timeout_s):
                        await pool.assign_address(connection)
                        await connection.request(method, str(url.with_path("/")), {}, None)

                found = await find_small_request(connection, send)
        except (aiohttp.ClientError, OSError) as exc:
            self._silent = isinstance(exc, TimeoutError)
            text = f"not checked: an unsigned request got no answer; does that port speak {url.scheme}?"
            self._findings.note("keep-alive", text)
            return
        if found:
            self._findings.ok("keep-alive", f"the store keeps a connection open after {found} /")
        else:
            text = "the store closes each connection after its answer: none is warm, and each upload opens its own"
            self._findings.warn("keep-alive", f"{text}; enable keep-alive at the store, or at the proxy in front of it")

    async def _credentials(self, sender: Sender, target: str) -> bool:
        """Whether there are keys to go on with, valid or not.

        Only a refusal that accuses the keys fails the check where an object is put after it: what else is answered to
        this request, by a proxy say, stops no upload.
        """
        try:
            await sender.open()
            # A store that says nothing is not waited for at each of its addresses as long as at one.
            limit_s = self._settings.stall_timeout_s / self._tries
            answer = await self._insist(lambda: sender.call("list_buckets", answer_timeout_s=limit_s))
        except SettingsError as exc:
            self._findings.fail("credentials", exc.text)
            return False
        except AttemptError as exc:
            self._neutral = exc
            if exc.code == ACCESS_DENIED:
                text = "the keys may not list buckets, which is not needed; some stores also answer this to wrong keys"
                self._findings.note("credentials", f"{text}: check with a BUCKET")
            elif exc.status in _NO_LIST and exc.code != str(exc.status):  # with S3's code, not a web server's page
                self._findings.note("credentials", f"{exc.code}: the store does not list buckets; check with a BUCKET")
            elif exc.code == Code.NO_ANSWER and self._silent:
                left_out = "; no request was answered" + (", so no object is put" if target else "")
                self._findings.fail("credentials", f"{self._complaint(exc)}{left_out}")
                return False
            elif target and not accuses_keys(exc):
                self._findings.warn(
                    "credentials", f"{exc.code}, {exc.text}; the object below shows whether the keys are valid"
                )
            else:
                self._findings.fail("credentials", self._complaint(exc))
        else:
            count = len(answer.get("Buckets", ()))
            self._findings.ok("credentials", f"the store accepts the keys; their own buckets: {count}")
        return True

    async def _bucket(self, store: Store, target: str) -> None:
        bucket, _, prefix = target.partition("/")
        allowed = self._settings.allowed_buckets
        if allowed and bucket not in allowed:
            self._findings.fail("bucket", f"{bucket} is not in S3DAEMON_ALLOWED_BUCKETS: the daemon refuses it; add it")
            return
        key = f"{prefix}{'/' if prefix and not prefix.endswith('/') else ''}s3daemon-check-{secrets.token_hex(8)}"
        with tempfile.TemporaryDirectory(prefix="s3daemon-check-") as directory:
            file = Path(directory, "object")
            try:
                request = Request(str(file), Destination(bucket, key))
                file.write_text(_CONTENT)  # noqa: ASYNC240 - a few lines; nothing else runs meanwhile
                source = Source.open(str(file))
            except S3daemonError as exc:
                self._findings.fail("bucket", exc.text)
                return
            transfer = Transfer.accept(request, source.state, time.time_ns() // 1000)
            what = f"{self._at}putting a small object, and deleting it again: {transfer.destination}"
            self._findings.note("bucket", what)
            try:
                await self._put(store, transfer, source)
            finally:
                source.close()

    async def _put(self, store: Store, transfer: Transfer, source: Source) -> None:
        stored = None
        try:
            stored = await self._insist(lambda: store.put(transfer, source))
        except FileError as exc:
            self._findings.fail("bucket", exc.text)
            return
        except AttemptError as exc:
            self._findings.fail("bucket", f"{self._at}{self._complaint(exc)}")
            if not exc.ambiguous and exc.code != Code.ETAG_MISMATCH:
                return
        else:
            md5 = self._settings.verify == "auto" and is_md5(stored.etag)
            how = "verified by its ETag" if md5 else "of the right length; no MD5 was compared"
            self._findings.ok("bucket", f"{self._at}stored in {seconds(stored.upload_usec)}, {how}")
            await self._look(store, transfer)
        try:
            await store.sender.call("delete_object", Bucket=transfer.destination.bucket, Key=transfer.destination.key)
        except AttemptError as exc:
            where = f"{transfer.destination} {'is' if stored else 'may be'} there"
            cure = "delete it with another client"
            self._findings.warn("bucket", f"{self._at}it could not be deleted, {exc.code}: {where}; {cure}")

    async def _look(self, store: Store, transfer: Transfer) -> None:
        """Check whether the daemon can find out what became of an attempt that got no answer."""
        try:
            found = await store.find(transfer)
        except AttemptError as exc:
            found, why = None, f" ({exc.code})"
        else:
            why = " (the keys may not read there)" if found is LookupResult.FORBIDDEN else ""
        if found is None or isinstance(found, LookupResult):
            text = "an attempt that gets no answer will be sent again, and so will its object's notification"
            self._findings.warn("bucket", f"{self._at}a HEAD request does not find the object{why}: {text}")

    async def _insist(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Call, and call again where an address does not answer: the next try goes to the next address."""
        for _ in range(self._tries - 1):
            try:
                return await call()
            except AttemptError as exc:
                if exc.status or exc.ambiguous:
                    raise
        return await call()

    def _complaint(self, error: AttemptError) -> str:
        keys = None
        if accuses_keys(error):
            keys = keys_after(error, self._neutral, ever_accepted=False, ever_stored=False, replaced=False)
        return f"{error.code}, {error.text}; {_CONSEQUENCES[judge(error, keys)]}"
