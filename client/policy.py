"""The site decides: every order is held against the site's own policy before anything is charged or read.

The server turns few knobs, and each within a bound that the site sets: `LIMITS` lists them, `check_order` applies the
list, and `wardpose site policy` shows it. No bound replaces the proofs of the engine, which hold for any order; they
keep a hostile one from wasting a site's day, its disk or its patients' budget.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from wardpose.shared.data.source import names_patients
from wardpose.shared.errors import PolicyViolation, WireError
from wardpose.shared.messages import EvaluationOrder, RoundOrder
from wardpose.shared.pose.low_rank import SUFFIX
from wardpose.shared.pose.model import ModelConfig, outline, trainable_names
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.accounting import UNITS, Event, as_seeded
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.site_config import PolicyConfig, SiteConfig
from wardpose.shared.version import code_hash

Order = RoundOrder | EvaluationOrder

_Asked = TypeVar("_Asked", RoundOrder, Order)


@dataclass(frozen=True, kw_only=True)
class Limit(Generic[_Asked]):
    """A number of an order that the server may choose within the site's bounds.

    Attributes:
        asked: the order's key.
        value: reads it.
        least: policy key of the smallest value, if any.
        most: policy key of the largest value, if any.
        protects: what the bound is for.

    """

    asked: str
    value: Callable[[_Asked], float]
    least: str | None = None
    most: str | None = None
    protects: str


def _clip_norms(order: RoundOrder) -> list[float]:
    mechanism = order.mechanism
    phases = mechanism.schedule.phases if mechanism.schedule is not None else (mechanism,)
    residual = mechanism.projection.residual if mechanism.uses_basis else None
    return [phase.max_grad_norm for phase in phases] + ([residual.max_grad_norm] if residual is not None else [])


def _weakest_noise(order: RoundOrder) -> float:
    mechanism = order.mechanism
    if not mechanism.is_private:
        return float("inf")  # whether there may be no noise at all is what policy.mechanisms says
    if mechanism.schedule is not None:
        return mechanism.smallest_noise_multiplier
    return mechanism.effective_noise_multiplier


LIMITS: tuple[Limit[RoundOrder], ...] = (
    Limit(
        asked="noise_multiplier",
        value=_weakest_noise,
        least="minimum_noise_multiplier",
        protects="each release by itself, whatever the total epsilon is",
    ),
    Limit(
        asked="sample_rate",
        value=lambda order: order.mechanism.largest_sample_rate,
        most="maximum_sample_rate",
        protects="amplification by subsampling, and the cost of a step",
    ),
    Limit(
        asked="max_grad_norm",
        value=lambda order: min(_clip_norms(order)),
        least="minimum_clip_norm",
        protects="arithmetic at its edge",
    ),
    Limit(
        asked="max_grad_norm",
        value=lambda order: max(_clip_norms(order)),
        most="maximum_clip_norm",
        protects="arithmetic at its edge",
    ),
    Limit(
        asked="steps",
        value=lambda order: order.training.steps,
        most="maximum_steps_per_round",
        protects="the site's time",
    ),
    Limit(
        asked="frames_per_unit",
        value=lambda order: order.mechanism.frames_per_unit,
        most="maximum_frames_per_unit",
        protects="memory",
    ),
    Limit(
        asked="augmented_views",
        value=lambda order: order.training.augmented_views,
        most="maximum_augmented_views",
        protects="the disk and the time that prepared frames take",
    ),
    Limit(
        asked="learning_rate",
        value=lambda order: order.training.optimizer.learning_rate,
        most="maximum_learning_rate",
        protects="weights from being driven out of range within a round",
    ),
    Limit(
        asked="weight_decay",
        value=lambda order: order.training.optimizer.weight_decay,
        most="maximum_weight_decay",
        protects="the same",
    ),
    Limit(
        asked="feature.weight",
        value=lambda order: order.mechanism.feature.weight if order.mechanism.adds_public_part else 0.0,
        most="maximum_public_weight",
        protects="the noised part from being drowned by the public one",
    ),
    Limit(
        asked="anchor.weight",
        value=lambda order: 0.0 if order.training.anchor is None else order.training.anchor.weight,
        most="maximum_public_weight",
        protects="the same",
    ),
    Limit(
        asked="anchor.batch",
        value=lambda order: 0 if order.training.anchor is None else order.training.anchor.batch,
        most="maximum_basis_frames",
        protects="memory and time",
    ),
    Limit(
        asked="projection.frames",
        value=lambda order: order.mechanism.projection.frames if order.mechanism.uses_basis else 0,
        most="maximum_basis_frames",
        protects="memory and time",
    ),
    Limit(
        asked="ridge.people",
        value=lambda order: order.mechanism.ridge.people if order.mechanism.whitens else 0,
        most="maximum_basis_frames",
        protects="memory and time",
    ),
)

COMMON_LIMITS: tuple[Limit[Order], ...] = (
    Limit(
        asked="course.last_round",
        value=lambda order: order.course.last_round,
        most="maximum_rounds",
        protects="the site's time, and the size of its ledger",
    ),
    Limit(
        asked="input_size",
        value=lambda order: max(order.model.input_size),
        most="maximum_input_size",
        protects="memory and disk; a public view is computed at the size of its certificate whatever is asked",
    ),
    Limit(
        asked="evaluation.noise_multiplier",
        value=lambda order: (
            float("inf") if order.course.evaluation is None else order.course.evaluation.noise_multiplier
        ),
        least="minimum_evaluation_noise",
        protects="each release of scores by itself: every patient takes part in it",
    ),
    Limit(
        asked="evaluation.times",
        value=lambda order: 0 if order.course.evaluation is None else order.course.evaluation.times,
        most="maximum_evaluations",
        protects="the site's time; what they cost is set aside with the first round",
    ),
    Limit(
        asked="evaluation.frames",
        value=lambda order: 0 if order.course.evaluation is None else order.course.evaluation.frames,
        most="maximum_frames_per_unit",
        protects="memory",
    ),
)
"""Of rounds and of evaluations alike: what the course says, which both carry, and the network."""


def check_order(site: SiteConfig, order: RoundOrder) -> None:
    """Hold an order against the site's policy.

    Raises:
        PolicyViolation: names the order's value and the policy's key and limit.

    """
    policy, mechanism = site.policy, order.mechanism
    _check_course(site, order.course)
    if mechanism.uses_public_views and mechanism.feature.labels == "ground-truth" and not policy.public_labels:
        _refuse("feature.labels", mechanism.feature.labels, "policy.public_labels", policy.public_labels)
    if mechanism.uses_public_views and site.public_view is None:
        _refuse("mechanism", mechanism.name, "public_view", None)
    if order.reads_public_data and not site.public_data:
        needs: tuple[str, object] = ("training.anchor", order.training.anchor)
        if mechanism.reads_public_people or order.judges_view:
            needs = ("mechanism", mechanism.name)
        _refuse(*needs, "public_data", [])
    if mechanism.shows_own_views and not policy.own_public_basis:
        asked = "ridge.source" if mechanism.whitens else "projection.source"
        _refuse(asked, "public-views", "policy.own_public_basis", policy.own_public_basis)
    _check_distributed(site, mechanism.distributed)
    _hold(policy, LIMITS, order)
    _hold(policy, COMMON_LIMITS, order)


def check_evaluation(site: SiteConfig, order: EvaluationOrder) -> None:
    """Hold an order to score networks on the cohort's patients against the site's policy.

    Raises:
        PolicyViolation: names the order's value and the policy's key and limit.

    """
    _check_course(site, order.course)
    _hold(site.policy, COMMON_LIMITS, order)


def _check_course(site: SiteConfig, course: Course) -> None:
    """Hold what a course declares against the site's policy, and the site's own state."""
    policy, mechanism = site.policy, course.mechanism
    if policy.federations and course.federation not in policy.federations:
        _refuse("federation", course.federation, "policy.federations", list(policy.federations))
    if mechanism.name not in policy.mechanisms:
        _refuse("mechanism", mechanism.name, "policy.mechanisms", list(policy.mechanisms))
    if course.evaluation is not None and EVALUATION not in policy.mechanisms:
        _refuse("mechanism", EVALUATION, "policy.mechanisms", list(policy.mechanisms))
    if UNITS.index(mechanism.unit) > UNITS.index(policy.unit):
        _refuse("unit", mechanism.unit, "policy.unit", policy.unit)
    if mechanism.unit == "patient" and not names_patients(site.cohort.data):
        _refuse("unit", mechanism.unit, "cohort.data.patients", None)
    if policy.adjacency == "replace-one" and mechanism.adjacency != "replace-one":
        _refuse("adjacency", mechanism.adjacency, "policy.adjacency", policy.adjacency)
    if set(mechanism.tiers) != set(site.cohort.declared_tiers):
        _refuse("tiers", sorted(mechanism.tiers), "cohort.declared_tiers", sorted(site.cohort.declared_tiers))
    if site.cohort.declared_patients < policy.minimum_declared_patients:
        _refuse(
            "cohort",
            site.cohort.declared_patients,
            "policy.minimum_declared_patients",
            policy.minimum_declared_patients,
        )
    if policy.code_hash is not None and policy.code_hash != code_hash():
        _refuse("installed code", code_hash(), "policy.code_hash", policy.code_hash)


def _check_distributed(site: SiteConfig, noise: DistributedNoise | None) -> None:
    """See that the site takes part in secure aggregation, and on which terms."""
    if noise is None:
        return
    policy = site.policy
    if not policy.distributed_noise:
        _refuse("distributed noise", noise.minimum_survivors, "policy.distributed_noise", policy.distributed_noise)
    if noise.colluding < policy.colluding_sites:
        _refuse("colluding", noise.colluding, "policy.colluding_sites", policy.colluding_sites)
    if len({site.site, *site.peers}) < noise.minimum_survivors:
        _refuse("minimum_survivors", noise.minimum_survivors, "peers", sorted(site.peers))


def _hold(policy: PolicyConfig, limits: Iterable[Limit[_Asked]], order: _Asked) -> None:
    for limit in limits:
        value = limit.value(order)
        if limit.most is not None and value > getattr(policy, limit.most):
            _refuse(limit.asked, value, f"policy.{limit.most}", getattr(policy, limit.most))
        if limit.least is not None and value < getattr(policy, limit.least):
            _refuse(limit.asked, value, f"policy.{limit.least}", getattr(policy, limit.least))


def charged_events(site: SiteConfig, order: Order) -> tuple[Event, ...]:
    """Return what an order costs here: a seeded site's charges say that they are not private."""
    return order.events() if site.simulation_seed is None else as_seeded(order.events())


def check_weights(site: SiteConfig, order: Order, weights: Mapping[str, Any]) -> None:
    """See that the weights are those of the ordered network: names, shapes, types, finite and within policy.

    Raises:
        WireError: they are not.
        PolicyViolation: a weight is larger than the policy allows.

    """
    expected = _shapes(order.model.model_copy(update={"weights": "random"}))
    if set(weights) != set(expected):
        odd = min(set(weights) ^ set(expected))[:80]
        raise WireError(f'the weights are not those of the ordered network: "{odd}" is extra or missing')
    most = site.policy.maximum_weight
    for name, (shape, dtype) in expected.items():
        array = weights[name]
        if array.shape != shape or array.dtype != dtype:
            raise WireError(f'weight "{name}" is {array.dtype} {array.shape} (allowed: {dtype} {shape})')
        largest = float(np.abs(array).max(initial=0))
        if not np.isfinite(largest):
            raise WireError(f'weight "{name}" is not finite')
        if largest > most:
            _refuse(f'weight "{name}"', largest, "policy.maximum_weight", most)


@lru_cache(maxsize=8)
def _shapes(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Name -> shape and type of every weight."""
    state = outline(config).state_dict()
    return {
        name: (tuple(value.shape), torch.empty(0, dtype=value.dtype).numpy().dtype) for name, value in state.items()
    }


def trained_weights(order: RoundOrder) -> frozenset[str]:
    """Return the names of the weights that a round of an order may change."""
    return _trained(order.model.model_copy(update={"weights": "random"}), order.training.strategy)


@lru_cache(maxsize=8)
def _trained(config: ModelConfig, strategy: Strategy) -> frozenset[str]:
    return frozenset(name.removesuffix(SUFFIX) for name in trainable_names(outline(config), strategy))


Turner = Literal["site", "server, within the site's bounds", "nobody"]

_SITE = {
    "mechanisms": "what a round may do at all, and whether networks may be scored on patients (evaluation)",
    "unit": "who is protected: a patient, a picture, or a record where patients are not known",
    "epsilon": "every patient, over all runs and for ever",
    "epsilon_per_month": "the same, within one calendar month",
    "studies": "the same, by each federation; one that is not named may charge nothing",
    "delta": "the same",
    "adjacency": "what two data sets are told apart",
    "tiers": "patients who consented to less",
    "minimum_declared_patients": "small cohorts, in which one patient is much of the sum",
    "code_hash": "against code that was not vetted; outside the reach of bundles (wardpose site run)",
    "federations": "nothing by itself: a name is not authenticated; it keeps honest coordinators apart",
    "public_labels": "keypoints of public views",
    "certificate": "what the public view shows, and at which geometry it was measured",
    "own_public_basis": "what the site's own public views are used for",
    "maximum_weight": "arithmetic at its edge",
    "distributed_noise": "patients from the server by what other sites add, if it is true; by the site alone, if not",
    "colluding_sites": "the same, from a server in league with that many of them",
}

_NOBODY = {
    "clipping": "one unit moves a sum by C at most, whatever the weights (shared/privacy/clipping.py)",
    "sampling": "secret coins, one a unit and step (shared/privacy/sampling.py)",
    "noise": "from a cryptographic generator, drawn anew for each step (shared/privacy/noise.py)",
    "public batch": "drawn independently of the private one (shared/training/public_part.py)",
    "geometry of the public view": "that of its certificate (shared/anonymize/public_view.py)",
    "charge": "in full before a frame is read, and never taken back (shared/privacy/ledger.py)",
    "evaluation": "one vector of norm 1 at most for each patient (shared/privacy/evaluation.py)",
    "what leaves": "a noised update, or noised scores, and facts without patients (client/release.py)",
}


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A row of the table that `wardpose site policy` shows."""

    knob: str
    turned_by: Turner
    bound: str
    protects: str


def knobs(site: SiteConfig) -> list[Knob]:
    """List every knob: who may turn it, within what, and what that protects."""
    policy = site.policy
    rows = [
        Knob(knob=f"policy.{key}", turned_by="site", bound=str(_plain(getattr(policy, key))), protects=protects)
        for key, protects in _SITE.items()
    ]
    every: list[Limit[Any]] = [*LIMITS, *COMMON_LIMITS]
    for limit in every:
        key = limit.most or limit.least
        sign = "at most" if limit.most else "at least"
        rows.append(
            Knob(
                knob=limit.asked,
                turned_by="server, within the site's bounds",
                bound=f"{sign} policy.{key} = {getattr(policy, str(key))}",
                protects=limit.protects,
            )
        )
    rows += [Knob(knob=name, turned_by="nobody", bound="-", protects=protects) for name, protects in _NOBODY.items()]
    return rows


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _refuse(what: str, value: object, key: str, allowed: object) -> None:
    raise PolicyViolation(f"{what} {value!r} is not allowed by site policy ({key} = {allowed!r})")
