"""The un-noised part of feature-DP: drawn without knowledge of the private batch, and of nothing that is private."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.engine import Recording, head_engine, make_cohort, make_mechanism, make_step, public_part, without_noise

from wardpose.shared.privacy.mechanisms import FeatureOptions
from wardpose.shared.privacy.noise import SeededStream, Streams, seeded_streams
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData
from wardpose.shared.vectors import flatten

DRAWS = ("poisson", "cyclic", "once-per-round")


@pytest.mark.parametrize("draw", DRAWS)
def test_public_draw_and_private_coins_know_nothing_of_each_other(draw: str) -> None:
    """Through whole steps, both ways: other private coins leave the public part, other public ones the private sums."""
    engine = head_engine()
    chosen = make_mechanism("feature", sample_rate=0.5, feature=FeatureOptions(draw=draw, rate=0.5))
    data = make_cohort(chosen, (2, 1, 3, 1, 2), engine=engine)

    def run(coins: int, public_seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[tuple[str, int]]]:
        public = Recording(public_seed)
        streams = Streams(SeededStream(coins), SeededStream(100 + coins), public)
        step = make_step(engine, data, chosen, streams=streams, declared_units=5)
        with without_noise() as seen:
            publics = [flatten(step(engine.parameters())) for _ in range(4)]
        return publics, [query.total for query in seen], public.asked

    publics, sums, asked = run(1, 7)
    for coins in (2, 3):
        others, other_sums, other_asked = run(coins, 7)
        assert asked == other_asked
        assert all(torch.equal(one, other) for one, other in zip(publics, others, strict=True))
        assert not all(torch.equal(one, other) for one, other in zip(sums, other_sums, strict=True))
    others, other_sums, _ = run(1, 8)
    assert all(torch.equal(one, other) for one, other in zip(sums, other_sums, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(publics, others, strict=True))


def test_a_shared_stream_would_be_seen() -> None:
    """The defective variant: coins of the private batch drawn again for the public one."""
    engine = head_engine()
    chosen = make_mechanism("feature", sample_rate=0.5, feature=FeatureOptions(rate=0.5))
    data = make_cohort(chosen, (2, 1, 3, 1, 2), engine=engine)
    parts = [
        public_part(
            make_step(engine, data, chosen, streams=replace(seeded_streams(coins), public=SeededStream(coins))),
            engine.parameters(),
        )
        for coins in (1, 2)
    ]
    assert not torch.equal(*parts)


def test_cyclic_draws_visit_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen = head_engine(), []
    chosen = make_mechanism("public-only", feature=FeatureOptions(draw="cyclic", rate=0.34))
    data = make_cohort(chosen, (1, 1, 1, 1, 1, 1), engine=engine)
    draw = CohortData.draw_rows
    monkeypatch.setattr(
        CohortData, "draw_rows", lambda self, drawn, stream: (seen.extend(drawn), draw(self, drawn, stream))[1]
    )
    step = make_step(engine, data, chosen, streams=seeded_streams(3), declared_units=6)
    for _ in range(3):
        step(engine.parameters())
    assert sorted(seen) == list(range(6))


def test_once_per_round_is_the_mean_at_the_first_weights_and_stays() -> None:
    engine = head_engine()
    chosen = make_mechanism("public-only", feature=FeatureOptions(draw="once-per-round", weight=0.5), frames_per_unit=1)
    data = make_cohort(chosen, (1, 1, 1), engine=engine)
    step = make_step(engine, data, chosen)
    first = flatten(step(engine.parameters()))
    moved = {name: value + 0.1 for name, value in engine.parameters().items()}
    assert torch.equal(flatten(step(moved)), first)
    fresh = flatten(make_step(engine, data, chosen)(moved))
    assert not torch.equal(fresh, first)


def test_pseudo_labels_keep_keypoints_out_of_the_public_part() -> None:
    engine = head_engine()
    for labels, same in (("pseudo", True), ("ground-truth", False)):
        chosen = make_mechanism("feature", feature=FeatureOptions(draw="once-per-round", labels=labels))
        data = make_cohort(chosen, engine=engine)

        def moved(rows: Rows) -> Rows:
            return Rows(inputs=rows.inputs, joints=31 - rows.joints, visibility=2 - rows.visibility)

        assert data.public is not None
        other = replace(data, private=moved(data.private), public=moved(data.public))
        gradients = [
            public_part(make_step(engine, neighbour, chosen), engine.parameters()) for neighbour in (data, other)
        ]
        assert torch.equal(*gradients) is same
        assert float(gradients[0].norm()) > 0


def test_public_frames_that_are_not_finite_add_nothing() -> None:
    engine = head_engine()
    chosen = make_mechanism("public-only", feature=FeatureOptions(draw="once-per-round"))
    data = make_cohort(chosen, (2, 2), engine=engine)
    assert data.public is not None
    poisoned = replace(data, public=replace(data.public, inputs=np.full_like(data.public.inputs, np.nan)))
    assert bool(torch.isfinite(public_part(make_step(engine, poisoned, chosen), engine.parameters())).all())
