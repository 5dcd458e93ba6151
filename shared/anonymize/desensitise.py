"""Blur, mosaic, noise and edges on a person: the guidance of G_X and the baselines it has to beat.

The four changes are the non-learned ones of "Recoverable Anonymization for Pose Estimation" (arXiv
2409.02715); their strengths are not published, so they are data here. A soft mask built from the box and the
joints decides where the change applies, so that the context of the scene stays.

    mask = person_mask(frame.shape[:2], box=record.box, joints=record.joints, visibility=record.visibility)
    hidden = Desensitise(kind="mosaic", strength=8).apply(frame, mask)
"""

import hashlib
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from wardpose.shared.data.records import Frame
from wardpose.shared.skeleton import LSP14, Skeleton

Kind = Literal["blur", "mosaic", "noise", "edges"]
Mask = NDArray[np.float32]
"""(height, width), 1 where the person is and 0 where the scene is kept."""

DEFAULT_STRENGTH: dict[Kind, float] = {"blur": 8.0, "mosaic": 8.0, "noise": 50.0, "edges": 100.0}
_ALLOWED: dict[Kind, tuple[float, float]] = {
    "blur": (0.5, 128.0),
    "mosaic": (2.0, 256.0),
    "noise": (1.0, 500.0),
    "edges": (1.0, 255.0),
}


class Desensitise(BaseModel):
    """One non-learned change of pixels.

    Attributes:
        kind: what is done.
        strength: blur: standard deviation in pixels; mosaic: side of a block in pixels; noise: standard
            deviation in grey levels; edges: lower threshold of Canny's detector in grey levels (the upper one
            is twice that). `None` takes the default of the kind.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "mosaic"
    strength: float | None = None

    @model_validator(mode="after")
    def _in_range(self) -> "Desensitise":
        low, high = _ALLOWED[self.kind]
        if not low <= self.amount <= high:
            raise ValueError(f"strength {self.amount:g} of {self.kind} is outside {low:g} to {high:g}")
        return self

    @property
    def amount(self) -> float:
        """The strength with the default filled in."""
        return DEFAULT_STRENGTH[self.kind] if self.strength is None else self.strength

    def apply(self, frame: Frame, mask: Mask | None = None) -> Frame:
        """Change `frame` (H, W, 3) where `mask` (H, W) is 1, everywhere without one.

        Deterministic: the noise is drawn from a generator keyed by the frame's own pixels.
        """
        changed = _CHANGES[self.kind](frame, self.amount)
        return changed if mask is None else blend(changed, frame, mask)


def blend(inside: Frame, outside: Frame, mask: Mask) -> Frame:
    """`inside` where the mask is 1, `outside` where it is 0, rounded mixtures between."""
    weight = mask[..., None]
    return (inside * weight + outside * (1 - weight) + 0.5).astype(np.uint8)


def person_mask(
    size: tuple[int, int],
    *,
    box: NDArray[np.float32],
    joints: NDArray[np.float32] | None = None,
    visibility: NDArray[np.uint8] | None = None,
    skeleton: Skeleton = LSP14,
    region: Literal["box", "body"] = "box",
    margin: float = 0.1,
) -> Mask:
    """Soft mask (height, width) of one person.

    The body is the union of thick limbs and a disc around the head, so that hands and hair outside a tight
    box are covered too; `region="body"` leaves the rest of the box visible and needs joints.

    Args:
        size: height and width of the frame in pixels.
        box: (4,) x, y, width, height in pixels.
        joints: (J, 2) pixels, in the order of `skeleton`.
        visibility: (J,), 0 where a joint is not labelled; every joint counts when it is `None`.
        skeleton: layout of the joints.
        region: what is masked besides the body.
        margin: how far the box grows on each side, and how wide the soft border is, as a share of its long
            side.

    """
    height, width = size
    x, y, w, h = (float(value) for value in box)
    long_side = max(w, h, 1.0)
    grow = margin * long_side
    hard = np.zeros((height, width), np.uint8)
    seen = np.zeros(0, bool)
    if joints is not None:
        seen = np.ones(len(joints), bool) if visibility is None else visibility > 0
        _draw_body(hard, joints, seen, skeleton, long_side)
    if region == "box" or not seen.any():
        corner = (round(x - grow), round(y - grow)), (round(x + w + grow), round(y + h + grow))
        cv2.rectangle(hard, corner[0], corner[1], 255, -1)
    radius = max(1, round(grow / 2))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    # Growing by the radius first keeps everything that was inside at full strength after the border is
    # softened.
    soft = cv2.blur(cv2.dilate(hard, kernel), (2 * radius + 1, 2 * radius + 1))
    return np.maximum(soft, hard).astype(np.float32) / np.float32(255)


def _draw_body(
    mask: NDArray[np.uint8],
    joints: NDArray[np.float32],
    seen: NDArray[np.bool_],
    skeleton: Skeleton,
    long_side: float,
) -> None:
    thickness = max(2, round(0.16 * long_side))
    points = [(round(float(px)), round(float(py))) for px, py in joints]
    for a, b in skeleton.limbs:
        if seen[a] and seen[b]:
            cv2.line(mask, points[a], points[b], 255, thickness)
    for i, joint in enumerate(skeleton.joints):
        if seen[i]:
            head = joint in ("head_top", "nose", "neck")
            cv2.circle(mask, points[i], max(2, round((0.14 if head else 0.09) * long_side)), 255, -1)


def _blur(frame: Frame, sigma: float) -> Frame:
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8)


def _mosaic(frame: Frame, block: float) -> Frame:
    height, width = frame.shape[:2]
    rows, columns = max(1, round(height / block)), max(1, round(width / block))
    small = cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def _noise(frame: Frame, sigma: float) -> Frame:
    seed = int.from_bytes(hashlib.sha256(np.ascontiguousarray(frame).tobytes()).digest()[:16], "big")
    noise = np.random.default_rng(seed).standard_normal(frame.shape, np.float32)
    return np.clip(frame + sigma * noise + 0.5, 0, 255).astype(np.uint8)


def _edges(frame: Frame, threshold: float) -> Frame:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    edges = cv2.Canny(grey, threshold, 2 * threshold)
    return np.repeat(np.asarray(edges, np.uint8)[..., None], 3, axis=2)


_CHANGES = {"blur": _blur, "mosaic": _mosaic, "noise": _noise, "edges": _edges}
