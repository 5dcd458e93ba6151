"""What watches a federation asks only for metrics that exist, and its files are accepted by their programs."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardpose.client.exporter import METRICS as SITE_METRICS
from wardpose.server.exporter import METRICS as SERVER_METRICS
from wardpose.shared.ledger_state import LEDGER_STATES

DEPLOY = Path(__file__).parents[2] / "deploy"
KNOWN = {*SERVER_METRICS, *SITE_METRICS, "wardpose_round_duration_seconds_sum", "wardpose_round_duration_seconds_count"}


def names(expression: str) -> set[str]:
    """Metrics in a PromQL expression."""
    return set(re.findall(r"\bwardpose_\w+", expression))


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEPLOY / "grafana" / "wardpose.json").read_text())
    return content


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def rule_expressions() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def test_dashboard_and_rules_ask_only_for_what_is_exposed() -> None:
    expressions = dashboard_expressions() + rule_expressions()
    assert len(expressions) > 20
    for expression in expressions:
        assert names(expression) <= KNOWN, expression
        assert names(expression), expression


def test_the_dashboard_shows_what_it_is_for() -> None:
    shown = set().union(*(names(expression) for expression in dashboard_expressions()))
    assert shown >= {
        "wardpose_epsilon_spent",
        "wardpose_epsilon_budget",
        "wardpose_epsilon_federation",
        "wardpose_score",
        "wardpose_round_duration_last_seconds",
        "wardpose_bytes_up_total",
        "wardpose_bytes_down_total",
        "wardpose_sites_online",
    }


def test_panels_have_their_own_numbers_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def catalogue() -> Iterator[str]:
    for line in (DEPLOY / "prometheus" / "README.md").read_text().splitlines():
        found = re.match(r"\| `(wardpose_\w+)", line)
        if found:
            yield found[1]


def test_the_catalogue_lists_every_metric_once() -> None:
    listed = list(catalogue())
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == set(SERVER_METRICS) | set(SITE_METRICS)


def test_every_state_of_a_ledger_but_good_ones_has_an_alert() -> None:
    alerts = " ".join(rule_expressions())
    for metric in ("wardpose_ledger_state", "wardpose_site_ledger_state"):
        asked = set(re.findall(rf'\b{metric}{{state=~?"([^"]+)"', alerts))
        assert set().union(*(states.split("|") for states in asked)) == set(LEDGER_STATES) - {"ok", "none"}


def test_promtool_parses_every_query_of_the_dashboard(installed: Callable[[str], str], tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(dashboard_expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = subprocess.run([installed("promtool"), "check", "rules", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("series", "alert"),
    [
        (
            {'wardpose_epsilon_spent{site="a"}': "7.5+0x60", 'wardpose_epsilon_budget{site="a"}': "8+0x60"},
            "BudgetNearlySpent",
        ),
        (
            {'wardpose_epsilon_spent{site="a"}': "8.1+0x60", 'wardpose_epsilon_budget{site="a"}': "8+0x60"},
            "BudgetExceeded",
        ),
        (
            {
                'wardpose_site_epsilon_spent{cohort="c",instance="i",job="wardpose-site"}': "3.9+0x60",
                'wardpose_site_epsilon_budget{cohort="c",instance="i",job="wardpose-site"}': "4+0x60",
            },
            "SiteBudgetNearlySpent",
        ),
        ({'wardpose_site_online{site="a"}': "0+0x60"}, "SiteMissing"),
        ({'up{job="wardpose-server"}': "0+0x60"}, "ExporterDown"),
        ({'wardpose_exporter_up{job="wardpose-site"}': "0+0x60"}, "ExporterDown"),
        ({'wardpose_ledger_verified{job="wardpose-server"}': "0+0x60"}, "LedgerBroken"),
        *(
            ({f'wardpose_{side}ledger_state{{job="wardpose-server",state="{state}"}}': "1+0x60"}, "LedgerLost")
            for side, state in (
                ("", "missing"),
                ("site_", "empty"),
                ("", "broken"),
                ("site_", "rolled-back"),
                ("site_", "missing"),
            )
        ),
        ({'wardpose_site_ledger_state{job="wardpose-site",state="locked"}': "1+0x60"}, "LedgerLocked"),
        ({'wardpose_ledger_alarms{job="wardpose-server",site="a"}': "1+0x60"}, "LedgersContradict"),
        ({'wardpose_site_server_alarms{job="wardpose-site"}': "1+0x60"}, "LedgersContradict"),
        ({'wardpose_ledgers_apart{job="wardpose-server",site="north"}': "1+0x60"}, "LedgersApart"),
        ({'wardpose_site_ledgers_apart{job="wardpose-site"}': "1+0x60"}, "LedgersApart"),
        ({'wardpose_sites_failed_total{site="a",reason="late"}': "0+1x60"}, "SiteFails"),
        ({'wardpose_releases_rejected_total{site="a",reason="norm"}': "0x20 1x40"}, "ReleaseRejected"),
        ({'wardpose_releases_rejected_total{site="a",reason="ledger"}': "1+0x60"}, "ReleaseRejected"),
    ],
)
def test_alerts_fire_when_they_should_and_only_they(
    installed: Callable[[str], str], tmp_path: Path, series: dict[str, str], alert: str
) -> None:
    rules = DEPLOY / "prometheus" / "rules.yml"
    every = [rule["alert"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]
    fires = [f"Wardpose{alert}"]
    if alert == "BudgetExceeded":
        fires.append("WardposeBudgetNearlySpent")
    expected = [
        {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})', "eval_time": "45m", "exp_samples": samples}
        for name in every
        for samples in ([{"labels": "{}", "value": 1}] if name in fires else [],)
    ]
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": expected,
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    checked = subprocess.run([installed("promtool"), "test", "rules", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
