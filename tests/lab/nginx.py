"""A sink for PUTs: nginx writes each body to a file, in C, so that what a benchmark measures is the client.

It knows no buckets, keys or signatures, and its ETag is a constant. A multipart upload gets the answers that clients
wait for, and leaves its last part. nginx answers a PUT that it keeps with 201 or 204, and S3 with 200: so one server
keeps the body, and the one in front of it answers.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.certs import Authority
from lab.env import free_ports, program
from lab.processes import Process, start
from lab.s3 import S3Server

_HEAD = """\
daemon off;
{user}
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {dir}/incoming;
    proxy_temp_path {dir}/unused; fastcgi_temp_path {dir}/unused;
    uwsgi_temp_path {dir}/unused; scgi_temp_path {dir}/unused;
"""
_CONFIG = (
    _HEAD
    + """\
    client_body_buffer_size 1m;
    keepalive_requests 1000000;
    keepalive_timeout {keepalive}s;
    map $args $answer {{
        ~^uploads  '<InitiateMultipartUploadResult><UploadId>any</UploadId></InitiateMultipartUploadResult>';
        default    '<CompleteMultipartUploadResult><ETag>"any"</ETag></CompleteMultipartUploadResult>';
    }}
    server {{
        listen {host}:{http};
        {listens}
        {keys}
        location / {{
            if ($request_method = POST) {{ return 200 $answer; }}
            proxy_pass http://keeper;
            proxy_request_buffering off;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
        location = /kept {{ internal; add_header ETag '"any"'; return 200; }}
    }}
    upstream keeper {{ server {host}:{keeper}; keepalive 64; }}
    server {{
        listen {host}:{keeper};
        root {objects};
        location / {{
            dav_methods PUT DELETE;
            create_full_put_path on;
            add_header X-Accel-Redirect /kept;
        }}
    }}
    {refusal}
}}
"""
)
_FRONT = _HEAD + "    {rest}\n}}\n"
NAME = "sink.invalid"
"""A name that its certificate has and no resolver."""


@dataclass(frozen=True, kw_only=True)
class Sink(S3Server):
    """The sink's HTTPS side."""

    plain: S3Server
    objects: Path
    """Where bodies end up, each under its request's path."""


@contextmanager
def nginx(
    directory: Path,
    authority: Authority,
    *,
    host: str = "127.0.0.1",
    receivers: Sequence[str] = (),
    refusing: str = "",
    keepalive_s: int = 600,
) -> Iterator[Sink]:
    """Run the sink; raises UnavailableError without nginx.

    Args:
        directory: takes its files, and the bodies.
        authority: signs its certificate.
        host: the address to listen on, and that of the endpoint.
        receivers: further addresses that HTTPS is served on, at the same port.
        refusing: likewise, but it answers 503 to everything.
        keepalive_s: it closes connections that are idle for so long, seconds.
    """
    http, https, keeper = free_ports(3)
    certificate = authority.issue("nginx", "DNS:localhost", f"DNS:{NAME}", f"IP:{host}")
    keys = f"ssl_certificate {certificate.cert}; ssl_certificate_key {certificate.key};"
    objects = directory / "objects"
    objects.mkdir()
    config = directory / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            dir=directory,
            user="user root;" if os.geteuid() == 0 else "",
            host=host,
            http=http,
            keeper=keeper,
            listens=" ".join(f"listen {address}:{https} ssl;" for address in (host, *receivers)),
            refusal=f"server {{ listen {refusing}:{https} ssl; {keys} return 503; }}" if refusing else "",
            keepalive=keepalive_s,
            keys=keys,
            objects=objects,
        )
    )
    with start(program("nginx"), "-p", directory, "-c", config, "-e", "stderr", name="nginx") as process:
        process.wait_port(https, host)
        plain = S3Server(f"http://{host}:{http}", "any", "any")
        name = "localhost" if host == "127.0.0.1" else host
        yield Sink(f"https://{name}:{https}", "any", "any", authority.ca, plain=plain, objects=objects)


class Front:
    """An nginx that stands in front of a store as a site might set it up. Made by `front`."""

    def __init__(self, store: S3Server, directory: Path) -> None:
        self.server = S3Server(f"http://127.0.0.1:{free_ports(1)[0]}", store.access_key, store.secret_key)
        self.config = directory / "front.conf"
        self._directory = directory
        self.process: Process | None = None

    def configure(self, location: str, http: str = "", server: str = "") -> None:
        """Take a configuration, from now on.

        Args:
            location: what is in `location / {}`.
            http: what is beside the server.
            server: what is beside that location.
        """
        listen = self.server.url.removeprefix("http://")
        user = "user root;" if os.geteuid() == 0 else ""
        location = f"location / {{ proxy_set_header Host $http_host; {location} }}"
        rest = f"{http} server {{ listen {listen}; {server} {location} }}"
        self.config.write_text(_FRONT.format(dir=self._directory, user=user, rest=rest))
        if self.process is not None:
            self.process.popen.send_signal(signal.SIGHUP)


@contextmanager
def front(store: S3Server, directory: Path, location: str, http: str = "", server: str = "") -> Iterator[Front]:
    """Run an nginx with a configuration as for `Front.configure`; raises UnavailableError without nginx."""
    made = Front(store, directory)
    made.configure(location, http, server)
    words = ("-p", directory, "-c", made.config, "-e", "stderr")
    with start(program("nginx"), *words, name="nginx in front") as process:
        process.wait_port(int(made.server.url.rpartition(":")[2]))
        made.process = process
        yield made
