"""`wardpose ledger remote`: a site and an auditor ask a real service, and what they are told is checked."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.budget_service import Coordinator, charge, create_coordinator
from support.ledgers import BUDGET, COURSE, DELTA, EVENT
from typer.testing import CliRunner, Result

from wardpose.server.budget_service.settings import SHOWN
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.remote_ledger import RemoteError
from wardpose.simulation.cli import app


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    made = create_coordinator(tmp_path)
    charge(made.ledger, "north", 2)
    charge(made.ledger, "south", 1)
    with made.serving():
        yield made


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """North's own ledger, of the rounds that the coordinator charged."""
    path = tmp_path / "site.sqlite"
    for number in (1, 2):
        Ledger(path).reserve("ward", [EVENT], run_id="run", round=number, budget=BUDGET, course=COURSE)
    return path


def run(coordinator: Coordinator, name: str, *arguments: object, server_key: bool = True) -> Result:
    certificate, key = coordinator.files(name)
    options = ["--service", coordinator.address, "--ca", coordinator.authority / "ca.crt", "--certificate", certificate,
               "--key", key, "--state", coordinator.folder / f"state-{name}"]  # fmt: skip
    if server_key:
        options += ["--server-key", coordinator.folder / "coordinator.pub"]
    command = ["ledger", "remote", *arguments, *options]
    return CliRunner().invoke(app, list(map(str, command)), env={"COLUMNS": "250"})


def answer(coordinator: Coordinator, name: str, *arguments: object) -> Any:
    result = run(coordinator, name, *arguments, "--json")
    assert result.exit_code in (0, 1), (result.output, result.exception)
    return json.loads(result.stdout)


def test_a_site_is_shown_what_it_spent(coordinator: Coordinator) -> None:
    found = answer(coordinator, "north", "account")
    (account,) = found["sites"]
    spent = Ledger(coordinator.ledger).epsilon("north", DELTA)
    assert (account["site"], account["epsilon"], account["budget"], account["rows"]) == ("north", spent, 3.0, 4)
    assert found["head"] == ":".join(map(str, Ledger(coordinator.ledger).head()))
    assert found["federation"]["sites"] == 2
    assert found["alarms"] == []
    shown = run(coordinator, "north", "account").stdout
    assert f"{spent:.4f}" in shown
    assert "south" not in shown
    assert [row["site"] for row in answer(coordinator, "inspector", "account")["sites"]] == ["north", "south"]
    assert isinstance(run(coordinator, "north", "account", "--site", "south").exception, RemoteError)


def test_what_is_exported_can_be_checked_by_itself(coordinator: Coordinator, tmp_path: Path) -> None:
    entries = Ledger(coordinator.ledger).entries()
    for name, in_full in (("north", 4), ("inspector", len(entries))):
        path = tmp_path / f"{name}.jsonl"
        found = answer(coordinator, name, "entries", path)
        assert (found["entries"], found["in_full"]) == (len(entries), in_full)
        checked = CliRunner().invoke(app, ["ledger", "verify", str(path), "--json"])
        assert json.loads(checked.stdout) == {
            "entries": len(entries), "head": entries[-1].hash, "redacted": len(entries) - in_full
        }  # fmt: skip
        assert ("south" in path.read_text()) == (name == "inspector")
        before = path.read_bytes()
        assert isinstance(run(coordinator, name, "entries", path).exception, ConfigError)
        assert path.read_bytes() == before
    assert isinstance(run(coordinator, "north", "entries", tmp_path / "e.csv").exception, ConfigError)


def test_an_entry_is_proven_and_what_was_shown_before_goes_on(coordinator: Coordinator) -> None:
    first = answer(coordinator, "north", "verify", "--sequence", "4")
    assert first["hash"] == Ledger(coordinator.ledger).entries()[3].hash
    assert first["continues"] == 0
    charge(coordinator.ledger, "south", 1, first=2)
    assert answer(coordinator, "north", "verify")["continues"] == 7
    assert isinstance(run(coordinator, "north", "verify", "--sequence", "99").exception, RemoteError)


def test_a_coordinator_that_went_back_is_an_alarm_on_the_screen_too(coordinator: Coordinator, tmp_path: Path) -> None:
    shutil.copy(coordinator.ledger, tmp_path / "backup.sqlite")
    charge(coordinator.ledger, "north", 1, first=3)
    answer(coordinator, "north", "account")
    for file in [*coordinator.directory.glob("ledger.sqlite*"), *coordinator.directory.glob(f"{SHOWN}*")]:
        file.unlink()
    shutil.copy(tmp_path / "backup.sqlite", coordinator.ledger)
    with coordinator.serving():
        for command in (("account",), ("verify",), ("entries", tmp_path / "e.jsonl")):
            assert isinstance(run(coordinator, "north", *command).exception, LedgerError)
        assert not (tmp_path / "e.jsonl").exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".e.jsonl")]
        (alarm,) = coordinator.known("north").alarms()
        assert alarm.what == "went back from 9 to 7 entries"
        accept = ["ledger", "remote", "accept-another", "--state", str(tmp_path / "state-north"), "--why"]
        assert isinstance(CliRunner().invoke(app, [*accept, " "]).exception, ConfigError)
        assert CliRunner().invoke(app, [*accept, "the disk broke, says Dr Lee"]).exit_code == 0
        assert "ALARM" not in run(coordinator, "north", "account").stdout
    assert coordinator.known("north").alarms() == []


def test_nothing_has_to_be_accepted_before_the_first_contact(tmp_path: Path) -> None:
    arguments = ["ledger", "remote", "accept-another", "--state", str(tmp_path), "--why", "lost"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)
    assert list(tmp_path.iterdir()) == []


def test_a_site_holds_its_ledger_against_the_coordinators(coordinator: Coordinator, site: Path) -> None:
    assert answer(coordinator, "north", "compare", site) == {"agree": True, "differences": []}
    Ledger(site).reserve("ward", [EVENT], run_id="run", round=9, budget=BUDGET, course=COURSE)
    result = run(coordinator, "north", "compare", site, "--json")
    assert result.exit_code == 1
    assert run(coordinator, "inspector", "compare", site, "--name", "north", "--json").stdout == result.stdout
    (difference,) = json.loads(result.stdout)["differences"]
    assert (difference["round"], difference["what"], difference["alarming"]) == (9, "only at the site", True)


def test_a_site_states_its_head_and_is_told_when_it_went_back(
    coordinator: Coordinator, site: Path, tmp_path: Path
) -> None:
    shutil.copy(site, tmp_path / "backup.sqlite")
    Ledger(site).reserve("ward", [EVENT], run_id="run", round=3, budget=BUDGET, course=COURSE)
    node_key = ["--node-key", tmp_path / "north-node.key"]
    found = answer(coordinator, "north", "submit", site, *node_key)
    assert found["submitted"] == ":".join(map(str, Ledger(site).head()))
    old = run(coordinator, "north", "submit", tmp_path / "backup.sqlite", *node_key)
    assert isinstance(old.exception, LedgerError)
    assert "went back from 4 to 3" in str(old.exception)
    assert "ALARM: its ledger went back" in run(coordinator, "north", "account").stdout
    assert isinstance(run(coordinator, "north", "submit", tmp_path / "none.sqlite", *node_key).exception, LedgerError)


def test_wrong_files_and_addresses_are_one_clear_error(coordinator: Coordinator, tmp_path: Path) -> None:
    address = coordinator.address
    coordinator.address = "127.0.0.1:9"
    assert "UNAVAILABLE" in str(run(coordinator, "north", "account").exception)
    coordinator.address = address
    shutil.copy(coordinator.files("south")[1], coordinator.files("north")[1])  # a key of another certificate
    assert isinstance(run(coordinator, "north", "account").exception, RemoteError)
    coordinator.files("south")[0].unlink()
    assert isinstance(run(coordinator, "south", "account").exception, ConfigError)
