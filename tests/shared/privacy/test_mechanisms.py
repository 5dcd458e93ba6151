"""A mechanism's value decides its events; contradictions are refused."""

import json

import pytest
from pydantic import ValidationError

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import epsilon
from wardpose.shared.privacy.mechanisms import (
    Mechanism,
    ProjectionOptions,
    ResidualOptions,
)
from wardpose.shared.privacy.schedules import Schedule


@pytest.mark.parametrize("name", ["dp-sgd", "projected", "feature", "feature-projective", "label-ridge"])
def test_every_private_mechanism_costs_the_same_subsampled_gaussian(name: str) -> None:
    mechanism = Mechanism(name=name, sample_rate=0.05, noise_multiplier=1.5, exact_noise=True)
    (event,) = mechanism.events(40)
    assert (event.sample_rate, event.noise_multiplier, event.steps, event.unit) == (0.05, 1.5, 40, "patient")
    assert event.mechanism == name
    assert epsilon([event], delta=1e-5) == pytest.approx(
        epsilon(
            Mechanism(name="dp-sgd", sample_rate=0.05, noise_multiplier=1.5, exact_noise=True).events(40),
            delta=1e-5,
        )
    )


def test_the_two_ends_cost_everything_and_nothing() -> None:
    assert epsilon(Mechanism(name="none").events(3), delta=1e-5) == float("inf")
    assert epsilon(Mechanism(name="public-only").events(3), delta=1e-5) == 0.0
    assert epsilon(Mechanism(name="dp-sgd", noise_multiplier=0.0).events(1), delta=1e-5) == float("inf")


def test_embedding_and_residual_are_one_event_dearer_than_either() -> None:
    projection = ProjectionOptions(residual=ResidualOptions(max_grad_norm=0.3, noise_multiplier=4.0))
    both = Mechanism(name="projected", noise_multiplier=3.0, sample_rate=0.1, projection=projection)
    (event,) = both.events(100)
    assert event.noise_multiplier == pytest.approx((3.0**-2 + 4.0**-2) ** -0.5)
    embedding = Mechanism(name="projected", noise_multiplier=3.0, sample_rate=0.1)
    rest = Mechanism(name="dp-sgd", noise_multiplier=4.0, sample_rate=0.1)
    accounted = epsilon(both.events(100), delta=1e-5)
    assert accounted > epsilon(embedding.events(100), delta=1e-5, accountant="rdp")
    # As two subsampled events, two independent batches would be pretended: too little.
    apart = epsilon([*embedding.events(100), *rest.events(100)], delta=1e-5, accountant="rdp")
    assert epsilon(both.events(100), delta=1e-5, accountant="rdp") > apart


def test_a_mechanism_travels_as_json() -> None:
    mechanism = Mechanism(
        name="feature-projective",
        noise_multiplier=1.25,
        projection=ProjectionOptions(source="public-views", rank=16),
    )
    assert Mechanism.model_validate_json(mechanism.model_dump_json()) == mechanism
    assert Mechanism.model_validate(json.loads(mechanism.model_dump_json())) == mechanism


def test_a_closed_form_travels_with_its_options_and_others_keep_their_identity() -> None:
    ridge = Mechanism.model_validate({"name": "label-ridge", "sample_rate": 1.0, "ridge": {"damping": 0.5}})
    assert Mechanism.model_validate_json(ridge.model_dump_json()) == ridge
    assert "ridge" in Mechanism(name="label-ridge").model_dump()  # also defaults: they may change one day
    assert "ridge" not in Mechanism(name="dp-sgd").model_dump()
    odd = Mechanism.model_validate({"name": "dp-sgd", "ridge": {"damping": 0.5}})
    assert Mechanism.model_validate_json(odd.model_dump_json()) == odd
    assert not ridge.uses_public_views
    views = Mechanism.model_validate(
        {"name": "label-ridge", "feature": {"labels": "pseudo"}, "ridge": {"source": "public-views"}}
    )
    assert (views.uses_public_views, views.shows_own_views, views.reads_public_people) == (True, True, False)


def test_tiers_are_charged_each_by_its_own_rate() -> None:
    mechanism = Mechanism(sample_rate=0.1, noise_multiplier=1.0, tiers={"careful": 0.02})
    events = mechanism.events(10)
    assert {(event.tier, event.sample_rate) for event in events} == {("untiered", 0.1), ("careful", 0.02)}


def test_noise_kind_follows_where_the_numbers_live() -> None:
    kinds = {
        "dp-sgd": "gaussian",
        "feature": "gaussian",
        "projected": "discrete-gaussian",
        "feature-projective": "discrete-gaussian",
    }
    for name, kind in kinds.items():
        assert Mechanism(name=name, noise_multiplier=1.0).events(1)[0].noise == kind
    assert Mechanism(noise_multiplier=1.0, exact_noise=True).events(1)[0].noise == "discrete-gaussian"


@pytest.mark.parametrize(
    "values",
    [
        {"name": "dpsgd"},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("nan")},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": float("inf")},
        {"unit": "frame", "frames_per_unit": 3},
        {"name": "none", "noise_multiplier": 1.0},
        {"name": "projected", "projection": {"source": "public-views"}},
        {"name": "feature-projective", "projection": {"uplink": "coefficients"}},
        {"name": "projected", "projection": {"uplink": "coefficients", "refresh_steps": 5}},
        {"name": "projected", "noise_multiplier": 300.0},
        {"name": "label-ridge", "ridge": {"damping": 1e-7}},
        {"name": "label-ridge", "ridge": {"damping": float("nan")}},
        {"name": "label-ridge", "ridge": {"damping": 1e300}},
        {"name": "label-ridge", "ridge": {"people": 0}},
        {"name": "label-ridge", "ridge": {"people": 10**9}},
        {"name": "label-ridge", "ridge": {"band": -1}},
        {"name": "label-ridge", "ridge": {"inputs": "public-views"}},  # labels are ground-truth
        {"name": "label-ridge", "distributed": {"sites": 4, "minimum_survivors": 3, "colluding": 0}},
        {"colour": "red"},
        {"projection": {"ranks": 3}},
        {"noise_multiplier": 1.0, "projection": {"residual": {"max_grad_norm": 1.0, "noise_multiplier": 0.0}}},
    ],
)
def test_contradictions_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Mechanism.model_validate(values)


def test_steps_of_an_event() -> None:
    assert Mechanism(noise_multiplier=1.0).events(0) == ()
    with pytest.raises(ValueError, match="steps is -1"):
        Mechanism(noise_multiplier=1.0).events(-1)


def test_a_schedule_replaces_clip_noise_and_rate_and_costs_step_by_step() -> None:
    schedule = Schedule.geometric(
        steps=6, pieces=2, sample_rate=0.2, max_grad_norm=(1.0, 0.25), noise_multiplier=(2.0, 1.0)
    )
    mechanism = Mechanism(name="feature", schedule=schedule)
    assert (mechanism.at(2).max_grad_norm, mechanism.at(2).noise_multiplier) == (1.0, 2.0)
    assert (mechanism.at(3).max_grad_norm, mechanism.at(3).noise_multiplier) == (0.25, 1.0)
    assert mechanism.at(3).sample_rate == 0.2
    events = mechanism.events(4, first=1)
    assert [(event.steps, event.noise_multiplier) for event in events] == [(2, 2.0), (2, 1.0)]
    assert {event.mechanism for event in events} == {"feature"}
    assert (mechanism.smallest_noise_multiplier, mechanism.largest_sample_rate) == (1.0, 0.2)
    with pytest.raises(ConfigError, match="schedule"):
        mechanism.events(7)
    with pytest.raises(ValidationError, match="without tiers"):
        Mechanism(schedule=schedule, tiers={"careful": 0.1})
