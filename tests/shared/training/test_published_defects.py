"""The defects of the published reference code, each as a property that ours has and a defective variant has not.

The public gradient on the private batch itself is in test_reveal_attack.py, keypoints in it in test_public_part.py.
"""

import copy
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from timm.models.tiny_vit import TinyVitBlock
from torch import Tensor
from torch.func import functional_call, grad, vmap

from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.clipping import ClipSum
from wardpose.shared.privacy.mechanisms import Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import SecureStream, Streams, secure_streams, seeded_streams
from wardpose.shared.training.basis import build_basis
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients, join
from wardpose.shared.training.local import LocalUpdate, local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.training.step import StepGradient
from wardpose.shared.vectors import Vector, flatten

ModelFactory = Callable[..., PoseModel]
CohortFactory = Callable[..., CohortData]
PublicFactory = Callable[..., PublicData]

FRAME = Mechanism(name="feature", unit="frame", sample_rate=1.0)


@pytest.fixture
def engine(small_model: ModelFactory) -> UnitGradients:
    return UnitGradients(small_model(torch.float64), "head", micro_batch=8)


def unit_matrix(engine: UnitGradients, bags: Bags) -> Tensor:
    parts = engine.per_unit(engine.parameters(), bags)
    return torch.cat([torch.cat([value.flatten(1) for value in part.values()], dim=1) for part in parts])


# 1.6 a / 5.5.5: a loss that is a batch mean times the batch's mean visibility lets one person rescale everybody.


def batch_coupled_matrix(engine: UnitGradients, bags: Bags) -> Tensor:
    codec = SimCC.of(engine._model.config)

    def loss(values: Vector, unit: Tensor) -> Tensor:
        logits = functional_call(engine._model, values, (bags.inputs[:, 0], "head"))
        labelled = torch.ones_like(bags.visibility[:, 0])
        mean = simcc_loss(*logits, bags.joints[:, 0], labelled, codec)
        return (mean * unit).sum() / len(bags) * (bags.visibility[:, 0] > 0).double().mean()

    gradients = vmap(grad(loss), in_dims=(None, 0))(engine.parameters(), torch.eye(len(bags)).double())
    return torch.cat([value.flatten(1) for value in gradients.values()], dim=1)


def test_nobody_rescales_anybody_elses_gradient(engine: UnitGradients, cohort: CohortFactory) -> None:
    bags = load_bags(engine, cohort(FRAME, (1,) * 5).private, np.arange(5)[:, None])
    hidden = replace(bags, visibility=bags.visibility.clone())
    hidden.visibility[4] = 0

    def others_are_untouched(matrix: Callable[[UnitGradients, Bags], Tensor]) -> bool:
        return torch.allclose(matrix(engine, bags)[:4], matrix(engine, hidden)[:4], rtol=1e-12)

    assert others_are_untouched(unit_matrix)
    assert not others_are_untouched(batch_coupled_matrix)


# 1.6 b / 5.5.2: two rows per person (frame and blurred frame), each clipped on its own and summed.


def test_a_person_is_clipped_once(engine: UnitGradients, cohort: CohortFactory) -> None:
    data = cohort(FRAME, (1,) * 4)
    ids = np.arange(4)[:, None]
    private, public = (load_bags(engine, rows, ids) for rows in (data.private, data.public))
    clip = 1e-3
    query = ClipSum(clip, engine.parameters())

    def contribution(unit: int, bags_of: Callable[[int], list[Bags]]) -> float:
        total = query.zero()
        for bags in bags_of(unit):
            for part in engine.per_unit(engine.parameters(), bags):
                total = {name: total[name] + value for name, value in query(part).items()}
        return float(flatten(total).norm())

    def ours(unit: int) -> list[Bags]:
        return [join(private.units(unit, unit + 1), public.units(unit, unit + 1))]

    def two_rows(unit: int) -> list[Bags]:
        return [private.units(unit, unit + 1), public.units(unit, unit + 1)]

    assert all(contribution(unit, ours) <= clip for unit in range(4))
    assert any(contribution(unit, two_rows) > 1.5 * clip for unit in range(4))
    # And the private part is the difference: it vanishes where nothing is hidden.
    same = join(public, public)
    assert float(unit_matrix(engine, same).norm()) < 1e-12
    assert float(unit_matrix(engine, public).norm()) > 1e-3


# 1.6 d / 5.5.3: "public" basis frames that are the first private ones.


def test_the_basis_does_not_depend_on_private_frames(
    engine: UnitGradients, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    options = ProjectionOptions(rank=3, frames=6, held_out=2, min_captured_energy=0.0)
    chosen = Mechanism(name="projected", unit="frame", sample_rate=1.0, projection=options)
    cohorts = [cohort(chosen, (1,) * 9, seed=seed, engine=engine) for seed in (1, 2)]

    def energies(source: Callable[[CohortData], PublicData]) -> set[float]:
        found = set()
        for data in cohorts:
            step = StepGradient(engine, data, chosen, streams=seeded_streams(0), declared_units=9, public=source(data))
            step(engine.parameters())
            assert step.projection is not None
            found.add(step.projection.captured_energy)
        return found

    assert len(energies(lambda _: public_data(9, engine=engine))) == 1
    assert len(energies(lambda data: PublicData(rows=data.private, identity="first frames"))) == 2


# 1.6 e / 5.5.4: gradients of mini-batches instead of frames: 12 frames in batches of 4 give 3 rows.


def test_the_basis_has_the_rank_it_was_asked_for(engine: UnitGradients, public_data: PublicFactory) -> None:
    rows = public_data(15, engine=engine).rows
    options = ProjectionOptions(rank=12, energy=1.0)
    held_out = load_bags(engine, rows, np.arange(12, 15)[:, None])
    frames = load_bags(engine, rows, np.arange(12)[:, None])

    def rank(bags: Bags) -> int:
        held = (
            held_out if bags.inputs.shape[1] == 1 else load_bags(engine, rows, np.arange(12, 15)[:, None].repeat(4, 1))
        )
        return build_basis(engine, engine.parameters(), bags, held, options).rank

    assert rank(frames) == 12
    assert rank(load_bags(engine, rows, np.arange(12).reshape(3, 4))) == 3


# 1.6 g: nothing chosen by looking at private data comes back.


def test_an_update_carries_no_private_fact(engine: UnitGradients, cohort: CohortFactory) -> None:
    """All that comes back beside the noised numbers is the same for any other frames."""
    assert {field.name for field in fields(LocalUpdate)} == {
        "update", "mechanism", "steps", "secure", "projection", "coefficients", "share", "view", "ridge",
    }  # fmt: skip
    chosen = Mechanism(name="feature", unit="frame", sample_rate=0.5, noise_multiplier=1.0)
    facts = []
    for seed, units in ((1, 3), (2, 7)):
        update = local_update(
            engine._model,
            cohort(chosen, (1,) * units, seed=seed, engine=engine),
            chosen,
            LocalTraining(strategy="head", steps=2, optimizer=OptimizerConfig()),
            streams=seeded_streams(1),
            declared_units=5,
        )
        facts.append({field.name: getattr(update, field.name) for field in fields(LocalUpdate)} | {"update": None})
    assert facts[0] == facts[1]


# 5.5.6: noise and coins from a generator whose seed everybody knows.


class GlobalTorchStream(SecureStream):
    """What the published code does, for coins and for noise."""

    def uint64(self, n: int) -> np.ndarray:
        return torch.randint(-(2**63), 2**63 - 1, (n,)).numpy().view(np.uint64)

    def gaussian(self, n: int, sigma: float) -> np.ndarray:
        return (torch.randn(n, dtype=torch.float64) * sigma).numpy()


@pytest.mark.parametrize(("noise_multiplier", "rate"), [(1.0, 1.0), (0.0, 0.5)])  # the noise alone, the coins alone
def test_nobody_can_draw_noise_or_coins_again(
    engine: UnitGradients, cohort: CohortFactory, noise_multiplier: float, rate: float
) -> None:
    chosen = Mechanism(unit="frame", sample_rate=rate, noise_multiplier=noise_multiplier)
    data = cohort(chosen, (1,) * 64, engine=engine)

    def repeats(streams: Callable[[], Streams]) -> bool:
        runs = []
        for _ in range(2):
            torch.manual_seed(42)
            np.random.seed(42)  # noqa: NPY002 - the global generator is the point
            step = StepGradient(engine, data, chosen, streams=streams(), declared_units=64)
            runs.append(flatten(step(engine.parameters())))
        return torch.allclose(*runs)

    assert not repeats(secure_streams)
    assert repeats(lambda: Streams(GlobalTorchStream(), GlobalTorchStream(), SecureStream()))
    update = local_update(
        engine._model,
        data,
        chosen,
        LocalTraining(strategy="head", steps=1, optimizer=OptimizerConfig()),
        streams=seeded_streams(1),
        declared_units=64,
    )
    assert update.secure is False


# 5.5.7: an empty batch crashes, and a batch of one breaks the loss.


@pytest.mark.parametrize("units", [0, 1])
def test_small_batches_are_ordinary(engine: UnitGradients, cohort: CohortFactory, units: int) -> None:
    bags = load_bags(engine, cohort(FRAME, (1,)).private, np.arange(1)[:, None]).units(0, units)
    parts = list(engine.per_unit(engine.parameters(), bags))
    assert len(parts) == units
    total = engine.summed(engine.parameters(), bags)
    assert bool(torch.isfinite(flatten(total)).all())
    assert (float(flatten(total).norm()) > 0) == (units == 1)


# The trap of timm's evaluation mode: attention biases cached with their graph, stale after the next step.


def test_evaluation_in_between_changes_nothing(small_model: ModelFactory, cohort: CohortFactory) -> None:
    chosen = Mechanism(unit="frame", sample_rate=1.0)
    data = cohort(chosen, (1, 1))

    def bias_gradient_follows_the_biases(model: PoseModel) -> bool:
        """Evaluate, move a bias, train: the gradient must be that at the moved bias."""
        name = "backbone.stages.3.blocks.0.attn.attention_biases"
        fresh = copy.deepcopy(model)
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 32, dtype=torch.float64))
        results = []
        for candidate in (model, fresh):
            with torch.no_grad():
                dict(candidate.named_parameters())[name].add_(
                    torch.linspace(-2, 2, dict(candidate.named_parameters())[name].numel()).reshape_as(
                        dict(candidate.named_parameters())[name]
                    )
                )
            step = StepGradient(
                UnitGradients(candidate, "last-stage"), data, chosen, streams=seeded_streams(0), declared_units=2
            )
            results.append(step(UnitGradients(candidate, "last-stage").parameters())[name])
        return float(results[1].detach().norm()) > 0 and torch.allclose(*results, rtol=1e-9)

    assert bias_gradient_follows_the_biases(copy.deepcopy(small_model()))
    stock = copy.deepcopy(small_model())
    for module in stock.modules():
        if isinstance(module, TinyVitBlock):
            module.__class__ = TinyVitBlock
        if hasattr(module, "attention_bias_cache"):
            module.training = False  # as `.eval()` leaves it in timm's own network
    assert not bias_gradient_follows_the_biases(stock)
