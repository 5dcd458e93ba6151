"""Which course a run declares: sigma as the plan states it, else the smallest that fits what is left of the budget.

A new run on unspent cohorts gets the sigma at which its whole course costs epsilon as one list. Where something was
spent before, or a round was lost so that the declared course no longer holds the rounds that are left, only the Rényi
filter bounds what orders that were chosen after a release may cost (`shared/privacy/filters.py`), and sigma is
calibrated by it. Ledgers do not depend on any patient's data, so neither does sigma.
"""

import logging
import math
from collections.abc import Mapping, Sequence

from wardpose.server.ledger import ServerLedger
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import BudgetExceeded
from wardpose.shared.first_course import LARGEST_SIGMA, declared_evaluation, unspent_sigma, with_noise
from wardpose.shared.privacy import filters
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.filters import Charged
from wardpose.shared.privacy.mechanisms import Mechanism

logger = logging.getLogger("wardpose.server")

_DIGITS = 4


def declare(
    config: FederationConfig, ledger: ServerLedger, *, run: str, rounds_done: int = 0, before: str = ""
) -> Course:
    """Return the course of the rounds that are left.

    Args:
        config: the plan.
        ledger: the server's.
        run: identity of the run.
        rounds_done: rounds that a resumed run has behind it.
        before: the course that the run declared earlier, as JSON; empty for a new run.

    Raises:
        BudgetExceeded: nothing is left.
        ConfigError: no noise is enough.

    """
    config = config.model_copy(update={"mechanism": config.ordered_mechanism})
    first = min(rounds_done + 1, config.rounds)
    spent = {entry.name: ledger.charges(ledger.account_of(entry.name)) for entry in config.sites}
    old = Course.model_validate_json(before) if before else None
    if old is not None and old.last_round == config.rounds and _holds(old, spent, config.rounds - rounds_done):
        if old.evaluation == declared_evaluation(config, first=old.first_round):
            return old
        logger.warning("server.evaluation is another one: the run declares a new course, which costs more")

    evaluation = declared_evaluation(config, first=first)

    def course(mechanism: Mechanism) -> Course:
        return Course(
            run=run,
            federation=config.name,
            mechanism=mechanism,
            steps=config.training.steps,
            first_round=first,
            last_round=config.rounds,
            evaluation=evaluation,
        )

    mechanism = config.mechanism
    if rounds_done >= config.rounds or not mechanism.is_private:
        return course(mechanism)
    if mechanism.schedule is not None or mechanism.noise_multiplier:
        return course(mechanism)
    try:
        sigma = _sigma(config, spent, ledger.first_order(), config.rounds - rounds_done, course(mechanism).set_aside())
    except BudgetExceeded as error:
        if old is None:
            raise
        if old.last_round != config.rounds:
            raise BudgetExceeded(
                f"rounds is {config.rounds}: {error} (allowed: rounds = {old.last_round}, as the run's course declared)"
            ) from error
        logger.warning("a round was lost, and nothing is left to make up for it: the run ends when its course does")
        return old
    return course(with_noise(mechanism, sigma))


def _holds(course: Course, spent: Mapping[str, Sequence[Charged]], rounds: int) -> bool:
    """Tell whether a declared course still has so many rounds for every site."""
    rounds_events = course.training()
    declared = sum(event.steps for event in rounds_events if event.tier == rounds_events[0].tier)
    for charges in spent.values():
        charged_here = [event for charge in charges if charge.course == course.identity for event in charge.total]
        mine = filters.without_evaluations(charged_here)
        charged = sum(event.steps for event in mine if event.tier == mine[0].tier)
        if charged + rounds * course.steps > declared:
            return False
    return True


def _sigma(
    config: FederationConfig,
    spent: Mapping[str, Sequence[Charged]],
    first_order: int | None,
    rounds: int,
    aside: Sequence[Event],
) -> float:
    """Return the smallest noise multiplier with which the rounds that are left fit every site's budget.

    Beside them, what evaluations will cost (`aside`) must fit.
    """
    privacy, mechanism, steps = config.privacy, config.mechanism, rounds * config.training.steps
    if not any(charge.events for charges in spent.values() for charge in charges):
        return unspent_sigma(config, mechanism, steps=steps, aside=aside)
    worst = max(spent.values(), key=lambda charges: _cost(charges, config, first_order))

    def cost(sigma: float) -> float:
        new = Charged(course="new", events=(*aside, *with_noise(mechanism, sigma, checked=False).events(steps)))
        return _cost([*worst, new], config, first_order)

    already = _cost(worst, config, first_order)
    if already >= privacy.epsilon or cost(LARGEST_SIGMA) > privacy.epsilon:
        raise BudgetExceeded(
            f"epsilon {already:.4g} is spent already, of {privacy.epsilon:.4g} at delta {privacy.delta:g}, and a new "
            "course is bounded by the Rényi filter: no noise is enough"
        )
    low, high = 2.0**-10, LARGEST_SIGMA
    while high / low > 1 + 10.0**-_DIGITS:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= privacy.epsilon else (middle, high)
    return float(f"{high * (1 + 0.5 * 10.0**-_DIGITS):.{_DIGITS + 1}g}")


def _cost(charges: Sequence[Charged], config: FederationConfig, first_order: int | None) -> float:
    return filters.account(
        charges, delta=config.privacy.delta, adjacency=config.mechanism.adjacency, first_order=first_order
    ).renyi_filter
