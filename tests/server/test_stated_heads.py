"""What a site states of its ledger between rounds, at the Budget service, binds it in rounds as well."""

import time
from pathlib import Path

import pytest
from support.federations import charged_steps, rows_of, tiny_federation
from typer.testing import CliRunner

from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.contact import open_alarms
from wardpose.server.heads import STATED, Heads
from wardpose.shared.privacy.ledger import Ledger
from wardpose.simulation.cli import app
from wardpose.simulation.run import simulate

SITES = ("north", "south")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose first round is over."""
    simulate(tiny_federation(SITES, rounds=1), tmp_path / "run", report=False)
    return tmp_path / "run"


def go_on(folder: Path, rounds: int) -> dict[str, str]:
    """One round more; what became of each site in it."""
    simulate(tiny_federation(SITES, rounds=rounds), folder, resume=True, report=False)
    return {site: row.status for (number, site), row in rows_of(folder).items() if number == rounds}


def test_a_ledger_that_was_found_apart_between_rounds_takes_part_in_none(folder: Path) -> None:
    before = charged_steps(folder, "north")
    Alarms(folder / ALARMS).raise_("north", "its ledger went back from 9 to 4 entries", int(time.time()))
    assert go_on(folder, 2) == {"south": "released"}
    (alarm,) = open_alarms(folder / "contact.sqlite")
    assert alarm.site == "north"
    assert "went back from 9 to 4" in alarm.what
    assert charged_steps(folder, "north") == before
    words = ["server", "accept-ledger", "north", "--directory", str(folder), "--why", "restored, and both sides know"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert Alarms(folder / ALARMS).of("north") == []


@pytest.mark.parametrize(("more", "same"), [(0, True), (0, False), (3, False)], ids=["this", "another", "newer"])
def test_a_ledger_must_continue_what_was_stated_of_it(folder: Path, more: int, same: bool) -> None:
    count, head = Ledger(folder / "sites" / "north" / "ledger.sqlite").head()
    Heads(folder / STATED).remember("north", count + more, head if same else "a" * 64)
    assert go_on(folder, 2).get("north") == ("released" if same else None)
    assert [alarm.site for alarm in open_alarms(folder / "contact.sqlite")] == ([] if same else ["north"])
