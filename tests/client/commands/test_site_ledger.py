"""`wardpose site ledger`: what the ledger says, whatever names are in it and whatever became of the file."""

import json
from pathlib import Path

import pytest
from support.sites import DAMAGES, damage, write_site
from typer.testing import CliRunner, Result

from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import LedgerError, one_line
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.simulation.cli import app

EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=2.0, steps=4, max_grad_norm=1.0)
BUDGET = Budget(epsilon=100.0, delta=1e-3)
HOSTILE = [
    "[/x]",
    "[red]r[/red]",
    "[link=file:///x]y[/link]",
    "\\",
    ":skull:",
    "\x1b[31mred\x1b]0;t\x07",
    "a\nb",
    "\u202ex",
]


def released(folder: Path, runs: list[str]) -> Path:
    """A site that released one round of each run."""
    path = write_site(folder)
    ledger, journal = Ledger(folder / "ledger.sqlite"), SiteJournal(folder / "state" / "journal.sqlite")
    for run in runs:
        ledger.reserve("ward-7", [EVENT], run_id=run, round=1, budget=BUDGET)
        order = journal.received(run=run, round_number=1, federation="f", mechanism="dp-sgd")
        journal.finished(order, "released")
    return path


def ledger(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["site", "ledger", *map(str, arguments)], env={"COLUMNS": "300"})


def test_hostile_names_are_shown_as_they_are_spelt(tmp_path: Path) -> None:
    path = released(tmp_path, HOSTILE)
    Ledger(tmp_path / "ledger.sqlite").reserve("[/cohort]", [EVENT], run_id="r", round=1, budget=BUDGET)
    shown = ledger(path)
    assert shown.exit_code == 0, shown.output
    assert all(character.isprintable() or character == "\n" for character in shown.stdout)
    for name in [*HOSTILE, "[/cohort]"]:
        assert one_line(name) in shown.stdout
    assert sum(line.startswith("│") for line in shown.stdout.splitlines()) == len(HOSTILE) + 2  # an entry a line
    assert {entry["run"] for entry in json.loads(ledger(path, "--json").stdout)["entries"]} >= set(HOSTILE)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_ledger_that_is_not_the_whole_story_is_refused(how: str, tmp_path: Path) -> None:
    path = released(tmp_path, ["a", "b"])
    damage(tmp_path / "ledger.sqlite", how)
    for arguments in ([path], [path, "--json"]):
        outcome = ledger(*arguments)
        assert isinstance(outcome.exception, LedgerError), outcome.output
        assert str(tmp_path / "ledger.sqlite") in str(outcome.exception)
        assert "\n" not in str(outcome.exception)
        assert outcome.stdout == ""
    checked = CliRunner().invoke(app, ["site", "check", str(path), "--json"])
    failures = [finding["name"] for finding in json.loads(checked.stdout)["findings"] if finding["status"] == "failure"]
    assert "ledger" in failures


def test_a_site_that_was_never_asked_has_spent_nothing(tmp_path: Path) -> None:
    shown = ledger(write_site(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert "0 entries" in shown.stdout
    assert not (tmp_path / "ledger.sqlite").exists()
