"""Whether a plan would be carried out here: its first order held against the policy, its cost against the ledger.

The order is the one that the coordinator would build on unspent cohorts (`shared/first_course.py`), and goes through
the very checks of a preflight (`client/policy.py`). Where budgets were spent before, the coordinator may take more
noise than is counted with here.
"""

from collections.abc import Iterator
from pathlib import Path

from wardpose.client.check import copy_of
from wardpose.client.findings import Finding, finding
from wardpose.client.policy import charged_events, check_order
from wardpose.client.site import Site
from wardpose.shared.config import FederationConfig, load_federation
from wardpose.shared.errors import BudgetExceeded, ConfigError, PolicyViolation
from wardpose.shared.first_course import first_course
from wardpose.shared.messages import RoundOrder
from wardpose.shared.privacy.accounting import as_seeded
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.version import code_hash

_NO_WEIGHTS = "0" * 64


def check_plan(site: Site, path: Path) -> Iterator[Finding]:
    """Hold a plan against what this site allows and has left.

    Args:
        site: the opened site.
        path: of the federation.yaml.

    Yields:
        Findings called `plan`.

    """
    plan = load_federation(path)
    names = [entry.name for entry in plan.sites]
    if site.config.site not in names:
        yield finding(
            "plan",
            "failure",
            f"{path}: {site.config.site!r} is not among its sites ({', '.join(names)}): ask the "
            "coordinator for the plan that names this site",
        )
        return
    try:
        order = first_order(plan)
    except ConfigError as error:
        yield finding("plan", "failure", f"{path}: {error}; tell the coordinator")
        return
    try:
        check_order(site.config, order)
        _afford(site, order)
    except PolicyViolation as violation:
        yield finding("plan", "failure", f"{path}: {violation}; the coordinator changes the plan, or you the policy")
        return
    except BudgetExceeded as error:
        yield finding("plan", "failure", f"{path}: {error}")
        return
    wait, answer = plan.server.deadline_seconds, site.config.answer_seconds
    if wait <= answer:
        yield finding(
            "plan",
            "failure",
            f"{path}: server.deadline_seconds is {wait:g}, and answers leave here {answer:g} s after an order at "
            "the soonest (answer_seconds): each would be late; the coordinator waits longer, or you hide less of a "
            "round's length",
        )
        return
    mechanism = order.mechanism
    noise = f", sigma {mechanism.noise_multiplier:g}" if mechanism.is_private and mechanism.schedule is None else ""
    yield finding(
        "plan",
        "ok",
        f"{path}: {plan.rounds} rounds of {mechanism.name}, unit {mechanism.unit}{noise}, epsilon "
        f"{plan.privacy.epsilon:g} at delta {plan.privacy.delta:g}: the policy allows it, and the budget bears it",
    )


def first_order(plan: FederationConfig) -> RoundOrder:
    """Return the order that a new run of a plan begins with, without weights.

    Raises:
        ConfigError: the plan cannot be carried out by anybody.

    """
    return RoundOrder(
        course=first_course(plan, run="plan-check"),
        round=1,
        model=plan.model.model_copy(update={"weights": "random"}),
        training=plan.training,
        weights_hash=_NO_WEIGHTS,
        code_hash=code_hash(),
    )


def _afford(site: Site, order: RoundOrder) -> None:
    """See that the whole course could be charged now; a copy of the ledger is read, and nothing is.

    Raises:
        BudgetExceeded: it could not.

    """
    config, mechanism = site.config, order.mechanism
    budget = site.budget(private=mechanism.is_private or not mechanism.reads_private)
    whole = order.course.whole()
    events = whole if config.simulation_seed is None else as_seeded(whole)
    with copy_of(config.ledger) as copy:
        ledger = Ledger(copy, readonly=copy.exists(), signer=site.signer)
        if not copy.exists():
            ledger.begin()
        for charged in (events, charged_events(config, order)):
            ledger.check(config.cohort.name, charged, budget=budget, course=order.course)
