"""Many independent runs: what one-run bounds cannot use, and the audit's strongest evidence.

The canaries of an audit sit in R steps, n in each, and steps share neither coins nor noise. Inside a step a mechanism
may be careless about all canaries at once; but not more often than in its share of *steps*. So for a weight w >= 1 let

    X_s = mean over the n canaries of step s of (1 if guessed rightly, -w if wrongly, 0 if not guessed).

*Mean.* A guess "in" is an event S of the output, so P[S | in] - w P[S | out] <= H_w, the hockey-stick divergence
(`tradeoff`); likewise for "out". With a fair coin half of each is what a canary adds, so E[X_s] <= H_w, however
canaries of one step depend on each other: expectations add.

*Independence.* X_1 .. X_R are in [-w, 1], and whatever the steps before showed, the next one's mean is at most H_w. For
0 <= l <= 1 / (w + 1), 1 + l (X_s - H_w) is not negative and its mean is at most 1, so their product over the steps is
an e-value: it exceeds 1/a with probability at most a (Ville's and Markov's inequalities). So does the average of such
products over fixed w and l, which need not be chosen after looking (betting: Waudby-Smith and Ramdas 2024, "Estimating
means of bounded random variables by betting").

Nothing is asymptotic, and guesses and weights are fixed before the steps are run. If canaries of one step are in fact
independent, X_s has the variance of n independent guesses, so that with hundreds of steps little is lost by not
assuming it.

Inside a step nothing is assumed: a mechanism that is careless about all canaries at once, and rarely, is f-DP. What
independence of the noise within a step adds is in `channels` (arXiv 2509.08704), which refutes that and not f-DP.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from wardpose.shared.errors import ConfigError

WEIGHTS = (1.0, 1.5, 2.5, 5.0)
"""How many right guesses make up for a wrong one; fixed in advance."""

_STAKES = 2.0 ** -np.arange(12)  # l, in shares of the largest allowed


def gains(likelihoods: ArrayLike, included: ArrayLike, weight: float) -> NDArray[np.float64]:
    """X_s (R,) of guesses wherever the likelihood ratio is at least `weight`.

    Args:
        likelihoods: (R, n) logarithms of how much likelier a canary's score is if it was in; NaN: never guessed.
        included: (R, n) whether it was.
        weight: w, at least 1.

    Raises:
        ConfigError: the arrays do not fit, or the weight is below 1.

    """
    values, bits = np.asarray(likelihoods, np.float64), np.asarray(included)
    if values.ndim != 2 or values.shape != bits.shape or bits.dtype != np.bool_ or not values.size or not weight >= 1:
        raise ConfigError(f"audit: scores {values.shape}, inclusion bits {bits.shape} {bits.dtype}, weight {weight}")
    guessed = np.isfinite(values) & (values != 0) & (np.abs(values) >= math.log(weight))
    right = (values > 0) == bits
    return np.asarray((guessed * np.where(right, 1.0, -weight)).mean(axis=1))


def evidence(found: ArrayLike, weights: ArrayLike, divergences: ArrayLike) -> float:
    """Logarithm of the e-value against divergences of at most H_w; it falls as they rise.

    Args:
        found: (K, R) X_s of each weight.
        weights: (K,) w.
        divergences: (K,) H_w of what is to be refuted.

    """
    x, w, h = (np.asarray(values, np.float64) for values in (found, weights, divergences))
    stakes = _STAKES[:, None, None] / (w[:, None] + 1)  # (L, K, 1)
    with np.errstate(divide="ignore"):
        products = np.log1p(stakes * (x - h[:, None])).sum(axis=2)
    return float(logsumexp(products) - math.log(products.size))
