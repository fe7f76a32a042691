"""Requests of programs and of our own pages pass; those of any other site's page do not, whatever a browser sends.

That a browser sends what this relies on is tested in test_httpservice.py, with a real one.
"""

from __future__ import annotations

import base64
import hashlib

import pytest

from s3daemon.http.guard import HEADERS, page_policy, refusal

LOCAL = "10.0.0.5"


@pytest.mark.parametrize(
    "host",
    [
        "localhost:15556", "LocalHost", "127.0.0.1:15556", "127.0.0.53", "[::1]:15556", "[::1]", "10.0.0.5:15556",
        "node7:15556", "Node7.example.org",
    ],
)  # fmt: skip
def test_names_of_this_server_are_accepted(host: str) -> None:
    """Loopback by any name, the address that was connected to, the names of S3DAEMON_HTTP_NAMES; any port."""
    assert refusal({"Host": host}, LOCAL, ("NODE7", "node7.example.org")) == ""


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "evil.example:15556", "10.0.0.6", "node7.example.org.evil.example",
        "localhost.evil.example",
        "evil.localhost", "localhost:15556@evil.example", "localhost:x", "localhost:", "[::1", "::1", "[localhost]",
        "127.0.0.1.evil.example", "0.0.0.0", "2130706433", "localhost evil",
    ],
)  # fmt: skip
def test_other_hosts_are_refused(host: str) -> None:
    """A name that was made to point here (DNS rebinding), another address, text that is not a host."""
    assert "is not a name of this server" in refusal({"Host": host}, LOCAL, ("node7",))


def test_only_a_read_may_lack_the_host() -> None:
    """No browser leaves it out, and a balancer does. An empty one, or a page without one, is refused."""
    assert refusal({}, LOCAL, reads=True) == ""
    assert "is not a name of this server" in refusal({}, LOCAL)
    assert "is not a name of this server" in refusal({"Host": ""}, LOCAL, reads=True)
    assert "may not send requests" in refusal({"Origin": "http:"}, LOCAL, reads=True)
    assert "another site" in refusal({"Sec-Fetch-Site": "cross-site"}, LOCAL, reads=True)


def test_addresses_of_other_families_are_understood() -> None:
    """An IPv4 client of an IPv6 socket names the IPv4 address; a Unix socket has none."""
    assert refusal({"Host": "10.0.0.5"}, "::ffff:10.0.0.5") == ""
    assert refusal({"Host": "[fe80::1]"}, "fe80::1%eth0") == ""
    assert refusal({"Host": "localhost"}, "") == ""
    assert refusal({"Host": "10.0.0.5"}, "") != ""


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "http://evil.example", "https://localhost:15556", "http://localhost", "http://localhost:8000",
        "http://127.0.0.1:15556", "http://localhost:15556.evil.example", "http://localhost:15556, http://evil.example",
    ],
)  # fmt: skip
def test_pages_of_other_origins_are_refused(origin: str) -> None:
    """Scheme, host and port must be those that were asked: another port of this host is another site."""
    assert "may not send requests" in refusal({"Host": "localhost:15556", "Origin": origin}, "127.0.0.1")


def test_our_own_pages_are_accepted() -> None:
    headers = {"Host": "localhost:15556", "Origin": "http://localhost:15556", "Sec-Fetch-Site": "same-origin"}
    assert refusal(headers, "127.0.0.1") == ""
    assert refusal({"Host": "localhost", "Sec-Fetch-Site": "none"}, "127.0.0.1") == ""


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "anything"])
def test_requests_that_a_browser_marks_as_another_sites_are_refused(site: str) -> None:
    """Images and scripts have no Origin; this header shows them."""
    assert "another site" in refusal({"Host": "localhost", "Sec-Fetch-Site": site}, "127.0.0.1")


def test_no_answer_admits_another_site() -> None:
    assert not [name for name in HEADERS if name.startswith("Access-Control")]
    assert HEADERS["X-Content-Type-Options"] == "nosniff"
    assert HEADERS["Cache-Control"] == "no-store"


def test_the_policy_of_a_page_names_its_scripts() -> None:
    """Its own scripts run; any other does not."""
    script = "\nlet a = '<p>'; // é\n"
    policy = page_policy(f"<style>p {{}}</style><SCRIPT type=module>{script}</SCRIPT><script>2</script>")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}' 'sha256-" in policy
    assert "default-src 'none'; " in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert "script-src 'none'" in page_policy("<p>")
