"""Frames as tensors in 0..1, and back."""

import numpy as np
import torch
from torch import Tensor

from wardpose.shared.data.records import Frame


def to_unit(frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255


def to_frame(image: Tensor) -> Frame:
    """(3, H, W) in 0..1 -> (H, W, 3) uint8."""
    out: Frame = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return out
