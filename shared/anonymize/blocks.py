"""Small convolutional parts that the generators, the discriminators and the attackers share.

Tensors are (B, C, H, W). Everything works at any size that is a multiple of 32.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.data.crops import IMAGENET_MEAN, IMAGENET_STD


class DepthwiseBlock(nn.Module):
    """Residual block: 5x5 depthwise, 1x1 up by 2, GELU, 1x1 down; starts as the identity where `quiet`."""

    def __init__(self, channels: int, *, quiet: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=not norm)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.up = nn.Conv2d(channels, 2 * channels, 1)
        self.down = nn.Conv2d(2 * channels, channels, 1)
        if quiet:
            nn.init.zeros_(self.down.weight)
            nn.init.zeros_(_bias(self.down))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm(self.spatial(x)))))
        return out


def blocks(channels: int, count: int, *, quiet: bool = False, norm: bool = True) -> nn.Sequential:
    """Chain `count` depthwise blocks."""
    return nn.Sequential(*(DepthwiseBlock(channels, quiet=quiet, norm=norm) for _ in range(count)))


class LightEncoder(nn.Module):
    """Image -> features at 1/8, 1/16 and 1/32 of its size; small and from scratch."""

    channels: tuple[int, int, int] = (40, 64, 96)

    def __init__(self, in_channels: int = 3, depth: int = 2) -> None:
        super().__init__()
        c = self.channels
        self.stem = nn.Conv2d(in_channels * 16, c[0], 1)
        self.at_4 = blocks(c[0], 1)
        self.to_8 = nn.Conv2d(4 * c[0], c[0], 1)
        self.at_8 = blocks(c[0], depth)
        self.to_16 = nn.Conv2d(4 * c[0], c[1], 1)
        self.at_16 = blocks(c[1], depth)
        self.to_32 = nn.Conv2d(4 * c[1], c[2], 1)
        self.at_32 = blocks(c[2], depth)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) in 0..1 -> three maps, finest first."""
        x = self.at_4(self.stem(functional.pixel_unshuffle(x - 0.5, 4)))
        eighth = self.at_8(self.to_8(functional.pixel_unshuffle(x, 2)))
        sixteenth = self.at_16(self.to_16(functional.pixel_unshuffle(eighth, 2)))
        return [eighth, sixteenth, self.at_32(self.to_32(functional.pixel_unshuffle(sixteenth, 2)))]


class TrunkEncoder(nn.Module):
    """The first three stages of TinyViT-5M at half the image's size: features at 1/8, 1/16 and 1/32.

    Half the size keeps it under half of TinyViT's own time. BatchNorm stays on its frozen statistics, and
    timm's attention-bias cache, which goes stale when weights change, is never used.
    """

    channels: tuple[int, int, int] = (64, 128, 160)

    def __init__(self) -> None:
        super().__init__()
        whole: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        self.patch_embed = whole.patch_embed
        self.stages = nn.ModuleList(list(whole.stages)[:3])
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in 0..1 -> three maps, finest first."""
        x = functional.avg_pool2d(x, 2)
        x = self.patch_embed((x - self.get_buffer("mean")) / self.get_buffer("std"))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def train(self, mode: bool = True) -> "TrunkEncoder":
        """Keep BatchNorm in evaluation, all else in training mode (there is no dropout)."""
        super().train(True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(False)
        return self

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Copy the tensors of a full TinyViT-5M backbone (timm's names); the last stage is ignored.

        Raises:
            KeyError: a needed tensor is absent.

        """
        own = self.state_dict()
        counters = "num_batches_tracked"  # not in inference weights, and never used
        self.load_state_dict(
            {name: own[name] if name.endswith(counters) else state[name].to(own[name].dtype) for name in own}
        )


class PyramidDecoder(nn.Module):
    """Three maps at 1/8, 1/16, 1/32 -> one map of `out_channels` at 1/8."""

    def __init__(self, channels: Sequence[int], out_channels: int, *, width: int = 48) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.mix = nn.ModuleList(blocks(width, 1) for _ in channels)
        self.out = nn.Conv2d(width, out_channels, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Merge maps, finest first, -> (B, out_channels, H/8, W/8)."""
        x: Tensor | None = None
        for i in reversed(range(len(maps))):
            lateral = self.lateral[i](maps[i])
            if x is not None:
                lateral = lateral + functional.interpolate(x, size=lateral.shape[-2:], mode="bilinear")
            x = self.mix[i](lateral)
        out: Tensor = self.out(x)
        return out


def quantise(values: Tensor, levels: int) -> Tensor:
    """Round values in 0..1 to `levels` equal steps; the gradient passes straight through."""
    rounded = (values * (levels - 1)).round() / (levels - 1)
    return values + (rounded - values).detach()


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # noqa: S101 (convolutions here are made with a bias)
    return layer.bias
