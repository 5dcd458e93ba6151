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
from wardpose.client.local_exporter import LOCAL_METRICS
from wardpose.server.exporter import METRICS as SERVER_METRICS
from wardpose.shared.ledger_state import LEDGER_STATES

DEPLOY = Path(__file__).parents[2] / "deploy"
PARTS = {"wardpose_round_duration_seconds_sum", "wardpose_round_duration_seconds_count"}
KNOWN = {*SERVER_METRICS, *SITE_METRICS, *LOCAL_METRICS, *PARTS}


def names(expression: str) -> set[str]:
    """Metrics in a PromQL expression."""
    return set(re.findall(r"\bwardpose_\w+", expression))


DASHBOARDS = {"federation.json": SERVER_METRICS, "site.json": {**SITE_METRICS, **LOCAL_METRICS}}
RULES = DEPLOY / "prometheus" / "rules.yml"
RULE_TESTS = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))


def dashboard(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEPLOY / "grafana" / name).read_text())
    return content


def dashboard_expressions(*names: str) -> list[str]:
    panels = [panel for name in names or DASHBOARDS for panel in dashboard(name)["panels"]]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def rule_expressions() -> list[str]:
    return [rule["expr"] for rule in rules()]


def test_dashboard_and_rules_ask_only_for_what_is_exposed() -> None:
    expressions = dashboard_expressions() + rule_expressions()
    assert len(expressions) > 20
    for expression in expressions:
        assert names(expression) <= KNOWN, expression
        assert names(expression), expression


def test_the_dashboard_shows_what_it_is_for() -> None:
    shown = set().union(*(names(expression) for expression in dashboard_expressions("federation.json")))
    assert shown >= {
        "wardpose_epsilon_spent",
        "wardpose_epsilon_budget",
        "wardpose_epsilon_federation",
        "wardpose_score",
        "wardpose_round_duration_last_seconds",
        "wardpose_bytes_up_total",
        "wardpose_bytes_down_total",
        "wardpose_sites_online",
        "wardpose_rounds_left",
        "wardpose_ledgers_apart",
        "wardpose_evaluation_score",
        "wardpose_certificate_expiry_timestamp_seconds",
    }


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_one_side_alone(name: str) -> None:
    for expression in dashboard_expressions(name):
        assert names(expression) <= {*DASHBOARDS[name], *PARTS}, expression


def test_what_only_the_machine_itself_is_shown_is_told_apart_by_its_name() -> None:
    assert all(name.startswith("wardpose_local_") for name in LOCAL_METRICS)
    assert not any(name.startswith("wardpose_local_") for name in {*SITE_METRICS, *SERVER_METRICS})


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_their_own_numbers_and_do_not_overlap(name: str) -> None:
    panels = dashboard(name)["panels"]
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
    assert set(listed) == set(SERVER_METRICS) | set(SITE_METRICS) | set(LOCAL_METRICS)


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


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert len(rule["annotations"]["description"]) > 30, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]


def test_every_alert_is_seen_to_fire_and_to_keep_quiet() -> None:
    tests = [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    fired = [
        alert
        for test in tests
        for expected in test["promql_expr_test"]
        if expected["exp_samples"]
        for alert in re.findall(r'alertname="(\w+)"', expected["expr"])
    ]
    assert set(fired) == {rule["alert"] for rule in rules()}
    for test in tests:  # and in each case no other one fires
        assert any(not expected["exp_samples"] for expected in test["promql_expr_test"]), test["name"]


def test_promtool_finds_that_alerts_fire_when_they_should_and_only_they(installed: Callable[[str], str]) -> None:
    checked = subprocess.run([installed("promtool"), "test", "rules", *RULE_TESTS], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("SUCCESS") == len(RULE_TESTS) >= 4
