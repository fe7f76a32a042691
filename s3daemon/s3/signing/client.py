"""aiobotocore's S3 client, set up to sign requests and to parse answers, but not to send.

Only the settings decide how it behaves: it reads no configuration file, no environment variable, no metadata service.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
from collections.abc import Mapping
from typing import Any, cast

import botocore.credentials
import botocore.exceptions
import botocore.handlers
import botocore.loaders
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from s3daemon.config.settings import VARIABLES, Settings
from s3daemon.errors import SettingsError
from s3daemon.s3.signing.put_object import USER_AGENT, PutObject, Send
from s3daemon.s3.signing.signature import Signature

#: Names that are buckets and nothing else. To botocore others may be ARNs, or have sessions of their own (`--x-s3`).
_PLAIN_BUCKET = re.compile(r"(?!.*--)[A-Za-z0-9._-]+")


class Signer:
    """An S3 client that signs requests and parses answers; the function that `open` is given sends them.

    Attributes:
        client: aiobotocore's client, once opened.
        keys: access key, secret key and session token in use, once opened; no log may show the last two.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exit = contextlib.AsyncExitStack()
        self.client: Any = None
        self._put: PutObject | None = None
        self.keys = ("", "", "")

    async def open(self, send: Send) -> None:
        """Create the client; this loads all that botocore will ever read from disk.

        Args:
            send: sends the client's requests.

        Raises:
            SettingsError: the shared credentials file gives no keys.
        """
        settings = self._settings
        self.keys = access_key, secret_key, token = await asyncio.to_thread(_keys, settings)
        session = _session()
        config = AioConfig(
            user_agent=USER_AGENT,  # botocore builds its own anew for every request
            signature_version="s3v4",
            # UNSIGNED-PAYLOAD with a Content-Length: Ceph RGW 16 refuses the trailer that is botocore's default, and
            # hashing every byte before sending it would read every file twice.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        self.client = await self._exit.enter_async_context(
            session.create_client(
                "s3",
                region_name=settings.region,
                endpoint_url=settings.endpoint_url,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                aws_session_token=token or None,
                config=config,
            )
        )
        events = self.client.meta.events
        events.register("before-send.s3", send)
        events.register("before-call.s3", _disable_redirects)
        # Its pattern refuses Ceph's `tenant:bucket`; the store decides which names are valid.
        events.unregister("before-parameter-build.s3", botocore.handlers.validate_bucket_name)
        region = self.client.meta.region_name  # not the setting: botocore takes `fips` off its ends
        region = "us-east-1" if region == "aws-global" else region  # as in botocore's endpoint rules
        signature = Signature(access_key, secret_key, token, region)
        self._put = PutObject(self.client, signature, settings.endpoint_url, send)

    async def call(self, operation: str, **params: Any) -> Mapping[str, Any]:
        """Carry out an operation, and return the parsed answer.

        Args:
            operation: botocore's name for it, such as `put_object`.
            params: its parameters.

        Raises:
            ClientError, BotoCoreError, ValueError: as botocore does; and what the sending raises.
        """
        if operation == "put_object" and self._put is not None and _PLAIN_BUCKET.fullmatch(params["Bucket"]):
            return await self._put(params)
        return cast(Mapping[str, Any], await getattr(self.client, operation)(**params))

    async def close(self) -> None:
        """Close the client."""
        await self._exit.aclose()


def _session() -> AioSession:
    """Return a session that takes nothing from the environment, where an operator's `AWS_PROFILE` may stand."""
    session = AioSession()
    session.register_component("data_loader", _loader())
    # Times in answers are of no use here, and one that is no time would make all of its answer useless.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    variables = session.get_component("config_store")
    for name, (_, _, default, _) in session.SESSION_VARIABLES.items():
        variables.set_config_variable(name, default)
    for name in ("config_file", "credentials_file"):
        variables.set_config_variable(name, os.devnull)
    for section in ("s3", "proxies_config"):
        variables.set_config_variable(section, {})
    return session


@functools.cache
def _loader() -> botocore.loaders.Loader:
    """Return the reader of botocore's own data, which keeps what it has read: a reload reads nothing from disk.

    Creating a second client takes 10 ms with it, and 110 ms without: time in which the event loop does nothing else.
    """
    return botocore.loaders.Loader([botocore.loaders.Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)


def _disable_redirects(context: dict[str, Any], **_: object) -> None:
    """Mark a request as redirected already: else botocore looks for the bucket's region and sends it again.

    botocore has no public switch for that. `s3_redirect` is a private key of its request context, read by
    `S3RegionRedirectorv2.redirect_from_error`; tried with botocore 1.43 and aiobotocore 3.10.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _keys(settings: Settings) -> tuple[str, str, str]:
    """Return the keys from the settings, else from the shared credentials file by botocore's own reader."""
    if settings.access_key:
        return settings.access_key, settings.secret_key, settings.session_token
    provider = botocore.credentials.SharedCredentialProvider(
        settings.shared_credentials_file, settings.profile or "default"
    )
    try:
        found = provider.load()
    except botocore.exceptions.ConfigParseError as exc:
        flaw = _flaw_in_file(exc.kwargs["error"])
        # Not `from` it: the parser's text quotes the line, which may be the secret's.
        raise SettingsError([f"AWS_SHARED_CREDENTIALS_FILE: {settings.shared_credentials_file}{flaw}"]) from None
    except botocore.exceptions.BotoCoreError as exc:
        raise SettingsError([f"AWS_SHARED_CREDENTIALS_FILE: {exc}"]) from exc
    if found is None:
        raise SettingsError(
            [f"AWS_SHARED_CREDENTIALS_FILE: no keys for profile {settings.profile or 'default'} can be read there"]
        )
    keys = {"access_key": found.access_key, "secret_key": found.secret_key, "session_token": found.token or ""}
    _check(keys)
    return keys["access_key"], keys["secret_key"], keys["session_token"]


def _flaw_in_file(error: Exception) -> str:
    """Return what is wrong with a credentials file, by the parser's error: the line if that has it, and the form."""
    lines = [getattr(error, "lineno", None), *(line for line, _ in getattr(error, "errors", ()))]
    where = next((f", line {line}," for line in lines if line), "")
    form = "UTF-8 without a byte order mark, [default] or another profile, and below it each NAME = value once"
    return f"{where} is not in the format of the AWS tools: {form}"


def _check(keys: Mapping[str, str]) -> None:
    """Hold keys from the file to what the variables take: with others botocore, or aiohttp, fails at each request."""
    faults: list[str] = []
    for name, text in keys.items():
        if text or name != "session_token":
            try:
                VARIABLES[name].read(text)
            except SettingsError as exc:
                faults += [f"AWS_SHARED_CREDENTIALS_FILE: {fault}" for fault in exc.faults]
    if faults:
        raise SettingsError(faults)
