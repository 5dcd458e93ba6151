"""The engine against a plain loop: one backward pass per row on the whole model, float64, own loss, clip and basis."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from wardpose.shared.data.crops import to_tensor
from wardpose.shared.pose.model import PoseModel, trainable_names
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.clipping import MARGIN
from wardpose.shared.privacy.mechanisms import (
    FeatureOptions,
    Mechanism,
    ProjectionOptions,
    ResidualOptions,
)
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.privacy.sampling import poisson_sample
from wardpose.shared.training.basis import choose_frames
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, PublicData
from wardpose.shared.training.gradients import Bags, UnitGradients, join
from wardpose.shared.training.step import StepGradient
from wardpose.shared.vectors import flatten

CohortFactory = Callable[..., CohortData]
SLOW = [pytest.mark.slow, pytest.mark.guard]


def record_loss(
    logits_x: Tensor, logits_y: Tensor, joints: Tensor, visibility: Tensor, ratio: float, sigma: float
) -> Tensor:
    """KL of one record, written down again: mean over its own visible joints of the two axes' divergences."""
    total, count = torch.zeros((), dtype=logits_x.dtype), 0
    for joint in range(len(joints)):
        if visibility[joint] == 0:
            continue
        count += 1
        for axis, logits in enumerate((logits_x[joint], logits_y[joint])):
            bins = torch.arange(len(logits), dtype=logits.dtype)
            label = torch.softmax(-((bins - joints[joint, axis] * ratio) ** 2) / (2 * sigma**2), dim=0)
            total = total + (label * (label.log() - torch.log_softmax(logits, dim=0))).sum()
    return total / max(1, count)


def row_gradients(model: PoseModel, strategy: Strategy, rows: Rows, ids: np.ndarray) -> Tensor:
    """Gradient of each row's loss, (len(ids), p), one backward pass each through the whole network."""
    model = copy.deepcopy(model)
    names = trainable_names(model, strategy)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dtype = parameters[0].dtype
    out = []
    for row in ids:
        logits_x, logits_y = model(to_tensor(rows.inputs[row : row + 1]).to(dtype))
        loss = record_loss(
            logits_x[0],
            logits_y[0],
            torch.from_numpy(rows.joints[row]).to(dtype),
            torch.from_numpy(rows.visibility[row]),
            model.config.split_ratio,
            model.config.label_sigma,
        )
        out.append(torch.cat([value.reshape(-1) for value in torch.autograd.grad(loss, parameters)]))
    return torch.stack(out)


def clip(vector: Tensor, bound: float) -> Tensor:
    return vector * min(1.0, MARGIN * bound / float(vector.norm())) if float(vector.norm()) else vector


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def drawn_rows(data: CohortData, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What a step with sampling rate 1 draws from the streams of a seed: private ids and the public part's."""
    streams = seeded_streams(seed)
    everybody = poisson_sample(len(data.units), 1.0, streams.sampling)
    return data.draw_rows(everybody, streams.sampling), data.draw_rows(everybody, streams.public)


def mechanism(name: str, *, unit: str = "patient", clip_norm: float, **options: object) -> Mechanism:
    return Mechanism(
        name=name,
        unit=unit,
        frames_per_unit=2 if unit == "patient" else 1,
        sample_rate=1.0,
        max_grad_norm=clip_norm,
        feature=FeatureOptions(draw="once-per-round", weight=0.7),
        **options,
    )


@pytest.mark.parametrize("unit", ["frame", "patient"])
def test_units_and_pairs_equal_a_loop(
    strategy: Strategy, unit: str, small_model: Callable[..., PoseModel], cohort: CohortFactory
) -> None:
    model = small_model()
    data = cohort(mechanism("feature", unit=unit, clip_norm=1.0), (2, 1, 2))
    private_ids, public_ids = drawn_rows(data, 5)
    rows = np.arange(len(data.private))
    gradients = row_gradients(model, strategy, data.private, rows)
    shown = row_gradients(model, strategy, data.public, rows)
    units = gradients[private_ids].mean(dim=1)
    pairs = units - shown[private_ids].mean(dim=1)
    public = shown[public_ids].mean(dim=1).mean(dim=0)
    engines = {micro: UnitGradients(model, strategy, micro_batch=micro) for micro in (1, 2, None)}
    cached = cohort(mechanism("feature", unit=unit, clip_norm=1.0), (2, 1, 2), engine=engines[1])
    for name, contributions in (("dp-sgd", units), ("feature", pairs)):
        bound = float(contributions.norm(dim=1).median())  # some are clipped, some are not
        expected = torch.stack([clip(vector, bound) for vector in contributions]).sum(dim=0) / 7
        if name == "feature":
            expected = expected + 0.7 * public
        for micro, engine in engines.items():
            for source in (data, cached) if model.front(strategy) != "full" else (data,):
                step = StepGradient(
                    engine,
                    source,
                    mechanism(name, unit=unit, clip_norm=bound),
                    streams=seeded_streams(5),
                    declared_units=7,
                )
                assert relative(flatten(step(engine.parameters())), expected) < 1e-10, (name, micro)
        norms = torch.cat(
            [
                torch.stack([value.flatten(1).square().sum(1) for value in part.values()]).sum(0).sqrt()
                for part in engines[2].per_unit(engines[2].parameters(), _bags(engines[2], data, private_ids, name))
            ]
        )
        torch.testing.assert_close(norms, contributions.norm(dim=1), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("few", ["maps", ("film", "head.x.bias")])
def test_few_numbers_equal_a_loop(few: Strategy, small_model: Callable[..., PoseModel], cohort: CohortFactory) -> None:
    test_units_and_pairs_equal_a_loop(few, "patient", small_model, cohort)


def _bags(engine: UnitGradients, data: CohortData, ids: np.ndarray, name: str) -> Bags:
    from wardpose.shared.training.cohort import load_bags

    private = load_bags(engine, data.private, ids)
    return private if name == "dp-sgd" else join(private, load_bags(engine, data.public, ids))


def test_ends_of_the_comparison_equal_a_loop(
    strategy: Strategy, small_model: Callable[..., PoseModel], cohort: CohortFactory
) -> None:
    model = small_model()
    engine = UnitGradients(model, strategy, micro_batch=2)
    for name in ("none", "public-only"):
        chosen = mechanism(name, clip_norm=1e-3)
        data = cohort(chosen, (2, 1))
        private_ids, public_ids = drawn_rows(data, 5)
        rows, ids = (data.private, private_ids) if name == "none" else (data.public, public_ids)
        expected = row_gradients(model, strategy, rows, ids.reshape(-1)).mean(dim=0)
        step = StepGradient(engine, data, chosen, streams=seeded_streams(5), declared_units=2)
        actual = flatten(step(engine.parameters())) / (1.0 if name == "none" else 0.7)
        assert relative(actual, expected) < 1e-10


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("head", "projected"),
        ("head", "feature-projective"),
        ("last-stage", "feature-projective"),
        ("full", "projected"),
        pytest.param("last-stage", "projected", marks=SLOW),
        pytest.param("last-stage-norms", "projected", marks=SLOW),
        pytest.param("last-stage-norms", "feature-projective", marks=SLOW),
        pytest.param("full", "feature-projective", marks=SLOW),
    ],
)
def test_projection_equals_an_explicit_basis(
    strategy: Strategy,
    name: str,
    small_model: Callable[..., PoseModel],
    cohort: CohortFactory,
    public_data: Callable[..., PublicData],
) -> None:
    model = small_model()
    source = "public" if name == "projected" else "public-views"
    options = ProjectionOptions(rank=3, frames=5, held_out=2, min_captured_energy=0.0, source=source)
    data = cohort(mechanism("feature", clip_norm=1.0), (3, 1, 4))
    public = public_data(8)
    private_ids, public_ids = drawn_rows(data, 5)
    flat = row_gradients(model, strategy, data.private, np.arange(len(data.private)))
    units = flat[private_ids].mean(dim=1)
    shift: Tensor | float = 0.0
    if name == "feature-projective":
        shown = row_gradients(model, strategy, data.public, np.arange(len(data.public)))
        units = units - shown[private_ids].mean(dim=1)
        shift = 0.7 * shown[public_ids].mean(dim=1).mean(dim=0)
    rows = public.rows if source == "public" else data.public
    order, frames = choose_frames("public-99" if source == "public" else "public-views", len(rows), options, 0)
    G = row_gradients(model, strategy, rows, order[:frames])
    V = torch.linalg.svd(G, full_matrices=False).Vh[:3].T  # p x k, formed for once
    after = float((units @ V).norm(dim=1).median())
    before = float(units.norm(dim=1).median())
    rest = units - (units @ V) @ V.T
    bound = float(rest.norm(dim=1).median())
    residual = ResidualOptions(max_grad_norm=bound, noise_multiplier=0.0)
    cases = [
        (options, after, torch.stack([clip(V.T @ vector, after) for vector in units]).sum(dim=0)),
        (
            options.model_copy(update={"clip": "before"}),
            before,
            torch.stack([clip(V.T @ clip(vector, before), before) for vector in units]).sum(dim=0),
        ),
    ]
    engine = UnitGradients(model, strategy, micro_batch=4)
    for storage in ("stored", "matrix-free"):
        for chosen, norm, coefficients in cases:
            if storage == "matrix-free" and (chosen.clip == "before" or (name == "projected") != (strategy == "full")):
                continue  # the storage knows nothing of mechanism and order
            chosen = chosen.model_copy(update={"storage": storage})
            step = _project(engine, data, public, mechanism(name, clip_norm=norm, projection=chosen))
            expected = V @ coefficients / 7 + shift
            # Integers in R^k: each unit is rounded by at most sqrt(k) steps of a millionth of the clip norm.
            assert float((step - expected).norm()) < len(units) * math.sqrt(3) * norm / 2**20 / 7 + 1e-9, storage
    chosen = options.model_copy(update={"residual": residual})
    step = _project(engine, data, public, mechanism(name, clip_norm=after, projection=chosen))
    expected = (V @ cases[0][2] + torch.stack([clip(vector, bound) for vector in rest]).sum(dim=0)) / 7 + shift
    assert relative(step, expected) < 1e-9


def _project(engine: UnitGradients, data: CohortData, public: PublicData, chosen: Mechanism) -> Tensor:
    step = StepGradient(engine, data, chosen, streams=seeded_streams(5), declared_units=7, public=public)
    return flatten(step(engine.parameters()))


def test_float32_agrees_to_a_ten_thousandth(
    strategy: Strategy, small_model: Callable[..., PoseModel], cohort: CohortFactory
) -> None:
    for name in ("dp-sgd", "feature"):
        results = []
        for dtype in (torch.float64, torch.float32):
            model = small_model(dtype)
            chosen = mechanism(name, clip_norm=0.5)
            engine = UnitGradients(model, strategy, micro_batch=3)
            step = StepGradient(engine, cohort(chosen, (2, 1)), chosen, streams=seeded_streams(5), declared_units=2)
            results.append(flatten(step(engine.parameters())))
        assert relative(results[1], results[0]) < 1e-4


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("size", [(256, 192), (224, 224)])
def test_whole_frames_equal_a_loop(
    size: tuple[int, int], small_model: Callable[..., PoseModel], cohort: CohortFactory
) -> None:
    """At the sizes that are trained: several attention windows a frame, some of them padded."""
    model = small_model(torch.float64, size)
    chosen = mechanism("feature", unit="frame", clip_norm=1e9)
    data = cohort(chosen, (1, 1), size=size)
    step = StepGradient(UnitGradients(model, "full"), data, chosen, streams=seeded_streams(5), declared_units=2)
    private = row_gradients(model, "full", data.private, np.arange(2))
    shown = row_gradients(model, "full", data.public, np.arange(2))
    expected = (private - shown).mean(dim=0) + 0.7 * shown.mean(dim=0)
    assert relative(flatten(step(step._engine.parameters())), expected) < 1e-10


@given(
    height=st.sampled_from([32, 64, 96]),
    width=st.sampled_from([32, 64]),
    stride=st.sampled_from([16, 32]),
    units=st.integers(1, 3),
    frames=st.integers(1, 3),
    micro=st.integers(1, 4),
    pairs=st.booleans(),
    strategy=st.sampled_from(["head", "last-stage", "full"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_sums_to_the_ordinary_gradient(
    small_model: Callable[..., PoseModel],
    height: int, width: int, stride: int, units: int, frames: int, micro: int, pairs: bool,
    strategy: Strategy, seed: int,
) -> None:  # fmt: skip
    model = small_model(torch.float64, (height, width), stride)
    engine = UnitGradients(model, strategy, micro_batch=micro)
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randn(units * frames, 3, height, width, generator=generator, dtype=torch.float64)
    features = engine.features(crops)
    bags = Bags(
        inputs=features.reshape(units, frames, *features.shape[1:]),
        joints=torch.rand(units, frames, 14, 2, generator=generator, dtype=torch.float64) * 31,
        visibility=torch.randint(0, 3, (units, frames, 14), generator=generator),
        weights=torch.randn(frames, generator=generator, dtype=torch.float64),
    )
    if pairs:
        bags = join(bags, Bags(
            inputs=bags.inputs.flip(0) + 0.1, joints=bags.joints, visibility=bags.visibility, weights=bags.weights
        ))  # fmt: skip
    parameters = engine.parameters()
    parts = list(engine.per_unit(parameters, bags))
    assert sum(len(part[engine.names[0]]) for part in parts) == units
    each = torch.cat([torch.cat([value.flatten(1) for value in part.values()], dim=1) for part in parts])
    for unit in range(units):
        one = flatten(engine.summed(parameters, bags.units(unit, unit + 1)))
        assert float((each[unit] - one).norm()) <= 1e-10 * float(one.norm()) + 1e-14
