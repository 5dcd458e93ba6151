"""What every test of the privacy engine may ask for; see `support.engine`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.engine import make_cohort, make_model, make_public

from wardpose.shared.allocator import tune_allocator
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.training.cohort import CohortData, PublicData


@pytest.fixture(scope="session", autouse=True)
def _keep_memory() -> None:
    """As the programs do at their start: half of these tests' time would be page faults."""
    tune_allocator()


@pytest.fixture(scope="session")
def small_model() -> Callable[..., PoseModel]:
    """Factory of models: (dtype, size, stride)."""
    return make_model


@pytest.fixture(scope="session")
def cohort() -> Callable[..., CohortData]:
    """Factory of cohorts: (mechanism, records of each patient, ...)."""
    return make_cohort


@pytest.fixture(scope="session")
def public_data() -> Callable[..., PublicData]:
    """Factory of public data: (count, seed, engine)."""
    return make_public


@pytest.fixture(params=["head", "last-stage", "last-stage-norms", "full"])
def strategy(request: pytest.FixtureRequest) -> Strategy:
    """Every set of parameters that can train."""
    chosen: Strategy = request.param
    return chosen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ledger may be made; not even its folder is there yet."""
    return tmp_path / "state" / "ledger.sqlite"
