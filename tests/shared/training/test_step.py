"""One step: who takes part, what the sum is divided by, noise whoever takes part, and what is refused beforehand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from support.engine import (
    CLIP,
    PRIVATE,
    head_engine,
    make_cohort,
    make_mechanism,
    make_public,
    make_step,
    private_sums,
)

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.privacy.schedules import Phase, Schedule
from wardpose.shared.training.cohort import CohortData, RowIds
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.training.step import expected_batch_size, micro_batch_size
from wardpose.shared.vectors import flatten

ALPHA = 1e-3  # at fixed seeds: a pass stays a pass


@pytest.mark.parametrize("name", PRIVATE)
def test_empty_batches_take_a_noised_step(name: str) -> None:
    engine = head_engine()
    chosen = make_mechanism(name, sample_rate=1e-12, noise_multiplier=2.0)
    update = local_update(
        engine._model,
        make_cohort(chosen, engine=engine),
        chosen,
        LocalTraining(strategy="head", steps=3, optimizer=OptimizerConfig(name="sgd", learning_rate=1.0)),
        streams=seeded_streams(1),
        declared_units=4,
        public=make_public(12, engine=engine),
    )
    assert update.steps == 3
    # Nobody took part: what moved the weights is noise of deviation sigma C / (q N) in p or k numbers, three times.
    numbers = 4 if chosen.uses_basis else sum(value.numel() for value in update.update.values())
    expected = 2.0 * CLIP / (1e-12 * 4) * (3 * numbers) ** 0.5
    assert float(flatten(update.update).norm()) == pytest.approx(expected, rel=0.6 if numbers == 4 else 0.05)


def test_the_denominator_is_the_declared_one() -> None:
    engine = head_engine(torch.float64)
    chosen = make_mechanism("dp-sgd")
    steps = [
        flatten(make_step(engine, make_cohort(chosen), chosen, declared_units=declared)(engine.parameters()))
        for declared in (4, 8)
    ]
    torch.testing.assert_close(steps[0], 2 * steps[1])
    tiers = Mechanism(sample_rate=0.5, tiers={"careful": 0.1})
    assert expected_batch_size(tiers, {"": 10, "careful": 20}) == pytest.approx(7.0)
    for declared in (5, {"": 1, "other": 2}, {"": 0}):
        with pytest.raises(ConfigError, match="declared units"):
            expected_batch_size(tiers, declared)


@pytest.mark.parametrize(("units", "rate"), [(16, 1.0), (37, 1.0), (160, 0.1), (1000, 0.05), (40, 0.01)])
@pytest.mark.parametrize("most", [1, 8, 64])
def test_micro_batches_are_as_large_as_padding_allows(units: int, rate: float, most: int) -> None:
    """Against all other sizes, over batches drawn by another generator; a micro-batch counts as a row of its own."""
    drawn = np.random.default_rng(0).binomial(units, rate, 4000)
    work = {size: float(np.mean(-(-drawn // size) * (size + 1))) for size in range(1, most + 1)}
    chosen = micro_batch_size(most, units * rate, (units * rate * (1 - rate)) ** 0.5)
    assert work[chosen] <= 1.03 * min(work.values())
    if rate == 1.0 and most == 8:
        assert chosen == {16: 8, 37: 8}[units]


class Drawn:
    """Which units each step draws."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[np.ndarray] = []
        draw = CohortData.draw_rows

        def remember(data: CohortData, drawn: np.ndarray, stream: object) -> RowIds:
            self.steps.append(drawn)
            return draw(data, drawn[:0], stream)  # type: ignore[arg-type]  # whom they are is enough; no gradients

        monkeypatch.setattr(CohortData, "draw_rows", remember)


def test_everybody_has_a_coin_of_their_own_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poisson sampling, not shuffled batches of one size: sizes are binomial, and so is each unit's turnout."""
    engine, drawn, rate = head_engine(), Drawn(monkeypatch), 0.3
    chosen = make_mechanism("dp-sgd", sample_rate=rate)
    step = make_step(engine, make_cohort(chosen, (1,) * 20, engine=engine), chosen, declared_units=20)
    for _ in range(600):
        private_sums(step, engine.parameters())
    sizes = np.array([len(units) for units in drawn.steps])
    assert sizes.var() / (20 * rate * (1 - rate)) == pytest.approx(1, abs=4 * (2 / 600) ** 0.5)
    expected = stats.binom.pmf(np.arange(21), 20, rate) * 600
    common = expected >= 8
    observed = np.bincount(sizes, minlength=21)
    assert stats.chisquare(
        np.append(observed[common], observed[~common].sum()), np.append(expected[common], expected[~common].sum())
    ).pvalue > ALPHA  # fmt: skip
    turnout = np.bincount(np.concatenate(drawn.steps), minlength=20)
    assert stats.chi2.sf(((turnout - 600 * rate) ** 2 / (600 * rate * (1 - rate))).sum(), 20) > ALPHA


def test_tiers_are_drawn_at_their_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, drawn = head_engine(), Drawn(monkeypatch)
    chosen = make_mechanism("dp-sgd", sample_rate=0.5, tiers={"careful": 0.1})
    data = make_cohort(chosen, (1,) * 40, engine=engine)
    data.units.tiers = ("",) * 20 + ("careful",) * 20
    step = make_step(engine, data, chosen, declared_units={"": 20, "careful": 20})
    for _ in range(400):
        private_sums(step, engine.parameters())
    units = np.concatenate(drawn.steps)
    plain, careful = (units < 20).sum() / 8000, (units >= 20).sum() / 8000
    assert plain == pytest.approx(0.5, abs=4 * (0.25 / 8000) ** 0.5)
    assert careful == pytest.approx(0.1, abs=4 * (0.09 / 8000) ** 0.5)
    # What they are drawn at is what they are charged for.
    assert {event.tier: event.sample_rate for event in chosen.events(1)} == {"untiered": 0.5, "careful": 0.1}


def test_a_schedule_changes_bound_noise_and_rate_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each step does is what its event charges."""
    engine, drawn = head_engine(), Drawn(monkeypatch)
    schedule = Schedule(
        phases=(
            Phase(steps=2, max_grad_norm=0.5, noise_multiplier=3.0, sample_rate=1.0),
            Phase(steps=1, max_grad_norm=0.25, noise_multiplier=2.0, sample_rate=1e-9),
            Phase(steps=1, max_grad_norm=0.125, noise_multiplier=1.0, sample_rate=1.0),
        )
    )
    chosen = make_mechanism("dp-sgd", schedule=schedule)
    data = make_cohort(chosen, (2, 2, 2), engine=engine)
    for first in (0, 1):
        drawn.steps.clear()
        step = make_step(engine, data, chosen, first_step=first)
        for number in range(first, 4):
            (query,) = private_sums(step, engine.parameters())
            (event,) = chosen.events(1, first=number)
            assert (query.max_grad_norm, query.noise_multiplier) == (event.max_grad_norm, event.noise_multiplier)
        assert [len(units) for units in drawn.steps] == [3, 3, 0, 3][first:]
        with pytest.raises(ConfigError, match="schedule"):
            step(engine.parameters())


def test_a_schedule_divides_by_each_steps_own_expected_batch() -> None:
    engine = head_engine()
    schedule = Schedule.geometric(
        steps=2, pieces=2, sample_rate=1.0, max_grad_norm=(1e-2, 1e-4), noise_multiplier=(1e-9, 1e-9)
    )
    halved = Schedule(phases=(schedule.phases[0], schedule.phases[1].model_copy(update={"sample_rate": 0.5})))
    for chosen_schedule, expected in ((schedule, [1e-2, 1e-4]), (halved, [1e-2, 2e-4])):
        chosen = make_mechanism("dp-sgd", schedule=chosen_schedule)
        data = make_cohort(chosen, (2,), engine=engine)
        norms = []
        for seed in range(6):  # until the coin of rate a half has fallen on the only patient
            step = make_step(engine, data, chosen, streams=seeded_streams(seed), declared_units=1)
            norms.append([float(flatten(step(engine.parameters())).norm()) for _ in expected])
        assert np.max(norms, axis=0) == pytest.approx(expected, rel=1e-3)


def test_what_is_missing_is_said_before_anything_is_read() -> None:
    engine = head_engine()
    data = make_cohort(make_mechanism("feature"), engine=engine)
    for name, cohort, public, message in (
        ("feature", replace(data, public=None), None, "public view"),
        ("projected", data, None, "needs public data"),
        ("projected", data, make_public(3, engine=engine), "at least 4 public frames"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_step(engine, cohort, make_mechanism(name), public=public)
