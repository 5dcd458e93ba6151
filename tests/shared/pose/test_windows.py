"""Blocks that leave out the filling of their windows compute what timm's do."""

import copy

import pytest
import torch
from timm.models.tiny_vit import TinyVitBlock
from torch import Tensor
from torch.func import functional_call, grad, vmap

from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.pose.windows import WindowBlock


def blocks(side: int) -> tuple[WindowBlock, TinyVitBlock]:
    """Return our block and timm's, with the same weights; none of them is trivial."""
    torch.manual_seed(side)
    stock = TinyVitBlock(12, 3, window_size=side).double()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    for module in stock.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    ours = copy.deepcopy(stock)
    ours.__class__ = WindowBlock
    return ours, stock


@pytest.mark.parametrize(
    "shape", [(7, 7), (14, 7), (8, 6), (6, 8), (3, 2), (1, 1), (16, 12), (7, 9), (21, 20), (14, 14)]
)
@pytest.mark.parametrize("side", [7, 14])
def test_values_and_gradients_are_those_of_timm(shape: tuple[int, int], side: int) -> None:
    ours, stock = blocks(side)
    x = torch.randn(2, *shape, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, *shape, 12, dtype=torch.float64)
    found, expected = ours(x), stock(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    names = [name for name, _ in stock.named_parameters()]
    got = torch.autograd.grad((found * weight).sum(), [x, *ours.parameters()])
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *stock.parameters()])
    for name, mine, theirs in zip(["x", *names], got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8, msg=name)


def test_gradients_of_single_records_are_those_of_each_alone() -> None:
    ours, stock = blocks(7)
    x = torch.randn(3, 8, 6, 12, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        out: Tensor = functional_call(ours, parameters, (row[None],))
        return out.square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(dict(ours.named_parameters()), x)
    for place, row in enumerate(x):
        alone = torch.autograd.grad(stock(row[None]).square().sum(), list(stock.parameters()))
        for (name, _), expected in zip(stock.named_parameters(), alone, strict=True):
            torch.testing.assert_close(found[name][place], expected, rtol=1e-8, atol=1e-8, msg=name)


def test_the_whole_network_is_made_of_them() -> None:
    model = build_model(ModelConfig(input_size=(128, 96), last_stride=16, weights="random"))
    ours = [module for module in model.modules() if isinstance(module, TinyVitBlock)]
    assert ours
    assert all(type(module) is WindowBlock for module in ours)
    stock = copy.deepcopy(model)
    for module in stock.modules():
        if type(module) is WindowBlock:
            module.__class__ = TinyVitBlock
    x = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        for found, expected in zip(model(x), stock(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
