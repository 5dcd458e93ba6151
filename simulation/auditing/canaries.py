"""Canaries of an audit: units whose gradients are strong, orthogonal and known to the auditor.

A canary is a random picture with a random pose. It has two variants, `x = b + e` and `x' = b - e`, with the same
joints and, since e sums to zero over every block of 8 x 8 pixels, with the *same* public view `phi(x) = phi(x') = b`:
the block mean. A membership audit puts x in or leaves it out; an audit of feature-DP puts in x or x'. For small e
the pair differences `g(x) - g(b)` and `g(x') - g(b)` are nearly opposite, the worst case for replacement.

At fixed weights a unit's gradient never changes, so it is differentiated once (`KnownGradients`) and every further
step looks it up: sampling, clipping, summing, noise and the public draw remain the engine's own.

Gradients of pictures overlap, most of all in a basis of few directions, and what a canary shares with others does not
tell it from them. As a claim is about all gradients there can be, the auditor may plant worse ones than pictures have
(Nasr et al. 2021, arXiv 2101.04535): `make_orthogonal` turns those of a table into the nearest that do not interfere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.vectors import Vector, flatten, map_vector, unflatten

SIZE = (64, 32)
STRATEGY: Strategy = "head"
_BLOCK = 8
_AMPLITUDE = 6  # of e, in pixel values
_PUBLIC = 30.0  # times as long are public gradients as private ones, so that noise does not hide them
_TOGETHER = 32  # units that are looked up at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Gradients (T, ...) of T rows at the model's weights, and the rows themselves.

    Rows 0 .. n-1 are the variants x, n .. 2n-1 the variants x', 2n .. 3n-1 their public views, and the rest are
    frames of a public data set.

    Attributes:
        rows: trunk features and joints of all T.
        gradients: of all T.
        canaries: n.
        strategy: which parameters the gradients are of.

    """

    rows: Rows
    gradients: Vector
    canaries: int
    strategy: Strategy = STRATEGY

    @property
    def public_frames(self) -> NDArray[np.int64]:
        """Row numbers of the public data set."""
        return np.arange(3 * self.canaries, len(self.rows))

    def public_views(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of phi(x) for rows of variants."""
        return 2 * self.canaries + ids % self.canaries

    def take(self, ids: NDArray[np.int64], *, known: bool) -> Rows:
        """Rows `ids`: as features, or, for `KnownGradients`, with their own numbers in the features' place."""
        inputs = ids.astype(np.float32).reshape(-1, 1, 1, 1) if known else self.rows.inputs[ids]
        return Rows(inputs=inputs, joints=self.rows.joints[ids], visibility=self.rows.visibility[ids])


class KnownGradients(UnitGradients):
    """The gradients' engine at one set of weights, reading from a table what it would compute.

    Args:
        model: as for `UnitGradients`; the table was made with it and the weights are never moved.
        table: rows are named by number, see `Table.take`.

    """

    def __init__(self, model: PoseModel, table: Table) -> None:
        super().__init__(model, table.strategy, micro_batch=_TOGETHER)
        self._table = table.gradients

    def padded(
        self,
        parameters: Vector,
        bags: Bags,
        size: int,
        *,
        only: tuple[str, ...] | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Iterator[tuple[Vector, int]]:
        """Yield micro-batches of `size` looked-up gradients, and how many of them are units; there are no losses."""
        names = self.names if only is None else only
        weights = bags.weights.tolist()
        for start in range(0, len(bags), size):
            part = bags.units(start, min(start + size, len(bags)))
            ids = _numbers(part.padded(size))  # (u, R)
            result = {}
            for name in names:
                table = self._table[name]
                total = table[ids[:, 0]] * weights[0]
                for row in range(1, ids.shape[1]):
                    total += table[ids[:, row]] * weights[row]
                result[name] = total
            yield result, len(part)

    def summed(self, parameters: Vector, bags: Bags, unit_weights: Tensor | None = None) -> Vector:
        """Sum the units' gradients."""
        total = map_vector(torch.zeros_like, parameters)
        for gradients in self.per_unit(parameters, bags):
            weights = torch.ones(len(bags)) if unit_weights is None else unit_weights
            total = map_vector(lambda value, w=weights: torch.tensordot(w.to(value), value, dims=1), gradients)
        return total


def small_model(seed: int) -> PoseModel:
    """Build the pose network with random weights at 64 x 32 pixels, whose head has about 10 000 parameters."""
    return build_model(ModelConfig(weights="random", input_size=SIZE), seed=seed)


def make_table(
    model: PoseModel,
    canaries: int,
    seed: int,
    *,
    pairs: bool,
    public_frames: int = 0,
    candidates: int = 4,
    strategy: Strategy = STRATEGY,
) -> Table:
    """Draw pictures, differentiate each once and keep the canaries whose gradients are the most independent.

    Args:
        model: at whose weights gradients are taken.
        canaries: n.
        seed: of pictures and poses.
        pairs: what is to be independent: `g(x) - g(x')` (feature-DP), else `g(x)`.
        public_frames: further rows, a public data set from the same distribution.
        candidates: times as many pictures are drawn as are kept.
        strategy: which parameters gradients are of.

    """
    generator = np.random.default_rng(seed)
    engine = UnitGradients(model, strategy)
    count = candidates * canaries
    base, offset = _pictures(count, generator)
    joints, visibility = _poses(count, generator)
    crops = np.concatenate([base + offset, base - offset, base])
    assert np.array_equal(block_means(crops[:count]), block_means(crops[count : 2 * count]))  # noqa: S101 - a premise
    rows = _features(engine, crops, np.tile(joints, (3, 1, 1)), np.tile(visibility, (3, 1)))
    gradients = _differentiate(engine, rows)
    flat = torch.stack([flatten({name: value[row] for name, value in gradients.items()}) for row in range(3 * count)])
    chosen = most_independent(flat[:count] - flat[count : 2 * count] if pairs else flat[:count], canaries)
    ids = np.concatenate([chosen, chosen + count, chosen + 2 * count])
    kept = Rows(inputs=rows.inputs[ids], joints=rows.joints[ids], visibility=rows.visibility[ids])
    gradients = map_vector(lambda value: value[torch.from_numpy(ids)], gradients)
    if public_frames:
        base, offset = _pictures(public_frames, generator)
        further = _features(engine, base + offset, *_poses(public_frames, generator))
        more = _differentiate(engine, further)
        gradients = map_vector(lambda a, b: torch.cat([a, b]), gradients, more)
        kept = Rows(
            inputs=np.concatenate([kept.inputs, further.inputs]),
            joints=np.concatenate([kept.joints, further.joints]),
            visibility=np.concatenate([kept.visibility, further.visibility]),
        )
    return Table(rows=kept, gradients=gradients, canaries=canaries, strategy=strategy)


def make_orthogonal(table: Table, *, pairs: bool, span: Tensor | None = None) -> Table:
    """Turn the canaries' gradients into the nearest that are orthogonal and of one norm.

    Without pairs g(x) are; with pairs g(x) - g(b) = g(b) - g(x') and g(b) together, so that exchanging x for x' moves a
    sum by as much as replacing can, in a direction of its own, and no public gradient is in the way.

    Args:
        table: of pictures; the frames of the public data set stay as they are.
        pairs: whether canaries are exchanged for their other variant.
        span: (k, p) orthonormal rows; private gradients are taken into their span, public ones out of it.

    """
    n = table.canaries
    like = {name: value[0] for name, value in table.gradients.items()}
    rows = torch.stack([flatten({name: value[row] for name, value in table.gradients.items()}) for row in range(3 * n)])
    x, other, public = rows.double().reshape(3, n, -1)
    size = x.norm(dim=1).mean()
    moves = (x - other) / 2 if pairs else x
    moves = size * _nearest_orthonormal(moves if span is None else moves @ span.T @ span)
    if pairs:
        away = moves / size if span is None else span
        public = _PUBLIC * size * _nearest_orthonormal(public - public @ away.T @ away)
        x, other = public + moves, public - moves
    else:
        x = moves
    made = [unflatten(row.to(rows.dtype), like) for row in torch.cat([x, other, public])]
    gradients = {
        name: torch.cat([torch.stack([row[name] for row in made]), value[3 * n :]])
        for name, value in table.gradients.items()
    }
    return replace(table, gradients=gradients)


def _nearest_orthonormal(vectors: Tensor) -> Tensor:
    """Rows with orthonormal directions, nearest to `vectors` (n, p) of any norms: the polar factor (Löwdin 1950)."""
    left, _, right = torch.linalg.svd(torch.nn.functional.normalize(vectors, dim=1), full_matrices=False)
    return torch.as_tensor(left @ right)


def block_means(crops: NDArray[np.int64]) -> NDArray[np.float64]:
    """phi: means (N, H/8, W/8, 3) over blocks of 8 x 8 pixels of crops (N, H, W, 3)."""
    count, height, width, _ = crops.shape
    blocks = crops.reshape(count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, 3)
    return np.asarray(blocks.mean(axis=(2, 4)), np.float64)


def most_independent(vectors: Tensor, count: int) -> NDArray[np.int64]:
    """Choose rows greedily, each the one farthest (by angle) from the span of those before: pivoted Gram-Schmidt."""
    left = torch.nn.functional.normalize(vectors.double(), dim=1)
    chosen: list[int] = []
    for _ in range(count):
        norms = left.norm(dim=1)
        norms[chosen] = -1
        best = int(norms.argmax())
        chosen.append(best)
        direction = left[best] / left[best].norm()
        left = left - torch.outer(left @ direction, direction)
    return np.array(chosen, np.int64)


def _numbers(bags: Bags) -> Tensor:
    return bags.inputs[:, :, 0, 0, 0].long()


def _pictures(count: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Blocks b of one colour, and e: the right half of every block is minus its left half."""
    height, width = SIZE
    blocks = (count, height // _BLOCK, width // _BLOCK)
    base = generator.integers(_AMPLITUDE, 256 - _AMPLITUDE, (*blocks, 3)).repeat(_BLOCK, 1).repeat(_BLOCK, 2)
    half = generator.integers(-_AMPLITUDE, _AMPLITUDE + 1, (blocks[0], blocks[1], _BLOCK, blocks[2], _BLOCK // 2, 3))
    return base, np.concatenate([half, -half], axis=4).reshape(base.shape)


def _poses(count: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Random places of 14 joints, 1 to 4 of them visible: few joints make gradients that differ."""
    height, width = SIZE
    joints = (generator.random((count, 14, 2)) * [width - 1, height - 1]).astype(np.float32)
    rank = generator.random((count, 14)).argsort(axis=1)
    visible = rank < generator.integers(1, 5, (count, 1))
    return joints, (2 * visible).astype(np.uint8)


def _features(
    engine: UnitGradients, crops: NDArray[np.int64], joints: NDArray[np.float32], visibility: NDArray[np.uint8]
) -> Rows:
    parts = []
    for start in range(0, len(crops), 64):
        part = slice(start, start + 64)
        rows = Rows(inputs=crops[part].astype(np.uint8), joints=joints[part], visibility=visibility[part])
        parts.append(load_bags(engine, rows, np.arange(len(rows))[:, None]).inputs[:, 0].numpy())
    return Rows(inputs=np.concatenate(parts), joints=joints, visibility=visibility)


def _differentiate(engine: UnitGradients, rows: Rows) -> Vector:
    parts = list(engine.per_unit(engine.parameters(), load_bags(engine, rows, np.arange(len(rows))[:, None])))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
