"""The numerics of composition: epsilon of charges by privacy-loss distributions or by Rényi divergences.

A charge is (noise, sample rate, noise multiplier, steps). Results are remembered, because ledgers,
exporters and planners ask the same question again and again, and a composition that grows round by round
reuses the part that it had before.
"""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Literal

import dp_accounting
import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from numpy.typing import NDArray
from scipy.stats import binom

Accountant = Literal["pld", "rdp"]
Adjacency = Literal["add-remove", "replace-one"]
Noise = Literal["gaussian", "discrete-gaussian"]
Charge = tuple[Noise, float, float, int]
"""Noise, sample rate in (0, 1], noise multiplier > 0, steps > 0."""

_RELATIONS = {
    "add-remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}
INTEGER_ORDERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
_ALL_ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100) if tenth % 10), *INTEGER_ORDERS)
_INTERVAL = 1e-4  # of privacy loss, while epsilon is below 2 and the charges are few
_NO_PRIVACY = 1e3  # epsilons from here on are RDP's: larger still, and tables of such losses would fill the memory
_LARGEST_GROUP_SHIFT = 200.0  # of a group, in standard deviations of the noise: beyond it nothing is hidden
_BLOCK = 32  # charges folded between two remembered prefixes


def merge(*parts: Iterable[Charge]) -> tuple[Charge, ...]:
    """Merge equal (noise, rate, multiplier) by adding their steps; order of first appearance."""
    steps: dict[tuple[Noise, float, float], int] = {}
    for part in parts:
        for noise, sample_rate, noise_multiplier, count in part:
            kind = (noise, sample_rate, noise_multiplier)
            steps[kind] = steps.get(kind, 0) + count
    return tuple((*kind, count) for kind, count in steps.items())


@lru_cache(maxsize=8192)
def composed_epsilon(
    charges: tuple[Charge, ...], delta: float, accountant: Accountant, adjacency: Adjacency, coarser: int = 0
) -> float:
    """Epsilon of merged `charges`; with a discrete Gaussian among them always by RDP (see `accounting`).

    `coarser` doubles the interval of PLD so many times more: faster, and more pessimistic.
    """
    if not charges:
        return 0.0
    discrete = any(charge[0] == "discrete-gaussian" for charge in charges)
    if accountant == "rdp" or discrete:
        orders = INTEGER_ORDERS if discrete or adjacency == "replace-one" else _ALL_ORDERS
        curve = np.sum([rdp_curve(*charge[1:3], adjacency, orders) * charge[3] for charge in charges], axis=0)
        return float(compute_epsilon(orders, curve, delta)[0])
    scale = curve_epsilon(summed_curve(charges, "add-remove"), delta) / 2
    if not scale < _NO_PRIVACY / 2:
        return curve_epsilon(summed_curve(charges, adjacency), delta)
    interval = _INTERVAL * 2.0 ** (_doublings(max(scale, len(charges) / 4)) + coarser)
    return float(_composed_pld(charges, adjacency, interval).get_epsilon_for_delta(delta))


@lru_cache(maxsize=256)
def group_epsilon(charges: tuple[Charge, ...], size: int, delta: float) -> float:
    """Epsilon of `size` units together, see `accounting.group_epsilon`; infinity where PLD's table would not fit."""
    counts = np.arange(size + 1)
    composed: privacy_loss_distribution.PrivacyLossDistribution | None = None
    interval = _INTERVAL * 2.0 ** (5 + _doublings(size * max(1.0, len(charges) / 4)))  # for display: fast
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


def _doublings(scale: float) -> int:
    """How often the interval is doubled: time stays bounded for large epsilons and long schedules.

    It never falls while a composition grows, and a coarser grid is more pessimistic, so epsilon never falls
    either.
    """
    return min(max(math.ceil(math.log2(scale)), 0), 24) if scale > 0 and math.isfinite(scale) else 24 * (scale > 0)


def summed_curve(charges: Iterable[Charge], adjacency: Adjacency) -> NDArray[np.float64]:
    """Composed Rényi divergences at the integer orders (those of `curve_epsilon`)."""
    curve = np.zeros(len(INTEGER_ORDERS))
    for _, sample_rate, noise_multiplier, steps in charges:
        curve = curve + rdp_curve(sample_rate, noise_multiplier, adjacency, INTEGER_ORDERS) * steps
    return curve


def curve_epsilon(curve: NDArray[np.float64], delta: float) -> float:
    """Epsilon of a curve made by `summed_curve`."""
    return float(compute_epsilon(INTEGER_ORDERS, curve, delta)[0])


@lru_cache(maxsize=4096)
def rdp_curve(
    sample_rate: float, noise_multiplier: float, adjacency: Adjacency, orders: tuple[float, ...]
) -> NDArray[np.float64]:
    """Rényi divergence of one step at each order.

    dp-accounting has no Rényi bound for Poisson sampling under replace-one. Two rigorous ones are taken at
    integer orders, whichever is smaller, for P = (1-q) N(0) + q N(v), Q = (1-q) N(0) + q N(v') and E =
    N(0):

    * P and Q are the mixtures of sampling without replacement with parts at most 2C apart (Wang, Balle,
      Kasiviswanathan 2019, theorem 27), so its bound at half the multiplier holds;
    * D_a(P || Q) <= (a - 1/2) / (a - 1) D_2a(P || E) + D_(2a-1)(E || Q) (Mironov 2017, proposition 11),
      both being add/remove divergences.
    """
    gaussian: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
    if adjacency == "add-remove":
        event = gaussian if sample_rate == 1 else dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian)
        return _dp_accounting_curve(event, adjacency, orders)
    double = dp_accounting.GaussianDpEvent(noise_multiplier / 2)
    if sample_rate == 1:
        return _dp_accounting_curve(double, adjacency, orders)
    population = 10**12
    sample = min(population, math.ceil(sample_rate * population))
    without = dp_accounting.SampledWithoutReplacementDpEvent(population, sample, double)
    orders_array = np.asarray(orders)
    removed = rdp_curve(sample_rate, noise_multiplier, "add-remove", tuple(2 * order for order in orders))
    added = rdp_curve(sample_rate, noise_multiplier, "add-remove", tuple(2 * order - 1 for order in orders))
    through_empty = (orders_array - 0.5) / (orders_array - 1) * removed + added
    bound: NDArray[np.float64] = np.minimum(_dp_accounting_curve(without, adjacency, orders), through_empty)
    return bound


def _dp_accounting_curve(
    event: dp_accounting.DpEvent, adjacency: Adjacency, orders: tuple[float, ...]
) -> NDArray[np.float64]:
    accountant = RdpAccountant(orders, _RELATIONS[adjacency])
    with _quiet():
        accountant.compose(event)
    return np.asarray(accountant.rdp, dtype=np.float64)


@lru_cache(maxsize=16)
def _composed_pld(
    charges: tuple[Charge, ...], adjacency: Adjacency, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
    """Privacy-loss distribution of the whole; long lists are folded block by block on a remembered prefix."""
    start = (len(charges) - 1) // _BLOCK * _BLOCK
    parts = [_steps_pld(*charge[1:], adjacency, interval) for charge in charges[start:]]
    composed = _composed_pld(charges[:start], adjacency, interval) if start else parts.pop(0)
    for part in parts:
        composed = composed.compose(part)
    return composed


def _steps_pld(
    sample_rate: float, noise_multiplier: float, steps: int, adjacency: Adjacency, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
    """Without sampling the composition of T Gaussians is one Gaussian: exact and without a convolution."""
    if sample_rate == 1:
        return _step_pld(1.0, noise_multiplier / math.sqrt(steps), adjacency, interval)
    return _step_pld(sample_rate, noise_multiplier, adjacency, interval).self_compose(steps)


@lru_cache(maxsize=64)
def _step_pld(
    sample_rate: float, noise_multiplier: float, adjacency: Adjacency, interval: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        pessimistic_estimate=True,
        value_discretization_interval=interval,
        sampling_prob=sample_rate,
        neighboring_relation=_RELATIONS[adjacency],
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow dp-accounting's remark that an order whose series does not converge is left out (safe)."""
    logger = logging.getLogger("absl")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
