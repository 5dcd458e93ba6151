"""Vectors in parameter space: one tensor for each name, always in the same order."""

from collections.abc import Callable

import torch
from torch import Tensor

Vector = dict[str, Tensor]
"""A vector in parameter space: one tensor for each trainable name, in the order of the strategy's names."""


def map_vector(function: Callable[..., Tensor], *vectors: Vector) -> Vector:
    """Apply `function` to the tensors of equal names."""
    return {name: function(*(vector[name] for vector in vectors)) for name in vectors[0]}


def flatten(vector: Vector) -> Tensor:
    """(p,) concatenation in the vector's order."""
    return torch.cat([value.reshape(-1) for value in vector.values()])


def unflatten(flat: Tensor, like: Vector) -> Vector:
    """Inverse of `flatten`: names, shapes, dtypes and devices of `like`."""
    parts = torch.split(flat, [value.numel() for value in like.values()])
    return {name: part.reshape(value.shape).to(value) for (name, value), part in zip(like.items(), parts, strict=True)}
