"""The networks of the relinking attackers: two kinds that look at a picture in different ways.

Both work on pictures of 64 x 48 pixels, on which a part map of 8-pixel cells loses nothing, and keep where things are
until the last layer: the pose of a whole person is what a view shows best.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["convolution", "mixer"]

KINDS: tuple[Kind, ...] = ("convolution", "mixer")

SIZE = (64, 48)
"""Height and width of what an attacker looks at."""

DIMENSION = 128
"""Of an embedding."""


class ConvolutionNet(nn.Module):
    """Residual convolutions at a quarter and an eighth of the size; (B, 3, 64, 48) -> (B, 128)."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        cells = (SIZE[0] // 8) * (SIZE[1] // 8)
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Residual(width),
            nn.Conv2d(width, 2 * width, 2, stride=2, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            _Residual(2 * width),
            nn.Conv2d(2 * width, 32, 1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32 * cells, DIMENSION),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings that are not yet scaled to length 1."""
        out: Tensor = self.layers(image)
        return out


class MixerNet(nn.Module):
    """Patches of 8 pixels, mixed across places and across channels in turn (MLP-Mixer, arXiv 2105.01601)."""

    def __init__(self, width: int = 96, depth: int = 2) -> None:
        super().__init__()
        cells = (SIZE[0] // 8) * (SIZE[1] // 8)
        self.patches = nn.PixelUnshuffle(8)
        self.stem = nn.Linear(3 * 64, width)
        self.blocks = nn.Sequential(*(_Mixing(cells, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.reduce = nn.Linear(width, 32)
        self.out = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * cells, DIMENSION))

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings that are not yet scaled to length 1."""
        x = self.stem(self.patches(image).flatten(2).transpose(1, 2))  # (B, cells, width)
        out: Tensor = self.out(self.reduce(self.norm(self.blocks(x))))
        return out


def build(kind: Kind) -> nn.Module:
    """Make a fresh network."""
    return ConvolutionNet() if kind == "convolution" else MixerNet()


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.layers(x))


class _Mixing(nn.Module):
    def __init__(self, cells: int, width: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(cells, 2 * cells), nn.GELU(), nn.Linear(2 * cells, cells))
        self.channels = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, cells, width) -> the same."""
        x = x + self.places(self.before(x).transpose(1, 2)).transpose(1, 2)
        return torch.as_tensor(x + self.channels(x))
