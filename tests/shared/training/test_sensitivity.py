"""How far one unit moves what is noised, searched adversarially through whole steps: sampling, loss, gradient, query.

What is looked at is what the step hands to its noise, query by query, so that neither decoding nor division blurs the
bound. A unit may move each query's sum by that query's clip norm; the others do not move at all. The tolerance is that
of adding float64 numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from support.engine import (
    CLIP,
    Noised,
    head_engine,
    make_cohort,
    make_mechanism,
    make_model,
    make_public,
    make_step,
    private_sums,
    public_part,
    with_rows,
    with_units,
    without_last_unit,
    without_unit,
)

from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.clipping import GRID, ClipSum, unit_norms
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism, ProjectionOptions, ResidualOptions
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients, join
from wardpose.shared.vectors import flatten

TOLERANCE = 1 + 1e-9
LIMB = 0.1  # clip norm of the residual query


def projection(**options: object) -> ProjectionOptions:
    return ProjectionOptions.model_validate(
        {"rank": 4, "frames": 8, "held_out": 2, "min_captured_energy": 0.0, **options}
    )


RESIDUAL = ResidualOptions(max_grad_norm=LIMB, noise_multiplier=1.0)
PSEUDO = FeatureOptions(labels="pseudo")
VARIANTS: dict[str, Mechanism] = {
    "dp-sgd": make_mechanism("dp-sgd"),
    "dp-sgd, exact": make_mechanism("dp-sgd", exact_noise=True),
    "dp-sgd, frames": make_mechanism("dp-sgd", unit="frame", frames_per_unit=1),
    "dp-sgd, tiers": make_mechanism("dp-sgd", tiers={"careful": 1.0}),
    "projected": make_mechanism("projected"),
    "projected, matrix-free": make_mechanism("projected", projection=projection(storage="matrix-free")),
    "projected, clip before": make_mechanism("projected", projection=projection(clip="before")),
    "projected, residual": make_mechanism(
        "projected", projection=projection(residual=RESIDUAL), noise_multiplier=1.0
    ),
    "projected, rejected by the gate": make_mechanism("projected", projection=projection(min_captured_energy=1.0)),
    "feature": make_mechanism("feature"),
    "feature, pseudo-labels": make_mechanism("feature", feature=PSEUDO),
    "feature, exact": make_mechanism("feature", exact_noise=True),
    "feature-projective": make_mechanism("feature-projective"),
    "feature-projective, own views": make_mechanism(
        "feature-projective", feature=PSEUDO, projection=projection(source="public-views")
    ),
    "feature-projective, clip before": make_mechanism("feature-projective", projection=projection(clip="before")),
    "feature-projective, residual": make_mechanism(
        "feature-projective", projection=projection(residual=RESIDUAL), noise_multiplier=1.0, exact_noise=True
    ),
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)


def cohort_of(chosen: Mechanism, engine: UnitGradients, records: tuple[int, ...] = (2, 1, 2)) -> CohortData:
    """With two frames of patients who have one or two, everybody's bag is the same whatever the coins are."""
    data = make_cohort(chosen, records, engine=engine)
    if chosen.tiers:
        data.units.tiers = ("",) * (len(data.units) - 1) + ("careful",)
    return data


@lru_cache(maxsize=1)
def cheap_engine() -> UnitGradients:
    return head_engine()


@lru_cache(maxsize=1)
def public_frames() -> PublicData:
    return make_public(12, engine=cheap_engine())


def sums(engine: UnitGradients, data: CohortData, chosen: Mechanism) -> list[Noised]:
    """Each query's sum of one step in which everybody takes part."""
    declared = {"": 2, "careful": 1} if chosen.tiers else 3
    public = public_frames() if chosen.uses_basis else None
    return private_sums(make_step(engine, data, chosen, declared_units=declared, public=public), engine.parameters())


def moved(first: list[Noised], second: list[Noised]) -> list[float]:
    """By how much each query's sum differs, in clip norms."""
    assert [(a.max_grad_norm, a.total.shape) for a in first] == [(b.max_grad_norm, b.total.shape) for b in second]
    return [float((a.total - b.total).norm()) / a.max_grad_norm for a, b in zip(first, second, strict=True)]


def clip_norms(chosen: Mechanism) -> list[float]:
    """The bounds that the mechanism's events stand for."""
    residual = chosen.projection.residual if chosen.uses_basis else None
    return [chosen.max_grad_norm, *([residual.max_grad_norm] if residual else [])]


def last_rows(data: CohortData) -> slice:
    return slice(int(data.units.rows(len(data.units) - 1)[0]), None)


HOSTILE = ("large", "huge", "nan", "infinite", "blank", "unlabelled", "outside")


def hostile(kind: str, seed: int, where: slice) -> Callable[[Rows], Rows]:
    """Replace some rows by the worst that a unit may hold; rows are trunk features."""

    def change(rows: Rows) -> Rows:
        inputs, joints, visibility = rows.inputs.copy(), rows.joints.copy(), rows.visibility.copy()
        generator = np.random.default_rng(seed)
        noise = generator.standard_normal(inputs[where].shape).astype(inputs.dtype)
        inputs[where] = {
            "large": 1e6 * noise,
            "huge": 1e25 * noise,
            "nan": np.where(generator.random(noise.shape) < 0.01, np.nan, noise),
            "infinite": np.where(generator.random(noise.shape) < 0.01, np.inf, noise),
            "blank": np.zeros_like(noise),
            "unlabelled": noise,
            "outside": noise,
        }[kind]
        if kind == "unlabelled":
            visibility[where] = 0
        if kind == "outside":
            joints[where] = generator.choice([-1e9, 1e9, 0.0, np.nan], joints[where].shape)
            visibility[where] = 2
        return Rows(inputs=inputs, joints=joints, visibility=visibility)

    return change


@variants
def test_no_unit_moves_a_sum_by_more_than_the_clip_norm(variant: str) -> None:
    chosen, engine = VARIANTS[variant], cheap_engine()
    data = cohort_of(chosen, engine)
    without = sums(engine, without_last_unit(data), chosen)
    own_views = chosen.uses_basis and chosen.projection.source == "public-views"  # they span the basis: public facts
    for kind in HOSTILE:
        with_them = sums(engine, with_rows(data, hostile(kind, 1, last_rows(data)), public=not own_views), chosen)
        assert [query.max_grad_norm for query in with_them] == clip_norms(chosen)
        assert all(bool(torch.isfinite(query.total).all()) for query in with_them)
        shares = moved(with_them, without)
        assert max(shares) <= TOLERANCE, (variant, kind)
        if kind in ("nan", "infinite") or (kind == "unlabelled" and not chosen.uses_difference):
            assert max(shares) < 1e-5, kind  # such a unit contributes exactly nothing


WEIGHTS = {
    "as they are": lambda value, noise: value,
    "tiny": lambda value, noise: value * 1e-30,
    "large": lambda value, noise: value * 30,
    "huge": lambda value, noise: value * 1e15,
    "random": lambda value, noise: 3 * noise,
    "not finite": lambda value, noise: torch.where(noise > 3, torch.inf, value),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("variant", ["dp-sgd", "dp-sgd, exact", "projected, clip before", "feature-projective"])
def test_whoever_leaves_and_whatever_the_weights_the_others_stay(variant: str, weights: str) -> None:
    """First, middle and last unit; the server chooses the weights and the clip norm."""
    chosen, engine = VARIANTS[variant], UnitGradients(make_model(torch.float32), "head", micro_batch=2)
    data = cohort_of(chosen, engine, (2, 1, 2))  # micro-batches of two units, filled otherwise each time
    public = public_frames() if chosen.uses_basis else None
    generator = torch.Generator().manual_seed(1)
    at = {
        name: WEIGHTS[weights](value, torch.randn(value.shape, generator=generator))
        for name, value in engine.parameters().items()
    }
    clip = 1e-12 if weights in ("large", "random") else CLIP
    small = chosen.model_copy(update={"max_grad_norm": clip})

    def sums_of(neighbour: CohortData) -> list[Noised]:
        return private_sums(make_step(engine, neighbour, small, declared_units=6, public=public), at)

    try:
        together = sums_of(data)
    except ConfigError as error:
        assert "zero or not finite" in str(error)  # noqa: PT017 (public gradients that span no basis: no step)
        return
    for unit in range(3):
        (share,) = moved(together, sums_of(without_unit(data, unit)))
        assert share <= TOLERANCE
        if chosen.discrete:  # integers: what is missing is just what the unit alone contributes, to the last bit
            alone = float(sums_of(with_units(data, [unit]))[0].total.norm()) / clip
            assert share * GRID == pytest.approx(alone * GRID, abs=1e-6)
    assert moved(together, sums_of(with_units(data, [2, 0, 1])))[0] < 1e-12


@variants
def test_a_search_for_the_worst_unit_stays_within_the_clip_norm(variant: str) -> None:
    """Hill climbing over one unit's features, joints and visibility."""
    chosen, engine = VARIANTS[variant], cheap_engine()
    generator = np.random.default_rng(0)
    best = cohort_of(chosen, engine, (2, 2))
    without, where, found = sums(engine, without_last_unit(best), chosen), last_rows(best), 0.0
    for _ in range(12):

        def change(rows: Rows) -> Rows:
            inputs, joints, visibility = rows.inputs.copy(), rows.joints.copy(), rows.visibility.copy()
            inputs[where] += generator.standard_normal(inputs[where].shape) * 10 ** generator.uniform(-1, 3)
            joints[where] = generator.uniform(0, 31, joints[where].shape)
            visibility[where] = generator.integers(0, 2, visibility[where].shape)
            return Rows(inputs=inputs, joints=joints, visibility=visibility)

        candidate = with_rows(best, change, public=False)  # frames alone: what a public view shows is public
        shares = moved(sums(engine, candidate, chosen), without)
        assert max(shares) <= TOLERANCE
        if max(shares) > found:
            best, found = candidate, max(shares)
    # The search gets near the bound, so a looser bound would be seen. A gradient that is clipped before it is
    # projected loses what lies outside the basis.
    assert found > (0.02 if chosen.uses_basis and chosen.projection.clip == "before" else 0.8)


@pytest.mark.parametrize("name", ["dp-sgd", "feature"])
def test_extreme_frames_stay_within_the_clip_norm_when_everything_trains(name: str) -> None:
    """From pixels through all layers: flat, saturated, striped and random frames."""
    chosen = make_mechanism(name, unit="frame", frames_per_unit=1)
    engine = UnitGradients(make_model(torch.float32), "full", micro_batch=2)
    data = make_cohort(chosen, (1, 1))
    without = sums(engine, without_last_unit(data), chosen)
    stripes = np.indices(data.private.inputs.shape[1:]).sum(axis=0) % 2 * 255
    pictures = [np.zeros_like(stripes), np.full_like(stripes, 255), stripes, 255 - stripes]
    found = 0.0
    for picture in pictures:

        def change(rows: Rows, picture: np.ndarray = picture) -> Rows:
            inputs = rows.inputs.copy()
            inputs[-1] = picture
            return replace(rows, inputs=inputs)

        (share,) = moved(sums(engine, with_rows(data, change, public=False), chosen), without)
        assert share <= TOLERANCE
        found = max(found, share)
    assert found > 0.99


@pytest.mark.parametrize("strategy", ["maps", ("film", "head.x.bias")])
@pytest.mark.parametrize("name", ["dp-sgd", "feature"])
def test_no_unit_moves_few_numbers_by_more_than_the_clip_norm(name: str, strategy: Strategy) -> None:
    """Nor is anything summed that does not train."""
    chosen = make_mechanism(name)
    engine = UnitGradients(make_model(torch.float32), strategy, micro_batch=2)
    data = make_cohort(chosen, (1, 1), engine=engine)
    without = sums(engine, without_last_unit(data), chosen)
    numbers = sum(value.numel() for value in engine.parameters().values())
    found = 0.0
    for kind in HOSTILE:
        with_them = sums(engine, with_rows(data, hostile(kind, 1, last_rows(data)), public=False), chosen)
        assert [query.total.numel() for query in with_them] == [numbers]
        (share,) = moved(with_them, without)
        assert share <= TOLERANCE, kind
        found = max(found, share)
    assert found > 0.9


FEATURE = [name for name, chosen in VARIANTS.items() if chosen.uses_difference]


@pytest.mark.parametrize("variant", FEATURE)
def test_a_frame_with_the_same_public_view_changes_nothing_but_the_noised_part(variant: str) -> None:
    """Replacement: un-noised part and basis are functions of the public view, and of labels only where it says so."""
    chosen, engine = VARIANTS[variant], cheap_engine()
    data = cohort_of(chosen, engine)

    inputs, joints = data.private.inputs.copy(), data.private.joints.copy()
    inputs[-2:] = np.random.default_rng(5).standard_normal(inputs[-2:].shape) * 3
    if chosen.feature.labels == "pseudo":
        joints[-2:] = 31 - joints[-2:]
    assert data.public is not None
    other = replace(
        data, private=replace(data.private, inputs=inputs, joints=joints), public=replace(data.public, joints=joints)
    )
    public = public_frames()
    parts = [
        public_part(make_step(engine, neighbour, chosen, public=public), engine.parameters())
        for neighbour in (data, other)
    ]
    assert torch.equal(*parts)
    assert float(parts[0].norm()) > 0
    shares = moved(sums(engine, data, chosen), sums(engine, other, chosen))
    assert 0.01 < max(shares) <= 2 * TOLERANCE


def test_replacing_a_patient_moves_the_sum_by_up_to_twice_the_clip_norm() -> None:
    engine, chosen = cheap_engine(), make_mechanism("dp-sgd", adjacency="replace-one")
    data = cohort_of(chosen, engine, (2, 2))
    results = [
        sums(engine, with_rows(data, hostile("large", seed, last_rows(data))), chosen) for seed in range(4)
    ]  # fmt: skip
    distances = [moved(a, b)[0] for a in results for b in results]
    assert 1 < max(distances) <= 2 * TOLERANCE


def test_a_difference_that_nearly_vanishes_is_bounded_by_its_own_norm() -> None:
    """The norm of what is summed, not one worked out from its parts: the Gram identity cancels and would overshoot."""
    engine = UnitGradients(make_model(torch.float32), "head", micro_batch=32)
    chosen = make_mechanism("feature", unit="frame", frames_per_unit=1)
    data = make_cohort(chosen, (1,) * 32, engine=engine)
    ids = np.arange(32)[:, None]
    shown = load_bags(engine, data.public, ids)
    nearly = replace(shown, inputs=shown.inputs * (1 + 1e-4))
    (pairs,) = engine.per_unit(engine.parameters(), join(nearly, shown))
    ((first,), (second,)) = (engine.per_unit(engine.parameters(), bags) for bags in (nearly, shown))
    a, b = (torch.cat([value.flatten(1) for value in part.values()], dim=1) for part in (first, second))
    textbook = (a.square().sum(1) + b.square().sum(1) - 2 * (a * b).sum(1)).clamp(min=0).sqrt()
    true = torch.cat([value.flatten(1).double() for value in pairs.values()], dim=1).norm(dim=1)
    clip = float(true.min()) / 2
    for unit in range(32):
        alone = {name: value[unit : unit + 1] for name, value in pairs.items()}
        assert float(flatten(ClipSum(clip, engine.parameters())(alone)).double().norm()) <= clip
    assert float((unit_norms(pairs) / true - 1).abs().max()) < 1e-5
    assert float((textbook.double() / true).min()) < 0.99  # a unit clipped by it would exceed C by more than 1 %


@pytest.mark.parametrize("variant", ["dp-sgd", "projected", "feature", "feature-projective"])
def test_the_noise_asked_for_is_that_of_the_event(variant: str) -> None:
    engine = cheap_engine()
    chosen = VARIANTS[variant].model_copy(update={"noise_multiplier": 1.7, "sample_rate": 1e-9})
    step = make_step(engine, cohort_of(chosen, engine), chosen, streams=seeded_streams(3), public=public_frames())
    for query in private_sums(step, engine.parameters()):  # nobody takes part, and the query is noised all the same
        assert not query.total.any()
        assert (query.noise_multiplier, query.max_grad_norm) == (chosen.events(1)[0].noise_multiplier, CLIP)
