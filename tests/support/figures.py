"""People whose joints are discs of colours of their own, and an estimator that finds these, without a network."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from support.films import film

from wardpose.shared.data.crops import PADDING
from wardpose.shared.pose.estimators import Estimates
from wardpose.shared.skeleton import LSP14

GROUND = 96
_LEVELS = (0, 128, 255)
COLOURS = np.array([(r, g, b) for r in _LEVELS for g in _LEVELS for b in _LEVELS if (r, g, b) != (128, 128, 128)])[
    np.linspace(1, 25, len(LSP14)).astype(int)
]

POSE = np.array(
    [(0.3, 1.0), (0.35, 0.75), (0.4, 0.5), (0.6, 0.5), (0.65, 0.75), (0.7, 1.0), (0.0, 0.45), (0.1, 0.3), (0.3, 0.15),
     (0.7, 0.15), (0.9, 0.3), (1.0, 0.45), (0.5, 0.12), (0.5, 0.0)]
)  # fmt: skip
"""LSP's joints in parts of a box."""


def joints_in(box: Sequence[float]) -> np.ndarray:
    """Joints (14, 2) of a figure that fills a box (x, y, width, height)."""
    return POSE * np.array(box[2:]) + np.array(box[:2])


def scene(boxes: Sequence[Sequence[float]], height: int = 120, width: int = 160) -> np.ndarray:
    """Draw a figure in each box on an even ground."""
    frame = np.full((height, width, 3), GROUND, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for box in boxes:
        for (x, y), colour in zip(joints_in(box), COLOURS, strict=True):
            frame[(columns - x) ** 2 + (rows - y) ** 2 <= 3.5**2] = colour
    return frame


def ward(path: Path, boxes: Callable[[int], Sequence[Sequence[float]]], count: int, **how) -> Path:
    """Write a film of figures; frame n has those of `boxes(n)`. Lossless, unless said."""
    how = {"codec": "libx264rgb", "pixels": "rgb24", "options": {"qp": "0"}} | how
    codec = how.pop("codec")
    height, width = how.get("height", 120), how.get("width", 160)
    size = {"height": height, "width": width}
    return film(path, codec, count=count, picture=lambda n: scene(boxes(n), height, width), **{**how, **size})


class Discs:
    """Finds the discs of one figure: a joint is the middle of the pixels of its colour, as sure as these are many."""

    name = "discs"
    skeleton = LSP14
    padding = PADDING

    def __init__(self, input_size: tuple[int, int] = (128, 96)) -> None:
        self.input_size = input_size
        self.crops = 0  # that were looked at
        self.calls = 0

    def __call__(self, crops: np.ndarray) -> Estimates:
        self.crops += len(crops)
        self.calls += 1
        joints = np.zeros((len(crops), len(LSP14), 2), np.float32)
        scores = np.zeros(joints.shape[:2], np.float32)
        for row, crop in enumerate(crops.astype(int)):
            ys, xs = np.nonzero(np.abs(crop - GROUND).max(axis=-1) > 20)
            alike = np.abs(crop[ys, xs][:, None] - COLOURS).max(axis=-1) < 40
            for joint in np.flatnonzero(alike.any(axis=0)):
                its = alike[:, joint]
                joints[row, joint] = xs[its].mean(), ys[its].mean()
                scores[row, joint] = min(1.0, its.sum() / 20)
        return Estimates(joints, scores)

    def identity(self) -> str:
        return hashlib.sha256(b"discs").hexdigest()
