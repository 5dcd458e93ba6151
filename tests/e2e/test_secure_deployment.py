"""One round of secure aggregation over real processes: the sum has the central noise, and everybody is charged."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.federations import tiny_federation

from wardpose.server.checkpoint import Checkpoint
from wardpose.server.initial import INITIAL
from wardpose.server.journal import RunJournal
from wardpose.server.scoring import arrays_of
from wardpose.shared.config import FederationConfig
from wardpose.shared.pose.weights import load_model
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site
from wardpose.simulation.dev import Deployment

SITES = ("east", "north", "south")
SIGMA, LEARNING_RATE = 3.0, 0.3
pytestmark = [pytest.mark.slow, pytest.mark.guard, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def federation() -> FederationConfig:
    """Three hospitals of which one may be missing and none colludes: with all three, a third of the noise comes off."""
    server = {"aggregation": {"secure": {"colluding": 0}}, "deadline_seconds": 600, "wait_seconds": 300}
    return tiny_federation(SITES, rounds=1, seed=None, server=server)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, federation: FederationConfig) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("secure") / "deployment")
    try:
        made.up(federation)
        yield made
    finally:
        Deployment(made.folder).down()
        assert made.processes.alive() == []


def test_three_sites_add_up_and_the_sum_has_the_noise_of_one(
    deployment: Deployment, federation: FederationConfig
) -> None:
    found, summary = deployment.run()
    assert found.exit_status == 0, found.sentence
    assert summary["flower"]["status"] == "finished:completed"
    folder = deployment.run_directory
    journal = RunJournal(folder / "journal.sqlite")
    (run,) = journal.runs()
    assert {row.site: row.status for row in journal.sites(run["run"]) if row.round == 1} == dict.fromkeys(
        SITES, "released"
    )
    ledger = Ledger(deployment.ledger)
    for site in SITES:
        own = Ledger(load_site(deployment.site_config(site)).ledger)
        (event,) = own.events(f"{site}-cohort")
        assert (event.noise, event.noise_multiplier, event.shares) == ("distributed-discrete-gaussian", SIGMA, 3)
        assert not event.seeded
        assert ledger.events(site) == own.events(f"{site}-cohort")
        kept = [path for path in (Path(own.path).parent.rglob("secure/*")) if path.name != ".lock"]
        assert kept
        assert all(path.suffix == ".closed" and path.stat().st_size == 0 for path in kept)
    before, after = arrays_of(load_model(folder / INITIAL)), Checkpoint.load(folder / "checkpoint.safetensors").weights
    moved = np.concatenate(
        [(after[name] - before[name]).ravel() for name in after if (after[name] != before[name]).any()]
    )
    expected = federation.mechanism.sample_rate * 2 * len(SITES)  # of the declared patients
    noise = LEARNING_RATE * SIGMA * federation.mechanism.max_grad_norm / expected
    # 6.5 standard errors; six patients' gradients are less than a hundredth, and noise that stayed would be 1.5.
    assert abs(moved.astype(np.float64).var() / noise**2 - 1) < 6.5 * np.sqrt(2 / len(moved)) + 0.01
