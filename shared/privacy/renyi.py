"""Rényi divergences of Poisson-sampled Gaussians at many orders, and the epsilon that their sum amounts to.

At integer orders the moment of a sampled step (Mironov, Talwar, Zhang 2019, eq. 6) is written as

    A - 1 = sum_k C(a, k) q^k (1-q)^(a-k) (exp(k (k-1) / 2 sigma²) - 1),

a sum of positive terms, so it keeps its digits however little a step costs; the usual form subtracts 1 from a number
that is 1 to the last digit, and may come out negative, which reads as "no privacy is lost".
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import numpy as np
from dp_accounting.rdp import compute_epsilon
from numpy.typing import NDArray
from scipy.special import gammaln

Adjacency = Literal["add-remove", "replace-one"]
Floats = NDArray[np.float64]

INTEGER_ORDERS = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256, 384, 512, 768, 1024)
ALL_ORDERS = (*(1 + tenth / 10 for tenth in range(1, 100) if tenth % 10), *INTEGER_ORDERS)
HIGH_ORDERS = tuple(round(2 ** (power / 2)) for power in range(21, 41))
"""Asked one by one, and only while each is better than the one before: they matter for epsilons below 0.1."""

_SLACK = 1e-14  # per order, relative: well above what rounding takes away
_REMEMBERED = 16384  # highest order whose binomial coefficients are kept
_LEAST_INTEGRATED = 0.5  # noise multiplier; below it the integrand would overflow


def curve_epsilon(curve: Floats, delta: float, orders: tuple[float, ...] = INTEGER_ORDERS) -> float:
    """Epsilon of a composed curve (Canonne, Kamath, Steinke 2020, proposition 12).

    Examples:
        >>> curve = 500 * rdp_curve(0.01, 1.0, "add-remove", INTEGER_ORDERS)
        >>> round(curve_epsilon(curve, 1e-5), 3)  # integer orders alone; all of them give 1.653, PLD 1.326
        1.661

    """
    return float(compute_epsilon(orders, curve, delta)[0])


def renyi_epsilon(
    steps: Iterable[tuple[float, float, int]], delta: float, adjacency: Adjacency, orders: tuple[float, ...]
) -> float:
    """Epsilon at `delta` of steps (rate, multiplier, times): the best of `orders` and, where they help, higher ones."""
    listed = list(steps)

    def at(some: tuple[float, ...]) -> float:
        curve = np.sum([times * rdp_curve(rate, sigma, adjacency, some) for rate, sigma, times in listed], axis=0)
        return curve_epsilon(curve, delta, some)

    best, last = at(orders), at(orders[-1:])
    for order in HIGH_ORDERS:
        if best == 0 or last > best:
            break
        last = at((float(order),))
        best = min(best, last)
    return best


@lru_cache(maxsize=8192)
def rdp_curve(sample_rate: float, noise_multiplier: float, adjacency: Adjacency, orders: tuple[float, ...]) -> Floats:
    """Rényi divergence of one step at each order; under replace-one at whole orders only.

    dp-accounting has no Rényi bound for Poisson sampling under replace-one. Two rigorous ones are taken, whichever is
    smaller, for P = (1-q) N(0) + q N(v), Q = (1-q) N(0) + q N(v') and E = N(0):

    * P and Q are the mixtures of sampling without replacement with parts at most 2C apart (Wang, Balle,
      Kasiviswanathan 2019, theorem 27), so its bound at half the multiplier holds;
    * D_a(P || Q) <= (a - 1/2) / (a - 1) D_2a(P || E) + D_(2a-1)(E || Q) (Mironov 2017, proposition 11),
      both being add/remove divergences.

    Examples:
        >>> rdp_curve(1.0, 2.0, "add-remove", (2.0, 8.0)).tolist()  # k / 2 sigma²
        [0.25, 1.0]

    """
    every = np.asarray(orders, dtype=np.float64)
    if noise_multiplier == 0:
        return np.full(len(every), np.inf)
    if adjacency == "add-remove":
        if sample_rate == 1:
            return every / noise_multiplier / (2 * noise_multiplier)
        whole = every == np.floor(every)
        curve = np.empty(len(every))
        curve[whole] = _whole_orders(sample_rate, noise_multiplier, tuple(int(order) for order in every[whole]))
        if not whole.all():
            curve[~whole] = _fractional_orders(sample_rate, noise_multiplier, every[~whole])
        return curve
    if sample_rate == 1:
        return 2 * every / noise_multiplier / noise_multiplier
    whole_orders = tuple(int(order) for order in orders)
    removed = _whole_orders(sample_rate, noise_multiplier, tuple(2 * order for order in whole_orders))
    added = _whole_orders(sample_rate, noise_multiplier, tuple(2 * order - 1 for order in whole_orders))
    through_empty = (every - 0.5) / (every - 1) * removed + added
    bound: Floats = np.minimum(through_empty, _without_replacement(sample_rate, noise_multiplier / 2, whole_orders))
    return bound


def _whole_orders(sample_rate: float, noise_multiplier: float, orders: tuple[int, ...]) -> Floats:
    ks, starts, log_binomials, rest = _terms(orders)
    exponents = ks * (ks - 1) / (2 * noise_multiplier) / noise_multiplier
    with np.errstate(over="ignore", divide="ignore"):
        # log(exp(x) - 1) = x + log(1 - exp(-x))
        logs = log_binomials + ks * math.log(sample_rate) + rest * math.log1p(-sample_rate)
        logs += exponents + np.log(-np.expm1(-exponents))
    every = np.asarray(orders, dtype=np.float64)
    divergences: Floats = _log1p_of_sums(logs, starts) / (every - 1) * (1 + _SLACK * every)
    return divergences


def _without_replacement(sample_rate: float, noise_multiplier: float, orders: tuple[int, ...]) -> Floats:
    """Theorem 27 of Wang, Balle, Kasiviswanathan 2019 for a Gaussian, with its simpler bound on the terms above 2."""
    ks, starts, log_binomials, _ = _terms(orders)
    exponents = ks * (ks - 1) / (2 * noise_multiplier) / noise_multiplier
    with np.errstate(over="ignore"):
        second = np.minimum(math.log(4) + exponents + np.log(-np.expm1(-exponents)), math.log(2) + exponents)
    logs = log_binomials + ks * math.log(sample_rate) + np.where(ks == 2, second, math.log(2) + exponents)
    every = np.asarray(orders, dtype=np.float64)
    bound: Floats = _log1p_of_sums(logs, starts) / (every - 1) * (1 + _SLACK * every)
    return bound


def _terms(orders: tuple[int, ...]) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
    return (_remembered_terms if orders[-1] <= _REMEMBERED else _make_terms)(orders)


def _make_terms(orders: tuple[int, ...]) -> tuple[Floats, NDArray[np.int64], Floats, Floats]:
    """Of every order a, one after the other: k from 2 to a, where each a starts, log C(a, k), a - k."""
    sizes = np.array(orders) - 1
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    ks = np.arange(sizes.sum()) - np.repeat(starts, sizes) + 2.0
    rest = np.repeat(np.array(orders, np.float64), sizes) - ks
    return ks, starts, gammaln(ks + rest + 1) - gammaln(ks + 1) - gammaln(rest + 1), rest


_remembered_terms = lru_cache(maxsize=32)(_make_terms)


def _log1p_of_sums(logs: Floats, starts: NDArray[np.int64]) -> Floats:
    """log(1 + sum of exp(logs)) of each run of `logs`."""
    top = np.maximum.reduceat(logs, starts)
    sizes = np.diff(np.append(starts, len(logs)))
    with np.errstate(divide="ignore"):
        total = top + np.log(np.add.reduceat(np.exp(logs - np.repeat(top, sizes)), starts))
    result: Floats = np.where(total < 30, np.log1p(np.exp(np.minimum(total, 30.0))), total)
    return result


def _fractional_orders(sample_rate: float, noise_multiplier: float, orders: Floats) -> Floats:
    """Integrate the moment; take the divergence at the next whole order, which is larger, where noise is very small.

    A - 1 = E f(x), x = q (exp(z/s - 1/2s²) - 1), z standard normal and f(x) = (1 + x)^a - 1 - a x, because x has mean
    0; f is not negative, so nothing cancels. The integrand is analytic within pi s of the real line, hence the error of
    the trapezoidal rule at steps of s/2 is below exp(-39) of it (Trefethen, Weideman 2014).
    """
    if noise_multiplier < _LEAST_INTEGRATED:
        return _whole_orders(sample_rate, noise_multiplier, tuple(math.ceil(order) for order in orders))
    step = min(noise_multiplier / 2, 0.05)
    nodes = np.arange(-9.0, 9.0 + orders.max() / noise_multiplier, step)
    x = sample_rate * np.expm1(nodes / noise_multiplier - 0.5 / noise_multiplier**2)
    weights = np.exp(-(nodes**2) / 2) * (step / math.sqrt(2 * math.pi))
    a = orders[:, None]
    series = a * (a - 1) / 2 * x**2 * (1 + (a - 2) / 3 * x * (1 + (a - 3) / 4 * x))
    exact = np.expm1(a * np.log1p(x)) - a * x
    moments = np.where(np.abs(x) < 1e-4, series, exact) @ weights
    divergences: Floats = np.log1p(moments) / (orders - 1) * (1 + 1e-7)
    return divergences
