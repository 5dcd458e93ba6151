"""Small but real: the TinyViT at 64x32 pixels, and cohorts whose arrays are made on the spot."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch

from wardpose.shared.allocator import tune_allocator
from wardpose.shared.pose.model import ModelConfig, PoseModel, Strategy, build_model
from wardpose.shared.privacy.cache import Rows
from wardpose.shared.privacy.cohort import CohortData, PublicData, load_bags
from wardpose.shared.privacy.gradients import UnitGradients
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.units import UnitIndex

SIZE = (64, 32)
JOINTS = 14


@lru_cache(maxsize=8)
def make_model(dtype: torch.dtype = torch.float64, size: tuple[int, int] = SIZE, stride: int = 32) -> PoseModel:
    """TinyViT with statistics, affine parameters and biases that are not the trivial ones."""
    model = build_model(ModelConfig(weights="random", input_size=size, last_stride=stride), seed=3).to(dtype)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.running_mean, module.bias):
                    value.copy_(0.1 * torch.randn(value.shape, generator=generator))
                for value in (module.running_var, module.weight):
                    value.copy_(0.7 + 0.6 * torch.rand(value.shape, generator=generator))
        for name, parameter in model.named_parameters():
            if "attention_biases" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def make_rows(count: int, seed: int, size: tuple[int, int] = SIZE) -> tuple[Rows, Rows]:
    """Random crops with joints, and a public view of them (blocks of 8 pixels averaged)."""
    generator = np.random.default_rng(seed)
    height, width = size
    smooth = generator.integers(0, 256, (count, height // 4, width // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    crops = np.clip(smooth + generator.integers(-20, 21, (count, height, width, 3)), 0, 255).astype(np.uint8)
    blocks = crops.reshape(count, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))
    shown = blocks.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    joints = (generator.random((count, JOINTS, 2)) * [width - 1, height - 1]).astype(np.float32)
    visibility = generator.choice(np.array([0, 1, 2], np.uint8), (count, JOINTS))
    private = Rows(inputs=crops, joints=joints, visibility=visibility)
    return private, Rows(inputs=shown, joints=joints, visibility=visibility)


def make_cohort(
    mechanism: Mechanism,
    records_of_patients: Sequence[int] = (3, 1, 5, 2),
    *,
    seed: int = 0,
    views: int = 1,
    engine: UnitGradients | None = None,
    size: tuple[int, int] = SIZE,
) -> CohortData:
    """Patients with so many records each; with an engine, its trunk features instead of crops."""
    owners = [(f"p{patient}",) for patient, count in enumerate(records_of_patients) for _ in range(count)]
    private, public = make_rows(len(owners) * views, seed, size)
    if engine is not None:
        private, public = as_features(engine, private), as_features(engine, public)
    return CohortData(
        private=private,
        public=public,
        units=UnitIndex(owners, unit=mechanism.unit),
        views=views,
        frames_per_unit=mechanism.frames_per_unit,
    )


def make_public(count: int = 24, seed: int = 99, engine: UnitGradients | None = None) -> PublicData:
    """A public data set of so many frames."""
    rows, _ = make_rows(count, seed)
    return PublicData(rows=rows if engine is None else as_features(engine, rows), identity=f"public-{seed}")


def as_features(engine: UnitGradients, rows: Rows) -> Rows:
    """The same rows with trunk features in the engine's own precision."""
    bags = load_bags(engine, rows, np.arange(len(rows))[:, None])
    return Rows(inputs=bags.inputs[:, 0].numpy(), joints=rows.joints, visibility=rows.visibility)


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
