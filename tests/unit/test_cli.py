"""The command line: the word that names the command chooses its module, and no other module is imported."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3daemon import __version__
from s3daemon.cli import main

TREE = Path(__file__).resolve().parents[2]
#: In a build of the packages, the libraries are found by this variable.
LIBRARIES = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`s3daemon ARGV` in a process of its own."""
    command = [sys.executable, "-m", "s3daemon", *argv]
    env = {"PATH": os.environ["PATH"], **LIBRARIES, **environ}
    return subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True, check=False)


def leave(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[object, str, str]:
    """The exit status of the command line in this process, and what it printed."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return caught.value.code, *capsys.readouterr()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(capsys, "--version") == (0, f"s3daemon {__version__}\n", "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = leave(capsys, "--help")
    assert code == 0
    for command in ("serve", "check", "queue", "status", "report", "reload"):
        assert f"\n    {command} " in out


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (("check", "--help"), "--env-file"),
        (("queue", "--help"), "--failed"),
        (("queue", "drop", "--help"), "--all-failed"),
        (("status", "--help"), "--watch"),
        (("report", "--help"), "--since"),
        (("reload", "--help"), "settings"),
    ],
)
def test_each_command_has_its_own_options(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], option: str
) -> None:
    code, out, _ = leave(capsys, *argv)
    assert code == 0
    assert option in out


@pytest.mark.parametrize(
    "argv", [("nonsense",), ("--nonsense",), ("--nonsense", "queue"), ("queue", "--nonsense"), ("serve", "more")]
)
def test_a_wrong_command_line_is_refused(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    code, _, err = leave(capsys, *argv)
    assert code == 2
    assert "usage: s3daemon" in err


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (("queue", "drop", "--all"), "queue drop: error: one of the arguments --all-failed ID is required"),
        (("queue", "drop", "--all-f"), "queue drop: error: one of the arguments --all-failed ID is required"),
        (("queue", "drop", "1", "--all"), "queue drop: error: unrecognized arguments: --all"),
        (("queue", "retry"), "queue retry: error: one of the arguments --all ID is required"),
        (("queue", "retry", "--all", "1"), "queue retry: error: argument ID: not allowed with argument --all"),
        (("queue", "--fail"), "queue: error: unrecognized arguments: --fail"),
        (("status", "--js"), "status: error: unrecognized arguments: --js"),
        (("report", "--late-o"), "report: error: unrecognized arguments: --late-o"),
        (("check", "--env", "x"), "check: error: unrecognized arguments: --env"),
        (
            ("queue", "--failed", "retry", "--all"),
            "queue: error: --json and --failed are for the list; retry takes neither",
        ),
        (
            ("queue", "--json", "drop", "--all-failed"),
            "queue: error: --json and --failed are for the list; drop takes neither",
        ),
        (("report", "--plot", "x.pdf"), "report: error: --plot takes a file that ends in .png or .svg"),
    ],
)
def test_an_option_counts_as_it_is_written_or_not_at_all(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], error: str
) -> None:
    """None may be abbreviated, or is ignored: nobody drops what was not named. The usage is that of the command."""
    code, out, err = leave(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"usage: s3daemon {error.partition(':')[0]} [-h]")
    assert err.endswith(f"\ns3daemon {error}\n")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        *((("status", "--watch", text), "a duration from 100ms to 1d: ") for text in ("0", "nan", "inf", "\u0663")),
        *((("report", "--expect", text), "a number from 1 to 1000000\n") for text in ("0", "-1", "1.5", "\u0663")),
        (("report", "--limit", "0"), "a duration from 1ms to 30d: "),
    ],
)
def test_a_value_out_of_bounds_names_them(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], expected: str
) -> None:
    """As the settings do; only ASCII digits are digits."""
    code, _, err = leave(capsys, *argv)
    assert code == 2
    assert f"s3daemon {argv[0]}: error: argument {argv[1]}: expected {expected}" in err


@pytest.mark.parametrize(
    "argv", [("queue", "--state-dir", ""), ("queue", "retry", "--state-dir=", "1"), ("check", ""), ("report", "--tag=")]
)
def test_an_empty_argument_is_refused(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    """It is a variable that is not set; the default would be another directory than was meant."""
    code, _, err = leave(capsys, *argv)
    assert (code, err.splitlines()[-1]) == (2, "s3daemon: error: an argument is empty: is a variable not set?")


@pytest.mark.parametrize("command", ["queue", "status", "reload"])
def test_a_command_that_cannot_be_carried_out_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("S3DAEMON_STATE_DIR", os.fspath(tmp_path))
    code, out, err = leave(capsys, command)
    assert (code, out) == (1, "")
    assert err.startswith(("NoDaemon: ", "NoSpool: "))


def test_a_word_of_the_arguments_does_not_choose_the_command(tmp_path: Path) -> None:
    """`status` is a BUCKET here, not the command."""
    done = run("check", "status", "--env-file", os.fspath(tmp_path / "missing"))
    assert done.returncode == 1
    assert f"there is no {tmp_path / 'missing'}" in done.stdout


def test_without_a_command_the_daemon_is_started() -> None:
    """Which needs settings, and logs each one that is missing, with the code that the manual lists."""
    done = run()
    assert done.returncode == 1
    assert "cannot start: BadSettings: S3_ENDPOINT_URL" in done.stderr


def test_systemd_shows_why_a_start_failed(tmp_path: Path) -> None:
    """In one line, until the next start, however much else the journal has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(os.fspath(tmp_path / "notify"))
        env = {"PATH": os.environ["PATH"], **LIBRARIES, "NOTIFY_SOCKET": os.fspath(tmp_path / "notify")}
        subprocess.run([sys.executable, "-m", "s3daemon"], cwd=TREE, env=env, capture_output=True, check=False)
        text = systemd.recv(4096).decode()
    assert text.startswith("STATUS=cannot start: BadSettings: S3_ENDPOINT_URL is not set: ")
    assert text.endswith(" (and 2 more)")


@pytest.mark.parametrize(
    ("command", "missing"),
    [("reload", ("asyncio", "rich", "aiohttp")), ("queue", ("aiohttp",)), ("status", ("aiohttp", "sqlite3"))],
)
def test_a_command_imports_no_more_than_it_needs(tmp_path: Path, command: str, missing: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from s3daemon.cli import main\n"
        "try: main([sys.argv[1]])\n"
        "except SystemExit: print(*sorted(set(sys.argv[2:]) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, *missing],
        cwd=TREE,
        env={"S3DAEMON_STATE_DIR": os.fspath(tmp_path), **LIBRARIES},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"


MISSING = ("check", "--env-file", "/missing")


@pytest.mark.parametrize("argv", [("--version",), ("report", "--help"), MISSING])
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor"), ("| true", "")],
)
def test_an_output_that_cannot_be_written_is_no_success(argv: tuple[str, ...], redirection: str, reason: str) -> None:
    """Of every command alike: status 1, and a line that says which file; none where a reader has read enough."""
    words = f"{sys.executable} -m s3daemon {' '.join(argv)}"
    if reason:
        words += f" {redirection}"
    else:  # the reader is gone before anything is written
        words = f"(sleep 0.2; {words}; echo $? >&2) | true"
    env = {"PATH": os.environ["PATH"], **LIBRARIES}
    done = subprocess.run(["/bin/sh", "-c", words], cwd=TREE, env=env, stderr=subprocess.PIPE, text=True, check=False)
    said = f"s3daemon: cannot write to standard output: {reason}\n"
    assert (done.returncode, done.stderr) == ((1, said) if reason else (0, "1\n"))


def test_an_interrupt_is_no_traceback(tmp_path: Path) -> None:
    """It comes while the daemon is asked, which does not answer."""
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(os.fspath(tmp_path / "control"))
        control.listen()
        control.settimeout(20)
        # Whoever runs the tests in the background of a shell has the signal ignored, and so would the command.
        default = ["/usr/bin/env", "--default-signal=INT"]
        command = [*default, sys.executable, "-m", "s3daemon", "queue", "--state-dir", os.fspath(tmp_path)]
        env = {"PATH": os.environ["PATH"], **LIBRARIES}
        with subprocess.Popen(command, cwd=TREE, env=env, stderr=subprocess.PIPE) as process, control.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")


def test_closed_streams_are_no_traceback() -> None:
    """What is opened does not take their place, and standard input has nothing."""
    words = f"{sys.executable} -m s3daemon report --stdin <&-; {sys.executable} -m s3daemon --nonsense 2>&-"
    env = {"PATH": os.environ["PATH"], **LIBRARIES}
    done = subprocess.run(["/bin/sh", "-c", words], cwd=TREE, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("NoInput: standard input is empty")
    assert done.stderr.count("\n") == 1


def test_the_last_entry_can_be_read_before_the_process_is_gone() -> None:
    """journald asks the kernel whose entry it is, when it comes to it."""
    command = [sys.executable, "-m", "s3daemon"]
    env = {"PATH": os.environ["PATH"], **LIBRARIES}
    with subprocess.Popen(command, cwd=TREE, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3)]
        assert all("cannot start" in line for line in lines)
        time.sleep(0.05)
        assert process.poll() is None
        assert process.wait() == 1


def test_no_stream_can_be_written() -> None:
    """As with `>/dev/full 2>&1`: the status is the one that the manual gives."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "s3daemon", "--version"]
        env = {"PATH": os.environ["PATH"], **LIBRARIES}
        assert subprocess.run(command, cwd=TREE, env=env, stdout=full, stderr=full, check=False).returncode == 1


def test_a_library_is_missing(tmp_path: Path) -> None:
    """One line says what to do."""
    (tmp_path / "aiobotocore.py").write_text("import no_such_library\n")
    done = run("check", PYTHONPATH=os.pathsep.join([str(tmp_path), *LIBRARIES.values()]))
    expected = (
        "s3daemon: the installation is not complete, No module named 'no_such_library': install the package again\n"
    )
    assert (done.returncode, done.stderr) == (1, expected)
