"""The generators: what is learned in G_X and in G_Y.

The paper ("Recoverable Anonymization for Pose Estimation", arXiv 2409.02715) names the parts; neither its architectures
nor its weights are available, so the design is ours.

`public-view` G_X (`PartGenerator`): the image passes through a bottleneck that is wide enough for a pose and too narrow
for an identity. An encoder (three stages of TinyViT-5M at half size) and a light decoder draw a map of body parts on a
grid of 8-pixel cells: red and blue for right and left limbs, green for head and torso. The map is averaged over larger
cells, quantised to a few levels and enlarged smoothly. There is no G_Y: what is dropped is gone.

`recoverable` G_X (`RecoverableGenerator`) has two halves.

* The *cover* is what everybody sees. It is computed from the desensitised guidance and from a quantised part map, never
  from the original, so by the data-processing inequality it shows no more than those two. Outside the person's mask the
  scene is kept.
* The *code* is a learned image codec: 4x4 transform (initialised as a DCT), context network, companding, a fixed number
  of bits a block. Its symbols are encrypted under the key and carried in the lowest bits of the cover (`keyed_code`).
  G_Y (`CodeDecoder`) is the inverse; with a wrong key it decodes uniform noise, and an attacker without the key has
  exactly the cover.
"""

import itertools
import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize.blocks import (
    DepthwiseBlock,
    LightEncoder,
    PyramidDecoder,
    TrunkEncoder,
    blocks,
    quantise,
)

CELL = 8
"""Side of a cell of the part map in pixels."""

HARDENED_THRESHOLD = 0.3
"""From which mean a cell of the level `hardened` is drawn; chosen by `simulation/benchmarks/results/hardening.json`."""

_MIDDLE = 0.5

BITS = (8, 6, 6, 6, 6, 5, 5, 5, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 2, 2, 2, 2)
"""Bits of each symbol of a 4x4 block: luma mean, both chroma means, 15 luma details, 2 details of each
chroma."""


class PartConfig(BaseModel):
    """Shape of a part map.

    Attributes:
        encoder: `trunk` starts from TinyViT weights, `light` from scratch.
        levels: grey levels of each of the three channels.
        cell: side in pixels of the cells over which the map is averaged before it is quantised. Fewer levels and larger
            cells leave less of a silhouette: see the figures of `wardpose anonymizer relink`.
        threshold: with 2 levels, the mean from which a cell is drawn. A limb fills little of a large cell.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: Literal["trunk", "light"] = "trunk"
    levels: int = Field(default=8, ge=2, le=256)
    cell: Literal[8, 16, 32] = 8
    threshold: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _two_levels(self) -> "PartConfig":
        if self.threshold != _MIDDLE and self.levels > 2:
            raise ValueError(f"threshold {self.threshold:g} is for 2 levels, not for {self.levels}")
        return self

    def hardened(self) -> "PartConfig":
        """Return the shape of the level `hardened`: 2 levels on cells of 32 pixels, whatever it is made from."""
        return PartConfig(encoder=self.encoder, levels=2, cell=32, threshold=HARDENED_THRESHOLD)


class PartGenerator(nn.Module):
    """G_X of kind `public-view`: image (B, 3, H, W) in 0..1 -> part map (B, 3, H/8, W/8) in 0..1."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TrunkEncoder() if config.encoder == "trunk" else LightEncoder()
        self.decoder = PyramidDecoder(self.encoder.channels, 3)
        nn.init.constant_(_bias(self.decoder.out), -2.0)  # most cells are background

    def raw(self, x: Tensor) -> Tensor:
        """Part map before quantisation."""
        return torch.sigmoid(self.decoder(self.encoder(x)))

    def quantised(self, raw: Tensor) -> Tensor:
        """Average a raw part map over its cells and round it to its levels; the gradient passes straight through."""
        times = self.config.cell // CELL
        mean = functional.avg_pool2d(raw, times)
        if self.config.threshold == _MIDDLE:
            coarse = quantise(mean, self.config.levels)
        else:
            coarse = mean + ((mean >= self.config.threshold).to(mean.dtype) - mean).detach()
        return coarse if times == 1 else enlarge(coarse, times)

    def forward(self, x: Tensor) -> Tensor:
        """Quantised part map."""
        return self.quantised(self.raw(x))


def enlarge(parts: Tensor, factor: int = CELL) -> Tensor:
    """Part map (B, 3, h, w) -> picture (B, 3, 8h, 8w) in 0..1, smooth between cells."""
    return functional.interpolate(parts, scale_factor=factor, mode="bilinear", align_corners=False)


class CoverGenerator(nn.Module):
    """Guidance and part map -> cover, both (B, 3, H, W) in 0..1; starts as the guidance itself."""

    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(48 + 3, width, 1)
        self.body = blocks(width, depth, norm=False)
        self.out = nn.Conv2d(width, 48, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))

    def forward(self, guidance: Tensor, parts: Tensor) -> Tensor:
        """Return the guidance plus a bounded, learned change."""
        quarter = functional.pixel_unshuffle(guidance - 0.5, 4)  # (B, 48, H/4, W/4)
        x = self.body(self.stem(torch.cat([quarter, enlarge(parts, 2)], 1)))
        change: Tensor = self.out(x)
        return (guidance + 0.5 * torch.tanh(functional.pixel_shuffle(change, 4))).clamp(0, 1)


class CodeEncoder(nn.Module):
    """The learned half of the code inside G_X: image -> companded symbols (B, S, H/4, W/4) in -1..1."""

    def __init__(self, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.transform = nn.Conv2d(48, len(BITS), 1, bias=False)
        with torch.no_grad():
            self.transform.weight.copy_(_dct()[:, :, None, None])
        self.context = _Residual(48, len(BITS), width, depth)
        self.log_scale = nn.Parameter(torch.tensor(_SCALES).log())

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> symbols before rounding."""
        quarter = functional.pixel_unshuffle(image - 0.5, 4)
        z: Tensor = self.transform(quarter) + self.context(quarter)
        return z / (self.log_scale.exp().view(1, -1, 1, 1) + z.abs())


class CodeDecoder(nn.Module):
    """G_Y: symbols (B, S, H/4, W/4) in -1..1 -> image (B, 3, H, W) in 0..1."""

    def __init__(self, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.transform = nn.Conv2d(len(BITS), 48, 1, bias=False)
        with torch.no_grad():
            self.transform.weight.copy_(_dct().T[:, :, None, None])
        self.context = _Residual(48, 48, width, depth)
        self.log_scale = nn.Parameter(torch.tensor(_SCALES).log())

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the recovered image."""
        u = symbols.clamp(-0.98, 0.98)
        z = self.log_scale.exp().view(1, -1, 1, 1) * u / (1 - u.abs())
        quarter = self.transform(z)
        drawn: Tensor = quarter + self.context(quarter)
        return (functional.pixel_shuffle(drawn, 4) + 0.5).clamp(0, 1)


class RecoverableGenerator(nn.Module):
    """G_X of kind `recoverable`: part map, cover and code."""

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        self.parts = PartGenerator(PartConfig(encoder="light", levels=levels))
        self.cover = CoverGenerator()
        self.encode = CodeEncoder()

    def forward(self, image: Tensor, guidance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cover (B, 3, H, W) and the symbols (B, S, H/4, W/4), both before rounding.

        Args:
            image: (B, 3, H, W) in 0..1.
            guidance: the desensitised image, same shape.
            mask: (B, 1, H, W), 1 on the person.

        """
        changed = self.cover(guidance, self.parts(image))
        return mask * changed + (1 - mask) * image, self.encode(image)


def round_symbols(symbols: Tensor) -> Tensor:
    """Round symbols in -1..1 to their bits; the gradient passes straight through."""
    steps = torch.tensor([2.0**b for b in BITS], device=symbols.device, dtype=symbols.dtype).view(1, -1, 1, 1)
    index = ((symbols + 1) / 2 * steps - 0.5).round().clamp(min=0).minimum(steps - 1)
    return symbols + ((index + 0.5) / steps * 2 - 1 - symbols).detach()


class _Residual(nn.Module):
    """A context network that starts at zero."""

    def __init__(self, in_channels: int, out_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 1)
        self.body = nn.Sequential(*(DepthwiseBlock(width, norm=False) for _ in range(depth)))
        self.out = nn.Conv2d(width, out_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(_bias(self.out))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.body(self.stem(x)))
        return out


# Companding scale of each symbol: about the typical size of that transform coefficient in photographs.
_SCALES = (3.0, 0.8, 0.8, 0.5, 0.5, 0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, *[0.12] * 5, *[0.1] * 4)


def _dct() -> Tensor:
    """Return (S, 48) orthonormal rows: 4x4 DCT of luma and chroma over channels (colour, y, x)."""
    cosines = [[math.cos(math.pi * k * (2 * n + 1) / 8) for n in range(4)] for k in range(4)]
    basis = torch.tensor(cosines) * torch.tensor([0.5, *[math.sqrt(0.5)] * 3])[:, None]
    colour = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])
    colour = colour / colour.norm(dim=1, keepdim=True)
    frequencies = sorted(itertools.product(range(4), repeat=2), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))
    order = [(0, f) for f in frequencies[:1]] + [(c, (0, 0)) for c in (1, 2)]
    order += [(0, f) for f in frequencies[1:]] + [(c, f) for c in (1, 2) for f in frequencies[1:3]]
    rows = [torch.einsum("c,y,x->cyx", colour[c], basis[i], basis[j]).flatten() for c, (i, j) in order]
    return torch.stack(rows)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # noqa: S101 (convolutions here are made with a bias)
    return layer.bias
