"""Noise in shares: each site adds a part of it, and only the sum over the sites has all of it.

Under secure aggregation (`wardpose.shared.secure_aggregation`) nobody sees anything but the sum over the sites that
survive a round. So the noise of one DP-SGD step over all cohorts together is enough, and each site adds a share. How
large a share must be depends on how many survive, which nobody knows when it is drawn. So a site adds what the fewest
allowed would need, in parts, and what turns out to be too much comes off the sum again, once it is known who survived
(the construction of XNoise: Jiang, Wang, Chen 2024, "Dordis", EuroSys, arXiv 2209.12528).

* A unit contributes an integer vector of norm at most C / grid = 2^20 (`clipping`): the sensitivity of the sum over all
  sites is that of one site, C, in exact arithmetic, rounding included.
* A site clamps its sum to a public bound a coordinate (which brings two sums no further apart).
* Of c survivors, t = `colluding` may tell the server their noise. So each of the others owes a variance of
  V(c) = (sigma C)^2 / (c - t). `levels` are numbers of survivors m = c_0 < .. < c_T = n, m being `minimum_survivors`.
* A site adds discrete Gaussians of variance V(c_T) and, for i = T .. 1, of V(c_{i-1}) - V(c_i): V(m) together, rounded
  up to whole scales. The i-th of them is needed below c_i survivors only.
* With c survivors, c_i <= c < c_{i+1}, the sum is freed of the parts 1 .. i, and of nothing else. Every honest survivor
  keeps V(c_i), and there are c - t >= c_i - t of them: their noise together has variance (sigma C)^2 or more, and that
  of everybody c / (c_i - t) times as much. With t = 0 and at a level that is exactly the central noise.

**Theorem** (for one step and integer order k; d coordinates, N parts in the honest survivors' noise, the smallest of
scale s on the grid). Whatever sites survive, chosen in whatever way before anything but masked vectors is seen, the
Rényi divergences of what the server and t sites see are at most those of the discrete Gaussian of multiplier sigma,
Poisson-sampled at the same rate, plus d tau (2k - 1) / (k - 1), with tau = 10 (N - 1) exp(-pi² s²).

*Proof.* Masked vectors are uniform and shares below the threshold tell nothing, so the list of survivors, one in a
round, is chosen independently of data and noise. Given the list, what is seen beside uniform numbers is a function of
the parts that come off, which are independent of data and of all other parts, and of the sum of the honest survivors'
clamped sums and the parts that they keep. Those have variance (sigma C)^2 or more. A sum of discrete Gaussians is no
discrete Gaussian, but its probabilities are within a factor exp(tau) of one with the same variance: adding one of scale
b to a sum of variance a² costs 5 exp(-2 pi² r²) either way, 1 / r² = 1 / a² + 1 / b² (Kairouz, Liu, Steinke 2021, arXiv
2102.06387, who add up equal scales in theorem 1; by Poisson's summation the sum's law is the wider Gaussian times
1 + 2 sum over j of exp(-2 pi² r² j²) cos(..), up to a constant). Here a and b are at least s, so r² >= s² / 2, and that
N - 1 times. So in d coordinates it is within exp(d tau), mixtures over the coins included. E_Q (P/Q)^k changes by at
most exp(k d tau + (k - 1) d tau). Shares of further honest sites, the clamped sums of others, reduction by the modulus
and all that the server computes are post-processing. The discrete Gaussian itself is accounted as `accounting` says,
and more variance costs less. ∎

On the grid of 2^20 steps to a clip norm no part is smaller than s = 2^10 (`DistributedNoise.scales`), so tau is below
exp(-10^7): for no model that fits a computer does the last term reach the accountant's rounding margin of 1e-14, and it
is not added. A Skellam sum (arXiv 2110.04995) would be exact, at the price of its L1 correction.

**What is charged** is sigma, before a frame is read, whoever then survives and whatever fails afterwards.

**One step a round.** Between two local steps a site would follow its own gradient with a share of the noise alone. That
intermediate model never leaves it, but the second step's query depends on it, and no published analysis bounds what
the sum of such updates tells. So a distributed round is one step over the union of the cohorts.

**Seen by one site.** A site knows its own share. `colluding: 1` is therefore the least that protects the patients of
one site from the curiosity of another; 0 protects them from the server and from outsiders only.

**Seen at several sites.** A patient of k sites has k contributions in one sum, under noise that is added once. That
costs more than k releases with their own noise, and `composition.overlapping_curve` charges it.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GRID_STEPS = 2**20
"""Grid steps to one clip norm; `clipping.GRID`, which builds on this."""

LEAST_SCALE = 2**10
"""Least scale of a part in grid steps: below it the theorem's tau would have to be charged."""

MOST_REMOVALS = 4
"""Most parts that may come off: each of them is drawn once at every site, and again by the server for every site."""

_OVERFLOW = 1e-12  # probability with which any coordinate of a round's sum may leave the modulus


def levels(minimum_survivors: int, sites: int) -> tuple[int, ...]:
    """Return the numbers of survivors at which less noise is enough, from the fewest to everybody.

    Up to `MOST_REMOVALS` missing sites every number is one; beyond, what is between two keeps the lower one's noise.

    Examples:
        >>> levels(8, 10), levels(40, 50), levels(4, 4)
        ((8, 9, 10), (40, 42, 45, 47, 50), (4,))

    """
    missing = sites - minimum_survivors
    steps = min(missing, MOST_REMOVALS)
    return tuple(minimum_survivors + (missing * step // steps if steps else 0) for step in range(steps + 1))


class DistributedNoise(BaseModel):
    """How a round's noise is shared out, and the integers that carry it.

    Examples:
        >>> noise = DistributedNoise(sites=10, minimum_survivors=8, colluding=1)
        >>> [round(scale / GRID_STEPS, 3) for scale in noise.scales(1.0, sites=10)]
        [0.333, 0.134, 0.118]

    Attributes:
        sites: that may take part in a round, at most.
        minimum_survivors: sites whose masked sums a round needs; with fewer it fails, and is charged.
        colluding: sites that may tell the server all they know, without the guarantee being lost.
        bits: of a masked integer; its modulus is 2^bits.

    Raises:
        pydantic.ValidationError: there would be no honest survivor, or more survivors than sites.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: int = Field(ge=1, le=10_000)
    minimum_survivors: int = Field(ge=1, le=10_000)
    colluding: int = Field(default=1, ge=0, le=10_000)
    bits: Literal[24, 32, 40, 48, 56] = 32

    @model_validator(mode="after")
    def _somebody_is_honest(self) -> Self:
        if self.colluding >= self.minimum_survivors:
            raise ValueError(
                f"colluding is {self.colluding}; allowed: fewer than minimum_survivors = {self.minimum_survivors}"
            )
        if self.minimum_survivors > self.sites:
            raise ValueError(f"minimum_survivors is {self.minimum_survivors}; allowed: at most sites = {self.sites}")
        return self

    @property
    def shares(self) -> int:
        """Honest sites' shares of the noise when nobody is missing; then each is smallest."""
        return self.sites - self.colluding

    def scales(self, noise_multiplier: float, *, sites: int) -> tuple[int, ...]:
        """Return the scales, in grid steps, of the parts of one site's noise: of what it keeps, and of part 1 to T.

        Part i comes off again with `levels[i]` survivors or more. The squares of what is left then add up to V or, as
        scales are whole, a little more; never less, exactly.

        Args:
            noise_multiplier: sigma of the sum over sites.
            sites: that take part.

        Raises:
            ValueError: a share would be too small for the theorem.

        """
        counts = levels(self.minimum_survivors, sites)
        variances = [(Fraction(noise_multiplier) * GRID_STEPS) ** 2 / (count - self.colluding) for count in counts]
        if noise_multiplier == 0:
            return (0,) * len(counts)
        found: list[int] = []
        for variance in reversed(variances):
            scale = _root(variance - sum(earlier**2 for earlier in found))
            if not found and scale < LEAST_SCALE:
                shares = counts[-1] - self.colluding
                least = LEAST_SCALE * math.sqrt(shares) / GRID_STEPS
                raise ValueError(f"noise_multiplier is {noise_multiplier}; allowed with {shares} shares: {least:.3g}")
            found.append(max(scale, LEAST_SCALE))
        return (found[0], *reversed(found[1:]))

    def largest_site_sum(self, noise_multiplier: float, *, sites: int, coordinates: int) -> int:
        """Return the bound, in grid steps, to which each site clamps a coordinate of its sum before noise is added.

        With it the sum over all `sites` leaves the modulus in no coordinate, but for a probability of 1e-12: the noise
        of n sites is sub-Gaussian with parameter n V(m) (Canonne, Kamath, Steinke 2020, section 2).

        Examples:
            >>> noise = DistributedNoise(sites=10, minimum_survivors=8)
            >>> noise.largest_site_sum(1.0, sites=10, coordinates=2_900_000) >> 20
            203

        Raises:
            ValueError: not even one unit of each site would fit.

        """
        tail = math.sqrt(2 * math.log(2 * max(coordinates, 1) / _OVERFLOW))
        variance = sum(scale**2 for scale in self.scales(noise_multiplier, sites=sites))
        noise = math.ceil(tail * math.sqrt(variance * sites))
        bound: int = (2 ** (self.bits - 1) - 1 - noise) // sites
        if bound < GRID_STEPS:
            raise ValueError(
                f"bits is {self.bits}; allowed for {sites} sites at noise_multiplier {noise_multiplier}: "
                f"{math.ceil(math.log2(sites * GRID_STEPS + noise + 1)) + 1} or more"
            )
        return bound


def log_tau(scales: Sequence[float]) -> float:
    """Log of tau, by which a sum of discrete Gaussians of such scales may differ from one; -inf for a single one.

    Examples:
        >>> log_tau([LEAST_SCALE] * 50) < -1e7
        True

    """
    variance, exponents = 0.0, []
    for scale in scales:
        if variance:
            exponents.append(-2 * math.pi**2 / (1 / variance + 1 / scale**2))
        variance += scale**2
    if not exponents:
        return -math.inf
    top = max(exponents)
    return math.log(10) + top + math.log(sum(math.exp(exponent - top) for exponent in exponents))


def _root(variance: Fraction) -> int:
    """Return the least integer whose square is not below."""
    return math.isqrt(math.ceil(variance) - 1) + 1 if variance > 0 else 0
