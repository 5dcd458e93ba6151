"""The course that a plan declares while nobody has spent anything: what a site can work out from the plan alone.

The coordinator's own choice (`server/course.py`) begins here, and goes on where budgets were spent before.
"""

from collections.abc import Sequence

from pydantic import ValidationError

from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy import filters
from wardpose.shared.privacy.accounting import Event, calibrate, epsilon
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import Evaluation
from wardpose.shared.privacy.mechanisms import Mechanism, with_values
from wardpose.shared.yaml_config import describe

LARGEST_SIGMA = 2.0**19


def first_course(config: FederationConfig, *, run: str) -> Course:
    """Return the course of a plan's new run on unspent cohorts.

    Args:
        config: the plan.
        run: identity of the run.

    Raises:
        BudgetExceeded: evaluations leave nothing for training.
        ConfigError: no noise is enough.

    """
    config = config.model_copy(update={"mechanism": config.ordered_mechanism})
    mechanism = config.mechanism

    def course(mechanism: Mechanism) -> Course:
        return Course(
            run=run,
            federation=config.name,
            mechanism=mechanism,
            steps=config.training.steps,
            first_round=1,
            last_round=config.rounds,
            evaluation=declared_evaluation(config, first=1),
        )

    if not mechanism.is_private or mechanism.schedule is not None or mechanism.noise_multiplier:
        return course(mechanism)
    steps = config.rounds * config.training.steps
    return course(
        with_noise(mechanism, unspent_sigma(config, mechanism, steps=steps, aside=course(mechanism).set_aside()))
    )


def unspent_sigma(config: FederationConfig, mechanism: Mechanism, *, steps: int, aside: Sequence[Event]) -> float:
    """Return the smallest noise multiplier with which so many steps cost the plan's epsilon, evaluations included.

    Args:
        config: the plan.
        mechanism: as ordered, without noise of its own.
        steps: of all rounds.
        aside: what evaluations will cost.

    """
    return calibrate(
        epsilon=config.privacy.epsilon,
        delta=filters.COURSE_SHARE * config.privacy.delta,
        sample_rate=mechanism.largest_sample_rate,
        steps=steps,
        spent=aside,
        noise=mechanism.events(1)[0].noise,
        adjacency=mechanism.adjacency,
    )


def declared_evaluation(config: FederationConfig, *, first: int) -> Evaluation | None:
    """Return what a course from round `first` on declares of evaluations; `None` where the plan asks for none.

    Raises:
        ConfigError: no noise is enough.

    """
    plan = config.server.evaluation
    if plan is None:
        return None
    times = len(rounds_between(config, first=first)) + 1
    mechanism, sigma = config.mechanism, plan.noise_multiplier
    if plan.epsilon is not None:
        sigma = calibrate(
            epsilon=plan.epsilon,
            delta=filters.COURSE_SHARE * config.privacy.delta,
            sample_rate=1.0,
            steps=times,
            noise="discrete-gaussian" if mechanism.discrete else "gaussian",
            adjacency=mechanism.adjacency,
        )
    try:
        evaluation = Evaluation.model_validate(
            {
                "metric": config.server.score,
                "noise_multiplier": sigma,
                "times": times,
                "frames": plan.frames,
                "loss_clip": plan.loss_clip,
            }
        )
    except ValidationError as error:
        raise ConfigError(f"server.evaluation: {describe(error)}") from error
    event = evaluation.event(times, unit=mechanism.unit, adjacency=mechanism.adjacency, noise="gaussian")
    alone = epsilon([event], delta=filters.COURSE_SHARE * config.privacy.delta, adjacency=mechanism.adjacency)
    if alone >= config.privacy.epsilon:
        raise ConfigError(
            f"server.evaluation.noise_multiplier = {evaluation.noise_multiplier}: {times} evaluations cost epsilon "
            f"{alone:.3g} by themselves (allowed: less than privacy.epsilon = {config.privacy.epsilon})"
        )
    return evaluation


def rounds_between(config: FederationConfig, *, first: int) -> tuple[int, ...]:
    """Return the rounds, from `first` on, after which the plan evaluates; it does so after the last one, too."""
    plan = config.server.evaluation
    if plan is None or plan.every == "final":
        return ()
    return tuple(number for number in range(first, config.rounds) if number % plan.every == 0)


def with_noise(mechanism: Mechanism, sigma: float, *, checked: bool = True) -> Mechanism:
    """Return the mechanism whose queries together amount to sigma.

    Raises:
        ConfigError: the residual's noise spends the budget alone.

    """
    residual = mechanism.projection.residual if mechanism.uses_basis else None
    if residual is not None:
        rest = sigma**-2 - residual.noise_multiplier**-2
        if rest <= 0:
            if not checked:  # a search may pass where a plan may not: as little as the residual alone
                return mechanism.model_copy(update={"noise_multiplier": LARGEST_SIGMA})
            raise ConfigError(
                f"mechanism.projection.residual.noise_multiplier = {residual.noise_multiplier}: "
                f"spends the budget alone (allowed: above {sigma:g})"
            )
        sigma = rest**-0.5
    return (
        with_values(mechanism, noise_multiplier=sigma)
        if checked
        else mechanism.model_copy(update={"noise_multiplier": sigma})
    )
