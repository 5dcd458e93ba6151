import pytest
from pydantic import ValidationError
from support.orders import make_order

from wardpose.client.policy import check_order, knobs
from wardpose.client.site import Site
from wardpose.shared.anonymize.public_view import PublicViewConfig
from wardpose.shared.errors import PolicyViolation
from wardpose.shared.messages import RoundOrder
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.site_config import SiteConfig
from wardpose.shared.training.settings import AnchorOptions, LocalTraining, OptimizerConfig


def order(mechanism: Mechanism | None = None, steps: int = 10) -> RoundOrder:
    return make_order(mechanism, training=LocalTraining(steps=steps))


def site(patients: int = 100, **policy: object) -> SiteConfig:
    return SiteConfig.model_validate(
        {
            "site": "north",
            "cohort": {
                "name": "c",
                "declared_patients": patients,
                "data": {"kind": "ward", "hospital": "north", "patients": 10, "frames_per_patient": 1, "seed": 0},
            },
            "policy": policy,
        }
    )


def test_the_default_policy_takes_an_ordinary_order() -> None:
    check_order(site(), order())


@pytest.mark.parametrize(
    ("policy", "asked", "message"),
    [
        (
            {},
            order(Mechanism(name="none")),
            r"mechanism 'none' is not allowed by site policy \(policy\.mechanisms = \['dp-sgd'\]\)",
        ),
        ({}, order(Mechanism(name="public-only")), "mechanism 'public-only'"),
        (
            {},
            order(Mechanism(name="dp-sgd", unit="frame", noise_multiplier=1.0)),
            r"unit 'frame' .*policy\.unit = 'patient'",
        ),
        (
            {},
            order(Mechanism(name="dp-sgd", noise_multiplier=0.1)),
            r"noise_multiplier 0\.1 .*minimum_noise_multiplier = 0\.3",
        ),
        (
            {},
            order(Mechanism(name="dp-sgd", noise_multiplier=1.0, sample_rate=0.9)),
            r"sample_rate 0\.9 .*maximum_sample_rate = 0\.5",
        ),
        ({}, order(steps=2000), r"steps 2000 .*maximum_steps_per_round = 1000"),
        ({"federations": ["other"]}, order(), r"federation 'study' .*policy\.federations = \['other'\]"),
        ({"code_hash": "0" * 64}, order(), r"policy\.code_hash = '0000"),
        ({"minimum_declared_patients": 101}, order(), r"cohort 100 .*minimum_declared_patients = 101"),
    ],
)
def test_what_the_policy_forbids_is_refused_by_name(policy: dict[str, object], asked: RoundOrder, message: str) -> None:
    with pytest.raises(PolicyViolation, match=message):
        check_order(site(**policy), asked)


def test_a_tier_cannot_be_sampled_faster_than_the_policy_allows() -> None:
    tiered = Mechanism(name="dp-sgd", noise_multiplier=1.0, sample_rate=0.1, tiers={"open": 0.8})
    cohort = site().cohort.model_copy(update={"declared_tiers": {"open": 10}})
    with_tier = site().model_copy(update={"cohort": cohort})
    with pytest.raises(PolicyViolation, match=r"sample_rate 0\.8"):
        check_order(with_tier, order(tiered))


def test_public_labels_must_be_allowed() -> None:
    asked = order(Mechanism(name="feature", noise_multiplier=1.0))
    view = PublicViewConfig(kind="edges")
    with pytest.raises(PolicyViolation, match="public_labels"):
        check_order(site(mechanisms=["feature"]).model_copy(update={"public_view": view}), asked)
    allowed = site(mechanisms=["feature"], public_labels=True)
    with pytest.raises(PolicyViolation, match=r"public_view = None"):
        check_order(allowed, asked)
    check_order(allowed.model_copy(update={"public_view": view}), asked)


def test_a_projection_needs_public_data_at_the_site() -> None:
    asked = order(Mechanism(name="projected", noise_multiplier=1.0))
    with pytest.raises(PolicyViolation, match=r"public_data = \[\]"):
        check_order(site(mechanisms=["projected"]), asked)


def test_a_closed_form_needs_public_data_or_views_that_may_be_used() -> None:
    once = LocalTraining(strategy="maps", steps=1, optimizer=OptimizerConfig(name="sgd", learning_rate=1.0))

    def asked(**options: object) -> RoundOrder:
        values = {"name": "label-ridge", "noise_multiplier": 2.0, "feature": {"labels": "pseudo"}, "ridge": options}
        return make_order(Mechanism.model_validate(values), training=once)

    hospital = site(mechanisms=["label-ridge"])
    with pytest.raises(PolicyViolation, match=r"mechanism 'label-ridge' .*public_data = \[\]"):
        check_order(hospital, asked())
    for place in ("inputs", "source"):
        with pytest.raises(PolicyViolation, match=r"public_view = None"):
            check_order(hospital, asked(**{place: "public-views"}))
    shown = hospital.model_copy(update={"public_view": PublicViewConfig(kind="edges")})
    with pytest.raises(PolicyViolation, match=r"ridge\.source 'public-views' .*policy\.own_public_basis = False"):
        check_order(shown, asked(source="public-views"))
    allowed = site(mechanisms=["label-ridge"], own_public_basis=True)
    shown = allowed.model_copy(update={"public_view": PublicViewConfig(kind="edges")})
    check_order(shown, asked(source="public-views", inputs="public-views"))
    with pytest.raises(PolicyViolation, match=r"ridge\.people 513 .*maximum_basis_frames = 512"):
        check_order(shown, asked(source="public-views", people=513))
    with pytest.raises(PolicyViolation, match="mechanism 'label-ridge'"):
        check_order(site(), asked())


def test_an_anchor_needs_public_data_at_the_site() -> None:
    asked = make_order(Mechanism(noise_multiplier=1.0), training=LocalTraining(anchor=AnchorOptions()))
    with pytest.raises(PolicyViolation, match=r"public_data = \[\]"):
        check_order(site(), asked)


def test_the_budget_is_stated_for_the_sites_adjacency() -> None:
    asked = order(Mechanism(name="dp-sgd", noise_multiplier=1.0, adjacency="add-remove"))
    with pytest.raises(PolicyViolation, match="adjacency"):
        check_order(site(adjacency="replace-one"), asked)


def test_limits_of_a_month_and_a_study_reach_the_ledger() -> None:
    config = site(epsilon=4.0, epsilon_per_month=1.5, studies={"gait": 2.0})
    budget = Site(config).budget(private=True)
    assert (budget.per_month, budget.studies) == (1.5, {"gait": 2.0})
    assert not Site(config).budget(private=False).is_bounded
    shown = {knob.knob: knob.bound for knob in knobs(config)}
    assert (shown["policy.epsilon_per_month"], shown["policy.studies"]) == ("1.5", "{'gait': 2.0}")
    for wrong in ({"epsilon_per_month": 0.0}, {"studies": {"gait": -1.0}}, {"studies": {"no name": 1.0}}):
        with pytest.raises(ValidationError):
            site(**wrong)
