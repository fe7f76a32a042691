"""Settings: all faults are reported at once, and no secret is ever shown."""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.config.settings import (
    RELOADABLE,
    RETIRED,
    VARIABLES,
    Settings,
    differences,
    lifted,
    of_operator,
    of_service,
    reloaded,
    retired,
    unused_address,
)
from s3daemon.errors import SettingsError

SECRET = "wJalrXUtnFEMI7MDENG"  # the documentation's example, not a real key
GOOD = {
    "S3_ENDPOINT_URL": "https://s3.example.org",
    "AWS_ACCESS_KEY_ID": "AKID",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "STATE_DIRECTORY": "/var/lib/s3daemon",
}


def faults(environ: dict[str, str], **files: str) -> list[str]:
    """The faults of an environment, each as its variable's name and its text."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ, read=reader(files))
    return list(caught.value.faults)


def reader(files: dict[str, str]) -> Callable[[Path], str]:
    """Stand in for the file system; directories do not matter."""

    def read(file: Path) -> str:
        try:
            return files[file.name]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    return read


def test_endpoint_keys_and_directory_are_enough() -> None:
    """Endpoint, keys and a state directory are enough; the rest has the defaults of the design."""
    settings = Settings.from_environ(GOOD)
    assert (settings.endpoint_url, settings.region, settings.ca_bundle) == ("https://s3.example.org", "us-east-1", "")
    assert (settings.host, settings.port) == ("localhost", 15555)
    assert (settings.max_connections, settings.max_clients) == (25, 1024)
    times = [settings.connect_timeout_s, settings.stall_timeout_s, settings.wait_limit_s, settings.answer_timeout_s]
    assert times == [5, 10, 30, 60]
    assert [settings.retry_for_s, settings.keep_failed_s] == [7 * 86400, 7 * 86400]
    assert [settings.drain_timeout_s, settings.keepalive_interval_s] == [20, 10]
    assert (settings.bwlimit_bps, settings.congestion) == (None, "")
    assert (settings.verify, settings.log_level, settings.state_dir) == ("auto", "info", "/var/lib/s3daemon")
    assert settings.allowed_roots + settings.allowed_buckets + settings.allowed_users == ()


def test_every_fault_at_once() -> None:
    """One start shows all faults, in the order of the table."""
    found = faults(
        {
            "S3_ENDPOINT_URL": "s3.example.org",
            "AWS_ACCESS_KEY_ID": "AKID",
            "AWS_CA_BUNDLE": "/nowhere/ca.pem",
            "S3DAEMON_PORT": "x",
            "S3DAEMON_WAIT_LIMIT": "2h",
            "S3DAEMON_MAX_CONECTIONS": "9",
            "S3DAEMON_FOO_BAR_BAZ": "",
        }
    )
    assert found == [
        "S3_ENDPOINT_URL is 's3.example.org': " + "expected " + VARIABLES["endpoint_url"].kind.expected,
        "AWS_CA_BUNDLE is '/nowhere/ca.pem': it cannot be read: No such file or directory",
        "S3DAEMON_PORT is 'x': expected a number from 1 to 65535",
        "S3DAEMON_WAIT_LIMIT is '2h': "
        "expected a duration from 0s to 1h: a number of seconds, or one with ms, s, min, h or d",
        "AWS_SECRET_ACCESS_KEY is not set, though the other of the two keys is",
        "S3DAEMON_STATE_DIR is not set: a directory for accepted transfers; under systemd StateDirectory= sets it",
        "S3DAEMON_FOO_BAR_BAZ is not a variable of s3daemon",
        "S3DAEMON_MAX_CONECTIONS is not a variable of s3daemon: is S3DAEMON_MAX_CONNECTIONS meant?",
    ]


def test_nothing_is_set() -> None:
    """An empty environment misses three things; an empty value is not set."""
    names = [fault.split()[0] for fault in faults({})]
    assert names == ["S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "S3DAEMON_STATE_DIR"]
    assert faults(dict.fromkeys((v.name for v in VARIABLES.values()), "")) == faults({})


def test_keys_that_do_not_go_together() -> None:
    """A token needs keys, a profile its file; keys may be left to that file, by both or by none."""
    keyless = {name: text for name, text in GOOD.items() if not name.startswith("AWS_")}
    shared = {**keyless, "AWS_SHARED_CREDENTIALS_FILE": "/c/keys"}
    assert Settings.from_environ(shared, read=reader({"keys": "[default]"})).access_key == ""
    assert Settings.from_environ({**shared, "AWS_PROFILE": "p"}, read=reader({"keys": ""})).profile == "p"
    assert "cannot be read" in faults(shared)[0]
    assert [fault.split()[0] for fault in faults({**keyless, "AWS_SESSION_TOKEN": "t"})] == [
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
    ]
    assert faults({**GOOD, "AWS_PROFILE": "p"})[0].startswith("AWS_PROFILE is a section of the file")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("AWS_DEFAULT_REGION", text) for text in ("us_east", "-us", "us-", "12", "us.east", "us east", "x" * 64)),
        ("AWS_REGION", "us_east"),
        *(("S3_ENDPOINT_URL", text) for text in ("http://my_store", "http://127.1", "https://a..b", "http://-a")),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_SECRET_ACCESS_KEY", "a b"),
        ("AWS_SESSION_TOKEN", "to\nken"),
        ("AWS_SESSION_TOKEN", "to ken"),
    ],
)
def test_what_botocore_or_aiohttp_would_refuse_is_one_line(name: str, text: str) -> None:
    """The start, a reload and `check` name the variable; else each request would fail with a traceback."""
    (fault,) = faults({**GOOD, name: text})
    assert fault.startswith(name)
    assert "\n" not in fault


def test_a_region_by_its_other_name() -> None:
    """AWS_REGION counts when AWS_DEFAULT_REGION is not set, as a credential too."""
    assert Settings.from_environ({**GOOD, "AWS_REGION": "eu-1"}).region == "eu-1"
    assert Settings.from_environ({**GOOD, "AWS_REGION": "eu-1", "AWS_DEFAULT_REGION": ""}).region == "eu-1"
    assert Settings.from_environ({**GOOD, "AWS_REGION": "eu-1", "AWS_DEFAULT_REGION": "us-2"}).region == "us-2"
    environ = {**GOOD, "CREDENTIALS_DIRECTORY": "/c"}
    assert Settings.from_environ(environ, read=reader({"aws_region": "eu-1\n"})).region == "eu-1"
    assert "AWS_REGION" in of_operator({"AWS_REGION": "eu-1"})


def test_a_host_in_capitals_is_signed_as_it_is_sent() -> None:
    """botocore signs it in lower case: it is sent so as well."""
    settings = Settings.from_environ({**GOOD, "S3_ENDPOINT_URL": "https://S3.EXAMPLE.org:7480"})
    assert settings.endpoint_url == "https://s3.example.org:7480"


def test_variables_of_the_original_are_a_warning_each() -> None:
    """The daemon starts without them; a name that only looks like them is still a fault."""
    environ = {**GOOD, "S3DAEMON_MAX_RETRIES": "2", "S3DAEMON_ACCEPT_WAIT": "", "S3DAEMON_LOG": "/var/log/s3daemon"}
    assert Settings.from_environ(environ) == Settings.from_environ(GOOD)
    assert [text.split()[0] for text in retired(environ)] == list(RETIRED)
    assert "S3DAEMON_RETRY_FOR" in retired(environ)[0]
    assert retired(GOOD) == []
    assert len(faults({**GOOD, "S3DAEMON_LOGS": "x"})) == 1


@pytest.mark.parametrize("text", list(RETIRED.values()))
def test_a_retired_variable_names_only_variables_that_there_are(text: str) -> None:
    named = {word.rstrip(",") for word in text.split() if word.startswith("S3DAEMON_")}
    assert named <= {variable.name for variable in VARIABLES.values()}


def test_receivers_need_a_name() -> None:
    """TLS and the Host header go by the endpoint's name, which an address is not."""
    receivers = {**GOOD, "S3DAEMON_RECEIVERS": "10.0.0.1"}
    for url in ("http://10.0.0.9", "https://10.0.0.9:7480", "https://[2001:db8::1]"):
        assert faults({**receivers, "S3_ENDPOINT_URL": url})[0].startswith("S3DAEMON_RECEIVERS")
    for url in ("http://10.0.0.9.example.org", "https://s3:7480"):
        assert Settings.from_environ({**receivers, "S3_ENDPOINT_URL": url}).receivers == ("10.0.0.1",)


def test_systemd_credentials() -> None:
    """Any variable may be a credential, so that no environment is needed; one in both places is a fault."""
    files = {name.lower(): text + "\n" for name, text in GOOD.items()}
    environ = {"CREDENTIALS_DIRECTORY": "/run/credentials/x", "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}
    settings = Settings.from_environ(environ, read=reader(files))
    assert (settings.endpoint_url, settings.secret_key) == (GOOD["S3_ENDPOINT_URL"], SECRET)
    assert settings.state_dir == "/var/lib/a"
    both = faults({**environ, "AWS_SECRET_ACCESS_KEY": "stale"}, **files)
    assert both == ["AWS_SECRET_ACCESS_KEY is set in the environment and as a systemd credential: keep one"]
    for end in ("", "\n\n", "\r\n"):
        ended = {**files, "aws_secret_access_key": SECRET + end}
        assert Settings.from_environ(environ, read=reader(ended)).secret_key == SECRET
    (fault,) = faults(environ, **{**files, "aws_secret_access_key": f"{SECRET}\n#"})
    assert fault.startswith(
        "AWS_SECRET_ACCESS_KEY: the credential /run/credentials/x/aws_secret_access_key has several"
    )
    assert SECRET not in fault


def test_misspelt_credentials(tmp_path: Path) -> None:
    """The daemon does not start without a restriction that one of them was to set; those of other programs are fine."""
    environ = {**GOOD, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    for name in ("other", "AWS_CA_BUNDLE", "s3daemon_allowed_buckets"):
        (tmp_path / name).write_text("raw")
    assert Settings.from_environ(environ).allowed_buckets == ("raw",)
    hints = {
        "S3DAEMON_PORT": ": is the credential s3daemon_port meant?",
        "s3daemon_allowed_user": ": is the credential s3daemon_allowed_users meant?",
        "s3daemon_x": "",
    }
    for name in hints:
        (tmp_path / name).touch()
    assert faults(environ) == [
        f"the systemd credential {name} is not a variable of s3daemon{hint}" for name, hint in hints.items()
    ]


def test_a_variable_in_the_wrong_case() -> None:
    """It is not ignored either, nor left out of a reload."""
    (fault,) = faults({**GOOD, "s3daemon_allowed_users": "a"})
    assert fault.endswith("is S3DAEMON_ALLOWED_USERS meant?")
    assert "s3daemon_allowed_users" in of_operator({"s3daemon_allowed_users": "a"})


def test_credentials_that_cannot_be_read(tmp_path: Path) -> None:
    """A credential that cannot be read is not a missing one."""

    def read(file: Path) -> str:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(SettingsError, match=r"AWS_ACCESS_KEY_ID: the credential .* cannot be read: Permission denied"):
        Settings.from_environ({"CREDENTIALS_DIRECTORY": "/c"}, read=read)


def test_credentials_that_cannot_be_listed(tmp_path: Path) -> None:
    """One fault, of one line, whatever the directory is called; not one for each variable."""
    (no_directory := tmp_path / "a\nfile").touch()
    reasons = {
        str(no_directory): "Not a directory",
        "/a\0b": "",  # in words of Python's that change from version to version
        "/" + "x" * 300: "File name too long",
    }
    for directory, reason in reasons.items():
        (fault,) = faults({**GOOD, "CREDENTIALS_DIRECTORY": directory})
        assert " cannot be listed: " in fault
        assert fault.endswith(reason)
        assert fault.isprintable()


def test_ca_bundle(tmp_path: Path) -> None:
    """The bundle must hold a certificate; comments in any script are allowed."""
    pem = tmp_path / "ca.pem"
    key = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(pem)]
    subprocess.run([*key, "-subj", "/CN=test", *files], check=True, capture_output=True)
    pem.write_text("# F\u0151tan\u00fas\u00edtv\u00e1ny\n" + pem.read_text())
    assert Settings.from_environ({**GOOD, "AWS_CA_BUNDLE": str(pem)}).ca_bundle == str(pem)
    cut = pem.read_text()[:200] + "\n-----END CERTIFICATE-----\n"
    for content in ("", "no certificate", cut, (tmp_path / "key.pem").read_text()):
        (fault,) = faults({**GOOD, "AWS_CA_BUNDLE": "/x/ca.pem"}, **{"ca.pem": content})
        assert "no certificate" in fault
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        Settings.from_environ({**GOOD, "AWS_CA_BUNDLE": str(tmp_path)})


def test_made_in_code() -> None:
    """Settings made without an environment are held to the same bounds, and cannot be changed."""
    settings = Settings.from_environ(GOOD)
    with pytest.raises(SettingsError) as caught:
        replace(settings, port=0, secret_key="", host="", verify="maybe")
    assert [fault.split()[0].strip(":") for fault in caught.value.faults] == [
        "S3DAEMON_HOST", "S3DAEMON_PORT", "S3DAEMON_VERIFY", "AWS_SECRET_ACCESS_KEY",
    ]  # fmt: skip
    with pytest.raises(FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


def test_no_secret_is_shown() -> None:
    """Not in a repr, and `secrets` lists what a log must not hold."""
    settings = Settings.from_environ({**GOOD, "AWS_SESSION_TOKEN": "TOKEN"})
    assert SECRET not in repr(settings)
    assert "TOKEN" not in repr(settings)
    assert "AKID" not in repr(settings)
    assert settings.secrets() == (SECRET, "TOKEN")
    assert Settings.from_environ(GOOD).secrets() == (SECRET,)


@given(
    st.sampled_from([v.name for v in VARIABLES.values()]),
    st.sampled_from(["", " ", "x", "https://", "1", "/"]),
    st.sampled_from(["\nAWS_SECRET_ACCESS_KEY=", "AWS_SECRET_ACCESS_KEY=", "\\AWS_SECRET_ACCESS_KEY="]),
)
def test_no_fault_shows_a_swallowed_secret(name: str, start: str, joint: str) -> None:
    """An open quote or a backslash at a line's end puts the next line's secret into another's value."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({**GOOD, name: f"{start}{joint}{SECRET}"})
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert name in shown


@pytest.mark.parametrize("url", [f"https://user:{SECRET}@h", f"https://h?sig={SECRET}", f"user:{SECRET}@h"])
def test_no_fault_shows_a_secret_in_a_url(url: str) -> None:
    """A user's password in the endpoint is refused and not repeated."""
    assert not any(SECRET in fault for fault in faults({**GOOD, "S3_ENDPOINT_URL": url}))
    assert not any(SECRET in fault for fault in faults({**GOOD, "AWS_ACCESS_KEY_ID": f"a {SECRET}"}))


@pytest.mark.parametrize("form", ["{}", "25 # was {}", "https://{}", "{},{}", "a/{}", "/../{}"])
@pytest.mark.parametrize("name", ["S3_ENDPOINT_URL", "AWS_CA_BUNDLE", "S3DAEMON_PORT", "S3DAEMON_STATE_DIR"])
def test_no_fault_shows_a_secret_in_another_line(name: str, form: str) -> None:
    """What looks like a key is not repeated, alone or beside something else; a host is."""
    secret = f"{SECRET}/bPxRfiCYEXAMPLEKEY+"
    assert not any(SECRET in fault for fault in faults({**GOOD, name: form.format(secret, secret)}))
    assert any("relative.example" in fault for fault in faults({**GOOD, name: "relative.example"}))


def test_a_fault_of_a_file_shows_its_path() -> None:
    """However long it is, but not if a part of it looks like a key."""
    path = "/etc/pki/ca-trust/source/anchors/observatory/ca.pem"
    assert any(path in fault for fault in faults({**GOOD, "AWS_CA_BUNDLE": path}))
    assert not any(SECRET in fault for fault in faults({**GOOD, "AWS_CA_BUNDLE": f"/etc/{SECRET}bPxRfiCY.pem"}))


def test_differences() -> None:
    """A reload says what it put in force and what takes a restart."""
    old = Settings.from_environ(GOOD)
    new = replace(old, access_key="new", port=1, state_dir="/x", wait_limit_s=1)
    applied, restart = differences(old, new)
    assert applied == ["AWS_ACCESS_KEY_ID", "S3DAEMON_WAIT_LIMIT"]
    assert restart == ["S3DAEMON_PORT", "S3DAEMON_STATE_DIR"]
    assert differences(old, old) == ([], [])
    assert VARIABLES.keys() - RELOADABLE == {"host", "port", "state_dir"}
    assert reloaded(old, new) == replace(old, access_key="new", wait_limit_s=1)


def test_restrictions_that_are_lifted() -> None:
    """Those that were set and are not any more, not those that changed."""
    none = Settings.from_environ(GOOD)
    some = replace(none, allowed_users=("a",), allowed_roots=("/a",))
    assert lifted(some, none) == ["S3DAEMON_ALLOWED_USERS", "S3DAEMON_ALLOWED_ROOTS"]
    assert lifted(some, replace(some, allowed_users=("b",), allowed_roots=())) == ["S3DAEMON_ALLOWED_ROOTS"]
    assert lifted(none, some) == []


def test_what_a_reload_hands_over() -> None:
    """The operator's variables go over the socket, misspelt ones too; systemd's stay as the daemon has them."""
    environ = {**GOOD, "S3DAEMON_PROT": "1", "PATH": "/bin", "AWS_CONFIG_FILE": "/x", "CREDENTIALS_DIRECTORY": "/c"}
    assert of_operator(environ).keys() == GOOD.keys() - {"STATE_DIRECTORY"} | {"S3DAEMON_PROT"}
    assert of_service(environ) == {"STATE_DIRECTORY": "/var/lib/s3daemon", "CREDENTIALS_DIRECTORY": "/c"}


@pytest.mark.parametrize(
    ("given", "unused"),
    [({}, ""), ({"S3DAEMON_HOST": "localhost", "S3DAEMON_PORT": "15555"}, ""),
     ({"S3DAEMON_HOST": "::1", "S3DAEMON_PORT": "15557"}, ""), ({"S3DAEMON_PORT": "15556"}, "S3DAEMON_PORT"),
     ({"S3DAEMON_HOST": "0.0.0.0", "S3DAEMON_PORT": "15557"}, "S3DAEMON_HOST"),
     ({"S3DAEMON_HOST": "0.0.0.0", "S3DAEMON_PORT": "1"}, "S3DAEMON_HOST and S3DAEMON_PORT")],
)  # fmt: skip
def test_an_address_that_is_not_used_under_systemd(given: dict[str, str], unused: str) -> None:
    """The default is what nobody has set; what systemd listens on is no contradiction."""
    text = unused_address(Settings.from_environ({**GOOD, **given}), ["::1:15557", "/run/s3daemon.socket"])
    assert text.partition(":")[0] == unused
    assert not text or "systemd listens on ::1:15557, /run/s3daemon.socket: use ListenStream=" in text
