"""How much privacy a mechanism is *seen* to lose: the one-run audit of Steinke, Nasr and Jagielski (2305.08846).

m canaries are each included with probability 1/2, independently; the mechanism runs once; every canary gets
a score that should be higher when it was in. The auditor guesses for the r most telling scores and counts v
correct guesses. Under (epsilon, delta)-DP many correct guesses are improbable (their theorem 5.2), so the
count refutes every epsilon below a bound:

    audit(scores, included, delta=1e-5).epsilon_lower  # above the claimed epsilon: the mechanism is broken

A bound below the claim proves nothing; a bound above it is a violation at the stated confidence. For
feature-DP a canary is not put in or left out but has its frame *replaced* by another with the same public
view: `included` then says which of the two was used, and the claim is the replacement claim.

Everything here is arithmetic on arrays; what makes canaries and scores is elsewhere. What a claim about the kind of
noise adds is in `recursion`, what many runs add in `steps`, and all three together in `verdict`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from wardpose.shared.errors import ConfigError

FRACTIONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Shares of the canaries that are guessed on each side; fixed in advance, the error is divided among them."""


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What one audit shows.

    Attributes:
        epsilon_lower: epsilons below it are refuted at the confidence.
        canaries: m.
        guesses: r, of the choice that refutes most.
        correct: v.
        confidence: probability with which a sound mechanism's bound stays below its epsilon.
        delta: at which epsilon is meant.

    """

    epsilon_lower: float
    canaries: int
    guesses: int
    correct: int
    confidence: float
    delta: float

    def violates(self, epsilon_claimed: float) -> bool:
        """Tell whether the claim is refuted."""
        return self.epsilon_lower > epsilon_claimed


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability bound of at least `correct` right guesses under (epsilon, delta)-DP.

    With q = e^epsilon / (1 + e^epsilon) and B ~ Bin(r, q):
    p = P[B >= v] + 2 m delta max over i <= v of P[v - i <= B < v] / i (theorem 5.2 and appendix D of the
    paper).

    Raises:
        ConfigError: not 0 <= correct <= guesses <= canaries, or epsilon or delta is out of range.

    """
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise ConfigError(f"audit: {correct} correct of {guesses} guesses of {canaries} canaries is not possible")
    if not epsilon >= 0 or not 0 <= delta < 1:
        raise ConfigError(f"audit: epsilon is {epsilon} and delta {delta}; they must be at least 0, delta below 1")
    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, q))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    count = min(256, correct)
    while True:
        below = np.cumsum(binom.pmf(np.arange(correct - 1, correct - 1 - count, -1), guesses, q))
        slack = float(np.max(below / np.arange(1, count + 1)))
        if count == correct or slack >= 1 / (count + 1):  # P[...] / i is at most 1 / i: no later i can be larger
            break
        count = min(2 * count, correct)
    return min(1.0, tail + 2 * canaries * delta * slack)


def epsilon_lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, significance: float = 0.05
) -> float:
    """Largest epsilon, by bisection to 1e-5, that so many correct guesses refute at `significance`; 0 if none.

    Raises:
        ConfigError: as `p_value`, or the significance is not in (0, 1).

    """
    if not 0 < significance < 1:
        raise ConfigError(f"audit: significance is {significance}; it must be between 0 and 1")

    def refuted(epsilon: float) -> bool:
        p = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return p <= significance

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def guess(scores: ArrayLike, included: ArrayLike, *, most: int, least: int) -> int:
    """Guess "in" for the `most` highest scores, "out" for the `least` lowest; count the right guesses.

    Ties are broken by position, which says nothing about inclusion. Scores that are not finite are never
    guessed.

    Args:
        scores: (m,) one per canary; higher means "in".
        included: (m,) whether it was.
        most: how many are guessed to be in.
        least: how many are guessed to be out.

    Raises:
        ConfigError: the arrays do not fit, or there are fewer finite scores than guesses.

    """
    values, bits = _arrays(scores, included)
    finite = np.flatnonzero(np.isfinite(values))
    if most < 0 or least < 0 or most + least > len(finite):
        raise ConfigError(f"audit: {most} + {least} guesses of {len(finite)} canaries with a score")
    order = finite[np.argsort(values[finite], kind="stable")]
    return int(np.sum(~bits[order[:least]]) + np.sum(bits[order[len(order) - most :]]))


def guess_sizes(canaries: int, fractions: Sequence[float]) -> list[int]:
    """How many of so many canaries are guessed on each side, for each fraction in (0, 0.5]."""
    shares = [fraction for fraction in fractions if 0 < fraction <= 0.5]
    return sorted({max(1, math.floor(share * canaries)) for share in shares})


def audit(
    scores: ArrayLike,
    included: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    fractions: Sequence[float] = FRACTIONS,
) -> AuditResult:
    """Bound epsilon from below by scores and inclusion bits.

    The number of guesses is chosen among the `fractions` after looking, which is paid for by dividing the
    error among them (Bonferroni).

    Args:
        scores: (m,) one per canary; higher means "in".
        included: (m,) booleans, drawn by fair, independent coins.
        delta: of the claim that is tested.
        confidence: of the bound.
        fractions: shares, in (0, 0.5], guessed on each side.

    Raises:
        ConfigError: the arrays do not fit, are empty, or a value is out of range.

    """
    values, bits = _arrays(scores, included)
    sizes = guess_sizes(len(values), fractions)
    if len(values) < 2 or not sizes or not 0 < confidence < 1:
        raise ConfigError(f"audit: {len(values)} canaries, fractions {list(fractions)}, confidence {confidence}")
    results = []
    for size in sizes:
        correct = guess(values, bits, most=size, least=size)
        bound = epsilon_lower_bound(
            canaries=len(values),
            guesses=2 * size,
            correct=correct,
            delta=delta,
            significance=(1 - confidence) / len(sizes),
        )
        results.append(
            AuditResult(
                epsilon_lower=bound,
                canaries=len(values),
                guesses=2 * size,
                correct=correct,
                confidence=confidence,
                delta=delta,
            )
        )
    return max(results, key=lambda result: (result.epsilon_lower, result.correct))


def _arrays(scores: ArrayLike, included: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, bits = np.asarray(scores, np.float64), np.asarray(included)
    if values.ndim != 1 or values.shape != bits.shape or bits.dtype != np.bool_:
        raise ConfigError(f"audit: scores {values.shape} and inclusion bits {bits.shape} {bits.dtype} do not fit")
    return values, bits
