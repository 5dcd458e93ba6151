"""What the scores of an audit refute: three bounds, each with a third of the error, and the largest of them.

* `one-run`: (epsilon, delta)-DP directly (`bounds`): no assumption about the kind of noise, no use of many steps.
* `f-dp`: the trade-off function of a sampled Gaussian step (`recursion`): no use of many steps.
* `steps`: the same, and that steps are independent (`steps`).

The last two refute *noise multipliers*: a step with sigma is more private than one with less noise, so there is a
largest sigma that the observation does not refute (`most_noise`). The claim is made for a sigma too, and the lower
bound of epsilon is what the accountant would charge for that largest sigma: in the claim's own currency, whatever slack
that has. A claim is refuted exactly if its sigma is.

Every bound is above the truth with probability at most (1 - confidence) / 3, so the largest is with 1 - confidence.

Beside them stands what refutes more than privacy: noise of sigma that is independent from canary to canary
(`channels`), for canaries that are orthogonal. It has the whole error to itself and is not among the bounds that decide
whether a claim of privacy is refuted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.simulation.auditing import channels
from wardpose.simulation.auditing.bounds import FRACTIONS, audit, guess, guess_sizes
from wardpose.simulation.auditing.recursion import refuted
from wardpose.simulation.auditing.steps import WEIGHTS, evidence, gains
from wardpose.simulation.auditing.tradeoff import Family

Method = Literal["one-run", "f-dp", "steps"]
METHODS: tuple[Method, ...] = get_args(Method)

_LEAST, _MOST = 1 / 16, 1024.0  # noise multipliers among which the refuted ones are sought
_RESOLUTION = 1e-4  # of their logarithm


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was shown.

    Attributes:
        epsilons: lower bound by each method; the error is divided among them.
        noise: largest noise multiplier that is not refuted, of the methods that refute noise; infinite if none is.
        canaries: m.
        guesses: r, of the `one-run` choice that refutes most.
        correct: v.
        confidence: probability with which a sound mechanism stays above all bounds.
        delta: at which epsilon is meant.
        independent_noise: largest noise multiplier that is not refuted for noise that is independent from canary to
            canary; `None` where canaries overlap, and nothing is known of that.
        independent_epsilon: the lower bound of epsilon that belongs to it, at the confidence by itself.

    """

    epsilons: dict[Method, float]
    noise: dict[Method, float]
    canaries: int
    guesses: int
    correct: int
    confidence: float
    delta: float
    independent_noise: float | None
    independent_epsilon: float | None

    @property
    def epsilon_lower(self) -> float:
        """Epsilons below it are refuted at the confidence."""
        return max(self.epsilons.values())

    def violates(self, epsilon_claimed: float) -> bool:
        """Tell whether the claim is refuted."""
        return self.epsilon_lower > epsilon_claimed


def judge(
    likelihoods: NDArray[np.float64],
    included: NDArray[np.bool_],
    *,
    claimed: Mechanism,
    delta: float,
    confidence: float,
    orthogonal: bool = True,
) -> Verdict:
    """Bound epsilon of one step of a mechanism from below.

    Args:
        likelihoods: (R, n) of R independent steps with n canaries: how much likelier each canary's score is if it was
            in, as a logarithm; only the order of its values and how they compare with fixed numbers matter. NaN: not to
            be guessed.
        included: (R, n) whether it was, by fair, independent coins.
        claimed: the mechanism as it is accounted for.
        delta: of the claim.
        confidence: of the bound.
        orthogonal: whether canaries' contributions are, so that noise is independent from one to the next.

    Raises:
        ConfigError: the arrays do not fit, are empty, or a value is out of range.

    """
    each = (1 - confidence) / len(METHODS)
    values, bits = np.nan_to_num(likelihoods).ravel(), included.ravel()  # abstentions in the middle: guessed last
    family = Family(sample_rate=claimed.sample_rate, adjacency=claimed.adjacency)
    counts = [(2 * size, guess(values, bits, most=size, least=size)) for size in guess_sizes(len(values), FRACTIONS)]
    gained = np.stack([gains(likelihoods, included, weight) for weight in WEIGHTS])

    def by_counts(noise_multiplier: float) -> bool:
        trade_off = family.trade_off(noise_multiplier)
        return any(
            refuted(trade_off, canaries=len(values), guesses=r, correct=v, significance=each / len(counts))
            for r, v in counts
        )

    def by_steps(noise_multiplier: float) -> bool:
        return evidence(gained, WEIGHTS, family.divergences(noise_multiplier, WEIGHTS)) >= -math.log(each)

    def by_channels(noise_multiplier: float) -> bool:
        one = channels.channel(family, noise_multiplier)
        return any(
            channels.tail(one, canaries=len(values), guesses=r, wrong=r - v) <= (1 - confidence) / len(counts)
            for r, v in counts
        )

    independent = most_noise(by_channels) if orthogonal else None
    direct = audit(values, bits, delta=delta, confidence=1 - each)
    noise: dict[Method, float] = {"f-dp": most_noise(by_counts), "steps": most_noise(by_steps)}
    epsilons: dict[Method, float] = {"one-run": direct.epsilon_lower}
    for method, found in noise.items():
        epsilons[method] = epsilon_of(claimed, found, delta)
    return Verdict(
        epsilons=epsilons,
        noise=noise,
        canaries=direct.canaries,
        guesses=direct.guesses,
        correct=direct.correct,
        confidence=confidence,
        delta=delta,
        independent_noise=independent,
        independent_epsilon=None if independent is None else epsilon_of(claimed, independent, delta),
    )


def most_noise(is_refuted: Callable[[float], bool]) -> float:
    """Largest noise multiplier that is not refuted, rounded up by at most 0.01 %; infinite if 1024 is not.

    Args:
        is_refuted: of a noise multiplier; whatever is above a refuted one must be refuted as well.

    """
    low, high = math.log(_LEAST), math.log(_MOST)
    if not is_refuted(_MOST):
        return math.inf
    if is_refuted(_LEAST):
        return _LEAST
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        low, high = (low, middle) if is_refuted(math.exp(middle)) else (middle, high)
    return math.exp(high)


def epsilon_of(mechanism: Mechanism, noise_multiplier: float, delta: float) -> float:
    """Epsilon that a step of the mechanism is charged for with another noise multiplier; 0 at infinity."""
    if noise_multiplier == math.inf:
        return 0.0
    other = mechanism.model_copy(update={"noise_multiplier": noise_multiplier})
    return accounting.epsilon(other.events(1), delta=delta, adjacency=mechanism.adjacency)
