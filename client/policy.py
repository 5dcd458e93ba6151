"""The site decides: every order is held against the site's own policy before any patient's frame is read."""

from wardpose.shared.errors import PolicyViolation
from wardpose.shared.site_config import SiteConfig
from wardpose.shared.version import code_hash
from wardpose.shared.wire import RoundOrder


def check_order(site: SiteConfig, order: RoundOrder) -> None:
    """Hold an order against the site's policy.

    Raises:
        PolicyViolation: names the order's value and the policy's key and limit.

    """
    policy, mechanism = site.policy, order.mechanism
    if policy.federations and order.federation not in policy.federations:
        _refuse("federation", order.federation, "policy.federations", list(policy.federations))
    if mechanism.name not in policy.mechanisms:
        _refuse("mechanism", mechanism.name, "policy.mechanisms", list(policy.mechanisms))
    if policy.unit == "patient" and mechanism.unit != "patient":
        _refuse("unit", mechanism.unit, "policy.unit", policy.unit)
    if mechanism.largest_sample_rate > policy.maximum_sample_rate:
        _refuse("sample_rate", mechanism.largest_sample_rate, "policy.maximum_sample_rate", policy.maximum_sample_rate)
    if policy.adjacency == "replace-one" and mechanism.adjacency != "replace-one":
        _refuse("adjacency", mechanism.adjacency, "policy.adjacency", policy.adjacency)
    if mechanism.uses_public_views and mechanism.feature.labels == "ground-truth" and not policy.public_labels:
        _refuse("feature.labels", mechanism.feature.labels, "policy.public_labels", policy.public_labels)
    if mechanism.uses_public_views and site.public_view is None:
        _refuse("mechanism", mechanism.name, "public_view", None)
    if mechanism.uses_basis and mechanism.projection.source == "public" and not site.public_data:
        _refuse("mechanism", mechanism.name, "public_data", [])
    if set(mechanism.tiers) != set(site.cohort.declared_tiers):
        _refuse("tiers", sorted(mechanism.tiers), "cohort.declared_tiers", sorted(site.cohort.declared_tiers))
    if mechanism.uses_basis and mechanism.projection.source == "public-views" and not policy.own_public_basis:
        _refuse(
            "projection.source",
            mechanism.projection.source,
            "policy.own_public_basis",
            policy.own_public_basis,
        )
    if order.training.steps > policy.maximum_steps_per_round:
        _refuse("steps", order.training.steps, "policy.maximum_steps_per_round", policy.maximum_steps_per_round)
    if site.cohort.declared_patients < policy.minimum_declared_patients:
        _refuse(
            "cohort",
            site.cohort.declared_patients,
            "policy.minimum_declared_patients",
            policy.minimum_declared_patients,
        )
    if policy.code_hash is not None and policy.code_hash != code_hash():
        _refuse("installed code", code_hash(), "policy.code_hash", policy.code_hash)
    scheduled = mechanism.schedule is not None
    weakest = mechanism.smallest_noise_multiplier if scheduled else mechanism.effective_noise_multiplier
    if mechanism.is_private and weakest < policy.minimum_noise_multiplier:
        _refuse(
            "noise_multiplier",
            weakest,
            "policy.minimum_noise_multiplier",
            policy.minimum_noise_multiplier,
        )


def _refuse(what: str, value: object, key: str, allowed: object) -> None:
    raise PolicyViolation(f"{what} {value!r} is not allowed by site policy ({key} = {allowed!r})")
