"""The losses of the anonymiser: L_enhance, L_recovery and L_PE, and what an attacker's gain costs.

The paper names the three groups and publishes neither formulas nor weights; these are ours. For kind `recoverable`

    L_enhance  = guidance * |cover - guidance| on the person + adversarial * hinge(D_X(cover)) + structure * L_structure
    L_recovery = recovery * |G_Y(code) - image| + similarity * (1 - SSIM) + adversarial * hinge(D_Y(G_Y(code)))
    L_PE       = pose * SimCC loss of P on the cover

and for kind `public-view`, which has no recovery,

    L_enhance  = structure * L_structure - reconstruction * |R(view) - image| - linkage * InfoNCE(A(view), A'(image))
                 - relinking * InfoNCE of the attacker that certificates are measured by (`relink_adversary`)
    L_PE       = pose * SimCC loss of P on the view

where the reconstruction attacker R, the re-identification attacker (A, A') and the relinking one are trained at the
same time to do the opposite. Every loss is a mean over the batch: the anonymiser learns from public data only, so no
record needs a bound.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from wardpose.shared.anonymize.generators import CELL
from wardpose.shared.skeleton import LSP14


class ObjectiveConfig(BaseModel):
    """Weights of the terms; 0 leaves a term out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    guidance: float = Field(default=1.0, ge=0)
    structure: float = Field(default=1.0, ge=0)
    adversarial: float = Field(default=0.02, ge=0)
    recovery: float = Field(default=4.0, ge=0)
    similarity: float = Field(default=1.0, ge=0)
    pose: float = Field(default=0.1, ge=0)
    reconstruction: float = Field(default=0.5, ge=0)
    linkage: float = Field(default=0.05, ge=0)
    relinking: float = Field(default=0.0, ge=0)


# Colour (0 red, 1 green, 2 blue) and brightness of each limb in a part map: arms differ from legs, right from
# left.
_LIMBS = (
    ("right_hip", "right_knee", 0, 1.0),
    ("right_knee", "right_ankle", 0, 1.0),
    ("right_shoulder", "right_elbow", 0, 0.6),
    ("right_elbow", "right_wrist", 0, 0.6),
    ("left_hip", "left_knee", 2, 1.0),
    ("left_knee", "left_ankle", 2, 1.0),
    ("left_shoulder", "left_elbow", 2, 0.6),
    ("left_elbow", "left_wrist", 2, 0.6),
    ("right_shoulder", "left_hip", 1, 0.5),
    ("left_shoulder", "right_hip", 1, 0.5),
    ("right_shoulder", "left_shoulder", 1, 0.5),
    ("right_hip", "left_hip", 1, 0.5),
    ("neck", "head_top", 1, 1.0),
)


def part_target(joints: Tensor, visibility: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw the part maps that a perfect `PartGenerator` would give.

    Args:
        joints: (B, 14, 2) crop pixels in the order of LSP-14.
        visibility: (B, 14); limbs with an end of 0 are left out.
        size: height and width of the crop in pixels.

    Returns:
        (B, 3, H/8, W/8) in 0..1.

    """
    height, width = size[0] // CELL, size[1] // CELL
    rows = torch.arange(height, device=joints.device, dtype=joints.dtype) + 0.5
    columns = torch.arange(width, device=joints.device, dtype=joints.dtype) + 0.5
    cells = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1)  # (h, w, 2), x then y
    points = joints / CELL
    first = [LSP14.index(limb[0]) for limb in _LIMBS]
    second = [LSP14.index(limb[1]) for limb in _LIMBS]
    start, along = points[:, first, None, None], (points[:, second] - points[:, first])[:, :, None, None]
    offset = cells - start  # (B, L, h, w, 2)
    share = ((offset * along).sum(-1) / along.square().sum(-1).clamp(min=1e-6)).clamp(0, 1)
    distance = (offset - share[..., None] * along).square().sum(-1).sqrt()
    radius = 0.035 * max(height, width)
    drawn = (1.5 - distance / radius).clamp(0, 1)  # full inside half a radius, zero beyond one and a half
    drawn = drawn * ((visibility[:, first] > 0) & (visibility[:, second] > 0))[:, :, None, None]
    level = drawn * torch.tensor([limb[3] for limb in _LIMBS], device=joints.device)[None, :, None, None]
    channels = [[i for i, limb in enumerate(_LIMBS) if limb[2] == c] for c in range(3)]
    return torch.stack([level[:, index].amax(1) for index in channels], 1)


def structure_loss(parts: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of unquantised part maps against `part_target`, limbs weighted over background."""
    parts = parts.float().clamp(1e-4, 1 - 1e-4)
    entropy = -(target * parts.log() + (1 - target) * (1 - parts).log())
    weight = 1 + 4 * target
    return (weight * entropy).sum() / weight.sum()


def guidance_loss(cover: Tensor, guidance: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference on the person, (B, 3, H, W) with mask (B, 1, H, W)."""
    return ((cover - guidance).abs() * mask).sum() / (3 * mask.sum()).clamp(min=1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per image, (B,); images in 0..1, Gaussian window of 11 px (Wang et al. 2004)."""
    span = torch.arange(11, device=a.device, dtype=a.dtype) - 5
    window = torch.exp(-(span**2) / (2 * 1.5**2))
    window = window / window.sum()
    channels = a.shape[1]

    def smooth(x: Tensor) -> Tensor:
        x = functional.conv2d(x, window.view(1, 1, 1, -1).expand(channels, 1, 1, 11), groups=channels)
        return functional.conv2d(x, window.view(1, 1, -1, 1).expand(channels, 1, 11, 1), groups=channels)

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    value = ((2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)) / (
        (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    )
    return value.mean((1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, (B,); images in 0..1."""
    return -10 * (a - b).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def hinge_generator(score: Tensor) -> Tensor:
    """Charge the generator for patches that a discriminator tells apart."""
    return -score.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator (Lim & Ye 2017)."""
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()


def linkage_loss(view: Tensor, original: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of matching each view embedding (B, D) to its own original's (B, D); chance is log B."""
    view, original = functional.normalize(view, dim=1), functional.normalize(original, dim=1)
    logits = view @ original.T / temperature
    return functional.cross_entropy(logits, torch.arange(len(view), device=view.device))


def linkage_penalty(view: Tensor, original: Tensor) -> Tensor:
    """Charge the generator for the attacker's gain over chance in nats, 0 when it has none."""
    return functional.relu(math.log(max(2, len(view))) - linkage_loss(view, original))
