"""Bounded sums over units, and the noise that makes one releasable.

A query maps unit gradients to a sum to which every unit contributes a vector of norm at most C, whatever its
frames hold and whatever the weights are: a unit whose gradient is not finite contributes exactly 0. A sum therefore
moves by at most C when a unit is added or removed, and 2C when it is replaced. `add_noise` scales by the query's C, the
event charges C and sigma, and the accountant knows about the 2C: there is no other number.

**No arithmetic switches the clip off.** In exact arithmetic no contribution is longer than C (1 - 2^-14), so that
all roundings together have 2^-14 = 6.1e-5 of C for themselves:

* The norm of float32 gradients. Squares are added in float32 over blocks of B = 1024 coordinates at most, in whatever
  order: that is wrong by a relative gamma_B = B u / (1 - B u), u = 2^-24 (Higham, Accuracy and Stability of Numerical
  Algorithms, 2nd ed., eq. 3.5; the terms are positive, and a fused product rounds less). Square root and squaring
  add 2 u, the float64 sum over blocks below 2^-30. So the norm is wrong by a relative 3.1e-5 at most, half of the
  error of its square. This presumes that no square is lost and no sum is infinite: the computed square lies between
  2^-64 and 2^100, where all squares below 2^-126 together are less than 2^-22 of it (2^40 coordinates). Every other
  unit's norm, and those of float64 gradients, are taken in float64 of values divided by the unit's largest magnitude
  (a gradient of 1e-30 has a norm): wrong by 1e-9 for up to 2^23 coordinates.
* The factor C / |g| stays float64, and so do the products: rounded to float32, a factor below 1e-38 could double.
* The sum is float64. Adding n contributions rounds by at most n^2 2^-54 C (every partial sum is at most n C), with
  and without the unit: 7.7e-6 C for n = 2^18 units a step. So neighbours' sums *as computed* differ by at most C, and
  not only those of exact arithmetic.

**A unit's contribution is a function of that unit alone.** Gradients come in micro-batches of one fixed size (padded,
`count` says how many are units), because a matrix product of another shape may round every row another way, and
hostile weights could make much of a last bit. Norms are taken of all rows of a micro-batch, padded ones included, for
the same reason. On one machine a row of a product or of a norm depends neither on other rows nor on its place, which
`tests/shared/training/test_sensitivity.py` checks bit by bit.

Numbers that a discrete Gaussian will be added to live on an integer grid of spacing C / 2^20: each unit's
clipped vector is rounded toward zero, which can only shorten it, and that its integer norm is at most 2^20 is
checked in integers, so the bound holds without a rounding error. Sums are then exact in int64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardpose.shared.privacy.distributed import GRID_STEPS, DistributedNoise
from wardpose.shared.privacy.noise import RandomStream, quantise_to_grid
from wardpose.shared.vectors import Vector, flatten, map_vector, unflatten

GRID = GRID_STEPS
"""Grid steps to one clip norm."""

MARGIN = 1.0 - 2.0**-14
"""By which factors below 1 are lowered, so that no rounding lengthens a contribution beyond C; see the module."""

_NORM_BLOCK = 1024  # coordinates whose squares are added in float32
_PLAIN_SQUARES = (2.0**-64, 2.0**100)  # squared norms between which float32 neither loses squares nor overflows
_SUM_BYTES = 2**19  # of gradients that are widened to float64 at a time on a CPU: they stay in its cache


class Query(Protocol):
    """A sum over units of bounded sensitivity."""

    @property
    def max_grad_norm(self) -> float:
        """C: the most that one unit contributes."""
        ...

    @property
    def discrete(self) -> bool:
        """Whether sums are int64 multiples of C / `GRID`."""
        ...

    def zero(self) -> Vector:
        """Return the sum over no units."""
        ...

    def add(self, total: Vector, gradients: Vector, count: int | None = None) -> None:
        """Add the bounded contributions of the first `count` of u units (all when absent) to `total`, in place."""
        ...


@dataclass(frozen=True, eq=False)
class ClipSum:
    """Sum of `g_u min(1, C / |g_u|)` over units, the norm being that of the whole vector.

    Examples:
        >>> gradients = {"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}  # two units, norms 5 and 0.5
        >>> query = ClipSum(max_grad_norm=1.0, like={"w": torch.zeros(2)})
        >>> query(gradients)["w"].numpy().round(3).tolist()
        [0.9, 1.2]

    Attributes:
        max_grad_norm: C; infinite for no clipping at all (mechanism `none`).
        like: a vector of the shapes and device of the sum.
        discrete: return int64 multiples of C / `GRID`.
        watch: is shown the units' norms (u,) before they are clipped; for whoever may look at the site.

    """

    max_grad_norm: float
    like: Vector
    discrete: bool = False
    watch: Callable[[Tensor], None] | None = None

    def zero(self) -> Vector:
        """Return the sum over no units, float64 or int64."""
        dtype = torch.int64 if self.discrete else torch.float64
        return {name: torch.zeros(value.shape, dtype=dtype, device=value.device) for name, value in self.like.items()}

    def __call__(self, gradients: Vector, count: int | None = None) -> Vector:
        """Sum the clipped gradients, each tensor (u, ...) of `gradients` to (...)."""
        total = self.zero()
        self.add(total, gradients, count)
        return total

    def add(self, total: Vector, gradients: Vector, count: int | None = None) -> None:
        """Add the clipped gradients of the first `count` of u units (all when absent) to `total`, in place.

        Raises:
            ValueError: the gradients are of half precision, in which a unit's gradient would not be what it should be.

        """
        dtype = next(iter(gradients.values())).dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"gradients are {dtype}; clipped sums need float32 or float64")
        norms = unit_norms(gradients)
        factors = clip_factors(norms, self.max_grad_norm)  # of all rows: one shape, one rounding
        if self.watch is not None:
            self.watch(norms[:count].clone())
        gradients, factors = _first(gradients, count), factors[:count]
        if self.discrete:
            _add_on_grid(total, _without(gradients, factors == 0), factors, self.max_grad_norm)
            return
        _add_products(total, gradients, factors)


@dataclass(frozen=True, eq=False)
class ProjectClipSum:
    """The same in the k coordinates of a public basis.

    `after`: `c_u = V' g_u`, clipped in R^k. `before`: g_u is clipped in R^p first, as in the paper; noise
    N(0, s^2 I_p) projected on V is N(0, s^2 I_k), so the noise is drawn in R^k in either order. The
    coefficients are clipped in both cases: the bound never rests on V being orthonormal.

    Examples:
        >>> basis = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        >>> query = ProjectClipSum(max_grad_norm=1.0, encode=lambda g: g["w"].double() @ basis, rank=1, discrete=False)
        >>> query({"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])})["coefficients"].numpy().round(3).tolist()
        [1.3]

    Attributes:
        max_grad_norm: C.
        encode: V', from a vector of (u, ...) tensors to coefficients (u, k), float64.
        rank: k.
        before: clip in R^p first.
        discrete: return int64 multiples of C / `GRID`.
        watch: is shown the norms (u,) of what is clipped first; for whoever may look at the site.

    """

    max_grad_norm: float
    encode: Callable[[Vector], Tensor]
    rank: int
    before: bool = False
    discrete: bool = True
    watch: Callable[[Tensor], None] | None = None

    def zero(self) -> Vector:
        """Return the sum over no units: {"coefficients": (k,)}."""
        return {"coefficients": torch.zeros(self.rank, dtype=torch.int64 if self.discrete else torch.float64)}

    def __call__(self, gradients: Vector, count: int | None = None) -> Vector:
        """Sum the clipped coefficients of the units."""
        total = self.zero()
        self.add(total, gradients, count)
        return total

    def add(self, total: Vector, gradients: Vector, count: int | None = None) -> None:
        """Add the clipped coefficients of the first `count` units to `total`, in place.

        All rows are encoded, so that the product keeps its shape. Coefficients of a gradient that is not finite are
        not finite, and dropped for that.
        """
        if self.before:
            norms = unit_norms(gradients)
            factors = clip_factors(norms, self.max_grad_norm)
            if self.watch is not None:
                self.watch(norms[:count].clone())
            gradients = scale_units(_without(gradients, factors == 0), factors)
        coefficients = {"coefficients": self.encode(gradients).double().cpu()}
        like = {"coefficients": torch.zeros(self.rank, dtype=torch.float64)}
        watch = None if self.before else self.watch
        ClipSum(self.max_grad_norm, like, self.discrete, watch).add(total, coefficients, count)


def add_noise(total: Vector, query: Query, noise_multiplier: float, stream: RandomStream) -> Vector:
    """Release a query's sum: add noise of standard deviation `noise_multiplier * C`, return float64 tensors.

    Under replace-one adjacency the noise is the same: the accountant charges the doubled sensitivity.

    Examples:
        >>> from wardpose.shared.privacy.noise import seeded_streams
        >>> query = ClipSum(max_grad_norm=1.0, like={"w": torch.zeros(2)})
        >>> add_noise(query.zero(), query, noise_multiplier=2.0, stream=seeded_streams(0).noise)["w"].shape
        torch.Size([2])

    Args:
        total: the query's sum, of integers when the query is discrete.
        query: whose clip norm scales the noise.
        noise_multiplier: sigma; 0 adds nothing.
        stream: the site's noise stream.

    """
    size = sum(value.numel() for value in total.values())
    like = map_vector(lambda value: torch.empty(value.shape, dtype=torch.float64, device=value.device), total)
    scale = query.max_grad_norm / GRID if query.discrete else 1.0
    if noise_multiplier == 0:
        return map_vector(lambda value: value.double() * scale, total)
    if query.discrete:
        integers = torch.from_numpy(stream.discrete_gaussian(size, noise_multiplier * GRID))
        noised = torch.cat([value.reshape(-1).cpu() for value in total.values()]) + integers
        return unflatten(noised.double() * scale, like)
    noise = torch.from_numpy(np.asarray(stream.gaussian(size, noise_multiplier * query.max_grad_norm)))
    return map_vector(lambda value, drawn: value.double() + drawn, total, unflatten(noise, like))


def add_share(
    total: Vector, shared_noise: DistributedNoise, noise_multiplier: float, *, sites: int, stream: RandomStream
) -> NDArray[np.int64]:
    """Make of one site's sum what it may add to the sum over sites: clamped to a public bound, with some of its noise.

    It is the part of the noise that is never taken off again; masks bring the others. Clamping each coordinate brings
    two sums no further apart, so the sensitivity stays that of the query.

    Args:
        total: the sum of a discrete query, in grid steps.
        shared_noise: how the noise is shared out.
        noise_multiplier: sigma of the sum over sites.
        sites: that take part.
        stream: the site's noise stream.

    Returns:
        (p,) int64, in the order of `total`.

    """
    flat = flatten(total).cpu().numpy()
    bound = shared_noise.largest_site_sum(noise_multiplier, sites=sites, coordinates=len(flat))
    scale = shared_noise.scales(noise_multiplier, sites=sites)[0]
    clamped: NDArray[np.int64] = np.clip(flat, -bound, bound)
    return clamped + stream.discrete_gaussian(len(flat), scale) if scale else clamped


def unit_norms(gradients: Vector) -> Tensor:
    """L2 norm over the whole vector of each unit, (u,) float64; the tensors of `gradients` are (u, ...).

    Of any magnitude, and wrong by a relative 3.1e-5 at most, 1e-9 in float64 (see the module). Not finite where a
    value is not.

    Examples:
        >>> unit_norms({"w": torch.tensor([[3.0, 4.0], [3e-200, 4e-200]], dtype=torch.float64)}).tolist()
        [5.0, 5e-200]

    """
    rows = [value.flatten(1) for value in gradients.values() if value[0].numel()] if _units(gradients) else []
    if not rows:
        return torch.zeros(_units(gradients), dtype=torch.float64)
    if rows[0].dtype == torch.float64:
        return _scaled_norms(rows)
    squares = _plain_squares(rows)
    norms = squares.sqrt()
    smallest, largest = _PLAIN_SQUARES
    others = ~((squares >= smallest) & (squares <= largest))  # NaN is among them
    for unit in others.nonzero()[:, 0].tolist():  # each by itself: how many there are must not change a bit
        norms[unit] = _scaled_norms([row[unit : unit + 1] for row in rows])[0]
    return norms


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """`min(1, C' / norm)` (u,) float64, C' = C `MARGIN`, and 0 for units that are not finite; see the module.

    Examples:
        >>> clip_factors(torch.tensor([5.0, 0.5, float("nan")]).double(), 1.0).numpy().round(3).tolist()
        [0.2, 1.0, 0.0]

    """
    factors = torch.where(norms > max_grad_norm * MARGIN, max_grad_norm * MARGIN / norms, 1.0)
    return torch.where(torch.isfinite(norms), factors, 0.0)


def scale_units(gradients: Vector, factors: Tensor) -> Vector:
    """Multiply unit u of every tensor (u, ...) by `factors[u]`, in float64; the result has the tensors' dtype.

    Examples:
        >>> scale_units({"w": torch.ones(2, 2)}, torch.tensor([0.5, 2.0]))["w"].tolist()
        [[0.5, 0.5], [2.0, 2.0]]

    """
    return map_vector(
        lambda value: (value.double() * factors.to(value.device).reshape(-1, *[1] * (value.dim() - 1))).to(value),
        gradients,
    )


def _units(gradients: Vector) -> int:
    return len(next(iter(gradients.values())))


def _first(gradients: Vector, count: int | None) -> Vector:
    return gradients if count is None else map_vector(lambda value: value[:count], gradients)


def _without(gradients: Vector, dropped: Tensor) -> Vector:
    """Set units to zero; a product would turn their infinities into NaN."""
    if not bool(dropped.any()):
        return gradients
    return map_vector(lambda value: value.masked_fill(dropped.reshape(-1, *[1] * (value.dim() - 1)), 0.0), gradients)


def _plain_squares(rows: list[Tensor]) -> Tensor:
    """Squared norms (u,) float64 of rows (u, n) float32, by blocks; right where they are in `_PLAIN_SQUARES`."""
    norms = []
    for row in rows:
        whole = row.shape[1] // _NORM_BLOCK * _NORM_BLOCK
        if whole:
            norms.append(torch.linalg.vector_norm(row[:, :whole].reshape(len(row), -1, _NORM_BLOCK), dim=2))
        if whole < row.shape[1]:
            norms.append(torch.linalg.vector_norm(row[:, whole:], dim=1, keepdim=True))
    return torch.cat(norms, dim=1).double().square().sum(dim=1)


def _scaled_norms(rows: list[Tensor]) -> Tensor:
    """Norms (u,) float64 of rows (u, n), of values divided by the unit's largest magnitude."""
    largest = torch.stack([row.abs().amax(dim=1).double() for row in rows]).amax(dim=0)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)[:, None]
    squares = torch.stack([(row.double() / scale).square().sum(dim=1) for row in rows]).sum(dim=0)
    return squares.sqrt() * scale[:, 0]


def _add_products(total: Vector, gradients: Vector, factors: Tensor) -> None:
    """Add `sum_u factors_u g_u` to `total`, in float64; units of factor 0 may hold anything."""
    device = next(iter(total.values())).device
    factors = factors.to(device)
    dropped = factors == 0
    some = bool(dropped.any())
    for name, value in gradients.items():
        rows, out = value.flatten(1), total[name].view(-1)
        units, size = rows.shape
        step = max(1, size if device.type != "cpu" else _SUM_BYTES // (8 * max(1, units)))
        wide = torch.empty(units, min(step, size), dtype=torch.float64, device=device)
        for start in range(0, size, step):
            part = rows[:, start : start + step]
            block = wide[:, : part.shape[1]].copy_(part)
            if some:
                block[dropped] = 0.0  # a product would turn their infinities into NaN
            out[start : start + step].addmv_(block.T, factors)


def _add_on_grid(total: Vector, gradients: Vector, factors: Tensor, max_grad_norm: float) -> None:
    """Add the clipped units to `total`, int64, in whole grid steps."""
    for unit, factor in enumerate(factors.tolist()):
        vector = flatten({name: value[unit] for name, value in gradients.items()}).double().cpu().numpy()
        integers = torch.from_numpy(quantise_to_grid(vector * factor, max_grad_norm, max_grad_norm / GRID))
        for name, part in unflatten(integers, total).items():
            total[name] += part
