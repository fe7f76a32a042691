"""The client: what it sends, what it does with each answer, and that it runs on any Python with its standard library.

The real script runs as a process of its own, against a scripted daemon on loopback: its contract is bytes and statuses.
"""

import ast
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from lab.env import not_as_root

from s3daemon import __version__
from s3daemon.ingress.protocol import parse_request

SEND = Path(__file__).resolve().parents[2] / "send"
FATE = "the transfer may or may not have been accepted"

# Plays the daemon on one connection; returns what the client had sent.
Script = Callable[[socket.socket], bytes]


def line_from(sock: socket.socket) -> bytes:
    """All bytes up to the first LF, or to the end."""
    data = b""
    while not data.endswith(b"\n") and (more := sock.recv(65536)):
        data += more
    return data


def answering(reply: bytes) -> Script:
    """Reads a line, answers, closes; a client that sends no line gets no answer."""

    def play(sock: socket.socket) -> bytes:
        line = line_from(sock)
        if line:
            sock.sendall(reply)
        return line

    return play


def answering_at_once(reply: bytes) -> Script:
    """Answers and closes without reading, as a daemon does that refuses the user."""

    def play(sock: socket.socket) -> bytes:
        sock.sendall(reply)
        return b""

    return play


def answering_and_listening_on(sock: socket.socket) -> bytes:
    """Answers and waits for the next request, as the extended form allows; ends when the client does."""
    line = line_from(sock)
    sock.sendall(STORED)
    return line + line_from(sock)


def greeting(sock: socket.socket) -> bytes:
    """Greets and keeps the connection, as a mail server does; ends when the client does."""
    sock.sendall(b"220 mail ESMTP\r\n")
    return line_from(sock) + line_from(sock)


def flooding(sock: socket.socket) -> bytes:
    """Answers without end."""
    line = line_from(sock)
    try:
        while True:
            sock.sendall(b"x" * 65536)
    except OSError:
        return line


def resetting(sock: socket.socket) -> bytes:
    """Reads a line and resets the connection."""
    line = line_from(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return line


def as_older_daemons_do(sock: socket.socket) -> bytes:
    """Knows only the plain form, and answers an error with its repr."""
    line = line_from(sock)
    try:
        _, _ = line.decode().rstrip().split(" ")
        sock.sendall(b"Success")
    except ValueError as exc:
        sock.sendall(repr(exc).encode())
    return line


class Daemon:
    """Listens on an address of its own, plays one script on each connection, and keeps what it received."""

    def __init__(
        self, script: Script, family: int = socket.AF_INET, address: str | tuple[object, ...] = ("127.0.0.1", 0)
    ) -> None:
        self.script = script
        self.received: list[bytes] = []
        self.heard = threading.Event()
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind(address)
        self.listener.listen(0)
        self.name = self.listener.getsockname()
        self.environ = {"S3DAEMON_HOST": self.name}
        if family != socket.AF_UNIX:
            self.environ = {"S3DAEMON_HOST": self.name[0], "S3DAEMON_PORT": str(self.name[1])}
            self.name = f"{self.name[0]}:{self.name[1]}"
        self.thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "Daemon":
        """Begin to serve."""
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Stop serving."""
        self.stop()

    def stop(self) -> None:
        """Finish the present connection; accept no more."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                self.received.append(self.script(sock))

    def silent(self, sock: socket.socket) -> bytes:
        """A script: reports that a line came, and never answers."""
        line = line_from(sock)
        self.heard.set()
        sock.recv(1)
        return line


def command(*argv: str | bytes, python: str = sys.executable) -> list[str | bytes]:
    """The client's command line."""
    return [python, "-I", "-S", str(SEND), *map(os.fsencode, argv)]


def send(*argv: str | bytes, environ: dict[str, str], cwd: Path, python: str = sys.executable) -> tuple[int, str, str]:
    """Run the client in an environment of nothing but `environ`; exit status, standard output, standard error."""
    ran = subprocess.run(
        command(*argv, python=python), env=environ, cwd=cwd, capture_output=True, check=False, timeout=60
    )
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode(errors="surrogateescape")


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    """A working directory with one small file, `f`."""
    (tmp_path / "f").write_bytes(b"x")
    return tmp_path.resolve()


STORED = b'{"result": "stored", "id": "00"}\n'
DEFERRED = b'{"result": "deferred", "id": "7", "code": "Deferred", "text": "7 is kept", "further": []}\n'
OLDER = "gave no proper answer to --no-wait, --tag or an unusual name (is it an older daemon?)"


@pytest.mark.parametrize(
    ("options", "reply", "complaint"),
    [
        ([], b"Success", ""),
        ([], b"NoSuchBucket: there is no b\n", "NoSuchBucket: there is no b"),
        ([], b"NoSuchBucket: there is no b", "NoSuchBucket: there is no b"),
        ([], "AccessDenied: nöt".encode(), "AccessDenied: nöt"),
        ([], b"Deferred: kept\x1b[2J\nas\r 7\n", r"Deferred: kept\x1b[2J\nas\r 7"),
        (["--tag", "night"], STORED, ""),
        (["--tag=--no-wait"], STORED, ""),
        (["--no-wait"], b'{"result": "accepted", "id": "00"}\n', ""),
        (["--no-wait"], b'{"result": "accepted"}', ""),
        (["--tag=n"], DEFERRED, "Deferred: 7 is kept"),
        (["--tag=n"], b'{"result": "failed", "code": "A", "text": "b\\nc\\u001b"}\n', r"A: b\nc\x1b"),
        ([], b"413: the store answered 413: too large", "413: the store answered 413: too large"),
        ([], b"Odd-Code.1: no", "Odd-Code.1: no"),
    ],
)
def test_each_answer_is_silent_or_one_line(cwd: Path, options: list[str], reply: bytes, complaint: str) -> None:
    """Stored and accepted are silent successes; the daemon's reason for any other end is one printable line."""
    with Daemon(answering(reply)) as daemon:
        got = send(*options, "f", "a/b/k", environ=daemon.environ | {"LC_ALL": "C.UTF-8"}, cwd=cwd)
    assert got == ((1, "", f"send: {complaint}\n") if complaint else (0, "", ""))
    assert len(daemon.received) == 1


@pytest.mark.parametrize(
    ("options", "reply", "shown"),
    [
        ([], b"Success\n", "'Success'"),
        ([], b"Succ", "'Succ'"),
        ([], b"SSH-2.0 no: x", "'SSH-2.0 no: x'"),
        ([], b"ValueError('no')", "\"ValueError('no')\""),
        ([], b"\xff\0" * 300, "'" + r"\\xff\x00" * 40 + "'"),
        (["--tag=n"], b"Success", "'Success'"),
        (["--tag=n"], b'{"result": "failed", "code": 1}\n', """'{"result": "failed", "code": 1}'"""),
        (["--tag=n"], b'{"result": ["stored"]}\n', """'{"result": ["stored"]}'"""),
        (["--tag=n"], b'["result"]\n', """'["result"]'"""),
        (["--tag=n"], b'{"resu', """'{"resu'"""),
        (["--tag=n"], b"{}\n", "'{}'"),
        (["--tag=n"], b"\n", "''"),
        (["--tag=n"], b"[" * 60000, "'" + "[" * 200 + "'"),
    ],
)
def test_an_unexpected_answer_is_shown_in_one_line(cwd: Path, options: list[str], reply: bytes, shown: str) -> None:
    """Escaped and shortened, with what it means for the transfer."""
    with Daemon(answering(reply)) as daemon:
        got = send(*options, "f", "a/b/k", environ=daemon.environ, cwd=cwd)
    nonsense = OLDER if options else "answered neither Success nor an error"
    assert got == (1, "", f"send: {daemon.name} {nonsense}; {FATE}; it said {shown}\n")


HTTP = "speaks HTTP; set S3DAEMON_PORT to the port of s3daemon.socket, 15555 by default"


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (flooding, f"the answer of {{daemon}} is over 65536 bytes long; {FATE}"),
        (answering(b""), f"{{daemon}} closed the connection (without an answer); {FATE}"),
        (resetting, f"{{daemon}} closed the connection (Connection reset by peer); {FATE}"),
        (answering_at_once(b"NotAllowed: uid 7\n"), "NotAllowed: uid 7"),
        (answering(b"HTTP/1.0 400 no\r\n"), f"{{daemon}} {HTTP}"),
    ],
)
def test_a_misbehaving_daemon_is_reported_in_one_line(cwd: Path, script: Script, complaint: str) -> None:
    """An endless answer, a reset, an answer that comes before the request."""
    with Daemon(script) as daemon:
        got = send("f", "a/b/k", environ=daemon.environ, cwd=cwd)
    assert got == (1, "", f"send: {complaint.format(daemon=daemon.name)}\n")


def test_an_older_daemon_gets_the_plain_form(cwd: Path) -> None:
    """`FILE SP DEST` is enough for every ordinary call; where it is not, the error says so."""
    with Daemon(as_older_daemons_do) as daemon:
        assert send("f", "a/b/k", environ=daemon.environ, cwd=cwd) == (0, "", "")
        status, _, err = send("--no-wait", "f", "a/b/k", environ=daemon.environ, cwd=cwd)
    assert status == 1
    assert err.startswith(f'send: {daemon.name} {OLDER}; {FATE}; it said "ValueError(')
    assert daemon.received[0] == f"{cwd}/f a/b/k\n".encode()


PLAIN_NAMES = ["n", 'quo"te', "back\\slash", "{brace", "-", "-x", "ünï", "a=b%2B+", "'"]
EXTENDED_NAMES = ["with space", "new\nline", b"\xff\xfe", "no\u00a0break", "tab\t", "\u2028", "\x1b[2J", " "]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize(("names", "plain"), [(PLAIN_NAMES, True), (EXTENDED_NAMES, False)])
def test_every_name_arrives_unchanged(cwd: Path, names: list[str | bytes], plain: bool, locale: str) -> None:
    """The daemon's parser returns the bytes of the name, whatever the locale; in the plain form whenever possible."""
    for name in map(os.fsencode, names):
        (cwd / os.fsdecode(name)).write_bytes(b"x")
        with Daemon(answering(b"Success" if plain else STORED)) as daemon:
            environ = daemon.environ | {"LC_ALL": locale}
            assert send(b"./" + name, "a/te:nant/k//y", environ=environ, cwd=cwd) == (0, "", "")
        request = parse_request(daemon.received[0].removesuffix(b"\n"))
        assert os.fsencode(request.file) == os.fsencode(cwd) + b"/./" + name
        assert (request.destination.bucket, request.destination.key) == ("te:nant", "k//y")
        assert (request.wait, request.tag, request.extended) == (True, "", not plain)
        assert plain == (daemon.received[0] == os.fsencode(cwd) + b"/./" + name + b" a/te:nant/k//y\n")


@pytest.mark.parametrize(
    ("argv", "key", "wait", "tag"),
    [
        (["--no-wait", "f", "a/b/k"], "k", False, ""),
        (["f", "--tag", "nïght 1", "a/b/k"], "k", True, "nïght 1"),
        (["f", "a/b/k", "--tag=-x", "--no-wait"], "k", False, "-x"),
        (["--tag=n", "--", "f", "a/b/ü k'\"%+\\"], "ü k'\"%+\\", True, "n"),
        (["f", "a/b/k with space"], "k with space", True, ""),
        (["f", "a/b/no\u00a0break"], "no\u00a0break", True, ""),
        (["--tag=n", "f", "a/b/"], "f", True, "n"),
    ],
)
def test_options_and_keys_in_the_extended_form(cwd: Path, argv: list[str], key: str, wait: bool, tag: str) -> None:
    """Options may be anywhere before `--`; what the plain form cannot express is sent as JSON, in ASCII."""
    with Daemon(answering(STORED)) as daemon:
        assert send(*argv, environ=daemon.environ, cwd=cwd) == (0, "", "")
    request = parse_request(daemon.received[0].removesuffix(b"\n"))
    assert (request.file, request.destination.key, request.wait, request.tag) == (f"{cwd}/f", key, wait, tag)
    assert daemon.received[0].isascii()


@pytest.mark.parametrize(
    ("file", "destination", "bucket", "key"),
    [
        ("f", "a/b/night/", "b", "night/f"),
        ("f", "a/b/", "b", "f"),
        ("f", "/b/night/", "b", "night/f"),
        ("f", "a/b//", "b", "/f"),
        ("./../{dir}/f", "a/b/night/", "b", "night/f"),
        ("{cwd}/f", "a/b/night/", "b", "night/f"),
        ("d/", "a/b/night/", "b", "night/d"),
        ("f", "/b/k", "b", "k"),
    ],
)
def test_a_destination_that_ends_in_a_slash_gets_the_files_name(
    cwd: Path, file: str, destination: str, bucket: str, key: str
) -> None:
    """As with `mc cp`; what is no file is the daemon's to refuse. The alias may be empty."""
    (cwd / "d").mkdir()
    with Daemon(answering(b"Success")) as daemon:
        assert send(file.format(cwd=cwd, dir=cwd.name), destination, environ=daemon.environ, cwd=cwd) == (0, "", "")
    request = parse_request(daemon.received[0].removesuffix(b"\n"))
    assert (request.destination.bucket, request.destination.key) == (bucket, key)


def test_a_relative_name_in_the_root_directory() -> None:
    """Its path has one slash, as the journal and the queue show it."""
    with Daemon(answering(b"Success")) as daemon:
        assert send("etc/passwd", "any/b/k", environ=daemon.environ, cwd=Path("/")) == (0, "", "")
    assert daemon.received == [b"/etc/passwd any/b/k\n"]


def test_three_files_to_one_directory_are_three_objects(cwd: Path) -> None:
    for name in "fgh":
        (cwd / name).write_bytes(b"x")
    with Daemon(answering(b"Success")) as daemon:
        for name in "fgh":
            assert send(name, "any/b/night/", environ=daemon.environ, cwd=cwd) == (0, "", "")
    keys = [parse_request(line.removesuffix(b"\n")).destination.key for line in daemon.received]
    assert keys == ["night/f", "night/g", "night/h"]


MALFORMED = "the destination must be ALIAS/BUCKET/KEY or ALIAS/BUCKET/, not"
UNPRINTABLE = "must be UTF-8 without control characters, not"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "two words are needed, FILE and ALIAS/BUCKET/KEY, not 0; see send --help"),
        (["f"], "two words are needed, FILE and ALIAS/BUCKET/KEY, not 1; see send --help"),
        (["f", "f", "a/b/k"], "two words are needed, FILE and ALIAS/BUCKET/KEY, not 3; see send --help"),
        (["f", "k"], f"{MALFORMED} 'k'"),
        (["f", "a/b"], f"{MALFORMED} 'a/b'"),
        (["f", "a//k"], f"{MALFORMED} 'a//k'"),
        (["f", "/b"], f"{MALFORMED} '/b'"),
        ([b"\xff", "a/b/night/"], rf"the destination {UNPRINTABLE} 'a/b/night/\udcff'"),
        (["f", "s3://b/k"], f"{MALFORMED} 's3://b/k'"),
        (["f", ""], f"{MALFORMED} ''"),
        (["f", b"a/b/\xff"], rf"the destination {UNPRINTABLE} 'a/b/\udcff'"),
        (["f", "a/b/new\nline"], rf"the destination {UNPRINTABLE} 'a/b/new\nline'"),
        (["--tag=\x1b", "f", "a/b/k"], rf"the tag {UNPRINTABLE} '\x1b'"),
        (["f", "a/b/k", "--tag"], "--tag needs a value; see send --help"),
        (["f", "a/b/k", "--timeout"], "--timeout needs a value; see send --help"),
        (["--tag", "--no-wait", "f", "a/b/k"], "--tag needs a value; see send --help"),
        (["--wait-for", "--expect", "3"], "--wait-for needs a value; see send --help"),
        (["--timeout=", "f", "a/b/k"], "--timeout takes seconds, 0 to 1000000, not ''"),
        (["f", "a/b/k", "--timeout=\u0663"], "--timeout takes seconds, 0 to 1000000, not '\u0663'"),
        (["--timeout=-1", "f", "a/b/k"], "--timeout takes seconds, 0 to 1000000, not '-1'"),
        (["--timeout", "nan", "f", "a/b/k"], "--timeout takes seconds, 0 to 1000000, not 'nan'"),
        (["--timeout", "1000001", "f", "a/b/k"], "--timeout takes seconds, 0 to 1000000, not '1000001'"),
        (["-f", "a/b/k"], "unknown option -f; see send --help (a file of that name: ./-f)"),
        (["", "a/b/k"], "FILE is empty"),
        (["-", "a/b/k"], "standard input cannot be sent (a file named -: ./-)"),
        (["--", "-", "a/b/k"], "standard input cannot be sent (a file named -: ./-)"),
        (["--wait-for"], "--wait-for needs a value; see send --help"),
        (["--wait-for="], "--wait-for needs a tag; see send --help"),
        (["--wait-for=E", "f", "a/b/k"], "--wait-for takes no file and no other option than --expect and --timeout"),
        *(
            (["--wait-for=E", f"--expect={text}"], f"--expect takes a number of files, 1 to 1000000, not '{text}'")
            for text in ("0", "\u0663", "-1", "9" * 5000)
        ),
        (["--expect=2", "f", "a/b/k"], "--expect goes with --wait-for, --print-id with --no-wait; see send --help"),
        (["--print-id", "f", "a/b/k"], "--expect goes with --wait-for, --print-id with --no-wait; see send --help"),
        (["f", "a/b/" + 9000 * "k"], "the names are too long: a request of {long} bytes, 8192 are allowed"),
    ],
)
def test_invalid_arguments_are_refused_before_the_daemon_is_asked(
    cwd: Path, argv: list[str | bytes], complaint: str
) -> None:
    """One line says what to fix, and nothing is sent."""
    long = len(f"{cwd}/f a/b/\n") + 9000
    (cwd / os.fsdecode(b"\xff")).touch()
    with Daemon(answering(b"Success")) as daemon:
        assert send(*argv, environ=daemon.environ, cwd=cwd) == (1, "", f"send: {complaint.format(long=long)}\n")
    assert daemon.received == []


def test_a_path_through_a_link_is_not_simplified(cwd: Path) -> None:
    """`link/../f` is the file beside the link's target, not the one beside the link."""
    (cwd / "far/away").mkdir(parents=True)
    (cwd / "far/f").write_bytes(b"y")
    (cwd / "link").symlink_to("far/away")
    with Daemon(answering(b"Success")) as daemon:
        assert send("link/../f", "a/b/k", environ=daemon.environ, cwd=cwd)[0] == 0
    assert daemon.received == [f"{cwd}/link/../f a/b/k\n".encode()]


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", " 1", "\u0663", "9" * 5000])
def test_an_invalid_port_is_refused(cwd: Path, port: str) -> None:
    """It is never replaced by the default."""
    complaint = f"send: S3DAEMON_PORT must be a number from 1 to 65535, not '{port}'\n"
    assert send("f", "a/b/k", environ={"S3DAEMON_PORT": port}, cwd=cwd) == (1, "", complaint)


def test_when_the_daemon_is_down_the_unit_to_start_is_named(cwd: Path) -> None:
    """The unit of its instance; an address that only this test uses stands for the default port."""
    with Daemon(answering(b"Success")) as daemon:
        pass
    port, refused = daemon.environ["S3DAEMON_PORT"], "Connection refused; is it up? systemctl start s3daemon"
    got = send("f", "a/b/k", environ=daemon.environ, cwd=cwd)
    assert got == (1, "", f"send: cannot connect to {daemon.name}: {refused}@{port}.socket\n")
    got = send("f", "a/b/k", environ={"S3DAEMON_HOST": "127.0.0.77", "S3DAEMON_PORT": ""}, cwd=cwd)
    assert got == (1, "", f"send: cannot connect to 127.0.0.77:15555: {refused}.socket\n")
    path = f"{cwd}/none"
    got = send("f", "a/b/k", environ={"S3DAEMON_HOST": path}, cwd=cwd)
    gone = "No such file or directory; is it up? systemctl enable s3daemon-unix.socket; systemctl restart s3daemon"
    assert got == (1, "", f"send: cannot connect to {path}: {gone}\n")
    path = "/" + "x" * 200
    got = send("f", "a/b/k", environ={"S3DAEMON_HOST": path}, cwd=cwd)
    assert got == (1, "", f"send: cannot connect to {path}: AF_UNIX path too long\n")


def test_who_may_connect_to_a_unix_socket_is_said(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    path = f"{tmp_path}/shut/socket"
    with not_as_root():
        got = send("/f", "a/b/k", environ={"S3DAEMON_HOST": path}, cwd=Path("/"))
    why = "Permission denied; only members of its group may connect: usermod -aG s3daemon USER"
    assert got == (1, "", f"send: cannot connect to {path}: {why}\n")


def test_a_host_that_does_not_resolve_is_named(cwd: Path) -> None:
    """No resolver has to be asked about a name with two dots."""
    status, _, err = send("f", "a/b/k", environ={"S3DAEMON_HOST": "no..such"}, cwd=cwd)
    assert status == 1
    assert err.startswith("send: the host of no..such:15555 does not resolve: ")
    assert err.count("\n") == 1


def test_an_extended_answer_ends_at_its_newline(cwd: Path) -> None:
    """The daemon keeps the connection for a next request; the client does not wait for its end."""
    with Daemon(answering_and_listening_on) as daemon:
        assert send("--tag=n", "f", "a/b/k", environ=daemon.environ, cwd=cwd) == (0, "", "")
    assert len(daemon.received) == 1


def test_what_is_not_the_daemon_and_keeps_the_connection_is_shown(cwd: Path) -> None:
    """The caller hears of it at once, in both forms."""
    with Daemon(greeting) as daemon:
        for options in ([], ["--no-wait"]):
            status, _, err = send(*options, "--timeout=30", "f", "a/b/k", environ=daemon.environ, cwd=cwd)
            assert (status, err.partition("it said ")[2]) == (1, "'220 mail ESMTP'\n")


def answering_in_turn(*replies: bytes) -> Script:
    """Reads a line and gives the next answer on each connection; the last one for ever."""
    left = list(replies)
    return lambda sock: answering(left.pop(0) if left[1:] else left[0])(sock)


@pytest.mark.parametrize(("timeout", "asked"), [("0", 4), ("7200", 4), ("3600", 1), ("60", 1)])
def test_a_question_that_may_last_longer_than_the_daemon_waits_is_asked_again(
    cwd: Path, timeout: str, asked: int
) -> None:
    """The daemon answers after an hour at the latest; `--timeout 0` waits until all is stored."""
    with Daemon(answering_in_turn(DEFERRED, b"", DEFERRED, b'{"result": "stored", "stored": 2}\n')) as daemon:
        status, _, err = send("--wait-for=E", f"--timeout={timeout}", environ=daemon.environ, cwd=cwd)
    assert (status, err) == ((0, "") if asked > 1 else (1, "send: Deferred: 7 is kept\n"))
    assert [json.loads(line)["timeout"] <= 3600 for line in daemon.received] == [True] * asked


def test_a_question_ends_in_time_with_the_reason_where_no_daemon_comes_back(cwd: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        port = listener.getsockname()[1]
        environ = {"S3DAEMON_HOST": "127.0.0.1", "S3DAEMON_PORT": str(port)}
        asked = pool.submit(send, "--wait-for=E", "--timeout=1", environ=environ, cwd=cwd)
        listener.accept()[0].close()
        listener.close()
        status, _, err = asked.result()
    assert (status, err.startswith(f"send: cannot connect to 127.0.0.1:{port}: Connection refused; is it ")) == (
        1,
        True,
    )


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (
            answering(b"Success"),
            "gave no proper answer to --wait-for (is it an older daemon?); {fate}; it said 'Success'",
        ),
        (flooding, "the answer of {daemon} is over 65536 bytes long; {fate}"),
    ],
)
def test_a_question_that_is_not_answered_speaks_of_no_transfer(cwd: Path, script: Script, complaint: str) -> None:
    """It asks for none; what it asked remains unknown."""
    with Daemon(script) as daemon:
        status, _, err = send("--wait-for=E", environ=daemon.environ, cwd=cwd)
    fate = "it is unknown whether all is stored"
    assert status == 1
    assert complaint.format(daemon=daemon.name, fate=fate) in err
    assert FATE not in err


def test_localhost_is_the_default_host(cwd: Path) -> None:
    """By name, so that the host's own table decides."""
    with Daemon(answering(b"Success")) as daemon:
        del daemon.environ["S3DAEMON_HOST"]
        assert send("f", "a/b/k", environ=daemon.environ, cwd=cwd) == (0, "", "")
    assert len(daemon.received) == 1


def client_of(environ: dict[bytes, bytes]) -> Any:
    """The client's `Daemon` in this process, for cases that no host, kernel or clock produces on demand."""
    return runpy.run_path(str(SEND))["Daemon"](environ, 30)


def test_each_address_is_tried() -> None:
    """The daemon is reached at whichever of a name's addresses it has; which names have several depends on the host."""
    with Daemon(answering(b"Success")) as daemon:
        host, port = daemon.name.split(":")
        found = [(socket.AF_INET, (other, int(port))) for other in ("127.0.0.77", "127.0.0.78", host)]
        for addresses in (found, found[::-1]):
            asked = client_of({})
            asked.addresses = addresses.copy
            assert asked.ask(b"/f a/b/k\n") == b"Success"
    assert daemon.received == [b"/f a/b/k\n"] * 2


@contextmanager
def deaf() -> Iterator[tuple[str, int]]:
    """An address that answers no connection, as behind a firewall: the backlog is full."""
    with ExitStack() as open_:
        listener = open_.enter_context(socket.create_server(("127.0.0.79", 0), backlog=0))
        for _ in range(3):
            waiting = open_.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_an_address_that_does_not_answer_does_not_hide_another() -> None:
    """It has its turn, and again after the others; it alone may use up the time."""
    with Daemon(answering(b"Success")) as daemon, deaf() as silent:
        host, port = daemon.name.split(":")
        asked = client_of({})
        type(asked).connect.__globals__["ADDRESS_SECONDS"] = 0.05
        refusing = (socket.AF_INET, ("127.0.0.77", int(port)))
        asked.addresses = [(socket.AF_INET, silent), refusing, (socket.AF_INET, (host, int(port)))].copy
        assert asked.ask(b"/f a/b/k\n") == b"Success"
        asked.addresses, asked.end = [(socket.AF_INET, silent), refusing].copy, time.monotonic() + 0.2
        with pytest.raises(Exception, match=r"no connection to .*; nothing was sent"):
            asked.ask(b"/f a/b/k\n")
    assert daemon.received == [b"/f a/b/k\n"]


class Refusal:
    """A connection whose other end answered and closed before it was asked."""

    def __init__(self) -> None:
        self.answer = b"NotAllowed: uid 7\n"

    def sendall(self, line: bytes) -> None:
        """Fail: the other end is gone."""
        raise BrokenPipeError(line)

    def recv(self, _: int) -> bytes:
        """Return the answer, then the end."""
        given, self.answer = self.answer, b""
        return given

    def settimeout(self, _: float) -> None:
        """Nothing here waits."""

    def close(self) -> None:
        """Nothing is open."""


def test_a_refusal_that_came_before_the_request_is_read() -> None:
    """A broken pipe does not hide the reason for it; in a real daemon this is a race, so a fake one breaks it."""
    asked = client_of({})
    asked.connect = Refusal
    assert asked.ask(b"/f a/b/k\n") == b"NotAllowed: uid 7\n"


def test_no_answer_ends_at_the_time_limit(cwd: Path) -> None:
    """The daemon has the request, so the message says that the outcome is unknown."""
    with Daemon(answering(b"")) as daemon:
        daemon.script = daemon.silent
        got = send("--timeout=0.2", "f", "a/b/k", environ=daemon.environ, cwd=cwd)
    assert got == (1, "", f"send: no answer from {daemon.name} in 0.2 s; {FATE}\n")


def test_an_interrupt_is_quiet(cwd: Path) -> None:
    """Control-C while waiting: status 130 and no traceback; `--timeout 0` waits as long as it takes."""
    with Daemon(answering(b"")) as daemon:
        daemon.script = daemon.silent
        # Whoever runs the tests in the background of a shell has the signal ignored, and so would the client.
        words = ["/usr/bin/env", "--default-signal=INT", *command("--timeout", "0", "f", "a/b/k")]
        with subprocess.Popen(words, env=daemon.environ, cwd=cwd, stderr=subprocess.PIPE) as process:
            assert daemon.heard.wait(30)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[1] == b""
        assert process.returncode == 128 + signal.SIGINT


@pytest.fixture
def full_unix_socket(cwd: Path) -> Iterator[tuple[Daemon, list[socket.socket]]]:
    """A daemon that does not accept yet, on a Unix socket, and clients that fill its backlog."""
    daemon = Daemon(answering(b"Success"), socket.AF_UNIX, str(cwd / "s"))
    fillers: list[socket.socket] = []
    try:
        while True:
            fillers.append(socket.socket(socket.AF_UNIX))
            fillers[-1].setblocking(False)
            fillers[-1].connect(daemon.name)
    except BlockingIOError:
        yield daemon, fillers
    finally:
        for filler in fillers:
            filler.close()
        daemon.listener.close()


def test_a_full_unix_backlog_is_a_wait(cwd: Path, full_unix_socket: tuple[Daemon, list[socket.socket]]) -> None:
    """EAGAIN fails only at the time limit, and not when there is room before."""
    daemon, fillers = full_unix_socket
    got = send("--timeout=0.2", "f", "a/b/k", environ=daemon.environ, cwd=cwd)
    assert got == (1, "", f"send: no connection to {daemon.name} in 0.2 s; nothing was sent\n")
    asked = client_of({b"S3DAEMON_HOST": os.fsencode(daemon.name)})
    second_look = iter((False, True))

    def left() -> float:
        """Make room when the client looks at its clock for the second time, thus after one EAGAIN."""
        if next(second_look, False):
            for filler in fillers:
                filler.close()
            daemon.thread.start()
        return 30.0

    asked.left = left
    assert asked.ask(b"/f a/b/k\n") == b"Success"
    daemon.stop()
    assert daemon.received == [b"", b"/f a/b/k\n"]


def pythons() -> list[str]:
    """The running Python, the system's, and every one from 3.6 that pyenv has."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [str(python) for minor in range(6, 30) for python in sorted(versions.glob(f"3.{minor}.*/bin/python"))]
    return [sys.executable, "/usr/bin/python3", *found]


@pytest.mark.parametrize("python", pythons())
def test_it_runs_on_a_bare_python(cwd: Path, python: str) -> None:
    """No site packages, no environment, the C locale: both forms, failures, and what depends on the system."""
    (cwd / "ü\udcff").write_bytes(b"x")
    with Daemon(answering(b"Success")) as daemon:
        environ = daemon.environ | {"LC_ALL": "C"}
        assert send("f", "a/b/ü", environ=environ, cwd=cwd, python=python) == (0, "", "")
        daemon.script = answering(b'{"result": "failed", "code": "No", "text": "\\u00fc\\ud800\\n"}\n')
        status, _, err = send("ü\udcff", "a/b/k", environ=environ, cwd=cwd, python=python)
        assert (status, err.replace("ü", r"\xfc")) == (1, "send: No: \\xfc\\ud800\\n\n")
    assert daemon.received[0] == f"{cwd}/f a/b/ü\n".encode()
    assert rb"\u00fc\udcff" in daemon.received[1]
    for host in (None, "127.0.0.77", "no..such", f"{cwd}/none"):
        environ = {"S3DAEMON_HOST": host} if host else {"S3DAEMON_PORT": "x"}
        status, out, err = send("f", "a/b/k", environ=environ, cwd=cwd, python=python)
        assert (status, out, err.count("\n"), err[:6]) == (1, "", 1, "send: ")
    assert send("--help", environ={}, cwd=cwd, python=python)[1].startswith("usage: send ")


def test_an_argument_that_the_locale_cannot_turn_back(capfd: pytest.CaptureFixture[str]) -> None:
    """It has a line, too: in EUC-JP the C library reads bytes that Python's codec cannot write."""
    main = runpy.run_path(str(SEND))["main"]
    for argv in (["/f", "a/b/\ud800"], ["/\ud800", "a/b/k"], ["--tag=\ud800", "/f", "a/b/k"]):
        assert main(argv, {}) == 1
        assert capfd.readouterr().err.endswith("\\ud800' cannot be read in this locale: set LC_ALL=C.UTF-8\n")


def test_it_is_executable_by_itself(cwd: Path) -> None:
    """Run by its own name it has the system's Python, without site packages."""
    assert SEND.read_text().startswith("#!/usr/bin/python3 -IS\n")
    with Daemon(answering(b"Success")) as daemon:
        subprocess.run([SEND, "f", "a/b/k"], env=daemon.environ, cwd=cwd, check=True)
    assert len(daemon.received) == 1


def test_it_imports_only_fast_modules_of_the_standard_library(cwd: Path) -> None:
    """Its start is in the callers' telemetry: the plain form imports none of the modules that take milliseconds."""
    nodes = list(ast.walk(ast.parse(SEND.read_text())))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert imported <= sys.stdlib_module_names
    with Daemon(answering(b"Success")) as daemon:
        words = [sys.executable, "-I", "-S", "-X", "importtime", str(SEND), "f", "a/b/k"]
        ran = subprocess.run(words, env=daemon.environ, cwd=cwd, check=True, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "_socket" in loaded
    assert not loaded & {"argparse", "json", "socket", "pathlib", "typing", "re", "enum", "encodings.idna"}


def test_help_and_version(cwd: Path) -> None:
    """They need no daemon; the version is the package's."""
    assert send("--version", environ={}, cwd=cwd) == (0, f"send {__version__}\n", "")
    status, out, _ = send("f", "--help", environ={}, cwd=cwd)
    assert (status, out.startswith("usage: send ")) == (0, True)


OUTPUTS = [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor"), ("| true", "Broken pipe")]


def into(redirection: str, *argv: str, cwd: Path, environ: dict[str, str] | None = None) -> tuple[str, str]:
    """Run the client with this output; its status and what it says. The reader of a pipe is gone before."""
    shell = f"(sleep 0.2; '{sys.executable}' -I -S '{SEND}' {' '.join(argv)} {{}}; echo $? >status) {{}}"
    words = shell.format("", redirection) if "|" in redirection else shell.format(redirection, "")
    ran = subprocess.run(["/bin/sh", "-c", words], cwd=cwd, env=environ, stderr=subprocess.PIPE, text=True, check=True)
    return (cwd / "status").read_text().strip(), ran.stderr


@pytest.mark.parametrize(("redirection", "reason"), OUTPUTS)
def test_an_id_that_cannot_be_printed_is_no_failure(cwd: Path, redirection: str, reason: str) -> None:
    """The transfer is accepted: a line says so and has the id; a status of 1 would have it sent again."""
    with Daemon(answering(b'{"result": "accepted", "id": "0123456789abcdef"}\n')) as daemon:
        got = into(redirection, "--no-wait", "--print-id", "f", "a/b/k", cwd=cwd, environ=daemon.environ)
    said = f"send: the transfer is accepted, but its id cannot be printed ({reason}): 0123456789abcdef\n"
    assert got == ("0", said)


@pytest.mark.parametrize(("redirection", "reason"), OUTPUTS)
def test_help_that_cannot_be_printed_is_a_failure(cwd: Path, redirection: str, reason: str) -> None:
    """A line says why."""
    said = f"send: standard output cannot be written: {reason}\n"
    assert into(redirection, "--help", cwd=cwd) == ("1", said)


def test_without_a_working_directory_a_relative_path_is_refused(cwd: Path) -> None:
    """One line, and an absolute path is taken."""
    with Daemon(answering(b"Success")) as daemon:
        for file, status, said in (
            ("f", 1, "send: no working directory (No such file or directory): give the absolute path of FILE\n"),
            ("/f", 0, ""),
        ):
            shell = f'mkdir -p gone && cd gone && rmdir ../gone && exec "$0" -I -S "$1" {file} a/b/k'
            words = ["/bin/sh", "-c", shell, sys.executable, str(SEND)]
            ran = subprocess.run(words, cwd=cwd, env=daemon.environ, stderr=subprocess.PIPE, text=True, check=False)
            assert (ran.returncode, ran.stderr) == (status, said)
    assert daemon.received == [b"/f a/b/k\n"]


def test_with_closed_streams_the_status_reports_the_result(cwd: Path) -> None:
    """Closed or full standard streams: no traceback, and no message is written to the daemon's socket."""
    for redirection, argv in (("2>&-", "gone a/b/k"), ("2>/dev/full", "gone a/b/k")):
        shell = f'exec "$0" -I -S "$1" {argv} {redirection}'
        ran = subprocess.run(["/bin/sh", "-c", shell, sys.executable, SEND], cwd=cwd, capture_output=True, check=False)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, b"", b"")
    with Daemon(answering(b"Success")) as daemon:
        shell = 'exec "$0" -I -S "$1" f a/b/k <&- >&- 2>&-'
        words = ["/bin/sh", "-c", shell, sys.executable, str(SEND)]
        assert subprocess.run(words, cwd=cwd, env=daemon.environ, check=False).returncode == 0
    assert daemon.received == [f"{cwd}/f a/b/k\n".encode()]
