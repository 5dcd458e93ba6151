import dp_accounting
import pytest
from pydantic import ValidationError

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import Event, epsilon
from wardpose.shared.privacy.schedules import Phase, Schedule, tier_sample_rates

DELTA = 1e-5


def phase(steps: int, noise_multiplier: float, sample_rate: float = 0.1, max_grad_norm: float = 1.0) -> Phase:
    return Phase(steps=steps, noise_multiplier=noise_multiplier, sample_rate=sample_rate, max_grad_norm=max_grad_norm)


def test_schedule_is_composed_exactly() -> None:
    schedule = Schedule(phases=(phase(30, 3.0), phase(20, 2.0, 0.05), phase(10, 1.5, 1 / 3)))
    reference = dp_accounting.pld.PLDAccountant()
    for part in schedule.phases:
        step = dp_accounting.PoissonSampledDpEvent(
            part.sample_rate, dp_accounting.GaussianDpEvent(part.noise_multiplier)
        )
        reference.compose(step, part.steps)
    events = schedule.events(0, schedule.steps, unit="patient")
    assert epsilon(events, delta=DELTA) == pytest.approx(reference.get_epsilon(DELTA), rel=3e-4)


def test_rounds_of_a_schedule_cost_what_the_whole_costs() -> None:
    schedule = Schedule(phases=(phase(7, 3.0, max_grad_norm=2.0), phase(5, 2.0), phase(6, 1.5)))
    rounds = [event for first in range(0, 18, 3) for event in schedule.events(first, 3, unit="patient")]
    assert sum(event.steps for event in rounds) == 18
    assert [(event.steps, event.max_grad_norm) for event in schedule.events(6, 3, unit="frame")] == [(1, 2.0), (2, 1.0)]
    whole = schedule.events(0, 18, unit="patient")
    assert epsilon(rounds, delta=DELTA) == epsilon(whole, delta=DELTA)
    assert schedule.at(11) == phase(1, 2.0)
    assert schedule.events(4, 0, unit="patient") == ()
    for first, count in ((18, 1), (-1, 2), (16, 3)):
        with pytest.raises(ConfigError, match="has steps 0 to 17"):
            schedule.events(first, count, unit="patient")


def test_geometric_schedule() -> None:
    schedule = Schedule.geometric(
        steps=40, pieces=4, sample_rate=0.1, max_grad_norm=(1.0, 0.125), noise_multiplier=(4.0, 0.5)
    )
    assert [part.max_grad_norm for part in schedule.phases] == pytest.approx([1, 0.5, 0.25, 0.125])
    assert [part.noise_multiplier for part in schedule.phases] == pytest.approx([4, 2, 1, 0.5])
    assert {part.steps for part in schedule.phases} == {10}
    assert Schedule.model_validate_json(schedule.model_dump_json()) == schedule
    with pytest.raises(ConfigError, match="3 pieces do not divide 40"):
        Schedule.geometric(steps=40, pieces=3, sample_rate=0.1, max_grad_norm=(1, 1), noise_multiplier=(1, 1))


@pytest.mark.parametrize("change", [{"steps": 0}, {"noise_multiplier": -1}, {"sample_rate": 2}, {"colour": 1}])
def test_phases_refuse_nonsense(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Phase.model_validate({**phase(1, 1.0).model_dump(), **change})
    with pytest.raises(ValidationError):
        Schedule(phases=())


def test_every_tier_spends_its_own_budget() -> None:
    budgets = {"strict": 0.5, "open": 4.0}
    rates = tier_sample_rates(budgets, noise_multiplier=1.5, steps=200, delta=DELTA)
    assert 0 < rates["strict"] < rates["open"] < 1
    for tier, rate in rates.items():
        event = Event(
            mechanism="dp-sgd", unit="patient", sample_rate=rate, noise_multiplier=1.5, steps=200, max_grad_norm=1
        )
        assert 0.99 * budgets[tier] < epsilon([event], delta=DELTA) <= budgets[tier]


def test_tier_rates_at_their_ends() -> None:
    spent = Event(mechanism="dp-sgd", unit="patient", sample_rate=1, noise_multiplier=5, steps=20, max_grad_norm=1)
    rates = tier_sample_rates(
        {"rich": 50.0, "broke": 1.0}, noise_multiplier=10, steps=5, delta=DELTA, spent={"broke": [spent]}
    )
    assert rates == {"rich": 1.0, "broke": 0.0}
    with pytest.raises(ConfigError, match="must be positive"):
        tier_sample_rates({"a": 0.0}, noise_multiplier=1, steps=1, delta=DELTA)
