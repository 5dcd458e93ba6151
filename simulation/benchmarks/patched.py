"""The network as hook-based engines need it, for comparison only.

Opacus' samplers want the batch in dimension 0 of every layer's input, no in-place write on a layer's output, no
BatchNorm and no trainable layer with a buffer. TinyViT folds its attention windows into dimension 0, adds shortcuts in
place, and its attention owns trainable biases beside an index buffer. Here windows stay inside dimension 1, shortcuts
are added out of place, BatchNorm becomes a fixed scale and shift, and the attention biases do not train. Our own engine
needs none of this.
"""

import copy
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.pose.model import PoseModel, trainable_names
from wardpose.shared.pose.trainable import Strategy


def patched(model: PoseModel, strategy: Strategy) -> PoseModel:
    """Copy the model, change what hooks cannot handle, and leave `requires_grad` on what trains under `strategy`."""
    model = copy.deepcopy(model)
    trained = {name for name in trainable_names(model, strategy) if "attention_biases" not in name}
    _replace_batch_norm(model)
    for module in model.modules():
        kind = type(module).__name__
        if kind == "WindowBlock":
            module.forward = MethodType(_block, module)
        elif kind == "MBConv":
            module.forward = MethodType(_mbconv, module)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


class _FixedAffine(nn.Module):
    """What BatchNorm on frozen statistics computes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("scale", scale.reshape(1, -1, 1, 1))
        self.register_buffer("shift", (norm.bias.detach() - norm.running_mean * scale).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _FixedAffine(child))
        else:
            _replace_batch_norm(child)


def _mbconv(self: Any, x: Tensor) -> Tensor:
    out = self.conv3(self.act2(self.conv2(self.act1(self.conv1(x)))))
    result: Tensor = self.act3(out + x)
    return result


def _block(self: Any, x: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    side = self.window_size
    down, right = -height % side, -width % side
    padded = functional.pad(x, (0, 0, 0, right, 0, down))
    rows, columns = padded.shape[1] // side, padded.shape[2] // side
    windows = padded.view(batch, rows, side, columns, side, channels).transpose(2, 3)
    mixed = _attention(self.attn, windows.reshape(batch, -1, channels), side * side)
    mixed = mixed.view(batch, rows, columns, side, side, channels).transpose(2, 3)
    mixed = mixed.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]
    x = (x + mixed).permute(0, 3, 1, 2)
    x = self.local_conv(x).reshape(batch, channels, height * width).transpose(1, 2)
    x = x + self.mlp(x)
    return x.view(batch, height, width, channels)


def _attention(attention: Any, tokens: Tensor, window: int) -> Tensor:
    """Attend within windows; tokens (B, windows * window, C), so that every layer sees B in front."""
    batch, count, _ = tokens.shape
    qkv = attention.qkv(attention.norm(tokens)).view(batch * (count // window), window, attention.num_heads, -1)
    q, k, v = qkv.split([attention.key_dim, attention.key_dim, attention.val_dim], dim=3)
    bias = attention.attention_biases[:, attention.attention_bias_idxs]
    mixed = functional.scaled_dot_product_attention(
        q.permute(0, 2, 1, 3), k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3), attn_mask=bias
    )
    result: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, count, attention.out_dim))
    return result
