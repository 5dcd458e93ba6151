"""One ledger a coordinator: nothing that a submitter chooses gives a site a new account, and no loss is a new start."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.proto.node_pb2 import NodeInfo
from flwr.superlink.grid import InMemoryGrid
from support.federations import tiny_federation
from support.ledgers import COURSE, DELTA, EVENT, UNLIMITED
from typer.testing import CliRunner

from wardpose.client.app import app as client_app
from wardpose.server.app import is_simulated, run_federation
from wardpose.server.coordinator import (
    Accounts,
    accept_ledger_as_it_is,
    coordinator_accounts,
    folder_accounts,
    import_ledger,
    load_coordinator,
)
from wardpose.server.coordinator_config import CoordinatorConfig
from wardpose.server.journal import RunJournal, SiteRow
from wardpose.server.provision.templates import render
from wardpose.server.summary import summarise
from wardpose.shared.errors import BudgetExceeded, ConfigError, LedgerError
from wardpose.shared.first_course import with_noise
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.signing import create_key_pair, load_public_key
from wardpose.shared.yaml_config import load_yaml
from wardpose.simulation.cli import app as cli
from wardpose.simulation.grid import InProcessGrid
from wardpose.simulation.layout import prepare_sites


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accounts:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WARDPOSE_COORDINATOR", raising=False)
    return coordinator_accounts(load_coordinator())


def charge(ledger: Ledger, site: str = "north", *, number: int = 1, run: str = "r1") -> None:
    reservation = ledger.reserve(site, [EVENT], run_id=run, round=number, budget=UNLIMITED, course=COURSE)
    ledger.commit(reservation)


def steps(ledger: Ledger, site: str = "north") -> int:
    return sum(event.steps for event in ledger.events(site))


def delete(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def test_the_coordinators_processes_say_where_its_file_is_and_no_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WARDPOSE_COORDINATOR", raising=False)
    assert load_coordinator() == CoordinatorConfig(state=tmp_path / "home" / "coordinator")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "coordinator.yaml").write_text("state: books\n")
    assert load_coordinator().state == tmp_path / "home" / "books"
    monkeypatch.setenv("WARDPOSE_COORDINATOR", str(tmp_path / "other.yaml"))
    with pytest.raises(ConfigError, match=r"other\.yaml: cannot be read"):
        load_coordinator()
    (tmp_path / "other.yaml").write_text("stat: books\n")
    with pytest.raises(ConfigError, match="stat: unknown key"):
        load_coordinator()


def test_the_example_that_is_deployed_is_one(tmp_path: Path) -> None:
    text = render("coordinator.yaml", epsilon=8.0, delta=1e-5, unit="patient").decode()
    example = tmp_path / "coordinator.yaml"
    example.write_text(text)
    config = load_yaml(example, CoordinatorConfig)
    assert (config.budget.epsilon, str(config.state)) == (8.0, str(tmp_path / "coordinator"))
    lines = [line.replace("# ", "", 1) if re.match(r" *# {1,}\S*:", line) else line for line in text.splitlines()]
    example.write_text("\n".join(lines))
    allowed = load_yaml(example, CoordinatorConfig)
    assert len(allowed.of("north", "gait")) == 3
    assert allowed.federations["gait"].overlap == 2


def test_only_grids_that_are_known_to_simulate_have_a_ledger_of_their_own() -> None:
    class Real:
        """A SuperLink whose sites are all offline when the run starts."""

        def get_nodes(self) -> list[NodeInfo]:
            return []

    assert not is_simulated(Real())  # type: ignore[arg-type]
    assert is_simulated(InMemoryGrid.__new__(InMemoryGrid))
    with InProcessGrid(client_app, {}) as grid:
        assert is_simulated(grid)


def test_another_folder_federation_and_plan_are_the_same_account(accounts: Accounts, tmp_path: Path) -> None:
    config = tiny_federation(["north"], rounds=1)
    paths = prepare_sites(config, tmp_path / "sites", coordinator=accounts.ledger_path.parent)
    for number, name in enumerate(("tiny", "another"), start=1):
        folder = tmp_path / f"run-{number}"
        with InProcessGrid(client_app, paths) as grid:
            run_federation(grid, config.model_copy(update={"name": name}), folder, resume=False, accounts=accounts)
        assert not (folder / "ledger.sqlite").exists()
        assert steps(accounts.ledger()) == number
        summary = summarise(folder)
        assert summary["sites"][0]["steps"] == 1
        spent = accounts.ledger().epsilon("north", 1e-3)
        assert summary["epsilon_federation"]["disjoint"] == pytest.approx(spent)
    assert accounts.heads.last("north") is not None
    delete(accounts.ledger_path)
    with pytest.raises(LedgerError, match="is gone"):
        summarise(tmp_path / "run-1")


def lose_file(accounts: Accounts, _: Path) -> None:
    delete(accounts.ledger_path)


def lose_state(accounts: Accounts, _: Path) -> None:
    shutil.rmtree(accounts.ledger_path.parent)


def empty(accounts: Accounts, _: Path) -> None:
    delete(accounts.ledger_path)
    accounts.ledger_path.touch()


def roll_back(accounts: Accounts, backup: Path) -> None:
    delete(accounts.ledger_path)
    shutil.copy(backup, accounts.ledger_path)


def begin_another(accounts: Accounts, _: Path) -> None:
    delete(accounts.ledger_path)
    for number in range(20):
        charge(Ledger(accounts.ledger_path), number=number)


def lose_witness(accounts: Accounts, _: Path) -> None:
    assert accounts.witness is not None
    delete(accounts.witness.path)


def lose_ledger_and_witness(accounts: Accounts, _: Path) -> None:
    """What is left are the heads of the sites' ledgers."""
    accounts.heads.remember("north", 3, "a" * 64)
    lose_file(accounts, _)
    lose_witness(accounts, _)


@pytest.mark.parametrize(
    "loss",
    [lose_file, lose_state, empty, roll_back, begin_another, lose_witness, lose_ledger_and_witness],
)
def test_a_lost_ledger_is_no_new_budget(
    loss: Callable[[Accounts, Path], None], accounts: Accounts, tmp_path: Path
) -> None:
    charge(accounts.ledger())
    shutil.copy(accounts.ledger_path, tmp_path / "backup.sqlite")
    charge(accounts.ledger(), number=2)
    loss(accounts, tmp_path / "backup.sqlite")
    for _ in range(2):  # nor does the refusal mend anything
        with pytest.raises(LedgerError):
            accounts.ledger()


def test_before_the_first_charge_everything_may_be_new(accounts: Accounts) -> None:
    assert accounts.ledger().head()[0] == 0
    assert accounts.ledger().head()[0] == 0
    charge(accounts.ledger())
    assert steps(accounts.ledger()) == EVENT.steps


def test_a_lost_witness_is_replaced_by_peoples_word_and_nothing_else_is(accounts: Accounts) -> None:
    charge(accounts.ledger())
    with pytest.raises(ConfigError, match="its witness is there"):
        accept_ledger_as_it_is(accounts, "nobody needs it")
    lose_witness(accounts, Path())
    assert accept_ledger_as_it_is(accounts, "disk 2 broke; Ada has checked the last statement")[0] == 3
    assert steps(accounts.ledger()) == EVENT.steps
    lose_file(accounts, Path())
    with pytest.raises(LedgerError, match="is gone"):
        accounts.ledger()


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    before = {path.name for path in folder.iterdir()}
    yield
    made = {path.name for path in folder.iterdir()} - before
    assert {name for name in made if not name.endswith(("-shm", "-wal"))} == set()  # a reader's, of SQLite


def test_a_folder_with_a_ledger_of_its_own_is_refused_until_it_is_imported(accounts: Accounts, tmp_path: Path) -> None:
    old = tmp_path / "old"
    for number in (1, 2):
        charge(Ledger(old / "ledger.sqlite"), number=number)
    charge(Ledger(old / "ledger.sqlite"), "south")
    folder_accounts(old).heads.remember("north", 7, "b" * 64)
    config = tiny_federation(["north"])
    with (
        untouched(old),
        InProcessGrid(client_app, {}) as grid,
        pytest.raises(LedgerError, match=r"old/ledger\.sqlite: was charged.*import-ledger"),
    ):
        run_federation(grid, config, old, resume=False, accounts=accounts)
    charge(accounts.ledger(), number=9)
    assert import_ledger(accounts, old / "ledger.sqlite") == 3
    ledger = accounts.ledger()
    assert (steps(ledger), steps(ledger, "south")) == (3 * EVENT.steps, EVENT.steps)
    assert ledger.charges("north")[0].course == COURSE.identity  # one course still
    assert accounts.heads.last("north") == (7, "b" * 64)
    accounts.check_run_folder(old)
    with pytest.raises(LedgerError, match="was imported before"):
        import_ledger(accounts, old / "ledger.sqlite")
    assert steps(accounts.ledger()) == 3 * EVENT.steps


def test_a_ledger_in_the_home_is_not_escaped_by_another_folder(accounts: Accounts, tmp_path: Path) -> None:
    charge(Ledger(tmp_path / "home" / "server" / "demo" / "ledger.sqlite"))
    with pytest.raises(LedgerError, match="import-ledger"):
        accounts.check_run_folder(tmp_path / "elsewhere")


def test_neither_a_sites_ledger_nor_itself_is_imported(accounts: Accounts, tmp_path: Path) -> None:
    charge(accounts.ledger())
    with pytest.raises(LedgerError, match="was imported before"):
        import_ledger(accounts, accounts.ledger_path)
    site = Ledger(tmp_path / "site.sqlite")
    site.declare("ward", identity="x", units=3)
    with pytest.raises(LedgerError, match="is a site's ledger"):
        import_ledger(accounts, tmp_path / "site.sqlite")


def test_nothing_is_mended_while_a_run_is_at_work_and_runs_work_side_by_side(
    accounts: Accounts, tmp_path: Path
) -> None:
    charge(Ledger(tmp_path / "ledger.sqlite"))
    with accounts.in_use(), accounts.in_use(), pytest.raises(ConfigError, match="a run is at work"):
        import_ledger(accounts, tmp_path / "ledger.sqlite")
    with accounts.alone(), pytest.raises(ConfigError, match="being mended"), accounts.in_use():
        pass


@pytest.mark.parametrize("place", [".", "run", ".."])
def test_a_run_folder_does_not_mix_with_the_state(place: str, accounts: Accounts) -> None:
    folder = (accounts.ledger_path.parent / place).resolve()
    with pytest.raises(ConfigError, match="overlaps"):
        accounts.check_run_folder(folder)


def test_rounds_that_a_journal_knows_must_be_in_the_ledger(accounts: Accounts, tmp_path: Path) -> None:
    """The state was lost whole, witness included; the run's folder was not."""
    charge(accounts.ledger())
    row = SiteRow(run="r1", round=1, site="north", status="released")
    RunJournal(tmp_path / "run" / "journal.sqlite").start(
        run="r1",
        federation="study",
        mechanism="dp-sgd",
        unit="patient",
        delta=DELTA,
        overlap=1,
        rounds=2,
        config={},
        score_name="pck@0.2",
        ledger=str(accounts.ledger_path),
    )
    RunJournal(tmp_path / "run" / "journal.sqlite").site(row)
    accounts.check_run_folder(tmp_path / "run")
    lose_state(accounts, Path())
    lose_witness(accounts, Path())
    with pytest.raises(LedgerError, match="is gone, but rounds were charged"):
        accounts.check_run_folder(tmp_path / "run")


def invoke(*arguments: Any) -> str:
    outcome = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.output


def test_the_commands(accounts: Accounts, tmp_path: Path) -> None:
    charge(Ledger(tmp_path / "ledger.sqlite"))
    assert "1" in invoke("server", "import-ledger", tmp_path / "ledger.sqlite")
    lose_witness(accounts, Path())
    with pytest.raises(ConfigError, match="--why"):
        invoke("server", "accept-witness", "--why", " ")
    assert '"entries": 3' in invoke("server", "accept-witness", "--why", "its disk broke", "--json")
    assert accounts.ledger().epsilon("north", DELTA) > 0


def test_a_plan_that_would_cross_a_limit_is_refused_at_submit_and_at_the_start(
    accounts: Accounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, rules = tmp_path / "plan.yaml", tmp_path / "coordinator.yaml"
    config = tiny_federation(["north"])
    plan.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    rules.write_text("state: books\nsites: {north: {epsilon: 0.5}}\n")
    monkeypatch.setenv("WARDPOSE_COORDINATOR", str(rules))
    with pytest.raises(
        BudgetExceeded, match=r"site north: .* cross it in round 1 \(allowed: noise_multiplier = "
    ) as told:
        invoke("server", "submit", plan, "--check")
    strict = coordinator_accounts(load_coordinator())
    with InProcessGrid(client_app, {}) as grid, pytest.raises(BudgetExceeded, match="cross it in round 1"):
        run_federation(grid, config, tmp_path / "run", resume=False, accounts=strict)
    assert not strict.ledger_path.exists()
    sigma = float(str(told.value).split("noise_multiplier = ")[1].split()[0])
    quiet = config.model_copy(update={"mechanism": with_noise(config.mechanism, sigma)})
    plan.write_text(yaml.safe_dump(quiet.model_dump(mode="json")))
    found = json.loads(invoke("server", "submit", plan, "--check", "--json"))
    (north,) = found.pop("sites")
    assert found == {"federation": "tiny", "rounds": 2, "noise_multiplier": sigma}
    assert (north["name"], north["epsilon_spent"]) == ("north", 0)
    assert 0 < north["epsilon_after"] <= 0.5
    rules.write_text("state: books\nfederations: {other: {}}\n")
    with pytest.raises(ConfigError, match="federation 'tiny': is not in the coordinator's configuration"):
        invoke("server", "submit", plan, "--check")


def test_a_plan_that_would_train_on_noise_is_refused_unless_the_rest_is_to_be_spent(
    accounts: Accounts, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"

    def write(epsilon: float, **mechanism: float) -> None:
        content = tiny_federation(["north"], privacy={"epsilon": epsilon, "delta": DELTA}).model_dump(mode="json")
        content["mechanism"] |= {"noise_multiplier": 0, **mechanism}
        plan.write_text(yaml.safe_dump(content))

    write(0.02)
    with pytest.raises(BudgetExceeded, match=r"would train on noise: sigma is calibrated to .* at most 30"):
        invoke("server", "submit", plan, "--check")
    assert json.loads(invoke("server", "submit", plan, "--check", "--json", "--spend-rest"))["noise_multiplier"] > 30
    assert not accounts.ledger_path.exists() or accounts.ledger().epsilon("north", DELTA) == 0
    write(5.0)
    assert json.loads(invoke("server", "submit", plan, "--check", "--json"))["noise_multiplier"] < 30
    charge(accounts.ledger())
    spent = accounts.ledger().epsilon("north", DELTA)
    write(1.05 * spent, noise_multiplier=200.0)  # nor may a plan that states its noise spend the rest in silence
    with pytest.raises(BudgetExceeded, match=r"would train on noise: site north has"):
        invoke("server", "submit", plan, "--check")


def test_a_run_charges_the_account_of_the_key_that_a_site_is_registered_with(
    accounts: Accounts, tmp_path: Path
) -> None:
    config = tiny_federation(["north", "south"], rounds=1)
    paths = prepare_sites(config, tmp_path / "sites", coordinator=accounts.ledger_path.parent)
    stranger = create_key_pair(tmp_path / "s", tmp_path / "s.pub").public
    accounts.ledger().bind("north", stranger)
    accounts.ledger().bind("st-mary", load_public_key(paths["south"].parent / "node.pub"))
    with InProcessGrid(client_app, paths) as grid:
        run_federation(grid, config, tmp_path / "run", resume=False, accounts=accounts)
    ledger = accounts.ledger()
    assert {name: steps(ledger, name) for name in ("north", "south", "st-mary")} == {
        "north": 0,
        "south": 0,
        "st-mary": 1,
    }
