"""What charges amount to: the smallest of several upper bounds, none of which falls when charges are added.

A charge is (noise, sample rate, noise multiplier, steps). Charges of continuous noise are bounded by

* their privacy-loss distribution (`loss_distribution`), nearly exact;
* their Rényi divergences (`renyi`), which win where the distribution must be put on a coarse grid;
* the same steps without sampling, whose composition is one Gaussian with a closed form (Balle, Wang 2018, theorem 8);
* 0, where all steps together touch a unit visibly with probability delta at most.

**Never falling.** Ledgers rely on it: the figure of some charges is at most that of more charges, whatever is chosen
on the way. Each bound grows with the charges, and so does their minimum. The grid's width is a power of two that
follows from quantities that only grow (spread of the losses, number of kinds), coarser being never smaller. Where there
are more kinds than are worth computing, kinds are rounded to a lattice of less noise and higher rates, the coarser the
more kinds there are; lattices are nested, so that only ever raises a kind. And a composition with discrete noise,
which has Rényi bounds only, costs at least what its continuous part costs alone.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from scipy.stats import binom

from wardpose.shared.privacy import loss_distribution, renyi
from wardpose.shared.privacy.renyi import INTEGER_ORDERS, curve_epsilon, rdp_curve

__all__ = [
    "DISTRIBUTED",
    "INTEGER_ORDERS",
    "Accountant",
    "Adjacency",
    "Charge",
    "Noise",
    "composed_epsilon",
    "curve_epsilon",
    "group_epsilon",
    "merge",
    "overlapping_curve",
    "rdp_curve",
    "summed_curve",
]

Accountant = Literal["pld", "rdp"]
Adjacency = Literal["add-remove", "replace-one"]
Noise = Literal["gaussian", "discrete-gaussian", "distributed-discrete-gaussian"]
DISTRIBUTED: Noise = "distributed-discrete-gaussian"
"""Noise of a sum over sites, of which each added a share (`distributed`)."""

Charge = tuple[Noise, float, float, int]
"""Noise, sample rate in (0, 1], noise multiplier > 0, steps > 0."""

_Kind = tuple[float, float, int]  # rate, multiplier, steps
_POINTS = {2: 1 << 17, 8: 1 << 16, 32: 1 << 15, 128: 1 << 14}  # of the grid, while there are no more kinds than this
_FEWEST_POINTS = 1 << 13
_MOST_KINDS = 1024  # composed one by one; more are rounded to a lattice
_OCTAVE = 1 << 12  # points of the finest lattice from a multiplier to twice as much
_WINDOW = 24.0  # standard deviations of the composed loss that the grid spans
_FAR, _NEVER = 1e-9, 1e-14  # share of delta, and mass, at which the spread of the losses is read off
_JUMPS = 3  # largest steps that the composed loss may consist of
_WIDEST = 1e8  # spread beyond which only closed forms and Rényi bounds are asked
_MOST_STEPS = 10**10  # beyond them rounding would be a visible part of delta
_GROUP_INTERVAL = 3.2e-3  # of losses of a group of one
_LARGEST_GROUP_SHIFT = 200.0  # of a group, in standard deviations of the noise: beyond it nothing is hidden
_LEAST_RATE = 1e-12
_LEAST_NOISE, _MOST_NOISE = 1e-9, 1e12  # less is none, more is so much


def merge(*parts: Iterable[Charge]) -> tuple[Charge, ...]:
    """Merge equal (noise, rate, multiplier) by adding their steps; order of first appearance.

    Examples:
        >>> merge([("gaussian", 0.1, 1.0, 5)], [("gaussian", 0.1, 1.0, 3), ("gaussian", 0.2, 1.0, 1)])
        (('gaussian', 0.1, 1.0, 8), ('gaussian', 0.2, 1.0, 1))

    """
    steps: dict[tuple[Noise, float, float], int] = {}
    for part in parts:
        for noise, sample_rate, noise_multiplier, count in part:
            kind = (noise, sample_rate, noise_multiplier)
            steps[kind] = steps.get(kind, 0) + count
    return tuple((*kind, count) for kind, count in steps.items())


def composed_epsilon(
    charges: tuple[Charge, ...], delta: float, accountant: Accountant, adjacency: Adjacency, coarser: int = 0
) -> float:
    """Epsilon of merged `charges`, in whatever order; an upper bound that never falls when charges are added.

    Examples:
        >>> composed_epsilon((("gaussian", 0.1, 1.0, 10),), 1e-5, "pld", "add-remove")
        2.85451916

    Args:
        charges: what was charged, see `merge`.
        delta: in (0, 1).
        accountant: `pld` takes the smallest bound, `rdp` Rényi divergences alone.
        adjacency: what the neighbours are.
        coarser: halves the grid's points so many times: faster, and more pessimistic.

    """
    return _composed(tuple(sorted(charges)), delta, accountant, adjacency, coarser)


@lru_cache(maxsize=8192)
def _composed(
    charges: tuple[Charge, ...], delta: float, accountant: Accountant, adjacency: Adjacency, coarser: int
) -> float:
    if not charges:
        return 0.0
    discrete = any(charge[0] != "gaussian" for charge in charges)
    if accountant == "rdp" or discrete:
        orders = INTEGER_ORDERS if discrete or adjacency == "replace-one" else renyi.ALL_ORDERS
        bound = renyi.renyi_epsilon(_kinds(charges), delta, adjacency, orders)
        if accountant == "rdp":
            return bound
        continuous = tuple(charge for charge in charges if charge[0] == "gaussian")
        return max(bound, _composed(continuous, delta, accountant, adjacency, coarser))
    return _continuous(_kinds(charges), delta, adjacency, coarser)


def _kinds(charges: Iterable[Charge]) -> list[_Kind]:
    """Drop what noise it is; rates and multipliers become those of numbers' own range, never cheaper."""
    return [
        (max(rate, _LEAST_RATE), min(sigma, _MOST_NOISE) if sigma >= _LEAST_NOISE else 0.0, steps)
        for _, rate, sigma, steps in charges
    ]


def summed_curve(charges: Iterable[Charge], adjacency: Adjacency) -> NDArray[np.float64]:
    """Composed Rényi divergences at the whole orders (those of `curve_epsilon`).

    Examples:
        >>> curve = summed_curve([("gaussian", 1.0, 2.0, 4)], "add-remove")
        >>> bool(np.allclose(curve, [order * 4 / (2 * 2.0**2) for order in INTEGER_ORDERS]))  # k / 2 sigma², four times
        True

    """
    return _curve(_kinds(charges), adjacency)


def overlapping_curve(
    charges: Iterable[Charge], sites: int, others: Iterable[Charge], adjacency: Adjacency
) -> NDArray[np.float64]:
    """Return Rényi divergences of one site's charges, of which so many sites may share a patient and their noise.

    Distributed noise is added once to the sum over sites, in which a patient of j sites has j contributions: with
    probability 1 - (1-q)^j the sum moves, by j C at most, at less noise than j independent releases would have. By
    quasi-convexity a round costs that patient at most D(1 - (1-q)^j, sigma / j). The largest D(...) / j over j is what
    each of the sites is charged, so that what any j of them are charged adds up to D at least. Other charges are
    independent releases and cost what they cost.

    Args:
        charges: of one site.
        sites: that may share a patient.
        others: charges of all sites, whose largest rate of distributed noise is q.
        adjacency: what the neighbours are.

    Examples:
        >>> charge = ("distributed-discrete-gaussian", 1.0, 2.0, 1)
        >>> together = 2 * overlapping_curve([charge], 2, [charge], "add-remove")  # 2C under sigma C
        >>> bool(np.allclose(together, summed_curve([("gaussian", 1.0, 1.0, 1)], "add-remove")))
        True

    """
    rate = max((charge[1] for charge in others if charge[0] == DISTRIBUTED), default=0.0)
    curve = summed_curve([charge for charge in charges if charge[0] != DISTRIBUTED], adjacency)
    for _, sigma, steps in _kinds(charge for charge in charges if charge[0] == DISTRIBUTED):
        shares = [rdp_curve(_any_of(rate, j), sigma / j, adjacency, INTEGER_ORDERS) / j for j in range(1, sites + 1)]
        curve = curve + np.max(shares, axis=0) * steps
    return curve


def _any_of(rate: float, coins: int) -> float:
    """Probability that one of so many coins comes up, rounded up."""
    return 1.0 if rate >= 1 else min(1.0, -math.expm1(coins * math.log1p(-rate)) * (1 + 1e-14))


@lru_cache(maxsize=256)
def group_epsilon(charges: tuple[Charge, ...], size: int, delta: float) -> float:
    """Epsilon of `size` units together under add-remove; infinity where the table of losses would not fit.

    With probability Bin(size, q)(j) j of them take part in a step, which moves the sum by at most j C: the mixture of
    Gaussians at 0, C .. size C against the one at 0 (arXiv 2401.10294). For display, so composed on a coarse grid.
    """
    counts = np.arange(size + 1)
    composed: privacy_loss_distribution.PrivacyLossDistribution | None = None
    interval = _GROUP_INTERVAL * 2.0 ** math.ceil(math.log2(size * max(1.0, len(charges) / 4)))
    for _, sample_rate, noise_multiplier, steps in charges:
        if size / noise_multiplier > _LARGEST_GROUP_SHIFT:
            return math.inf
        part = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            standard_deviation=noise_multiplier,
            sensitivities=counts.astype(float).tolist(),
            sampling_probs=binom.pmf(counts, size, sample_rate).tolist(),
            pessimistic_estimate=True,
            value_discretization_interval=interval,
        ).self_compose(steps)
        composed = part if composed is None else composed.compose(part)
    return 0.0 if composed is None else float(composed.get_epsilon_for_delta(delta))


def gaussian_epsilon(shift: float, delta: float) -> float:
    """Epsilon of one Gaussian release whose mean moves by `shift` standard deviations (Balle, Wang 2018, theorem 8).

    Examples:
        >>> round(gaussian_epsilon(1.0, 1e-5), 3)
        4.377

    """

    def excess(epsilon: float) -> float:
        """Log of delta at `epsilon`, rounding included, over the delta asked for."""
        reached = log_ndtr(shift / 2 - epsilon / shift)
        ratio = epsilon + log_ndtr(-shift / 2 - epsilon / shift) - reached
        share = -math.expm1(min(ratio, 0.0)) + 1e-14 * (1 + epsilon)
        return float(reached) + math.log(share) - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    highest = shift * (shift / 2 + 10)  # delta is below 1e-23 there
    if not highest < 1e9:
        return highest
    return float(brentq(excess, 0.0, highest, xtol=1e-12 * shift, rtol=1e-12)) * (1 + 1e-11) + 1e-12 * shift


def _continuous(kinds: Sequence[_Kind], delta: float, adjacency: Adjacency, coarser: int) -> float:
    moves = 2.0 if adjacency == "replace-one" else 1.0  # by how many clip norms a unit moves the sum
    if sum(steps * _touch(rate, sigma / moves) for rate, sigma, steps in kinds) <= delta:
        return 0.0
    if not all(sigma > 0 for _, sigma, _ in kinds):
        return math.inf
    shift = moves * math.sqrt(sum(steps / sigma / sigma for _, sigma, steps in kinds))
    bounds = [gaussian_epsilon(shift, delta)]
    if any(rate < 1 for rate, _, _ in kinds):
        bounds.append(curve_epsilon(_curve(kinds, adjacency), delta))
        kinds = _few(_one_gaussian(kinds))
        spread = moves * _spread(kinds, delta, shift / moves)
        if spread < _WIDEST and sum(steps for _, _, steps in kinds) < _MOST_STEPS:
            points = next((points for most, points in _POINTS.items() if len(kinds) <= most), _FEWEST_POINTS)
            points >>= coarser
            interval = 2.0 ** math.ceil(math.log2(spread / points))
            steps = [(loss_distribution.step_losses(*kind[:2], adjacency, interval), kind[2]) for kind in kinds]
            directions = max(len(losses) for losses, _ in steps)
            bounds.append(
                max(
                    loss_distribution.composed_epsilon(
                        [(losses[min(way, len(losses) - 1)], times) for losses, times in steps], delta, points
                    )
                    for way in range(directions)
                )
            )
    return _rounded_up(min(bounds))


def _rounded_up(epsilon: float) -> float:
    """Nine digits, upwards: what differs by rounding alone becomes equal, so that it cannot seem to fall."""
    if not 0 < epsilon < math.inf:
        return epsilon
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 8)
    return math.ceil(epsilon / unit) * unit


def _touch(sample_rate: float, noise_multiplier: float) -> float:
    """Total variation of one step: it is (0, this)-private."""
    if noise_multiplier == 0:
        return sample_rate
    return sample_rate * float(ndtr(0.5 / noise_multiplier) - ndtr(-0.5 / noise_multiplier))


def _one_gaussian(kinds: Sequence[_Kind]) -> list[_Kind]:
    """Replace the steps without sampling by the one Gaussian that they compose to."""
    sampled = [kind for kind in kinds if kind[0] < 1]
    precision = sum(steps / sigma / sigma for rate, sigma, steps in kinds if rate == 1)
    return [*sampled, (1.0, 1 / math.sqrt(precision), 1)] if precision > 0 else sampled


def _few(kinds: Sequence[_Kind]) -> list[_Kind]:
    """No more than `_MOST_KINDS` kinds that cost at least as much: on the finest lattice that is coarse enough."""
    spacing = _OCTAVE
    found = list(kinds)
    while len(found) > _MOST_KINDS:
        steps: dict[tuple[int, int], int] = {}
        for rate, sigma, count in kinds:
            place = (math.ceil(math.log2(rate) * spacing), math.floor(math.log2(sigma) * spacing))
            steps[place] = steps.get(place, 0) + count
        found = [(2.0 ** (a / spacing), 2.0 ** (b / spacing), count) for (a, b), count in steps.items()]
        spacing //= 2
    return found


def _spread(kinds: Sequence[_Kind], delta: float, shift: float) -> float:
    """Width of the window that the composed loss needs under add-remove; grows with the charges.

    Far losses are as good as never exceeded. The window reaches them from 0; where they are near it is as wide as that
    many standard deviations, or as several of the largest steps.
    """
    far = min(_FAR * delta, _NEVER)
    furthest = min(curve_epsilon(_curve(kinds, "add-remove"), far), gaussian_epsilon(shift, far))
    unlikely = -2 * math.log(far)
    by_renyi = math.sqrt(unlikely + 2 * furthest) - math.sqrt(unlikely)  # of a Gaussian with this epsilon
    spans = [loss_distribution.loss_span(rate, sigma, "add-remove") for rate, sigma, _ in kinds]
    variance = sum(kind[2] * span * span for kind, span in zip(kinds, spans, strict=True))
    by_spans = math.sqrt(variance) / (2 * loss_distribution.REACH)
    jumps = min(sum(steps for _, _, steps in kinds), _JUMPS)
    return max(_WINDOW * min(by_renyi, by_spans), furthest, jumps * max(spans))


def _curve(kinds: Iterable[_Kind], adjacency: Adjacency) -> NDArray[np.float64]:
    curve = np.zeros(len(INTEGER_ORDERS))
    for rate, sigma, steps in kinds:
        curve = curve + rdp_curve(rate, sigma, adjacency, INTEGER_ORDERS) * steps
    return curve
