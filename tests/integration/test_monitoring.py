"""The dashboard and the alert rules use metrics that exist, in valid PromQL; alerts fire when they should.

promtool checks the latter two.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import exposition

from s3daemon.http.metrics import SECONDS

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
MANUAL = PACKAGING / "man" / "s3daemon.8.rst"
ALERTS = PACKAGING / "prometheus-alerts.yaml"
DASHBOARD: dict[str, Any] = json.loads((PACKAGING / "grafana-dashboard.json").read_text())
#: Metrics that Prometheus makes itself.
OF_PROMETHEUS = {"up"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Return every query of the dashboard, with its variables replaced as Grafana does."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    values = {"$__rate_interval": "2m", "$job": ".*", "$instance": ".*"}
    return [re.sub("|".join(map(re.escape, values)), lambda match: values[match[0]], text) for text in found]


def conditions() -> list[str]:
    """Return the condition of every alert. The file is regular enough to be read without a YAML library."""
    found = re.findall(r"^        expr: (?:>-\n)?((?:.+\n)(?:          .+\n)*)", ALERTS.read_text(), re.MULTILINE)
    return [" ".join(text.split()) for text in found]


def exposed() -> set[str]:
    """Return the name of every sample that the daemon exposes."""
    text = exposition().decode()
    return {re.split("[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}


@pytest.mark.parametrize("source", ["dashboard", "alerts"])
def test_every_metric_exists(source: str) -> None:
    """The dashboard also shows every metric of the daemon except its version."""
    names = {name for text in {"dashboard": queries(), "alerts": conditions()}[source] for name in _names(text)}
    assert names - exposed() <= OF_PROMETHEUS
    assert len(names) > 5
    if source == "dashboard":
        ours = {name for name in exposed() if name.startswith("s3daemon_") and not re.search("_(sum|count)$", name)}
        assert ours - names == {"s3daemon_build_info"}


def _names(text: str) -> Iterator[str]:
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', "", text)
    yield from re.findall(r"\b(?:(?:s3daemon|process)_\w+|up)\b", bare)


def test_every_limit_is_a_bucket() -> None:
    """A bound that is not a bucket would match no series. Bounds are written as Python's client writes them."""
    bounds = [bound for text in (*queries(), *conditions()) for bound in re.findall(r'le="([^"]+)"', text)]
    assert set(bounds) == {"7.0", "10.0", "30.0"}
    assert {float(bound) for bound in bounds} <= set(SECONDS)


def test_every_alert_says_what_to_do() -> None:
    rules = ALERTS.read_text().split("      - alert: ")[1:]
    assert len(rules) == len(conditions())
    for rule in rules:
        assert re.search(r"^          severity: (critical|warning)$", rule, re.MULTILINE)
        assert re.search(r"^          summary: '.*\{\{ \$labels.instance \}\}", rule, re.MULTILINE)
        assert re.search(r"^          description: '.+'$", rule, re.MULTILINE)
        name = rule.partition("\n")[0]
        assert f"          runbook: 'man s3daemon, ALERTS, {name}'\n" in rule
        assert re.search(rf"^{name}$", MANUAL.read_text(), re.MULTILINE), "the manual's section has no such entry"


def test_the_panels_are_laid_out() -> None:
    """No panel overlaps another or leaves the grid, and each has a title and a description."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        down = one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
        assert not (across and down), (one, other)


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_reads_rules_and_queries(tmp_path: Path) -> None:
    """The dashboard's queries are checked as recording rules."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(queries())]
    file = tmp_path / "queries.yaml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", file)


@needs_promtool
@pytest.mark.parametrize(
    ("series", "alerts"),
    [
        ({"s3daemon_held": "0 0 0 1x20"}, {"S3daemonQueueHeld"}),
        ({"s3daemon_away": "0 0 0 1x20"}, {"S3daemonStoreAway"}),
        ({"s3daemon_away": "0 1 0 1 0 0x20"}, set()),
        ({"s3daemon_unreachable": "1x23"}, {"S3daemonStoreUnreachable"}),
        ({"s3daemon_unreachable": "1x10 0 1x12"}, set()),
        ({"s3daemon_failing": "0 0 0 1x20"}, {"S3daemonFailing"}),
        ({"s3daemon_failing": "0 1 1 0x20"}, set()),
        ({"s3daemon_spool_refusing": "0 0 0 1x20"}, {"S3daemonSpoolRefusing"}),
        ({"s3daemon_failed_listed": "0 0 0 1x20"}, {"S3daemonFailedListed"}),
        ({"s3daemon_receivers_disabled": "1x23"}, {"S3daemonReceiverDisabled"}),
        ({"s3daemon_oldest_pending_age_seconds": "0+15x23"}, {"S3daemonPendingOld"}),
        ({"s3daemon_oldest_pending_age_seconds": "0 15 30 0 15 30 0 15 30 0 15 30 0 15 30 0 15 30 0 15 30"}, set()),
        ({"up": "1 1 1 0x20"}, {"S3daemonDown"}),
        ({"s3daemon_reload_refused": "0 1x22"}, {"S3daemonReloadRefused"}),
        ({"incomplete": "0 0 0 1x20"}, {"S3daemonExposureIncomplete"}),
        ({"incomplete": "0 1 1 0x20"}, set()),
        ({"refused": "0x10 3x13"}, {"S3daemonRefused"}),
        ({"refused": "_x20 1x2"}, {"S3daemonRefused"}),
        ({"refused": "7x23"}, set()),
        ({"s3daemon_tls_certificate_expiry_timestamp_seconds": "1000000x23"}, {"S3daemonCertificateExpires"}),
        ({"s3daemon_tls_certificate_expiry_timestamp_seconds": "2000000x23"}, set()),
        ({"s3daemon_tls_certificate_expiry_timestamp_seconds": "0x23"}, set()),
        # 46 objects every 15 s, all in time; then one more that takes 12 s; then one more that takes 40 s.
        ({"late": "0+46x23", "lost": "0+46x23", "all": "0+46x23"}, set()),
        ({"late": "0+46x22 1057", "lost": "0+46x22 1058", "all": "0+46x22 1058"}, {"S3daemonExposureLate"}),
        (
            {"late": "0+46x22 1057", "lost": "0+46x22 1057", "all": "0+46x22 1058"},
            {"S3daemonExposureLate", "S3daemonExposureLost"},
        ),
    ],
)
def test_alerts_fire_when_they_should(series: dict[str, str], alerts: set[str], tmp_path: Path) -> None:
    """After six minutes of samples every 15 s, these alerts fire and no others."""
    name = "s3daemon_transfer_duration_seconds"
    long = {"late": f'{name}_bucket{{le="10.0",LABELS}}', "lost": f'{name}_bucket{{le="30.0",LABELS}}'}
    long["incomplete"] = 's3daemon_recent_exposures{verdict="incomplete",LABELS}'
    long["refused"] = 's3daemon_refused_total{code="NotReadable",LABELS}'
    long["all"] = f"{name}_count{{LABELS}}"
    labels = 'job="s3daemon",instance="node7:15556"'
    inputs = [
        {"series": long.get(key, f"{key}{{LABELS}}").replace("LABELS", labels), "values": values}
        for key, values in series.items()
    ]
    # promtool would compare the alerts' texts too; the series ALERTS has only whether they fire.
    every = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    cases = [
        {
            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
            "eval_time": "345s",
            "exp_samples": [{"labels": "{}", "value": 1}] if alert in alerts else [],
        }
        for alert in every
    ]
    assert alerts <= set(every)
    test = {"interval": "15s", "input_series": inputs, "promql_expr_test": cases}
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "15s", "tests": [test]}))
    promtool("test", "rules", file)
