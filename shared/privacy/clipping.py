"""Bounded sums over units, and the noise that makes one releasable.

A query maps unit gradients to a sum to which every unit contributes a vector of norm at most C, whatever its
frames hold and whatever the weights are: a unit whose gradient is not finite contributes exactly 0. A sum therefore
moves by at most C when a unit is added or removed, and 2C when it is replaced. `add_noise` scales by the query's C, the
event charges C and sigma, and the accountant knows about the 2C: there is no other number.

**No arithmetic switches the clip off.** Norms are taken in float64 of values divided by the unit's largest magnitude,
so squares neither underflow (a gradient of 1e-30 has a norm) nor overflow. The factor C / |g| stays float64 and so do
the products and the sums: rounded to float32, a factor below 1e-38 could double. What is left is float64 rounding, for
which factors are lowered by a relative 1e-12.

**A unit's contribution is a function of that unit alone.** Gradients come in micro-batches of one fixed size (padded,
`count` says how many are units), because a matrix product of another shape may round every row another way, and
hostile weights could make much of a last bit. On one machine a row of a product depends neither on other rows nor on
its place, which `tests/shared/training/test_sensitivity.py` checks bit by bit.

Numbers that a discrete Gaussian will be added to live on an integer grid of spacing C / 2^20: each unit's
clipped vector is rounded toward zero, which can only shorten it, and that its integer norm is at most 2^20 is
checked in integers, so the bound holds without a rounding error. Sums are then exact in int64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wardpose.shared.privacy.noise import RandomStream, quantise_to_grid
from wardpose.shared.vectors import Vector, flatten, map_vector, unflatten

GRID = 2**20
"""Grid steps to one clip norm."""

_MARGIN = 1.0 - 1e-12  # by which factors below 1 are lowered: many times the rounding error of a float64 norm


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

    def __call__(self, gradients: Vector, count: int | None = None) -> Vector:
        """Sum the bounded contributions of the first `count` of u units (all when absent); tensors are (u, ...)."""
        ...


@dataclass(frozen=True, eq=False)
class ClipSum:
    """Sum of `g_u min(1, C / |g_u|)` over units, the norm being that of the whole vector.

    Examples:
        >>> gradients = {"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])}  # two units, norms 5 and 0.5
        >>> query = ClipSum(max_grad_norm=1.0, like={"w": torch.zeros(2)})
        >>> query(gradients)["w"].numpy().round(6).tolist()
        [0.9, 1.2]

    Attributes:
        max_grad_norm: C; infinite for no clipping at all (mechanism `none`).
        like: a vector of the shapes and device of the sum.
        discrete: return int64 multiples of C / `GRID`.

    """

    max_grad_norm: float
    like: Vector
    discrete: bool = False

    def zero(self) -> Vector:
        """Return the sum over no units, float64 or int64."""
        dtype = torch.int64 if self.discrete else torch.float64
        return {name: torch.zeros_like(value, dtype=dtype) for name, value in self.like.items()}

    def __call__(self, gradients: Vector, count: int | None = None) -> Vector:
        """Sum the clipped gradients, each tensor (u, ...) of `gradients` to (...).

        Raises:
            ValueError: the gradients are of half precision, in which a unit's gradient would not be what it should be.

        """
        dtype = next(iter(gradients.values())).dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"gradients are {dtype}; clipped sums need float32 or float64")
        gradients = _first(gradients, count)
        factors = clip_factors(unit_norms(gradients), self.max_grad_norm)
        gradients = _without(gradients, factors == 0)
        if self.discrete:
            return _grid_sum(gradients, factors, self.max_grad_norm)
        return map_vector(lambda value: torch.tensordot(factors.to(value.device), value.double(), dims=1), gradients)


@dataclass(frozen=True, eq=False)
class ProjectClipSum:
    """The same in the k coordinates of a public basis.

    `after`: `c_u = V' g_u`, clipped in R^k. `before`: g_u is clipped in R^p first, as in the paper; noise
    N(0, s^2 I_p) projected on V is N(0, s^2 I_k), so the noise is drawn in R^k in either order. The
    coefficients are clipped in both cases: the bound never rests on V being orthonormal.

    Examples:
        >>> basis = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        >>> query = ProjectClipSum(max_grad_norm=1.0, encode=lambda g: g["w"].double() @ basis, rank=1, discrete=False)
        >>> query({"w": torch.tensor([[3.0, 4.0], [0.3, 0.4]])})["coefficients"].numpy().round(6).tolist()
        [1.3]

    Attributes:
        max_grad_norm: C.
        encode: V', from a vector of (u, ...) tensors to coefficients (u, k), float64.
        rank: k.
        before: clip in R^p first.
        discrete: return int64 multiples of C / `GRID`.

    """

    max_grad_norm: float
    encode: Callable[[Vector], Tensor]
    rank: int
    before: bool = False
    discrete: bool = True

    def zero(self) -> Vector:
        """Return the sum over no units: {"coefficients": (k,)}."""
        return {"coefficients": torch.zeros(self.rank, dtype=torch.int64 if self.discrete else torch.float64)}

    def __call__(self, gradients: Vector, count: int | None = None) -> Vector:
        """Sum the clipped coefficients of the units; all rows are encoded, so that the product keeps its shape."""
        norms = unit_norms(gradients)
        factors = clip_factors(norms, self.max_grad_norm) if self.before else torch.isfinite(norms).double()
        gradients = _without(gradients, factors == 0)
        if self.before:
            gradients = scale_units(gradients, factors)
        coefficients = {"coefficients": self.encode(gradients).double().cpu()}
        like = {"coefficients": torch.zeros(self.rank, dtype=torch.float64)}
        return ClipSum(self.max_grad_norm, like, self.discrete)(coefficients, count)


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


def unit_norms(gradients: Vector) -> Tensor:
    """L2 norm over the whole vector of each unit, (u,) float64; the tensors of `gradients` are (u, ...).

    Taken of values divided by the unit's largest magnitude, so that no square underflows or overflows. Not finite
    where a value is not.

    Examples:
        >>> unit_norms({"w": torch.tensor([[3.0, 4.0], [3e-200, 4e-200]], dtype=torch.float64)}).tolist()
        [5.0, 5e-200]

    """
    rows = [value.flatten(1) for value in gradients.values() if value[0].numel()] if _units(gradients) else []
    if not rows:
        return torch.zeros(_units(gradients), dtype=torch.float64)
    largest = torch.stack([row.abs().amax(dim=1).double() for row in rows]).amax(dim=0)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)[:, None]
    squares = torch.stack([(row.double() / scale).square().sum(dim=1) for row in rows]).sum(dim=0)
    return squares.sqrt() * scale[:, 0]


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """`min(1, C / norm)` (u,) float64, and 0 for units that are not finite; see the module about the margin.

    Examples:
        >>> clip_factors(torch.tensor([5.0, 0.5, float("nan")]).double(), 1.0).numpy().round(6).tolist()
        [0.2, 1.0, 0.0]

    """
    factors = torch.where(norms > max_grad_norm * _MARGIN, max_grad_norm * _MARGIN / norms, 1.0)
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


def _grid_sum(gradients: Vector, factors: Tensor, max_grad_norm: float) -> Vector:
    """Sum of the clipped units in whole grid steps, int64."""
    like = {name: value.new_empty(value.shape[1:], dtype=torch.int64) for name, value in gradients.items()}
    total = np.zeros(sum(value.numel() for value in like.values()), np.int64)
    for unit, factor in enumerate(factors.tolist()):
        vector = flatten({name: value[unit] for name, value in gradients.items()}).double().cpu().numpy()
        total += quantise_to_grid(vector * factor, max_grad_norm, max_grad_norm / GRID)
    return unflatten(torch.from_numpy(total), like)
