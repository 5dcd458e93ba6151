"""TinyViT's blocks without the work on padding: the same function, at 128x96 in less than half the time.

timm fills a map up with zeros until windows of 7x7 or 14x14 tile it, and attends over the filling too: at 128x96 three
quarters of stage 3's tokens are filling. After the block's norm all filling tokens are one vector, hence have one key k
and one value v, and only their biases b_p differ. So they weigh, together,

    sum_p exp(q.k + b_p) = exp(q.k + log sum_p exp(b_p)),

which is one more token whose bias is the log-sum-exp of theirs. What the filling would ask for is thrown away by timm,
and is not computed here. Equal to timm's forward up to rounding, gradients included.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from timm.models.tiny_vit import TinyVitBlock
from torch import Tensor, nn


class WindowBlock(TinyVitBlock):
    """timm's block; parameters, their names and the function are the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, H, W, C) for (B, H, W, C)."""
        batch, height, width, channels = x.shape
        x = x + _attended(self.attn, x, self.window_size)
        x = self.local_conv(x.permute(0, 3, 1, 2)).reshape(batch, channels, height * width).transpose(1, 2)
        out: Tensor = (x + self.mlp(x)).view(batch, height, width, channels)
        return out


def without_filling(network: nn.Module) -> None:
    """Let every TinyViT block of a network, in place, leave out the filling of its windows."""
    for module in network.modules():
        if type(module) is TinyVitBlock:
            module.__class__ = WindowBlock


def _attended(attention: Any, x: Tensor, side: int) -> Tensor:
    """Attention within windows of `side` x `side` over (B, H, W, C)."""
    batch, height, width, channels = x.shape
    count = height * width
    tokens = torch.cat([x.reshape(batch, count, channels), x.new_zeros(batch, 1, channels)], dim=1)
    qkv = attention.qkv(attention.norm(tokens)).view(batch, count + 1, attention.num_heads, -1)
    inside, filling = qkv[:, :count].view(batch, height, width, attention.num_heads, -1), qkv[:, count:]
    rows = []
    for top, bottom in _spans(height, side):
        columns = [
            _windows(attention, inside[:, top:bottom, left:right], filling, side) for left, right in _spans(width, side)
        ]
        rows.append(torch.cat(columns, dim=2))
    out: Tensor = attention.proj(torch.cat(rows, dim=1).reshape(batch, count, attention.out_dim))
    return out.view(batch, height, width, channels)


def _spans(length: int, side: int) -> Iterator[tuple[int, int]]:
    """Split a length into what whole windows cover, and the rest."""
    whole = length // side * side
    if whole:
        yield 0, whole
    if whole < length:
        yield whole, length


def _windows(attention: Any, part: Tensor, filling: Tensor, side: int) -> Tensor:
    """Attend within the equally full windows of a part (B, H, W, heads, d); filling (B, 1, heads, d)."""
    batch, height, width, heads, _ = part.shape
    tall, wide = min(side, height), min(side, width)
    down, along = height // tall, width // wide
    tokens = part.reshape(batch, down, tall, along, wide, heads, -1).transpose(2, 3)
    tokens = tokens.reshape(batch, down * along, tall * wide, heads, -1).transpose(2, 3)  # (B, windows, heads, N, d)
    q, k, v = torch.split(tokens, [attention.key_dim, attention.key_dim, attention.val_dim], dim=-1)
    among, beyond = _pairs(attention.attention_bias_idxs, side, tall, wide)
    bias = attention.attention_biases[:, among]  # (heads, N, N)
    if beyond.shape[1]:
        one = filling.transpose(1, 2).unsqueeze(1).expand(-1, down * along, -1, -1, -1)
        k = torch.cat([k, one[..., attention.key_dim : 2 * attention.key_dim]], dim=-2)
        v = torch.cat([v, one[..., 2 * attention.key_dim :]], dim=-2)
        together = torch.logsumexp(attention.attention_biases[:, beyond], dim=-1, keepdim=True)
        bias = torch.cat([bias, together], dim=-1)
    weights = ((q * attention.scale) @ k.transpose(-2, -1) + bias).softmax(dim=-1)
    mixed = (weights.to(v.dtype) @ v).transpose(2, 3)  # (B, windows, N, heads, d)
    mixed = mixed.reshape(batch, down, along, tall, wide, -1).transpose(2, 3)
    out: Tensor = mixed.reshape(batch, height, width, -1)
    return out


def _pairs(indices: Tensor, side: int, tall: int, wide: int) -> tuple[Tensor, Tensor]:
    """Return which bias stands between the tokens of a window's full part, and between them and its filling."""
    full, empty = (torch.tensor(one, dtype=torch.long, device=indices.device) for one in _places(side, tall, wide))
    mine = indices[full]
    return mine[:, full], mine[:, empty]


@lru_cache(maxsize=256)
def _places(side: int, tall: int, wide: int) -> tuple[list[int], list[int]]:
    full = [row * side + column for row in range(tall) for column in range(wide)]
    return full, sorted(set(range(side * side)) - set(full))
