"""`wardpose watch` finds out what lies in a folder, and says in a terminal what the page says."""

import json
import math
from pathlib import Path

import pytest
import yaml
from support.sites import write_site
from support.status_folders import busy_coordinator, start_run
from typer.testing import CliRunner

from wardpose.server.facts import Places
from wardpose.server.status import server_status
from wardpose.shared.errors import ConfigError
from wardpose.shared.status_view import finite
from wardpose.simulation.cli import app
from wardpose.simulation.commands.watch import reader


def run(*arguments: str) -> str:
    outcome = CliRunner().invoke(app, ["watch", *arguments], env={"COLUMNS": "160"})
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_a_run_in_a_terminal_and_for_a_program(tmp_path: Path) -> None:
    busy_coordinator(tmp_path)
    shown = run(str(tmp_path), "--once")
    view = server_status(Places(directory=tmp_path))
    assert view.headline in shown
    assert view.next_step in shown
    assert all(finding.what.split(":")[0] in shown for finding in view.findings)
    content = json.loads(run(str(tmp_path), "--json"))
    assert (content["role"], content["name"], content["headline"]) == ("coordinator", "ward-pose", view.headline)
    assert [table["title"] for table in content["tables"]] == ["Sites", "Rounds"]


def test_hostile_texts_are_literal(tmp_path: Path) -> None:
    detail = "[bold]x[/bold] :skull: \x1b[31m\u202egnp"
    start_run(tmp_path).finish("r1", "failed", reason="defect", detail=detail)
    shown = run(str(tmp_path), "--once")
    assert "[bold]x[/bold] :skull: \\x1b[31m\\u202egnp" in shown
    assert "\x1b" not in shown


def test_it_knows_homes_and_sites(tmp_path: Path) -> None:
    for name in ("server", "site", "empty", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "server" / "server.yaml").write_text(yaml.safe_dump({"name": "study", "address": "fed.example"}))
    runs = tmp_path / "server" / "runs" / "r1"
    runs.mkdir(parents=True)
    start_run(runs)
    site = write_site(tmp_path / "site")
    (tmp_path / "other" / "letter.txt").write_text("dear sir or madam")
    assert reader(tmp_path / "server")().name == "ward-pose"
    assert reader(tmp_path / "server" / "runs")().name == "ward-pose"
    assert reader(site)().name == reader(tmp_path / "site")().name == "north"
    kit = {"site": "north", "federation": "study", "address": "fed.example", "wheel": "0" * 64}
    (tmp_path / "site" / "kit.yaml").write_text(yaml.safe_dump(kit))
    assert reader(tmp_path / "site")().name == "north"
    assert reader(tmp_path / "empty")().headline == "No run yet."
    for nothing in (tmp_path / "other", tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="nothing to watch"):
            reader(nothing)


def test_json_has_no_infinity() -> None:
    assert finite({"a": [math.inf, 1.5, {"b": -math.inf}], "c": "x"}) == {"a": [None, 1.5, {"b": None}], "c": "x"}
