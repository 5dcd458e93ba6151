"""The preflight of a submitted run: every site is asked before anything is charged."""

from pathlib import Path

import pytest
import yaml
from support.federations import rows_of, tiny_federation

from wardpose.client.app import app as client_app
from wardpose.server.app import run_federation
from wardpose.server.journal import RunJournal
from wardpose.shared.privacy.ledger import Ledger
from wardpose.simulation.grid import InProcessGrid
from wardpose.simulation.layout import prepare_sites

PLAN = tiny_federation(["north", "south"], rounds=1)


@pytest.fixture
def sites(tmp_path: Path) -> dict[str, Path]:
    return prepare_sites(PLAN, tmp_path)


def forbid(site: Path) -> None:
    content = yaml.safe_load(site.read_text())
    content["policy"]["mechanisms"] = ["projected"]
    site.write_text(yaml.safe_dump(content))


def ran(folder: Path, sites: dict[str, Path], preflight: str, *, resume: bool = False) -> dict[str, str]:
    with InProcessGrid(client_app, sites) as grid:
        run_federation(grid, PLAN, folder, resume=resume, preflight=preflight)
    row = RunJournal(folder / "journal.sqlite").runs()[-1]
    return {key: row[key] for key in ("status", "reason", "detail")}


def test_a_site_that_refuses_ends_a_strict_run_before_a_charge_and_the_run_goes_on_when_it_does_not(
    tmp_path: Path, sites: dict[str, Path]
) -> None:
    allowed = sites["south"].read_text()
    forbid(sites["south"])
    ended = ran(tmp_path, sites, "strict")
    assert (ended["status"], ended["reason"]) == ("stopped", "refused")
    assert ended["detail"].startswith("nothing was charged: south: ")
    assert {key: row.status for key, row in rows_of(tmp_path).items()} == {
        (0, "north"): "ready",
        (0, "south"): "refused",
    }
    assert Ledger(tmp_path / "ledger.sqlite").events("north") == ()
    assert not (tmp_path / "model.safetensors").exists()

    sites["south"].write_text(allowed)
    assert ran(tmp_path, sites, "strict", resume=True)["status"] == "completed"
    statuses = {key: row.status for key, row in rows_of(tmp_path).items()}
    assert {statuses[1, "north"], statuses[1, "south"]} == {"released"}


def test_who_only_asks_is_answered_and_charges_nothing(tmp_path: Path, sites: dict[str, Path]) -> None:
    ended = ran(tmp_path, sites, "only")
    assert ended == {"status": "stopped", "reason": "", "detail": "nothing was charged: no site refuses the plan"}
    assert {row.status for row in rows_of(tmp_path).values()} == {"ready"}
    assert Ledger(tmp_path / "ledger.sqlite").events("north") == ()
