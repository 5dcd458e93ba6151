"""`wardpose server status`: names that came over the wire are shown, never obeyed."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from wardpose.server.journal import RunJournal, SiteRow
from wardpose.shared.errors import one_line
from wardpose.simulation.cli import app

HOSTILE = ["[/x]", "[red]r[/red]", "trailing\\", ":skull:", "\x1b[31mred", "a\nb"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_they_are_spelt(name: str, tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "journal.sqlite")
    config = {"sites": [{"name": name, "epsilon": None}], "privacy": {"epsilon": 8.0}}
    journal.start(
        run=name, federation=name, mechanism=name, unit=name, delta=1e-3, overlap=1, rounds=3, config=config,
        score_name=name,
    )  # fmt: skip
    journal.site(SiteRow(run=name, round=1, site=name, status=name))
    shown = CliRunner().invoke(app, ["server", "status", "--directory", str(tmp_path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 1, shown.output  # it says that it runs, and no process does
    assert all(character.isprintable() or character == "\n" for character in shown.stdout)
    assert shown.stdout.count(one_line(name)) == 6
    assert len(shown.stdout.splitlines()) == 7
