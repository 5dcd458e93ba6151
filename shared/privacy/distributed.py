"""Noise in shares: each site adds a part of it, and only the sum over the sites has all of it.

Under secure aggregation (`wardpose.shared.secure_aggregation`) nobody sees anything but the sum over the sites that
survive a round. So the noise of one DP-SGD step over all cohorts together is enough, and each site adds a share:

* A unit contributes an integer vector of norm at most C / grid = 2^20 (`clipping`): the sensitivity of the sum over all
  sites is that of one site, C, in exact arithmetic, rounding included.
* A site clamps its sum to a public bound a coordinate (which brings two sums no further apart) and adds a discrete
  Gaussian of scale s = sigma C / sqrt(h), where h = `minimum_survivors` - `colluding`.
* The sum is unmasked only if `minimum_survivors` sites or more have sent theirs. Whoever watches with the server and up
  to `colluding` sites, and hence can subtract those sites' noise, still faces h honest shares or more.

**Theorem** (for one step and integer order k; d coordinates, h honest shares of scale s on the grid). The Rényi
divergences of the sum are at most those of the discrete Gaussian of multiplier sigma, Poisson-sampled at the same rate,
plus d tau (2k - 1) / (k - 1), with tau = 10 sum over j = 1 .. h-1 of exp(-2 pi² s² j / (j + 1)).

*Proof.* A sum of discrete Gaussians is no discrete Gaussian, but its probabilities are within a factor exp(tau) of one
whose variance is h s² (Kairouz, Liu, Steinke 2021, arXiv 2102.06387, theorem 1), hence within exp(d tau) in d
coordinates, mixtures over the coins included. E_Q (P/Q)^k changes by at most exp(k d tau + (k - 1) d tau). Shares of
further honest sites, the clamped sums of others, reduction by the modulus and all that the server computes are
post-processing. The discrete Gaussian itself is accounted as `accounting` says. ∎

On the grid of 2^20 steps to a clip norm every share has s >= 2^10 (`DistributedNoise.scale` refuses less), so tau is
below exp(-10^7): for no model that fits a computer does the last term reach the accountant's rounding margin of 1e-14,
and it is not added. A Skellam sum (arXiv 2110.04995) would be exact, at the price of its L1 correction.

**One step a round.** Between two local steps a site would follow its own gradient with a share of the noise alone. That
intermediate model never leaves it, but the second step's query depends on it, and no published analysis bounds what
the sum of such updates tells. So a distributed round is one step over the union of the cohorts.

**Seen by one site.** A site knows its own share. `colluding: 1` is therefore the least that protects the patients of
one site from the curiosity of another; 0 protects them from the server and from outsiders only.

**Seen at several sites.** A patient of k sites has k contributions in one sum, under noise that is added once. That
costs more than k releases with their own noise, and `composition.overlapping_curve` charges it.
"""

import math
from fractions import Fraction
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

GRID_STEPS = 2**20
"""Grid steps to one clip norm; `clipping.GRID`, which builds on this."""

LEAST_SCALE = 2**10
"""Least scale of a share in grid steps: below it the theorem's tau would have to be charged."""

_OVERFLOW = 1e-12  # probability with which any coordinate of a round's sum may leave the modulus


class DistributedNoise(BaseModel):
    """How a round's noise is shared out, and the integers that carry it.

    Examples:
        >>> noise = DistributedNoise(minimum_survivors=8, colluding=1)
        >>> noise.honest, noise.scale(1.0) / GRID_STEPS  # doctest: +ELLIPSIS
        (7, 0.3779...)

    Attributes:
        minimum_survivors: sites whose masked sums a round needs; with fewer it fails, and is charged.
        colluding: sites that may tell the server all they know, without the guarantee being lost.
        bits: of a masked integer; its modulus is 2^bits.

    Raises:
        pydantic.ValidationError: there would be no honest survivor.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum_survivors: int = Field(ge=1, le=10_000)
    colluding: int = Field(default=1, ge=0, le=10_000)
    bits: Literal[24, 32, 40, 48, 56] = 32

    @model_validator(mode="after")
    def _somebody_is_honest(self) -> Self:
        if self.honest < 1:
            raise ValueError(
                f"colluding is {self.colluding}; allowed: fewer than minimum_survivors = {self.minimum_survivors}"
            )
        return self

    @property
    def honest(self) -> int:
        """Shares of noise that are in every sum whatever colluding sites subtract: h."""
        return self.minimum_survivors - self.colluding

    def scale(self, noise_multiplier: float) -> int:
        """Return the scale s of one share in grid steps: the least integer with h s² >= (sigma 2^20)², exactly.

        Raises:
            ValueError: a share would be too small for the theorem.

        """
        squared = (Fraction(noise_multiplier) * GRID_STEPS) ** 2 / self.honest
        scale = math.isqrt(math.ceil(squared) - 1) + 1 if squared > 0 else 0
        if 0 < scale < LEAST_SCALE:
            least = LEAST_SCALE * math.sqrt(self.honest) / GRID_STEPS
            raise ValueError(f"noise_multiplier is {noise_multiplier}; allowed with {self.honest} shares: {least:.3g}")
        return scale

    def largest_site_sum(self, noise_multiplier: float, *, sites: int, coordinates: int) -> int:
        """Return the bound, in grid steps, to which each site clamps a coordinate of its sum before noise is added.

        With it the sum over all `sites` leaves the modulus in no coordinate, but for a probability of 1e-12: the noise
        of n sites is sub-Gaussian with parameter n s² (Canonne, Kamath, Steinke 2020, section 2).

        Examples:
            >>> DistributedNoise(minimum_survivors=8).largest_site_sum(1.0, sites=10, coordinates=2_900_000) >> 20
            203

        Raises:
            ValueError: not even one unit of each site would fit.

        """
        tail = math.sqrt(2 * math.log(2 * max(coordinates, 1) / _OVERFLOW))
        noise = math.ceil(tail * self.scale(noise_multiplier) * math.sqrt(sites))
        bound: int = (2 ** (self.bits - 1) - 1 - noise) // sites
        if bound < GRID_STEPS:
            raise ValueError(
                f"bits is {self.bits}; allowed for {sites} sites at noise_multiplier {noise_multiplier}: "
                f"{math.ceil(math.log2(sites * GRID_STEPS + noise + 1)) + 1} or more"
            )
        return bound


def log_tau(scale: float, shares: int) -> float:
    """Log of tau, by which a sum of so many discrete Gaussians may differ from one; -inf for a single one.

    Examples:
        >>> log_tau(LEAST_SCALE, 50) < -1e7
        True

    """
    if shares < 2:
        return -math.inf
    exponents = [-2 * math.pi**2 * scale**2 * j / (j + 1) for j in range(1, shares)]
    top = max(exponents)
    return math.log(10) + top + math.log(sum(math.exp(exponent - top) for exponent in exponents))
