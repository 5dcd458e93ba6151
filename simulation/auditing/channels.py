"""One run whose canaries do not disturb each other: the errors of the surest guesses, exactly.

Setting and result are those of arXiv 2509.08704 ("Tight Privacy Audit in One Run", Xiang, Wang, Xiao, Tian, Wang 2025:
a run is compared with m independent channels, the surest guesses by order statistics); we know its abstract and what
programs say of it, so what is proved here is proved from scratch and stands by itself.

Let canary i have a fair coin and a *channel*: an observation y_i from P if the coin says in, from Q if out, independent
of everything else. Let the release be any function (with any further randomness) of all y_i, even of all together.
Whatever r canaries are guessed about, chosen by looking at the release, the number of wrong guesses is at least,
in distribution, that of r independent errors with the r smallest of the probabilities

    g(y_i) = min(p(y_i), q(y_i)) / (p(y_i) + q(y_i)),    y_i from (P + Q) / 2.

*Proof.* Whoever sees the y_i sees more. Given them the coins are independent, and any guess about i is wrong with
probability g(y_i) or 1 - g(y_i) >= g(y_i); errors of the chosen r are therefore independent given the y_i, their
probabilities, sorted, at least the r smallest, and a sum of independent errors rises with each of them.

*The tail.* Let V_i be the place of g(y_i) among all values, uniform on 0..1. Given that the (r + 1)-th smallest is t,
the r before it are independent and uniform below t, so that errors are binomial with the mean of g over those places,

    G(t) = 1/t * integral of g from 0 to t,    P[errors <= u] = E[Bin(r, G(t)) <= u],    t from Beta(r + 1, m - r),

and t = 1 if all are guessed about. g is replaced by a step function below it and the expectation by its upper sum (the
binomial tail falls as t rises), both of which refute less.

**What it refutes, and what not.** A step of the engine on canaries whose contributions are orthogonal is such a
release: in their directions isotropic noise is independent, and each canary is sampled by a coin of its own. The
hypothesis that is refuted is thus noise of sigma *that is independent from canary to canary*, which is what the engine
claims to add. It is not f-DP: a mechanism that is careless about all canaries at once, and rarely, is f-DP and is
refuted far too often (a test has one). `violated` therefore does not listen to it; see `recursion` and `steps`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, expit, ndtr
from scipy.stats import binom

from wardpose.shared.errors import ConfigError
from wardpose.simulation.auditing.tradeoff import Family

_BINS = 8001
_FARTHEST = 9.0  # standard deviations; beyond, a guess is taken to be certain
_TAILS = (0.0, 1e-12, 1e-9, 1e-6, 1e-5, 1e-4, 1e-3)
_CELLS = np.concatenate([_TAILS, np.linspace(2e-3, 1, 500)])  # probabilities of the (r + 1)-th place


@dataclass(frozen=True, kw_only=True, eq=False)
class Channel:
    """How sure a guess can be.

    Attributes:
        shares: (K + 1,) rising from 0 to 1: how often a guess is at least as sure as step k's.
        errors: (K + 1,) integral of g up to there.

    """

    shares: NDArray[np.float64]
    errors: NDArray[np.float64]

    def mean_error(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """G(t) at shares t in 0..1; at 0 its limit."""
        below = np.interp(share, self.shares, self.errors)
        first = self.errors[1] / self.shares[1]
        return np.where(share > 0, below / np.where(share > 0, share, 1), first)


def channel(family: Family, noise_multiplier: float) -> Channel:
    """Make the channel of one canary in one sampled Gaussian step, the likelihood ratio monotone along the line."""
    q, shift = family.sample_rate, 1 / noise_multiplier
    x = np.linspace(-_FARTHEST - shift, _FARTHEST + shift, _BINS)
    other = -shift if family.adjacency == "replace-one" else 0.0

    def mixture(mean: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distribution function, and logarithm of the density over that of N(0)."""
        cumulative = (1 - q) * ndtr(x) + q * ndtr(x - mean)
        with np.errstate(divide="ignore"):
            density = np.logaddexp(np.log1p(-q), np.log(q) + mean * x - mean**2 / 2)
        return cumulative, density

    (first, p), (second, r) = mixture(shift), mixture(other)
    wrong = expit(-np.abs(p - r))
    mass = np.diff(np.concatenate([[0.0], (first + second) / 2, [1.0]]))
    # g rises to 1/2 where both are as likely and falls again: over a bin it is at least the smaller of its ends.
    least = np.concatenate([[0.0], np.minimum(wrong[:-1], wrong[1:]), [0.0]])
    order = np.argsort(least, kind="stable")
    shares = np.concatenate([[0.0], np.cumsum(mass[order])])
    errors = np.concatenate([[0.0], np.cumsum((mass * least)[order])])
    rising = np.concatenate([[True], np.diff(shares) > 0])  # far out, bins hold less than rounding shows
    return Channel(shares=shares[rising] / shares[-1], errors=errors[rising])


def tail(one: Channel, *, canaries: int, guesses: int, wrong: int) -> float:
    """Probability, at most, of so few `wrong` ones among `guesses` guesses about `canaries` independent channels.

    Raises:
        ConfigError: not 0 <= wrong <= guesses <= canaries, or nothing is guessed.

    """
    if not 0 <= wrong <= guesses <= canaries or guesses < 1:
        raise ConfigError(f"audit: {wrong} wrong of {guesses} guesses about {canaries} canaries is not possible")
    if guesses == canaries:
        return float(binom.cdf(wrong, guesses, one.errors[-1]))
    places = betaincinv(guesses + 1, canaries - guesses, _CELLS[:-1])
    return float(np.diff(_CELLS) @ binom.cdf(wrong, guesses, one.mean_error(places)))
