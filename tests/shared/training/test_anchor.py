"""What public people add: equal to a loop, blind to patients, and without a hair's influence on any sensitivity."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.engine import (
    CLIP,
    Recording,
    head_engine,
    make_cohort,
    make_mechanism,
    make_model,
    make_public,
    private_sums,
    public_part,
    with_rows,
    without_last_unit,
)
from support.orders import make_order

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import SeededStream, Streams, seeded_streams
from wardpose.shared.training.anchor import PublicAnchor
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import AnchorOptions, LocalTraining, OptimizerConfig
from wardpose.shared.training.step import StepGradient
from wardpose.shared.vectors import flatten

EVERYBODY = AnchorOptions(weight=0.3, max_grad_norm=1e6, batch=12)


def maps_engine(dtype: torch.dtype = torch.float64) -> UnitGradients:
    return UnitGradients(make_model(dtype), "maps", micro_batch=5)


def step_of(
    engine: UnitGradients,
    data: CohortData,
    chosen: Mechanism,
    options: AnchorOptions | None,
    public: PublicData,
    streams: Streams | None = None,
) -> StepGradient:
    streams = seeded_streams(1) if streams is None else streams
    anchor = None if options is None else PublicAnchor(engine, public, options, streams.public)
    return StepGradient(engine, data, chosen, streams=streams, declared_units=3, public=public, anchor=anchor)


def loop(engine: UnitGradients, public: PublicData) -> torch.Tensor:
    """Gradient of each public person by itself, (m, p)."""
    lines = []
    for row in range(len(public.rows)):
        leaves = {name: value.requires_grad_() for name, value in engine.parameters().items()}
        loss = engine.losses(leaves, load_bags(engine, public.rows, np.array([[row]]))).sum()
        lines.append(torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(leaves.values()))]))
    return torch.stack(lines)


@pytest.mark.parametrize("name", ["dp-sgd", "projected", "feature", "none"])
def test_the_anchor_is_added_to_what_would_be_and_changes_nothing_that_is_noised(name: str) -> None:
    engine, chosen = maps_engine(), make_mechanism(name)
    data, public = make_cohort(chosen, (2, 1, 2), engine=engine), make_public(12, engine=engine)
    plain, helped = (step_of(engine, data, chosen, options, public) for options in (None, EVERYBODY))
    mean = loop(engine, public).mean(dim=0)
    difference = public_part(helped, engine.parameters()) - public_part(plain, engine.parameters())
    torch.testing.assert_close(difference, 0.3 * mean, rtol=1e-9, atol=1e-12)
    sums = [private_sums(step_of(engine, data, chosen, o, public), engine.parameters()) for o in (None, EVERYBODY)]
    assert all(torch.equal(a.total, b.total) for a, b in zip(*sums, strict=True))
    short = EVERYBODY.model_copy(update={"max_grad_norm": float(mean.norm()) / 2})
    half = public_part(step_of(engine, data, chosen, short, public), engine.parameters()) - public_part(
        step_of(engine, data, chosen, None, public), engine.parameters()
    )
    torch.testing.assert_close(half, 0.15 * mean, rtol=1e-9, atol=1e-12)


def test_the_anchors_people_are_drawn_without_looking_at_patients() -> None:
    engine, chosen = maps_engine(), make_mechanism("dp-sgd", sample_rate=0.5)
    options, public = AnchorOptions(batch=5, precondition=True), make_public(12, engine=engine)

    def run(
        coins: int, records: tuple[int, ...], public_seed: int = 7
    ) -> tuple[list[torch.Tensor], list[tuple[str, int]]]:
        stream = Recording(public_seed)
        streams = Streams(SeededStream(coins), SeededStream(100 + coins), stream)
        step = step_of(
            engine, make_cohort(chosen, records, engine=engine, seed=coins), chosen, options, public, streams
        )
        parts = [public_part(step, engine.parameters()) for _ in range(3)]
        return parts, stream.asked

    first = run(1, (2, 1))
    for other in (run(2, (2, 1)), run(1, (1, 1, 3))):
        assert all(torch.equal(a, b) for a, b in zip(first[0], other[0], strict=True))
        assert first[1] == other[1]
    assert not torch.equal(first[0][0], run(1, (2, 1), public_seed=8)[0][0])


HOSTILE = {
    "as they are": lambda rows, noise: rows,
    "huge": lambda rows, noise: 1e18 * noise,
    "nothing": lambda rows, noise: 0 * noise,
    "nan": lambda rows, noise: np.where(noise > 2, np.nan, noise),
    "one coordinate": lambda rows, noise: noise * (np.arange(noise.shape[1]) == 3)[None, :, None, None],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_unit_moves_the_sum_by_more_than_the_clip_norm_whatever_the_scale(kind: str) -> None:
    """The server chooses the "public" people: the clip comes after the scale."""
    engine, chosen = maps_engine(torch.float32), make_mechanism("dp-sgd")
    data, public = make_cohort(chosen, (1, 1, 1), engine=engine), make_public(12, engine=engine)
    noise = np.random.default_rng(0).standard_normal(public.rows.inputs.shape).astype(np.float32)
    rows = replace(public.rows, inputs=HOSTILE[kind](public.rows.inputs, noise).astype(np.float32))
    poisoned, options = PublicData(rows=rows, identity="x"), AnchorOptions(precondition=True, batch=12)

    def total(cohort: CohortData) -> torch.Tensor:
        return private_sums(step_of(engine, cohort, chosen, options, poisoned), engine.parameters())[0].total

    def large(rows: Rows) -> Rows:
        inputs = rows.inputs.copy()
        inputs[-1] *= 1e4
        return replace(rows, inputs=inputs)

    without = total(without_last_unit(data))
    shares = [float((total(cohort) - without).norm()) / CLIP for cohort in (data, with_rows(data, large))]
    assert max(shares) <= 1 + 1e-9
    assert max(shares) > 0.99


def test_the_scale_is_of_second_moments_and_keeps_their_sum() -> None:
    engine, public = maps_engine(), make_public(12, engine=maps_engine())
    scale = PublicAnchor(engine, public, AnchorOptions(precondition=True, batch=12), seeded_streams(1).public).scale
    assert scale is not None
    gradients, flat = loop(engine, public), flatten(scale)
    moments = gradients.square().mean(dim=0)
    assert float((flat.square() * moments).sum()) == pytest.approx(float(moments.sum()))
    assert float(flat.max() / flat.min()) <= 1.001 * float(moments.max().sqrt() / (0.1 * moments.mean().sqrt()))
    large = moments.sqrt() > 0.1 * moments.mean().sqrt()
    torch.testing.assert_close(
        flat[large] * moments[large].sqrt(), (flat * moments.sqrt()).max().expand(int(large.sum()))
    )
    assert 0 < int(large.sum()) < len(flat)


def test_units_are_summed_in_that_scale() -> None:
    engine, chosen = maps_engine(), make_mechanism("dp-sgd", max_grad_norm=1e6)
    data, public = make_cohort(chosen, (2, 1, 1), engine=engine), make_public(12, engine=engine)
    options = AnchorOptions(precondition=True, batch=12)
    scale = PublicAnchor(engine, public, options, seeded_streams(1).public).scale
    assert scale is not None
    plain, scaled = (
        private_sums(step_of(engine, data, chosen, asked, public), engine.parameters())[0].total
        for asked in (None, options)
    )
    torch.testing.assert_close(scaled, plain * flatten(scale))
    assert not torch.allclose(scaled, plain)


@pytest.mark.parametrize("average", [0.0, 0.5, 1.0])
def test_the_update_is_the_mean_of_the_last_steps_weights(average: float) -> None:
    engine = head_engine()
    chosen = make_mechanism("dp-sgd", noise_multiplier=1.0)
    data = make_cohort(chosen, engine=engine)
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.5)

    def update(steps: int, share: float) -> torch.Tensor:
        training = LocalTraining(strategy="head", steps=steps, optimizer=optimizer, average=share)
        found = local_update(engine._model, data, chosen, training, streams=seeded_streams(2), declared_units=4)
        return flatten(found.update)

    paths = [update(steps, 0.0) for steps in range(1, 5)]  # each begins as the next does
    expected = torch.stack(paths[-max(1, round(4 * average)) :]).mean(dim=0)
    torch.testing.assert_close(update(4, average), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("mechanism", "training", "says"),
    [
        ({"name": "projected"}, {"anchor": {"precondition": True}}, 'precondition with mechanism "projected"'),
        ({"name": "feature"}, {"anchor": {"precondition": True}}, 'precondition with mechanism "feature"'),
        (
            {"distributed": {"sites": 4, "minimum_survivors": 3, "colluding": 0}},
            {"anchor": {}, "steps": 1, "optimizer": {"name": "sgd"}},
            "neither with secure aggregation",
        ),
        (
            {"name": "projected", "projection": {"uplink": "coefficients"}},
            {"average": 0.5, "optimizer": {"name": "sgd"}},
            "coefficients as uplink allow 0",
        ),
    ],
)
def test_help_that_a_mechanism_cannot_take_is_refused_in_orders(
    mechanism: dict[str, object], training: dict[str, object], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        make_order(
            Mechanism.model_validate({"noise_multiplier": 2.0, **mechanism}),
            training=LocalTraining.model_validate(training),
        )


def test_an_anchor_without_people_is_refused() -> None:
    engine, chosen = head_engine(), make_mechanism("dp-sgd", noise_multiplier=1.0)
    training = LocalTraining(strategy="head", steps=1, anchor=AnchorOptions())
    with pytest.raises(ConfigError, match="needs public data"):
        local_update(
            engine._model,
            make_cohort(chosen, engine=engine),
            chosen,
            training,
            streams=seeded_streams(1),
            declared_units=4,
        )
