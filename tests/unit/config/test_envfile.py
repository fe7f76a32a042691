"""Lines of an environment file that systemd ignores, or logs, are found; no message repeats a secret in them."""

import pytest

from s3daemon.config.envfile import logged_by_systemd, not_set_by_file

SECRET = "wJalrXUtnFEMI7MDENG"  # the documentation's example, not a real key
USERS = "S3DAEMON_ALLOWED_USERS"


@pytest.mark.parametrize(
    ("text", "read", "lines"),
    [
        # What systemd 252 makes of each file is as observed.
        (f"{USERS}=a\n", {USERS: "a"}, []),
        (f"  {USERS} = 'a b' \n", {USERS: "a b"}, []),
        (f'{USERS}="a\\\n b"\n', {USERS: "a b"}, []),
        (f"{USERS}=a,\\\nb\n", {USERS: "a,b"}, []),
        (f"{USERS}=a\\b\n", {USERS: "ab"}, []),
        (f"{USERS}=\n", {USERS: ""}, []),
        (f"{USERS}=a\n{USERS}=b\n", {USERS: "b"}, []),
        (f"{USERS}=a # b\n", {USERS: "a # b"}, []),
        (f"#{USERS}=a\n ; {USERS}=a\nOTHER={USERS}\nX{USERS}=1\n{USERS}_X=1\n\n", {}, []),
        (f"export {USERS}=a\n", {}, [1]),
        (f"\ufeff{USERS}=a\n", {}, [1]),
        (f"# only these:\\\n{USERS}=a\n", {}, [2]),
        (f"{USERS}: a\n", {}, [1]),
        (f"{USERS.lower()}=a\n", {}, [1]),
        (f"{USERS}\n", {}, [1]),
        (f"{USERS} a\n", {}, [1]),
        (f"{USERS}=a,b\nexport {USERS}=a\n", {USERS: "a,b"}, [2]),
        (f"A='x\n{USERS}=a\n'\n", {"A": f"x\n{USERS}=a\n"}, [2]),
        (f"A=x\\\n{USERS}=a\n", {"A": f"x{USERS}=a"}, [2]),
        (f"export AWS_REGION=r\n{USERS}: a\n", {}, [1, 2]),
    ],
)
def test_lines_that_do_not_set_what_they_name(text: str, read: dict[str, str], lines: list[int]) -> None:
    assert [int(fault.split()[1]) for fault in not_set_by_file(text, read)] == lines


def test_no_line_that_is_ignored_shows_a_secret() -> None:
    (fault,) = not_set_by_file(f"export AWS_SECRET_ACCESS_KEY={SECRET}", {})
    assert "AWS_SECRET_ACCESS_KEY" in fault
    assert SECRET not in fault


@pytest.mark.parametrize(
    ("line", "logged"),
    [
        (f"AWS_SECRET_ACCESS_KEY={SECRET}", False),
        (f"  aws_secret_access_key = '{SECRET}=' ", False),
        (f"# export AWS_SECRET_ACCESS_KEY={SECRET}", False),
        (f"; export AWS_SECRET_ACCESS_KEY={SECRET}", False),
        (f"AWS_SECRET_ACCESS_KEY: {SECRET}", False),
        ("export S3_ENDPOINT_URL=https://s3.example.org", False),
        ("S3DAEMON_HTTP_NAMES=a\udce9", False),
        (f"1AWS={SECRET}", True),
        (f"MY-KEY={SECRET}", True),
        (f"export KEY={SECRET}", True),
        (f"KEY={SECRET}\udce9", True),
        (f"export S3DAEMON_HTTP_NAMES=a\\\nAWS_SECRET_ACCESS_KEY={SECRET}", True),
        (f"export AWS_SECRET_ACCESS_KEY={SECRET}", True),
        (f"\ufeffAWS_SECRET_ACCESS_KEY={SECRET}", True),
        (f'"AWS_SECRET_ACCESS_KEY={SECRET}"', True),
        (f"AWS-SECRET-ACCESS-KEY={SECRET}", True),
        (f"set AWS_SESSION_TOKEN={SECRET}", True),
        (f"AWS_SECRET_ACCESS_KEY={SECRET}\udce9", True),
    ],
)
def test_lines_of_which_systemd_logs_the_secret(line: str, logged: bool) -> None:
    """As version 252 does it; the fault does not repeat it."""
    faults = logged_by_systemd(f"A=1\n{line}\n")
    assert ["line 2" in fault for fault in faults] == [True] * logged
    assert SECRET not in "".join(faults)
