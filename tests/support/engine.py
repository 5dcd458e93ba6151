"""Small but real: the TinyViT at 64x32 pixels, cohorts made on the spot, and steps one can look into."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model
from wardpose.shared.privacy.clipping import GRID, Query
from wardpose.shared.privacy.mechanisms import Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import RandomStream, SeededStream, Streams, seeded_streams
from wardpose.shared.privacy.units import UnitIndex
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.ridge import Ridge
from wardpose.shared.training.step import StepGradient
from wardpose.shared.vectors import Vector, flatten, map_vector

SIZE = (64, 32)
JOINTS = 14
CLIP = 0.25
PRIVATE = ("dp-sgd", "projected", "feature", "feature-projective")


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


def head_engine(dtype: torch.dtype = torch.float32) -> UnitGradients:
    """The engine of the cheapest strategy."""
    return UnitGradients(make_model(dtype), "head", micro_batch=4)


def make_mechanism(name: str, **options: object) -> Mechanism:
    """A mechanism in which everybody takes part with two frames; with a basis, one that is always used."""
    projection = ProjectionOptions(rank=4, frames=8, held_out=2, min_captured_energy=0.0)
    settings = {"frames_per_unit": 2, "sample_rate": 1.0, "max_grad_norm": CLIP, "projection": projection}
    return Mechanism.model_validate({"name": name, **settings, **options})


def make_step(
    engine: UnitGradients,
    data: CohortData,
    mechanism: Mechanism,
    *,
    streams: Streams | None = None,
    declared_units: object = 4,
    public: PublicData | None = None,
    first_step: int = 0,
    ridge: Ridge | None = None,
) -> StepGradient:
    """The real step, with what tests seldom care about filled in."""
    return StepGradient(
        engine,
        data,
        mechanism,
        streams=seeded_streams(1) if streams is None else streams,
        declared_units=declared_units,  # type: ignore[arg-type]
        public=public,
        first_step=first_step,
        ridge=ridge,
    )


@dataclass
class Noised:
    """One query's sum as the step hands it to its noise.

    Attributes:
        total: (n,) float64, exact.
        max_grad_norm: C of the query.
        noise_multiplier: that the step asks for.

    """

    total: Tensor
    max_grad_norm: float
    noise_multiplier: float


@contextmanager
def without_noise() -> Iterator[list[Noised]]:
    """Steps inside put zeros in the place of every noised sum, and list the sums: what is left is the public part."""
    seen: list[Noised] = []

    def keep(total: Vector, query: Query, noise_multiplier: float, stream: RandomStream) -> Vector:
        scale = query.max_grad_norm / GRID if query.discrete else 1.0
        seen.append(Noised(flatten(total).double() * scale, query.max_grad_norm, noise_multiplier))
        return map_vector(lambda value: torch.zeros(value.shape, dtype=torch.float64), total)

    with patch("wardpose.shared.training.step.add_noise", keep):
        yield seen


def private_sums(step: StepGradient, parameters: Vector) -> list[Noised]:
    """The bounded sums of one step, each as it is before noise; everything in front of it included."""
    with without_noise() as seen:
        step(parameters)
    return seen


def public_part(step: StepGradient, parameters: Vector) -> Tensor:
    """What one step adds un-noised, (p,)."""
    with without_noise():
        return flatten(step(parameters))


def with_rows(data: CohortData, change: Callable[[Rows], Rows], *, public: bool = True) -> CohortData:
    """The cohort with its frames' content changed, and that of their public views unless told otherwise."""
    shown = data.public
    return replace(data, private=change(data.private), public=change(shown) if public and shown is not None else shown)


def without_unit(data: CohortData, unit: int) -> CohortData:
    """The neighbouring cohort: one unit takes no part. Its public views stay, for they are public."""
    kept = [number for number in range(len(data.units)) if number != unit]
    return with_units(data, kept)


def with_units(data: CohortData, order: Sequence[int]) -> CohortData:
    """The cohort with these units alone, in this order."""
    units = copy(data.units)
    units.names = tuple(data.units.names[unit] for unit in order)
    units.tiers = tuple(data.units.tiers[unit] for unit in order)
    units._rows = [data.units.rows(unit) for unit in order]
    return replace(data, units=units)


def without_last_unit(data: CohortData) -> CohortData:
    """The neighbouring cohort without its last unit."""
    return without_unit(data, len(data.units) - 1)


class Recording(SeededStream):
    """A stream that remembers what was asked of it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.asked: list[tuple[str, int]] = []

    def uint64(self, n: int) -> np.ndarray:
        self.asked.append(("words", n))
        return super().uint64(n)

    def gaussian(self, n: int, sigma: float) -> np.ndarray:
        self.asked.append(("gaussian", n))
        return super().gaussian(n, sigma)

    def discrete_gaussian(self, n: int, sigma: float) -> np.ndarray:
        self.asked.append(("discrete", n))
        return super().discrete_gaussian(n, sigma)
