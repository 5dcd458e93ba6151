"""Updates of low rank: of a layer's weight W (out x in) a site trains B (out x r) alone, and W becomes W + B A.

A (r x in) has orthonormal rows, is drawn from the layer's name, and never changes: both sides know it, nothing private
is in it, and it does not travel. That is LoRA (Hu et al. 2021, arXiv 2106.09685) with a frozen A (LoRA-FA, Zhang et al.
2023, arXiv 2308.03303). B begins at 0 in every round, which leaves the network as it was. What is clipped, noised and
charged is the gradient with respect to B, r (out) numbers for each layer; and because A's rows are orthonormal, an
update B A is as long as B.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SUFFIX = ".low-rank"
"""Behind the name of a weight: the name of its B."""


def factor_shape(weight: tuple[int, ...], rank: int) -> tuple[int, int]:
    """Return the shape of B for a weight (out, in) or (out, in, 1, 1).

    Raises:
        ValueError: the weight is no such matrix, or B has as many numbers as it.

    """
    if len(weight) not in (2, 4) or any(side != 1 for side in weight[2:]):
        raise ValueError(f"a weight of shape {list(weight)} is no matrix (allowed: linear layers, 1x1 convolutions)")
    if rank >= weight[1]:
        raise ValueError(f"rank is {rank} (allowed: below {weight[1]}, the number of the layer's inputs)")
    return weight[0], rank


def expanded(vector: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Turn a vector over trained parameters into one over the network's own: every B becomes B A.

    Args:
        vector: by trained name.
        shapes: of the network's parameters, by name.

    """
    out = {}
    for name, value in vector.items():
        weight = name.removesuffix(SUFFIX)
        if name != weight:
            shape = shapes[weight]
            value = (value @ directions(weight, value.shape[-1], shape[1]).to(value)).reshape(shape)
        out[weight] = value
    return out


@lru_cache(maxsize=256)
def directions(weight: str, rank: int, columns: int) -> Tensor:
    """Return A (rank, columns) of a layer, float64."""
    seed = int.from_bytes(hashlib.sha256(f"low rank {weight}".encode()).digest()[:8])
    drawn = np.random.default_rng(seed).standard_normal((columns, rank))
    rows, upper = np.linalg.qr(drawn)
    return torch.from_numpy(np.ascontiguousarray((rows * np.sign(np.diag(upper))).T))
