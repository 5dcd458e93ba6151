"""A hospital's exporter: the ledger's figures, nothing about patients, alive whatever happens to the files."""

import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.sites import DAMAGES, damage, write_site

from wardpose.client.exporter import METRICS, SiteExporter
from wardpose.client.facts import as_told
from wardpose.client.journal import OrderRow, SiteJournal
from wardpose.client.status import site_status
from wardpose.shared.known_server import FILE, KnownServer
from wardpose.shared.ledger_state import LEDGER_STATES
from wardpose.shared.privacy.accounting import Event, epsilon
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.site_config import load_site

DELTA = 1e-3
EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=4, max_grad_norm=1.0)
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site that answered two orders, refused one, failed one and has one open."""
    path = write_site(tmp_path)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    journal = SiteJournal(tmp_path / "state" / "journal.sqlite")
    for number, status in enumerate(("released", "released", "refused", "failed", None), start=1):
        order = journal.received(run="r", round_number=number, federation="f", mechanism="dp-sgd")
        if status in ("released", "failed"):
            ledger.reserve("ward-7", [EVENT], run_id="r", round=number, budget=Budget(epsilon=4.0, delta=DELTA))
        if status is not None:
            journal.finished(order, status, detail="patient Jane Doe", bytes_up=100 * (status == "released"))
    return path


def scrape(path: Path) -> tuple[Samples, str]:
    registry = CollectorRegistry()
    registry.register(SiteExporter(path).collector())
    text = generate_latest(registry).decode()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return samples, text


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_ledger_and_orders_are_shown(site: Path) -> None:
    samples, _ = scrape(site)
    spent = Ledger.open_readonly(site.parent / "ledger.sqlite").epsilon("ward-7", DELTA)
    assert spent >= epsilon([EVENT] * 3, delta=DELTA)
    assert value(samples, "wardpose_exporter_up") == 1
    assert value(samples, "wardpose_site_epsilon_spent", cohort="ward-7") == spent
    assert value(samples, "wardpose_site_epsilon_budget", cohort="ward-7") == 4
    assert value(samples, "wardpose_site_epsilon_remaining", cohort="ward-7") == 4 - spent
    assert value(samples, "wardpose_site_ledger_entries") == 4
    assert value(samples, "wardpose_site_ledger_verified") == 1
    assert value(samples, "wardpose_site_orders_total", status="released") == 2
    assert value(samples, "wardpose_site_orders_total", status="refused") == 1
    assert value(samples, "wardpose_site_orders_total", status="failed") == 1
    assert value(samples, "wardpose_site_orders_open") == 1
    assert value(samples, "wardpose_site_bytes_up_total") == 200
    assert value(samples, "wardpose_site_noise_secure") == 1


def test_a_restart_shows_the_same(site: Path) -> None:
    assert scrape(site) == scrape(site)


def test_nothing_about_patients_is_exposed(site: Path) -> None:
    """A closed list: whoever adds a metric must decide here that it does not depend on a patient's data."""
    _, text = scrape(site)
    assert "Jane" not in text
    exposed = {family.name for family in text_string_to_metric_families(text)}
    assert exposed <= {
        "wardpose_exporter_up",
        "wardpose_exporter_source_up",
        "wardpose_site_info",
        "wardpose_site_noise_secure",
        "wardpose_site_epsilon_spent",
        "wardpose_site_epsilon_budget",
        "wardpose_site_epsilon_remaining",
        "wardpose_site_epsilon_delta",
        "wardpose_site_tier_epsilon_spent",
        "wardpose_site_tier_epsilon_budget",
        "wardpose_site_ledger_entries",
        "wardpose_site_ledger_verified",
        "wardpose_site_ledger_state",
        "wardpose_site_server_alarms",
        "wardpose_site_ledgers_apart",
        "wardpose_site_orders",
        "wardpose_site_orders_open",
        "wardpose_site_bytes_up",
        "wardpose_site_last_order_timestamp_seconds",
        "wardpose_site_rounds_left",
        "wardpose_site_noise_multiplier",
        "wardpose_site_certificate_expiry_timestamp_seconds",
        "wardpose_site_public_view_certified_timestamp_seconds",
    }


@pytest.mark.parametrize("ends", ["released", "refused", "failed"])
def test_nobody_sees_by_scraping_how_long_a_round_took(tmp_path: Path, ends: str) -> None:
    """The coordinator's Prometheus may scrape a site, and answers wait for `answer_seconds`: so must what is shown."""
    path = write_site(tmp_path)
    path.write_text(path.read_text().replace("answer_seconds: 0.0", "answer_seconds: 300.0"))
    ledger, journal = Ledger(tmp_path / "ledger.sqlite"), SiteJournal(tmp_path / "state" / "journal.sqlite")
    number = journal.received(run="r", round_number=1, federation="f", mechanism="dp-sgd")
    paid = ledger.reserve("ward-7", [EVENT], run_id="r", round=1, budget=Budget(epsilon=4.0, delta=DELTA))
    now = time.time() + 20
    during, page = scrape(path), site_status(path, now=now).shared()
    assert value(during[0], "wardpose_site_orders_open") == 1
    ledger.commit(paid)
    journal.finished(number, ends, bytes_up=100)
    assert scrape(path) == during
    assert site_status(path, now=now).shared() == page
    assert site_status(path, now=now).tables[0].rows[0][2].text == ends  # the machine itself is told at once
    with sqlite3.connect(journal.path) as connection:  # five minutes ago
        connection.execute("UPDATE orders SET received = received - 301, finished = finished - 301")
    samples, _ = scrape(path)
    assert value(samples, "wardpose_site_orders_open") == 0
    assert value(samples, "wardpose_site_orders_total", status=ends) == 1
    assert value(samples, "wardpose_site_bytes_up_total") == 100


@pytest.mark.parametrize(
    ("took", "seconds", "leaves"), [(0, 300, 300), (299, 300, 300), (300, 300, 300), (301, 300, 600), (7, 2.5, 8)]
)
def test_an_order_is_in_training_until_its_answer_leaves(took: int, seconds: float, leaves: int) -> None:
    order = OrderRow(
        run="r", round=1, federation="f", mechanism="dp-sgd", received=1000, finished=1000 + took, status="released",
        detail="of a view", bytes_up=7,
    )  # fmt: skip
    (before,) = as_told([order], answer_seconds=seconds, now=999.5 + leaves)
    assert (before.status, before.finished, before.detail, before.bytes_up) == ("training", None, "", 0)
    (after,) = as_told([order], answer_seconds=seconds, now=1000 + leaves)
    assert after == replace(order, finished=1000 + leaves)
    assert as_told([order], answer_seconds=0, now=0) == [order]


def test_a_site_that_was_never_asked_is_up_and_has_spent_nothing(tmp_path: Path) -> None:
    samples, _ = scrape(write_site(tmp_path))
    assert value(samples, "wardpose_exporter_up") == 1
    assert value(samples, "wardpose_site_epsilon_spent", cohort="ward-7") == 0
    assert value(samples, "wardpose_site_ledger_verified") == 1
    assert {file.name for file in tmp_path.iterdir() if file.suffix not in (".key", ".pub")} == {"site.yaml"}


def test_a_ledger_that_is_gone_is_no_fresh_start(site: Path) -> None:
    for file in site.parent.glob("ledger.sqlite*"):
        file.unlink()
    samples, _ = scrape(site)
    assert value(samples, "wardpose_exporter_up") == 0
    assert value(samples, "wardpose_site_ledger_verified") == 0
    assert not any(name == "wardpose_site_epsilon_spent" for name, _ in samples)
    assert value(samples, "wardpose_site_orders_total", status="released") == 2


@pytest.mark.parametrize("how", DAMAGES)
def test_a_ledger_that_is_not_the_whole_story_is_never_a_new_one(how: str, site: Path) -> None:
    damage(site.parent / "ledger.sqlite", how)
    before = {file: file.stat().st_mtime_ns for file in site.parent.rglob("*")}
    samples, _ = scrape(site)
    assert value(samples, "wardpose_exporter_up") == 0
    assert value(samples, "wardpose_exporter_source_up", source="ledger") == 0
    assert value(samples, "wardpose_site_ledger_verified") == 0
    states = {state: value(samples, "wardpose_site_ledger_state", state=state) for state in LEDGER_STATES}
    assert states == {state: float(state == DAMAGES[how]) for state in LEDGER_STATES}
    assert not any(name in ("wardpose_site_epsilon_spent", "wardpose_site_epsilon_remaining") for name, _ in samples)
    assert value(samples, "wardpose_site_orders_total", status="released") == 2
    assert {file for file in site.parent.rglob("*") if file.suffix not in (".sqlite-shm", ".sqlite-wal")} <= set(before)


def test_a_locked_ledger_is_locked_and_not_broken(site: Path) -> None:
    lock = sqlite3.connect(site.parent / "ledger.sqlite", isolation_level=None)
    try:
        lock.execute("PRAGMA locking_mode = EXCLUSIVE")
        lock.execute("BEGIN EXCLUSIVE")
        samples, _ = scrape(site)
    finally:
        lock.close()
    assert value(samples, "wardpose_site_ledger_state", state="locked") == 1
    assert value(samples, "wardpose_exporter_source_up", source="ledger") == 0
    assert not any(name == "wardpose_site_ledger_verified" for name, _ in samples)
    assert value(scrape(site)[0], "wardpose_site_ledger_state", state="ok") == 1


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_journal_that_forgot_the_orders_is_no_failure_free_site(how: str, site: Path) -> None:
    for file in (site.parent / "state").glob("journal.sqlite*"):
        file.unlink()
    if how == "empty":
        (site.parent / "state" / "journal.sqlite").touch()
    samples, _ = scrape(site)
    assert value(samples, "wardpose_exporter_source_up", source="journal") == 0
    assert value(samples, "wardpose_site_ledger_state", state="ok") == 1


def test_a_broken_journal_leaves_a_missing_ledger_missing(site: Path) -> None:
    (site.parent / "state" / "journal.sqlite").write_bytes(b"dear sir or madam" * 500)
    assert value(scrape(site)[0], "wardpose_site_ledger_state", state="ok") == 1
    damage(site.parent / "ledger.sqlite", "missing")
    assert value(scrape(site)[0], "wardpose_site_ledger_state", state="missing") == 1


def test_a_tampered_ledger_is_seen(site: Path) -> None:
    with sqlite3.connect(site.parent / "ledger.sqlite") as connection:
        connection.execute("DROP TRIGGER entries_keep")
        connection.execute("DELETE FROM entries WHERE sequence = 3")
    samples, _ = scrape(site)
    assert value(samples, "wardpose_exporter_up") == 0
    assert value(samples, "wardpose_site_ledger_verified") == 0


def test_a_broken_site_file_is_down_and_answers(site: Path) -> None:
    site.write_text("policy: {epsilon: -1}")
    samples, _ = scrape(site)
    assert value(samples, "wardpose_exporter_up") == 0
    site.unlink()
    assert value(scrape(site)[0], "wardpose_exporter_up") == 0


def test_a_coordinator_that_contradicts_itself_is_shown(site: Path) -> None:
    assert value(scrape(site)[0], "wardpose_site_server_alarms") == 0
    known = KnownServer(load_site(site).state / FILE)
    for what in ("went back from 5 to 3 entries", "is another one of 5 entries"):
        known.raise_alarm(what)
    assert value(scrape(site)[0], "wardpose_site_server_alarms") == 2
    known.accept_another("the disk broke, says Dr Lee")
    assert value(scrape(site)[0], "wardpose_site_server_alarms") == 0


def test_tiers_are_shown(tmp_path: Path) -> None:
    path = write_site(tmp_path, tiers={"strict": 2.0, "plain": 3.0})
    budget = Budget(epsilon=4.0, delta=DELTA, by_tier={"strict": 2.0})
    strict = Event(**{**EVENT.to_json(), "tier": "strict"})
    Ledger(tmp_path / "ledger.sqlite").reserve("ward-7", [EVENT, strict], run_id="r", round=1, budget=budget)
    samples, _ = scrape(path)
    by_tier = Ledger.open_readonly(tmp_path / "ledger.sqlite").epsilon_by_tier("ward-7", DELTA)
    both = by_tier["strict"]
    assert value(samples, "wardpose_site_tier_epsilon_spent", cohort="ward-7", tier="strict") == both
    assert value(samples, "wardpose_site_tier_epsilon_budget", cohort="ward-7", tier="strict") == 2
    assert value(samples, "wardpose_site_tier_epsilon_spent", cohort="ward-7", tier="plain") == by_tier[""]
    assert value(samples, "wardpose_site_epsilon_spent", cohort="ward-7") == both


def test_the_catalogue_is_complete_and_prometheus_likes_it(site: Path, installed: Callable[[str], str]) -> None:
    registry = CollectorRegistry()
    registry.register(SiteExporter(site).collector())
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    assert exposed == set(METRICS)
    checked = subprocess.run(
        [installed("promtool"), "check", "metrics"], input=generate_latest(registry), capture_output=True
    )
    assert checked.returncode == 0, checked.stderr.decode()
