"""Label-ridge: a closed form written down again, within the clip norm whoever leaves, blind but for one sum."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.engine import (
    CLIP,
    Noised,
    make_cohort,
    make_mechanism,
    make_model,
    make_public,
    make_step,
    private_sums,
    public_part,
    with_rows,
    with_units,
    without_unit,
)
from support.orders import make_order

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.clipping import GRID
from wardpose.shared.privacy.mechanisms import Mechanism, RidgeOptions
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import local_update
from wardpose.shared.training.public_part import PublicViews
from wardpose.shared.training.ridge import Ridge, curvature
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.vectors import Vector

TOLERANCE = 1 + 1e-9
SGD = OptimizerConfig(name="sgd", learning_rate=1.0)
VIEWS = {"feature": {"labels": "pseudo"}, "ridge": {"inputs": "public-views"}}
VARIANTS: dict[str, Mechanism] = {
    "patients": make_mechanism("label-ridge"),
    "exact": make_mechanism("label-ridge", exact_noise=True),
    "frames": make_mechanism("label-ridge", unit="frame", frames_per_unit=1),
    "tiers": make_mechanism("label-ridge", tiers={"careful": 1.0}),
    "views": make_mechanism("label-ridge", **VIEWS),
    "own views": make_mechanism(
        "label-ridge",
        feature={"labels": "pseudo"},
        ridge={"inputs": "public-views", "source": "public-views", "damping": 1e-3},
    ),
}
SELDOM = [pytest.mark.slow, pytest.mark.guard]
variants = pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=SELDOM if name in ("frames", "tiers") else []) for name in VARIANTS]
)


@lru_cache(maxsize=2)
def engine_of(dtype: torch.dtype) -> UnitGradients:
    return UnitGradients(make_model(dtype), "maps", micro_batch=2)


@lru_cache(maxsize=2)
def people(dtype: torch.dtype) -> PublicData:
    return make_public(8, engine=engine_of(dtype))


def cohort_of(chosen: Mechanism, engine: UnitGradients) -> CohortData:
    """Two frames of patients who have one or two: everybody's bag is the same whatever the coins are."""
    data = make_cohort(chosen, (2, 1, 2), engine=engine)
    if chosen.tiers:
        data.units.tiers = ("",) * (len(data.units) - 1) + ("careful",)
    return data


def ridge_of(chosen: Mechanism, engine: UnitGradients, data: CohortData) -> Ridge:
    """The closed form as a step makes it; made once, for neighbours whose public part is the same."""
    views = PublicViews(engine, data.public, "pseudo") if chosen.uses_public_views and data.public else None
    return Ridge(engine, chosen, people(engine.dtype), views)


def sums(
    data: CohortData, chosen: Mechanism, ridge: Ridge, *, at: Vector | None = None, dtype: torch.dtype = torch.float32
) -> Noised:
    """What a step hands to its noise when everybody takes part."""
    engine = engine_of(dtype)
    declared = {"": 2, "careful": 1} if chosen.tiers else 3
    step = make_step(engine, data, chosen, declared_units=declared, ridge=ridge)
    (only,) = private_sums(step, engine.parameters() if at is None else at)
    return only


def by_hand(ridge: Ridge, data: CohortData) -> tuple[np.ndarray, np.ndarray]:
    """Gradients (u, J, d) of each unit's mean loss by autograd, and H (J, d, d), the bias last; float64."""
    engine = engine_of(torch.float64)
    leaves = {name: value.requires_grad_() for name, value in engine.parameters().items()}
    gradients = []
    for unit in range(len(data.units)):
        rows = np.array(list(data.units.rows(unit)))[:, None]
        weight, bias = torch.autograd.grad(
            engine.losses(leaves, load_bags(engine, data.private, rows)).mean(), list(leaves.values())
        )
        gradients.append(torch.cat([weight.flatten(1), bias[:, None]], dim=1).numpy())
    bags = load_bags(engine, people(torch.float64).rows, ridge._ids[:, None])
    return np.array(gradients), (curvature(engine, engine.parameters(), bags) / len(bags)).numpy()


def test_the_curvature_is_the_second_derivative_of_the_loss() -> None:
    engine, rows = engine_of(torch.float64), people(torch.float64).rows
    bags = load_bags(engine, rows, np.arange(8)[:, None])
    found = curvature(engine, engine.parameters(), bags)
    leaves = {name: value.requires_grad_() for name, value in engine.parameters().items()}
    first = torch.autograd.grad(engine.losses(leaves, bags).sum(), list(leaves.values()), create_graph=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in first]
        slope = sum((part * direction).sum() for part, direction in zip(first, along, strict=True))
        weight, bias = torch.autograd.grad(slope, list(leaves.values()), retain_graph=True)
        direction = torch.cat([along[0].flatten(1), along[1][:, None]], dim=1)
        expected = torch.cat([weight.flatten(1), bias[:, None]], dim=1)
        torch.testing.assert_close(torch.einsum("jde,je->jd", found, direction), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("damping", [RidgeOptions().damping, 400.0])
def test_the_update_is_the_closed_form_written_down_again(damping: float) -> None:
    """Statistic, clip, sum and solution in numpy; far above all norms it is (H + lambda)^-1 times the mean gradient.

    No root of the matrix is needed for it: |L g|^2 = g' (H + lambda)^-1 g. With little damping L makes gradients
    longer, with much of it shorter: it is L g that is clipped, not g.
    """
    engine = engine_of(torch.float64)
    options = RidgeOptions(damping=damping)
    chosen = make_mechanism("label-ridge", ridge=options)
    data = cohort_of(chosen, engine)
    gradients, second = by_hand(ridge_of(chosen, engine, data), data)
    solved = np.linalg.solve(second + damping * np.eye(second.shape[1]), gradients[..., None])[..., 0]
    norms = np.sqrt((gradients * solved).sum(axis=(1, 2)))
    lengths = np.sqrt(np.square(gradients).sum(axis=(1, 2)))
    assert (lengths > norms).all() if damping > 1 else (lengths < norms).all()
    least = min(CLIP, float(norms.min()) / 2)
    values = np.linalg.eigvalsh(second).clip(min=0)
    for clip in (least, float(np.median(norms)), 1e6):
        asked = make_mechanism("label-ridge", max_grad_norm=clip, ridge=options)
        factors = np.minimum(1.0, clip / norms)[:, None, None]
        whole, expected = (factors * gradients).sum(axis=0), -(factors * solved).sum(axis=0) / 3
        total = sums(data, asked, ridge_of(asked, engine, data), dtype=torch.float64).total
        length = np.sqrt((whole * (factors * solved).sum(axis=0)).sum())
        assert float(total.norm()) == pytest.approx(length, rel=2e-4)
        training = LocalTraining(strategy="maps", steps=1, optimizer=SGD, micro_batch=2)
        made = local_update(
            engine._model,
            data,
            asked,
            training,
            streams=seeded_streams(1),
            declared_units=3,
            public=people(torch.float64),
        )
        weight, bias = made.update.values()
        found = torch.cat([weight.flatten(1), bias[:, None]], dim=1).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
        assert made.ridge is not None
        assert made.ridge.kept == 1.0
        assert made.ridge.dimensions == pytest.approx(float((values / (values + damping)).sum()), rel=1e-6)


def last_rows(data: CohortData) -> slice:
    return slice(int(data.units.rows(len(data.units) - 1)[0]), None)


HOSTILE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "tiny": lambda noise, generator: (1e-45 * noise).astype(noise.dtype),
    "small": lambda noise, generator: 1e-20 * noise,
    "large": lambda noise, generator: 1e6 * noise,
    "huge": lambda noise, generator: 1e37 * noise,
    "nan": lambda noise, generator: np.where(generator.random(noise.shape) < 0.01, np.nan, noise),
    "infinite": lambda noise, generator: np.where(generator.random(noise.shape) < 0.01, np.inf, noise),
    "outside": lambda noise, generator: noise,
}


def hostile(kind: str, where: slice) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        inputs, joints, visibility = rows.inputs.copy(), rows.joints.copy(), rows.visibility.copy()
        generator = np.random.default_rng(1)
        noise = generator.standard_normal(inputs[where].shape).astype(inputs.dtype)
        inputs[where] = HOSTILE[kind](noise, generator)
        if kind == "outside":
            joints[where] = generator.choice([-1e9, 1e9, 0.0, np.nan], joints[where].shape)
            visibility[where] = 2
        return Rows(inputs=inputs, joints=joints, visibility=visibility)

    return change


@variants
def test_no_unit_moves_the_sum_by_more_than_the_clip_norm(variant: str) -> None:
    """First, middle and last unit, with features of every magnitude; the others stay as they are."""
    chosen, engine = VARIANTS[variant], engine_of(torch.float32)
    data = cohort_of(chosen, engine)
    ridge = ridge_of(chosen, engine, data)
    moved: list[float] = []
    for kind in (None, *HOSTILE):
        bad = (
            data if kind is None else with_rows(data, hostile(kind, last_rows(data)), public=not chosen.shows_own_views)
        )
        together = sums(bad, chosen, ridge)
        assert together.max_grad_norm == CLIP
        assert bool(torch.isfinite(together.total).all())
        for unit in range(len(data.units)) if kind in (None, "huge") else [len(data.units) - 1]:
            share = float((together.total - sums(without_unit(bad, unit), chosen, ridge).total).norm()) / CLIP
            assert share <= TOLERANCE, (kind, unit)
            moved.append(share)
            if chosen.discrete:  # integers: what is missing is just what the unit alone contributes
                alone = float(sums(with_units(bad, [unit]), chosen, ridge).total.norm()) / CLIP
                assert share * GRID == pytest.approx(alone * GRID, abs=1e-6)
    assert max(moved) > 0.99  # a looser bound would be seen
    order = list(reversed(range(len(data.units))))
    back = sums(with_units(data, order), chosen, ridge).total - sums(data, chosen, ridge).total
    assert float(back.norm()) < 1e-12


WEIGHTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "large": lambda value, noise: value * 1e4,
    "huge": lambda value, noise: value * 1e30,
    "not finite": lambda value, noise: torch.where(noise > 3, torch.inf, value),
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_whatever_the_weights_and_the_public_people_a_unit_moves_a_clip_norm_and_the_way_back_is_bounded(
    weights: str,
) -> None:
    """The server chooses the weights, and the public people; the least damping stretches most."""
    engine, chosen = (
        engine_of(torch.float32),
        make_mechanism("label-ridge", ridge={"damping": 1e-6}, max_grad_norm=1e-4),
    )
    data, generator = cohort_of(chosen, engine), torch.Generator().manual_seed(1)
    at = {
        name: WEIGHTS[weights](value, torch.randn(value.shape, generator=generator))
        for name, value in engine.parameters().items()
    }
    rows = people(torch.float32).rows
    noise = np.random.default_rng(2).standard_normal(rows.inputs.shape).astype(np.float32)
    for inputs in (rows.inputs, 1e18 * noise, 0 * noise, np.where(noise > 3, np.nan, noise)):
        public = PublicData(rows=replace(rows, inputs=inputs.astype(np.float32)), identity="x")
        ridge = Ridge(engine, chosen, public, None)
        whitening = ridge.at(at)
        assert bool(torch.isfinite(whitening.scale).all())
        assert float(torch.linalg.matrix_norm(whitening.vectors * whitening.scale[:, None], 2).max()) <= 1e3 * (
            1 + 1e-9
        )
        whole = sums(data, chosen, ridge, at=at)
        share = float((whole.total - sums(without_unit(data, 1), chosen, ridge, at=at).total).norm()) / 1e-4
        assert share <= TOLERANCE


def test_nothing_but_the_noised_sum_leaves() -> None:
    """With the sum replaced by zeros, nothing is left, whoever the patients are; shrinking reads what was noised."""
    engine = engine_of(torch.float32)
    for chosen in (VARIANTS["patients"], VARIANTS["own views"]):
        data = cohort_of(chosen, engine)
        ridge = ridge_of(chosen, engine, data)
        for cohort in (data, without_unit(data, 0), with_rows(data, hostile("large", last_rows(data)), public=False)):
            step = make_step(engine, cohort, chosen, declared_units=3, ridge=ridge)
            assert not public_part(step, engine.parameters()).any()


def test_of_views_alone_the_frames_are_not_read_and_keypoints_are() -> None:
    engine, chosen = engine_of(torch.float32), VARIANTS["own views"]
    data = cohort_of(chosen, engine)
    ridge = ridge_of(chosen, engine, data)
    before = sums(data, chosen, ridge).total
    frames = with_rows(data, lambda rows: replace(rows, inputs=np.full_like(rows.inputs, np.nan)), public=False)
    assert torch.equal(sums(frames, chosen, ridge_of(chosen, engine, frames)).total, before)
    labels = with_rows(data, lambda rows: replace(rows, joints=rows.joints[::-1].copy()), public=False)
    assert not torch.equal(sums(labels, chosen, ridge).total, before)
    public = with_rows(data, lambda rows: replace(rows, joints=rows.joints[::-1].copy()))
    first, other = (ridge_of(chosen, engine, each).at(engine.parameters()) for each in (data, public))
    assert torch.equal(first.scale, other.scale)  # the curvature of views knows no keypoints
    assert torch.equal(first.vectors, other.vectors)


def test_the_noise_asked_for_is_that_of_the_event_also_for_nobody() -> None:
    for exact in (False, True):
        chosen = make_mechanism("label-ridge", noise_multiplier=1.7, sample_rate=1e-9, exact_noise=exact)
        engine = engine_of(torch.float32)
        data = cohort_of(chosen, engine)
        query = sums(data, chosen, ridge_of(chosen, engine, data))
        (event,) = chosen.events(1)
        assert not query.total.any()
        assert (query.noise_multiplier, query.max_grad_norm) == (event.noise_multiplier, event.max_grad_norm)
        assert event.noise == ("discrete-gaussian" if exact else "gaussian")


def test_noise_is_taken_off_by_what_is_known_of_it() -> None:
    """Against a loop in numpy; on noise alone little is left, a strong signal stays, and both errors become smaller."""
    chosen = make_mechanism("label-ridge", noise_multiplier=2.0, ridge={"band": 50})
    engine = engine_of(torch.float64)
    ridge = ridge_of(chosen, engine, cohort_of(chosen, engine))
    ridge.at(engine.parameters())
    generator = np.random.default_rng(0)
    signal = generator.standard_normal((14, 321)) * (np.arange(321) < 40) * 5.0
    for truth in (0 * signal, signal):
        noised = truth + 2.0 * CLIP * generator.standard_normal(truth.shape)
        expected = noised.copy()
        for joint in range(14):
            for start in range(0, 321, 50):
                band = noised[joint, start : start + 50]
                factor = max(0.0, 1 - len(band) * (2 * CLIP) ** 2 / float(band @ band))
                expected[joint, start : start + 50] *= factor
        found = ridge.shrunk(torch.from_numpy(noised).reshape(-1), 2 * CLIP).reshape(14, 321).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert np.linalg.norm(found - truth) < 0.6 * np.linalg.norm(noised - truth)
        assert ridge.report is not None
        assert ridge.report.kept == pytest.approx((np.linalg.norm(found) / np.linalg.norm(noised)) ** 2)
    nothing = torch.zeros(14 * 321, dtype=torch.float64)
    assert not ridge.shrunk(nothing, 1.0).any()
    assert not ridge.report.used
    assert "NOTHING" in str(ridge.report)
    plain = Ridge(engine, make_mechanism("label-ridge", ridge={"band": 0}), people(torch.float64), None)
    assert torch.equal(plain.shrunk(torch.ones(14 * 321), 1e3), torch.ones(14 * 321))


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"strategy": "head"}, 'training.strategy is \'head\'; mechanism "label-ridge" allows "maps"'),
        ({"strategy": ["maps"]}, "training.strategy"),
        ({"steps": 2}, "training.steps is 2"),
        ({"optimizer": {"name": "adam"}}, '"sgd" without momentum'),
        ({"optimizer": {"name": "sgd", "momentum": 0.5}}, '"sgd" without momentum'),
        ({"optimizer": {"name": "sgd", "weight_decay": 0.5}}, '"sgd" without momentum'),
        ({"anchor": {}}, "training.anchor"),
    ],
)
def test_what_is_no_closed_form_is_refused_in_orders(training: dict[str, object], says: str) -> None:
    values = {"strategy": "maps", "steps": 1, "optimizer": {"name": "sgd"}}
    mechanism = make_mechanism("label-ridge", noise_multiplier=2.0)
    make_order(mechanism, training=LocalTraining.model_validate(values))
    with pytest.raises(ValidationError, match=says):
        make_order(mechanism, training=LocalTraining.model_validate(values | training))


def test_what_a_closed_form_needs_is_asked_for() -> None:
    engine, chosen = engine_of(torch.float32), VARIANTS["patients"]
    with pytest.raises(ConfigError, match="needs public data"):
        make_step(engine, cohort_of(chosen, engine), chosen)
    own = VARIANTS["own views"]
    with pytest.raises(ConfigError, match="public view"):
        make_step(engine, replace(cohort_of(own, engine), public=None), own)
    head = UnitGradients(make_model(torch.float32), "head")
    with pytest.raises(ConfigError, match='trains "maps" alone'):
        make_step(head, cohort_of(chosen, engine), chosen, public=people(torch.float32))
