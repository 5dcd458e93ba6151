"""SimCC: a joint's place as two classifications, one per axis (Li et al., ECCV 2022, "sa-simdr").

Bin b of an axis is the coordinate b / split_ratio in crop pixels. The label is a Gaussian over the bins around the
joint, normalised over those that exist, so that it is a distribution at the crop's edge too.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wardpose.shared.pose.model import ModelConfig


class Targets(NamedTuple):
    """Encoded joints; the leading axes are those of the joints.

    Attributes:
        log_x: (..., J, W · split_ratio) logarithm of the label over x bins.
        log_y: (..., J, H · split_ratio) the same over y bins.
        weight: (..., J) 1 where the joint counts, else 0.

    """

    log_x: Tensor
    log_y: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class SimCC:
    """The code between crop pixels and bins.

    Attributes:
        input_size: (height, width) of the crop in pixels.
        split_ratio: bins per pixel, a whole number.
        label_sigma: standard deviation of the label in bins.

    """

    input_size: tuple[int, int]
    split_ratio: float = 2.0
    label_sigma: float = 4.0

    @classmethod
    def of(cls, config: "ModelConfig") -> "SimCC":
        """Return the code that a model of `config` speaks."""
        return cls(input_size=config.input_size, split_ratio=config.split_ratio, label_sigma=config.label_sigma)

    @property
    def bins(self) -> tuple[int, int]:
        """Number of bins of the y and of the x axis, in the order of `input_size`."""
        height, width = self.input_size
        return int(height * self.split_ratio), int(width * self.split_ratio)

    def encode(self, joints: Tensor, visibility: Tensor) -> Targets:
        """Labels of joints; works under `torch.vmap`, and no record touches another.

        Args:
            joints: (..., J, 2) crop pixels; anything, even NaN, where the visibility is 0.
            visibility: (..., J), counts where above 0. A joint outside the crop (more than half a pixel) or not finite
                does not count either: no bin could express it.

        """
        height, width = self.input_size
        x, y = joints[..., 0], joints[..., 1]
        inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        counts = (visibility > 0) & inside
        safe = torch.where(counts[..., None], joints, 0.0) * self.split_ratio
        bins_y, bins_x = self.bins
        return Targets(
            log_x=self._log_label(safe[..., 0], bins_x),
            log_y=self._log_label(safe[..., 1], bins_y),
            weight=counts.to(safe.dtype),
        )

    def decode(self, logits_x: Tensor, logits_y: Tensor) -> tuple[Tensor, Tensor]:
        """Most likely place of each joint, finer than a bin.

        Around the most likely bin a parabola is laid through the logits; a Gaussian label is decoded exactly.

        Args:
            logits_x: (..., J, W · split_ratio).
            logits_y: (..., J, H · split_ratio).

        Returns:
            joints (..., J, 2) crop pixels, inside the crop, and scores (..., J) from 0 to 1: how high the less
            certain axis peaks, relative to a label's peak.

        """
        peaks, places = zip(*(self._peak(logits.detach()) for logits in (logits_x, logits_y)), strict=True)
        return torch.stack(places, dim=-1) / self.split_ratio, torch.minimum(*peaks)

    def _log_label(self, centre: Tensor, bins: int) -> Tensor:
        distance = torch.arange(bins, device=centre.device, dtype=centre.dtype) - centre[..., None]
        return torch.log_softmax(-(distance**2) / (2 * self.label_sigma**2), dim=-1)

    def _peak(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        bins = logits.shape[-1]
        # Half a sigma apart, the three points see past the noise of single bins; at an edge they move inwards.
        step = min(max(1, round(self.label_sigma / 2)), (bins - 1) // 2)
        log_probability = torch.log_softmax(logits.float(), dim=-1)
        highest, best = log_probability.max(dim=-1)
        middle = best.clamp(step, bins - 1 - step)
        left, centre, right = (
            log_probability.gather(-1, (middle + shift)[..., None])[..., 0] for shift in (-step, 0, step)
        )
        curvature = left - 2 * centre + right
        vertex = middle + step * 0.5 * (left - right) / torch.where(curvature < 0, curvature, -1.0)
        nearby = (vertex - best).clamp(-step, step) + best
        place = torch.where(curvature < 0, nearby, best.float()).clamp(0, bins - 1)
        label_peak = 1 / (self.label_sigma * (2 * torch.pi) ** 0.5)
        return (highest.exp() / label_peak).clamp(max=1.0), place
