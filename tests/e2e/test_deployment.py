"""A federation of real processes: TLS, node keys, process isolation, exporters, a crash in mid-round."""

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from wardpose.server.journal import RunJournal
from wardpose.shared.config import FederationConfig
from wardpose.shared.privacy.accounting import epsilon, federation_epsilon
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site
from wardpose.simulation.dev import Deployment

SITES = ("north", "south")
pytestmark = [pytest.mark.slow, pytest.mark.guard, pytest.mark.realdata, pytest.mark.timeout(1500)]


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.5)


def site_ledger(deployment: Deployment, site: str) -> Ledger:
    return Ledger(load_site(deployment.site_config(site)).ledger)


def site_events(deployment: Deployment, site: str, run: str) -> int:
    entries = site_ledger(deployment, site).entries()
    return sum(entry.kind == "reserve" and entry.body["run"] == run for entry in entries)


def test_two_rounds_and_prometheus_reads_the_epsilons_back(
    deployment: Deployment, federation: FederationConfig, watch: Callable[[], Any]
) -> None:
    found, summary = deployment.run()
    assert found.exit_status == 0, found.sentence
    assert summary["flower"]["status"] == "finished:completed"
    assert summary["status"] == "completed"
    assert summary["rounds"] == 2
    assert [site["rounds_released"] for site in summary["sites"]] == [2, 2]
    assert summary["not_private"] is None

    monitor = watch()
    delta = federation.privacy.delta
    ledger = Ledger(deployment.ledger)
    expected = {(site,): ledger.epsilon(site, delta=delta) for site in SITES}
    assert all(value > 0 for value in expected.values())
    for site in SITES:
        own = site_ledger(deployment, site)
        assert own.epsilon(f"{site}-cohort", delta=delta) == expected[site,]
        assert own.events(f"{site}-cohort") == ledger.events(site)

    wait_for(lambda: monitor.query("wardpose_rounds_total") == {(): 2.0}, seconds=240, what="a scrape")
    assert monitor.query("wardpose_epsilon_spent") == pytest.approx(expected, rel=1e-12)
    assert monitor.query("wardpose_epsilon_budget") == {(site,): 8.0 for site in SITES}
    remaining = {key: 8.0 - value for key, value in expected.items()}
    assert monitor.query("wardpose_epsilon_budget - wardpose_epsilon_spent") == pytest.approx(remaining)
    events = {site: ledger.events(site) for site in SITES}
    share = COURSE_SHARE * delta  # both rounds are of one declared course
    federated = {(name,): federation_epsilon(events, share, k) for name, k in (("disjoint", 1), ("overlap", 2))}
    assert monitor.query("wardpose_epsilon_federation") == pytest.approx(federated, rel=1e-12)

    cohorts = {(f"{site}-cohort",): expected[site,] for site in SITES}
    wait_for(lambda: len(monitor.query("wardpose_site_epsilon_spent")) == 2, seconds=120, what="the sites' exporters")
    assert monitor.query("wardpose_site_epsilon_spent") == pytest.approx(cohorts, rel=1e-12)
    assert set(monitor.query("sum by (status) (wardpose_site_orders_total)").items()) >= {(("released",), 4.0)}
    assert monitor.query("wardpose_sites_online") == {(): 2.0}
    assert monitor.query("min(wardpose_exporter_up)") == {(): 1.0}
    assert monitor.query("min(up)") == {(): 1.0}
    assert not monitor.alerts() & {"WardposeBudgetExceeded", "WardposeLedgerBroken", "WardposeNotPrivate"}


def test_a_supernode_killed_in_mid_round_is_charged_and_the_run_ends(
    deployment: Deployment, federation: FederationConfig, watch: Callable[[], Any]
) -> None:
    victim, survivor = SITES
    submitted = deployment.submit()
    journal = RunJournal(submitted.folder / "journal.sqlite")
    wait_for(lambda: journal.runs() != [], seconds=300, what="the run to start")
    run = journal.runs()[-1]["run"]
    wait_for(lambda: site_events(deployment, victim, run) == 1, seconds=400, what="the victim to train")
    for role in (f"node-{victim}", f"exec-{victim}"):
        deployment.processes.send(role, signal.SIGKILL)
    wait_for(lambda: f"node-{victim}" in deployment.processes.dead(), seconds=10, what="the victim's death")

    assert deployment.wait_for_end(submitted).status == "completed"
    assert journal.runs()[-1]["status"] == "completed"
    assert len(journal.rounds(run)) == federation.rounds
    statuses = {(row.round, row.site): row.status for row in journal.sites(run)}
    assert statuses[1, victim] == "failed"
    assert statuses[1, survivor] == statuses[2, survivor] == "released"

    ledger = Ledger(deployment.ledger)
    charged = [
        (entry.body["cohort"], entry.body["round"])
        for entry in ledger.entries()
        if entry.kind == "reserve" and entry.body["run"] == run
    ]
    assert charged.count((victim, 1)) == 1
    assert site_events(deployment, victim, run) == 1
    delta = federation.privacy.delta
    at_site = epsilon(site_ledger(deployment, victim).events(f"{victim}-cohort"), delta=delta)
    assert at_site > 0
    assert ledger.epsilon(victim, delta=delta) >= at_site

    monitor = watch()
    wait_for(
        lambda: (
            monitor.query(f'wardpose_sites_failed_total{{site="{victim}", reason="failed"}} > 0') != {}
            and monitor.query("wardpose_site_online").get((victim,)) == 0.0
        ),
        seconds=120,
        what="Prometheus to see the failure",
    )
    assert monitor.query(f'wardpose_epsilon_spent{{site="{victim}"}}') == pytest.approx(
        {(victim,): ledger.epsilon(victim, delta=delta)}, rel=1e-12
    )
