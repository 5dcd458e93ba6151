"""A low-rank basis of gradients, from public frames alone.

G is the m x p matrix of per-sample gradients of public frames (per sample, not per mini-batch: m frames give rank
m). With `G G' = U S^2 U'` (m x m) the basis is `V = G' U S^-1`, its k leading columns. Two ways to hold it:

* `stored`, when it fits: the gradients are kept while their Gram matrix is formed, then reduced in place to the k
  directions; encoding and decoding are products.
* `matrix-free`: nothing but U, S and the frames. The Gram matrix is summed over groups of parameters, `V' g = S^-1 U'
  (G g)` where G g is the derivative of the m losses along g (forward mode), and `V c = G' a` with `a = U S^-1 c` is the
  gradient of `sum_j a_j loss_j`: one weighted backward pass.

The coordinates a (m numbers) mean the same to everybody who holds the public frames and the weights, unlike c, whose
signs and rotation are whatever an eigensolver made of them; they are what a site sends when it sends coefficients.

Which frames are used follows from the public data's identity. Nothing here reads a private frame: for `public-views`,
the caller hands in the site's declared phi(x).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import ProjectionOptions
from wardpose.shared.training.gradients import Bags, UnitGradients, available_bytes
from wardpose.shared.vectors import Vector, map_vector

_GRAM_BYTES = 64e6  # per-sample gradients of one group of parameters while the matrix-free Gram is accumulated
_SMALLEST_RATIO = 1e-3  # singular values below this share of the largest are dropped: their vectors are rounding errors
_STORED_SHARE = 0.25  # of the free memory


@dataclass(frozen=True, kw_only=True)
class CapturedEnergy:
    """How much of held-out public gradients lies in the span of a basis.

    Attributes:
        mean: share of the squared norm of their mean gradient; what the gate looks at.
        per_sample: share of their summed squared norms.

    """

    mean: float
    per_sample: float


class PublicBasis:
    """V, as k stored directions or as a way to multiply by it.

    Attributes:
        rank: k.
        captured: energy of held-out public gradients.
        storage: how V is held.

    """

    def __init__(self, directions: "_Directions", left: Tensor, captured: CapturedEnergy) -> None:
        self._directions = directions
        self._left = left  # (m, k) U S^-1
        self.rank = left.shape[1]
        self.captured = captured
        self.storage = directions.storage

    def encode(self, vectors: Vector) -> Tensor:
        """Coefficients `V' g_u`, (u, k) float64 on the CPU, of u vectors (tensors (u, ...))."""
        return self._directions.encode(vectors).double().cpu()

    def decode(self, coefficients: Tensor) -> Vector:
        """Return the vector `V c` of coefficients (k,)."""
        return self._directions.decode(coefficients)

    def decode_units(self, coefficients: Tensor) -> Vector:
        """Return the vectors `V c_u` of coefficients (u, k), tensors (u, ...)."""
        each = [self.decode(line) for line in coefficients]
        return {name: torch.stack([vector[name] for vector in each]) for name in each[0]}

    def coordinates(self, coefficients: Tensor) -> Tensor:
        """Return `a = U S^-1 c`, (m,) float64: the vector in terms of the public frames' gradients."""
        return self._left @ coefficients.double().cpu()


def build_basis(
    engine: UnitGradients, parameters: Vector, bags: Bags, held_out: Bags, options: ProjectionOptions
) -> PublicBasis:
    """Make the basis of public bags at `parameters`.

    Args:
        engine: the gradients' engine; the loss is that of training.
        parameters: where gradients are taken; copied.
        bags: m public frames as units.
        held_out: further public frames, on which the captured energy is measured.
        options: rank, energy and storage.

    Raises:
        ConfigError: the public gradients are all zero or not finite, so that they span nothing.

    """
    at = map_vector(lambda value: value.detach().clone(), parameters)
    everything = _concatenate(bags, held_out)
    count = len(bags)
    needed = len(everything) * sum(value.numel() * value.element_size() for value in at.values())
    stored = options.storage == "stored" or (
        options.storage == "auto" and needed <= _STORED_SHARE * available_bytes(engine.device)
    )
    rows = _stored_rows(engine, at, everything) if stored else {}
    gram = _gram(rows) if stored else _streamed_gram(engine, at, everything)
    if not bool(torch.isfinite(gram).all()) or float(gram[:count, :count].diagonal().sum()) <= 0:
        raise ConfigError("the public gradients are zero or not finite; they span no basis")
    vectors, singular = _leading(gram[:count, :count], options.rank, options.energy)
    left = vectors / singular
    directions: _Directions = _Stored(rows, left) if stored else _MatrixFree(engine, at, bags, left)
    return PublicBasis(directions, left, _captured(gram, count, left))


def choose_frames(
    identity: str, available: int, options: ProjectionOptions, refresh: int
) -> tuple[NDArray[np.int64], int]:
    """Rows for the basis and, behind them, rows held out: a permutation that follows from public facts.

    Args:
        identity: of the public data.
        available: rows there are.
        options: how many are wanted.
        refresh: number of bases made before in this round.

    Returns:
        Row numbers, and how many of them (m) are for the basis; the rest are held out.

    Raises:
        ConfigError: fewer than 4 rows.

    """
    if available < 4:
        raise ConfigError(f"a basis needs at least 4 public frames; there are {available}")
    held_out = min(options.held_out, max(1, available // 4))
    frames = min(options.frames, available - held_out)
    digest = hashlib.sha256(f"{identity}/{refresh}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8])).permutation(available)
    return order[: frames + held_out].astype(np.int64), frames


def public_frames(
    load: Callable[[NDArray[np.int64]], Bags],
    identity: str,
    available: int,
    options: ProjectionOptions,
    refresh: int,
) -> tuple[Bags, Bags]:
    """Load the frames that `choose_frames` names, for the basis and held out, as units of one row."""
    rows, frames = choose_frames(identity, available, options, refresh)
    return load(rows[:frames, None]), load(rows[frames:, None])


def decode_coordinates(
    engine: UnitGradients,
    parameters: Vector,
    load: Callable[[NDArray[np.int64]], Bags],
    identity: str,
    available: int,
    options: ProjectionOptions,
    coordinates: Tensor,
) -> Vector:
    """Return `G' a` of coordinates (m,) made elsewhere at the same weights with the same public data.

    Raises:
        ConfigError: the number of coordinates is not that of the basis's public frames.

    """
    frames, _ = public_frames(load, identity, available, options, 0)
    if coordinates.shape != (len(frames),):
        raise ConfigError(
            f"{tuple(coordinates.shape)} coordinates; allowed: ({len(frames)},), one for each public frame"
        )
    return engine.summed(parameters, frames, coordinates.to(engine.device, engine.dtype))


class _Directions(Protocol):
    """Multiplication by V' and by V."""

    storage: Literal["stored", "matrix-free"]

    def encode(self, vectors: Vector) -> Tensor:
        """`V' g_u`, (u, k), of tensors (u, ...)."""
        ...

    def decode(self, coefficients: Tensor) -> Vector:
        """`V c` of (k,)."""
        ...


class _Stored:
    storage: Literal["stored", "matrix-free"] = "stored"

    def __init__(self, rows: Vector, left: Tensor) -> None:
        """Reduce the gradients `rows` to the directions `left' rows`; `rows` is emptied on the way."""
        count = len(left)
        self._rows = {
            name: torch.tensordot(left.T.to(rows[name]), rows.pop(name)[:count], dims=1) for name in list(rows)
        }

    def encode(self, vectors: Vector) -> Tensor:
        return sum_tensors([vectors[name].flatten(1) @ rows.flatten(1).T for name, rows in self._rows.items()])

    def decode(self, coefficients: Tensor) -> Vector:
        return map_vector(lambda rows: torch.tensordot(coefficients.to(rows), rows, dims=1), self._rows)


class _MatrixFree:
    storage: Literal["stored", "matrix-free"] = "matrix-free"

    def __init__(self, engine: UnitGradients, parameters: Vector, bags: Bags, left: Tensor) -> None:
        self._engine = engine
        self._parameters = parameters
        self._bags = bags
        self._left = left

    def encode(self, vectors: Vector) -> Tensor:
        lines = []
        for unit in range(len(next(iter(vectors.values())))):
            direction = {name: value[unit] for name, value in vectors.items()}
            along = self._engine.directional(self._parameters, self._bags, direction)
            lines.append(along.double().cpu() @ self._left)
        return torch.stack(lines)

    def decode(self, coefficients: Tensor) -> Vector:
        weights = (self._left @ coefficients.double().cpu()).to(self._engine.device, self._engine.dtype)
        return self._engine.summed(self._parameters, self._bags, weights)


def sum_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    return torch.stack(list(tensors)).sum(dim=0)


def _leading(gram: Tensor, rank: int, energy: float) -> tuple[Tensor, Tensor]:
    """U (m, k) and S (k,): the fewest leading vectors that hold `energy`, at most `rank`."""
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    singular = values.sqrt()
    share = values.cumsum(0) / values.sum()
    enough = int((share < energy).sum()) + 1
    sound = int((singular > _SMALLEST_RATIO * singular[0]).sum())
    count = max(1, min(rank, enough, sound))
    return vectors[:, :count], singular[:count]


def _captured(gram: Tensor, count: int, left: Tensor) -> CapturedEnergy:
    """Read off the Gram matrix of all frames: `V' g_h = S^-1 U' (G g_h)`, and |g_h|^2 is on its diagonal."""
    coefficients = left.T @ gram[:count, count:]  # (k, h)
    own = gram[count:, count:]
    return CapturedEnergy(
        mean=_share(float(coefficients.mean(dim=1).square().sum()), float(own.mean())),
        per_sample=_share(float(coefficients.square().sum()), float(own.diagonal().sum())),
    )


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 0.0


def _stored_rows(engine: UnitGradients, parameters: Vector, bags: Bags) -> Vector:
    rows = {name: torch.empty(len(bags), *value.shape).to(value) for name, value in parameters.items()}
    start = 0
    for gradients in engine.per_unit(parameters, bags):
        count = len(next(iter(gradients.values())))
        for name, value in gradients.items():
            rows[name][start : start + count] = value
        start += count
    return rows


def _gram(rows: Vector) -> Tensor:
    return sum_tensors([(value.flatten(1) @ value.flatten(1).T).double().cpu() for value in rows.values()])


def _streamed_gram(engine: UnitGradients, parameters: Vector, bags: Bags) -> Tensor:
    """Add up the Gram matrix over groups of parameters, keeping m x p_group at a time."""
    gram = torch.zeros(len(bags), len(bags), dtype=torch.float64)
    most = max(1, int(_GRAM_BYTES / len(bags) / engine.dtype.itemsize))
    buffer = torch.empty(len(bags), most, dtype=engine.dtype, device=engine.device)  # one for all: no fragments
    for group in _groups(parameters, most):
        block, row = buffer[:, : sum(piece.size for piece in group)], 0
        for gradients in engine.per_unit(parameters, bags, only=tuple(piece.name for piece in group)):
            parts = [gradients[piece.name].flatten(1)[:, piece.start : piece.start + piece.size] for piece in group]
            block[row : row + len(parts[0])] = torch.cat(parts, dim=1)
            row += len(parts[0])
        gram += (block @ block.T).double().cpu()
    return gram


@dataclass(frozen=True)
class _Piece:
    """Entries `start` to `start + size` of a flattened parameter."""

    name: str
    start: int
    size: int


def _groups(parameters: Vector, most: int) -> list[list[_Piece]]:
    """Cut all parameters into groups of at most `most` entries; a large parameter is cut into pieces."""
    groups: list[list[_Piece]] = [[]]
    room = most
    for name, value in parameters.items():
        pieces = [_Piece(name, start, min(most, value.numel() - start)) for start in range(0, value.numel(), most)]
        for piece in pieces:
            if groups[-1] and piece.size > room:
                groups.append([])
                room = most
            groups[-1].append(piece)
            room -= piece.size
    return groups


def _concatenate(first: Bags, second: Bags) -> Bags:
    return Bags(
        inputs=torch.cat([first.inputs, second.inputs]),
        joints=torch.cat([first.joints, second.joints]),
        visibility=torch.cat([first.visibility, second.visibility]),
        weights=first.weights,
    )
