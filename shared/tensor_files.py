"""What may stand in a weights file: tensors of a network's own names and shapes, floating-point and finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wardpose.shared.errors import DataError, one_line

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types that weights may be stored in. Whole numbers are no weights: quantised ones lack the scale that they need."""


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Give a network all of its tensors, each exactly as stored (float64 rounded), or none.

    Args:
        network: in its own types, which it keeps.
        tensors: by the names of the network's parameters and buffers.
        where: the file, for errors.

    Raises:
        DataError: a tensor is missing, unknown, of another shape or type, or not finite; names it and what is allowed.

    """
    wanted = network.state_dict()
    if missing := sorted(set(wanted) - set(tensors)):
        raise DataError(f'{where}: tensor "{one_line(missing[0])}" is missing ({len(missing)} of {len(wanted)} are)')
    if unknown := sorted(set(tensors) - set(wanted)):
        raise DataError(f'{where}: tensor "{one_line(unknown[0])}" is not one of this network ({len(unknown)} are not)')
    for name, own in wanted.items():
        if tensors[name].shape != own.shape:
            shapes = f"has shape {list(tensors[name].shape)}, the network needs {list(own.shape)}"
            raise DataError(f'{where}: tensor "{one_line(name)}" {shapes}')
    state = {name: _converted(tensors[name], own, name, where) for name, own in wanted.items()}
    network.load_state_dict(state)


def check_finite(tensor: Tensor, name: str, where: object) -> None:
    """Refuse values that are not finite.

    Raises:
        DataError: names file, tensor and type.

    """
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f'{where}: tensor "{one_line(name)}" has values that are not finite in {_plain(tensor.dtype)}')


def _converted(tensor: Tensor, own: Tensor, name: str, where: object) -> Tensor:
    allowed = FLOATS if own.is_floating_point() else (own.dtype,)
    if tensor.dtype not in allowed:
        types = ", ".join(map(_plain, allowed))
        raise DataError(f'{where}: tensor "{one_line(name)}" has dtype {_plain(tensor.dtype)} (allowed: {types})')
    check_finite(tensor, name, where)
    converted = tensor.to(own.dtype)
    check_finite(converted, name, where)  # a float64 beyond what float32 holds
    return converted


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
