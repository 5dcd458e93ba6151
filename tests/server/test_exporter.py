"""The coordinator's exporter shows what journal, ledger and SuperLink hold, and survives whatever happens to them."""

import math
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.supercore.state.alembic.utils import run_migrations
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine
from support.sites import DAMAGES, damage

from wardpose.server.coordinator_config import CoordinatorConfig
from wardpose.server.exporter import METRICS, ServerExporter
from wardpose.server.facts import Places
from wardpose.server.journal import RoundRow, RunJournal, SiteRow
from wardpose.server.ledger import ServerLedger
from wardpose.server.status import server_status
from wardpose.server.summary import summarise
from wardpose.server.superlink import registered_nodes
from wardpose.shared.errors import LedgerError
from wardpose.shared.ledger_state import LEDGER_STATES
from wardpose.shared.privacy.accounting import Event, epsilon
from wardpose.shared.privacy.filters import federation_epsilon
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.signing import create_key_pair
from wardpose.shared.yaml_config import load_yaml

EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=4, max_grad_norm=1.0)
CONFIG = {
    "sites": [{"name": "north", "epsilon": None}, {"name": "south", "epsilon": 3.0}],
    "privacy": {"epsilon": 8.0},
}
DELTA = 1e-3


def start(journal: RunJournal, run: str) -> None:
    journal.start(
        run=run, federation="demo", mechanism="dp-sgd", unit="patient", delta=DELTA, overlap=2, rounds=3, config=CONFIG,
        score_name="pck@0.2",
    )  # fmt: skip


def finish_round(journal: RunJournal, run: str, number: int, statuses: dict[str, str]) -> None:
    rows = [
        SiteRow(
            run=run, round=number, site=site, status=status, bytes_up=100 * (status == "released"), steps=4,
            epsilon_spent=0.1 * number, epsilon_budget={"north": 8.0, "south": 3.0}[site], delta=DELTA, secure=True,
        )
        for site, status in statuses.items()
    ]  # fmt: skip
    summary = RoundRow(
        run=run, round=number, started=1000.0 * number, seconds=10.0 + number, score=0.2 + 0.1 * number, bytes_down=500,
        bytes_up=sum(row.bytes_up for row in rows), epsilon_disjoint=0.1, epsilon_overlap=0.2,
    )  # fmt: skip
    journal.round(summary, rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs, the second in progress; north charged three times, south twice."""
    journal = RunJournal(tmp_path / "journal.sqlite")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    budget = Budget(epsilon=100.0, delta=DELTA)
    for run, number, site in (
        ("a", 1, "north"),
        ("a", 1, "south"),
        ("b", 1, "north"),
        ("b", 1, "south"),
        ("b", 2, "north"),
    ):
        ledger.commit(ledger.reserve(site, [EVENT], run_id=run, round=number, budget=budget))
    start(journal, "a")
    finish_round(journal, "a", 1, {"north": "released", "south": "released"})
    journal.score("a", "final", {"score": 0.5})
    journal.finish("a", "completed")
    start(journal, "b")
    journal.score("b", "initial", {"score": 0.25})
    finish_round(journal, "b", 1, {"north": "released", "south": "failed"})
    finish_round(journal, "b", 2, {"north": "released"})
    return tmp_path


def scrape(exporter: ServerExporter) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    registry.register(exporter.collector())
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_the_journal_is_shown(folder: Path) -> None:
    samples = scrape(ServerExporter(Places(directory=folder)))
    assert value(samples, "wardpose_exporter_up") == 1
    assert value(samples, "wardpose_rounds_total") == 3
    assert value(samples, "wardpose_round") == 2
    assert value(samples, "wardpose_bytes_up_total") == 400
    assert value(samples, "wardpose_bytes_down_total") == 1500
    assert value(samples, "wardpose_round_duration_seconds_count") == 3
    assert value(samples, "wardpose_round_duration_seconds_sum") == 34
    assert value(samples, "wardpose_round_duration_last_seconds") == 12
    assert value(samples, "wardpose_sites_answered") == 1
    assert value(samples, "wardpose_sites_failed_total", site="south", reason="failed") == 1
    assert value(samples, "wardpose_sites_failed_total", site="north", reason="failed") == 0
    assert value(samples, "wardpose_sites_released_total", site="north") == 3
    assert value(samples, "wardpose_score", score="pck@0.2") == pytest.approx(0.4)
    assert value(samples, "wardpose_test_score", score="pck@0.2", moment="initial") == 0.25
    assert value(samples, "wardpose_run_status", status="running") == 1
    assert value(samples, "wardpose_run_status", status="completed") == 0
    assert value(samples, "wardpose_runs", status="completed") == 1


def test_epsilons_are_those_of_the_ledger(folder: Path) -> None:
    samples = scrape(ServerExporter(Places(directory=folder)))
    ledger = Ledger(folder / "ledger.sqlite")
    spent = {site: ledger.account(site, DELTA).epsilon for site in ("north", "south")}
    assert spent["north"] > epsilon([EVENT] * 3, delta=DELTA)  # of no declared course, so by the Rényi filter
    for site, budget in (("north", 8.0), ("south", 3.0)):
        assert value(samples, "wardpose_epsilon_spent", site=site) == spent[site]
        assert value(samples, "wardpose_epsilon_budget", site=site) == budget
        assert value(samples, "wardpose_epsilon_remaining", site=site) == max(0.0, budget - spent[site])
    overlap = federation_epsilon({site: ledger.charges(site) for site in spent}, delta=DELTA, overlap=2)
    assert value(samples, "wardpose_epsilon_federation", assumption="disjoint") == spent["north"]
    assert value(samples, "wardpose_epsilon_federation", assumption="overlap") == overlap > spent["north"]
    assert value(samples, "wardpose_ledger_entries") == 11
    assert value(samples, "wardpose_ledger_verified") == 1


def test_a_higher_statement_of_the_site_is_shown(folder: Path) -> None:
    """Other federations charge the site's ledger too; the server's alone would show too little."""
    row = SiteRow(run="b", round=2, site="south", status="released", epsilon_spent=5.9, epsilon_budget=6.0, delta=DELTA)
    RunJournal(folder / "journal.sqlite").site(row)
    samples = scrape(ServerExporter(Places(directory=folder)))
    assert value(samples, "wardpose_epsilon_spent", site="south") == 5.9


def test_what_is_not_believed_is_counted_by_site_and_reason(folder: Path) -> None:
    journal = RunJournal(folder / "journal.sqlite")
    for number, site, status, reason in (
        (0, "south", "rejected", "ledger"),
        (3, "north", "rejected", "norm"),
        (3, "south", "absent", ""),
    ):
        journal.site(SiteRow(run="b", round=number, site=site, status=status, reason=reason))
    samples = scrape(ServerExporter(Places(directory=folder)))
    assert value(samples, "wardpose_releases_rejected_total", site="south", reason="ledger") == 1
    assert value(samples, "wardpose_releases_rejected_total", site="north", reason="norm") == 1
    assert value(samples, "wardpose_releases_rejected_total", site="north", reason="finite") == 0
    assert value(samples, "wardpose_sites_failed_total", site="north", reason="rejected") == 1
    assert value(samples, "wardpose_sites_failed_total", site="south", reason="absent") == 1


def test_a_preflight_that_is_made_up_for_lowers_no_counter(folder: Path) -> None:
    journal = RunJournal(folder / "journal.sqlite")
    journal.site(SiteRow(run="b", round=0, site="south", status="late"))
    before = scrape(ServerExporter(Places(directory=folder)))
    journal.site(SiteRow(run="b", round=0, site="south", status="ready"))
    after = scrape(ServerExporter(Places(directory=folder)))
    assert all(after[key] >= before[key] for key in before if key[0].endswith("_total"))


def test_an_infinite_epsilon_is_shown_as_such(folder: Path) -> None:
    free = Event(mechanism="none", unit="patient", sample_rate=1, noise_multiplier=0, steps=1, max_grad_norm=1)
    Ledger(folder / "ledger.sqlite").reserve(
        "north", [free], run_id="b", round=3, budget=Budget(epsilon=math.inf, delta=DELTA)
    )
    samples = scrape(ServerExporter(Places(directory=folder)))
    assert value(samples, "wardpose_epsilon_spent", site="north") == math.inf
    assert value(samples, "wardpose_epsilon_remaining", site="north") == 0
    assert value(samples, "wardpose_epsilon_federation", assumption="disjoint") == math.inf


def test_a_restart_and_a_later_round_never_lower_a_counter(folder: Path) -> None:
    before, again = scrape(ServerExporter(Places(directory=folder))), scrape(ServerExporter(Places(directory=folder)))
    free = ("wardpose_disk_free_bytes", ())
    assert again.keys() == before.keys() > {free}
    assert {key for key, found in again.items() if found != before[key]} <= {free}  # others write to this disk, too
    finish_round(RunJournal(folder / "journal.sqlite"), "b", 3, {"north": "late"})
    start(RunJournal(folder / "journal.sqlite"), "b")
    after = scrape(ServerExporter(Places(directory=folder)))
    counters = {key for key in before if key[0].endswith("_total")}
    assert counters
    assert all(after[key] >= before[key] for key in counters)
    assert value(after, "wardpose_sites_failed_total", site="north", reason="late") == 1


def test_without_files_it_is_down_and_answers(tmp_path: Path) -> None:
    samples = scrape(ServerExporter(Places(directory=tmp_path / "nowhere", superlink=tmp_path / "no.sqlite")))
    assert value(samples, "wardpose_exporter_up") == 0
    for source in ("journal", "ledger", "superlink"):
        assert value(samples, "wardpose_exporter_source_up", source=source) == 0
    assert not (tmp_path / "nowhere").exists()


def home(folder: Path) -> tuple[Places, CoordinatorConfig]:
    """A coordinator's home in which no run began."""
    (folder / "coordinator.yaml").write_text("state: coordinator\nwitness: kept/witness.sqlite\n")
    (folder / "coordinator").mkdir()
    (folder / "kept").mkdir()
    places = Places(directory=folder / "runs", coordinator=folder / "coordinator.yaml")
    return places, load_yaml(folder / "coordinator.yaml", CoordinatorConfig)


def new_ledger(config: CoordinatorConfig) -> ServerLedger:
    """As `wardpose server register` leaves it: sites are bound, and nobody was charged."""
    assert config.ledger.witness is not None
    config.ledger.witness.begin()
    ledger = ServerLedger(config.ledger.path, witness=config.ledger.witness)
    ledger.bind("north", create_key_pair(config.state / "north.key", config.state / "north.pub").public)
    return ledger


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("made", [False, True])
def test_before_the_first_run_a_home_is_well(
    made: bool, registered: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places, config = home(tmp_path)
    if made:
        places.directory.mkdir()
    if registered:
        new_ledger(config)
    samples = scrape(ServerExporter(places))
    assert value(samples, "wardpose_exporter_up") == 1
    assert value(samples, "wardpose_ledger_state", state="ok" if registered else "none") == 1
    assert value(samples, "wardpose_runs", status="completed") == 0
    assert value(samples, "wardpose_disk_free_bytes") > 0
    assert not caplog.records
    assert server_status(places).headline == "No run yet."


def test_what_another_coordinator_charged_needs_no_run_here(tmp_path: Path) -> None:
    places, config = home(tmp_path)
    other = Ledger(tmp_path / "other.sqlite")
    other.reserve("north", [EVENT], run_id="a", round=1, budget=Budget(epsilon=100.0, delta=DELTA))
    new_ledger(config).import_from(other)
    assert value(scrape(ServerExporter(places)), "wardpose_exporter_up") == 1


@pytest.mark.parametrize("ledger", ["there", "gone", "gone with its witness' file damaged"])
def test_a_home_that_lost_its_runs_is_no_new_one(ledger: str, tmp_path: Path) -> None:
    places, config = home(tmp_path)
    places.directory.mkdir()
    charged = new_ledger(config)
    charged.reserve("north", [EVENT], run_id="a", round=1, budget=Budget(epsilon=100.0, delta=DELTA))
    if ledger != "there":
        config.ledger.path.unlink()
    if ledger.startswith("gone with"):
        assert config.witness is not None
        config.witness.write_bytes(b"no database, but long enough to be looked at" * 100)
    samples = scrape(ServerExporter(places))
    assert value(samples, "wardpose_exporter_up") == 0
    for source in ("journal", "ledger"):
        assert value(samples, "wardpose_exporter_source_up", source=source) == 0
    assert value(samples, "wardpose_ledger_verified") == (ledger == "there")
    assert server_status(places).tone == "bad"


def test_a_journal_without_a_run_and_a_wrong_coordinator_yaml_are_no_new_home(tmp_path: Path) -> None:
    places, _ = home(tmp_path)
    (places.directory / "r1").mkdir(parents=True)
    (places.directory / "r1" / "journal.sqlite").touch()
    assert value(scrape(ServerExporter(places)), "wardpose_exporter_source_up", source="journal") == 0
    (places.directory / "r1" / "journal.sqlite").unlink()
    (tmp_path / "coordinator.yaml").write_text("stat: coordinator\n")
    assert value(scrape(ServerExporter(places)), "wardpose_exporter_up") == 0
    assert server_status(places).tone == "bad"


def test_a_locked_journal_costs_its_own_metrics_alone(folder: Path) -> None:
    lock = sqlite3.connect(folder / "journal.sqlite", isolation_level=None)
    try:
        lock.execute("PRAGMA locking_mode = EXCLUSIVE")
        lock.execute("BEGIN EXCLUSIVE")
        samples = scrape(ServerExporter(Places(directory=folder)))
    finally:
        lock.close()
    assert value(samples, "wardpose_exporter_up") == 0
    assert value(samples, "wardpose_exporter_source_up", source="journal") == 0
    assert value(samples, "wardpose_ledger_verified") == 1
    assert value(scrape(ServerExporter(Places(directory=folder))), "wardpose_exporter_up") == 1


@pytest.mark.parametrize("how", DAMAGES)
def test_a_ledger_that_is_not_the_whole_story_is_never_a_new_one(how: str, folder: Path) -> None:
    damage(folder / "ledger.sqlite", how)
    samples = scrape(ServerExporter(Places(directory=folder)))
    assert value(samples, "wardpose_exporter_source_up", source="ledger") == 0
    assert value(samples, "wardpose_ledger_verified") == 0
    states = {state: value(samples, "wardpose_ledger_state", state=state) for state in LEDGER_STATES}
    assert states == {state: float(state == DAMAGES[how]) for state in LEDGER_STATES}
    assert not any(name.startswith("wardpose_epsilon") for name, _ in samples)
    assert value(samples, "wardpose_rounds_total") == 3
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: "):
        summarise(folder)


def test_before_the_first_charge_there_need_be_no_ledger(tmp_path: Path) -> None:
    start(RunJournal(tmp_path / "journal.sqlite"), "a")
    samples = scrape(ServerExporter(Places(directory=tmp_path)))
    assert value(samples, "wardpose_ledger_state", state="none") == 1
    assert summarise(tmp_path)["epsilon_federation"]["disjoint"] == 0


def test_a_ledger_that_was_tampered_with_is_told_from_the_rest(folder: Path) -> None:
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        connection.execute("DROP TRIGGER entries_stay")
        connection.execute("UPDATE entries SET body = replace(body, '\"steps\":4', '\"steps\":1') WHERE sequence = 2")
    samples = scrape(ServerExporter(Places(directory=folder)))
    assert value(samples, "wardpose_ledger_verified") == 0
    assert value(samples, "wardpose_exporter_source_up", source="ledger") == 0
    assert value(samples, "wardpose_rounds_total") == 3
    assert not any(name == "wardpose_epsilon_spent" for name, _ in samples)


@pytest.fixture
def superlink(tmp_path: Path) -> Path:
    """A database as the installed SuperLink makes it: north online, south silent, east unregistered."""
    path = tmp_path / "state.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    run_migrations(engine)
    engine.dispose()
    now = time.time()
    nodes = [(1, "north", "online", now + 30), (2, "south", "online", now - 1), (3, "east", "unregistered", now + 30)]
    with sqlite3.connect(path) as connection:
        connection.executemany("INSERT INTO node (node_id, name, status, online_until) VALUES (?, ?, ?, ?)", nodes)
        for run, task, finished in ((-5, 11, None), (7, 12, "2026-01-01 00:00:00")):
            connection.execute("INSERT INTO run (run_id, primary_task_id) VALUES (?, ?)", (run, task))
            connection.execute(
                "INSERT INTO task (task_id, type, run_id, pending_at, finished_at) VALUES (?, 'x', ?, '2026', ?)",
                (task, run, finished),
            )
    return path


def test_the_installed_superlinks_database_is_understood(superlink: Path) -> None:
    assert [(node.name, node.online) for node in registered_nodes(superlink)] == [("north", True), ("south", False)]


def test_the_catalogue_is_complete(folder: Path, superlink: Path) -> None:
    registry = CollectorRegistry()
    registry.register(ServerExporter(Places(directory=folder, superlink=superlink)).collector())
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    assert exposed == set(METRICS)
    samples = scrape(ServerExporter(Places(directory=folder, superlink=superlink)))
    assert value(samples, "wardpose_sites_online") == 1
    assert value(samples, "wardpose_sites_registered") == 2
    assert value(samples, "wardpose_site_online", site="south") == 0


def test_prometheus_likes_the_names(folder: Path, superlink: Path, installed: Callable[[str], str]) -> None:
    registry = CollectorRegistry()
    registry.register(ServerExporter(Places(directory=folder, superlink=superlink)).collector())
    text = generate_latest(registry)
    checked = subprocess.run([installed("promtool"), "check", "metrics"], input=text, capture_output=True)
    assert checked.returncode == 0, checked.stderr.decode()
