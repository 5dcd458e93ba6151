"""From a frame to the network's input: one affine map per person, for pixels and joints alike.

Points are in pixel-index coordinates: the centre of the top-left pixel is (0, 0), in frames and crops alike,
so that a horizontal mirror of a crop W wide is x -> W - 1 - x. The augmentation is that of the top-down pose
literature (papers' code; HRNet's half-body rule). Example:

    crop = crop_record(dataset, 0, (256, 192), augmentation=None, generator=None)
    x = to_tensor(crop.image[None])  # (1, 3, 256, 192)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from wardpose.shared.data.records import Frame, PoseDataset, PoseRecord
from wardpose.shared.skeleton import Skeleton

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]
"""(height, width) in pixels."""

Affine = NDArray[np.float64]
"""(2, 3) matrix A: point p maps to A[:, :2] p + A[:, 2]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PADDING = 1.25
"""How much larger than the person's box the crop is."""

_LOWER_BODY = ("hip", "knee", "ankle", "pelvis")
_HALF_BODY_MIN_JOINTS = 8
_HALF_BODY_MARGIN = 1.5


class Augmentation(BaseModel):
    """Random geometry of training crops; `Augmentation()` is the COCO recipe.

    Attributes:
        scale: standard deviation of the zoom, normal around 1, clipped at one standard deviation (below 1).
        rotation: standard deviation of the turn in degrees, clipped at two.
        rotation_probability: share of crops that are turned at all.
        flip: probability of a horizontal mirror.
        half_body: probability that a person with more than 8 labelled joints is cropped to half the body.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(0.35, ge=0, lt=1)
    rotation: float = Field(45.0, ge=0, le=180)
    rotation_probability: float = Field(0.6, ge=0, le=1)
    flip: float = Field(0.5, ge=0, le=1)
    half_body: float = Field(0.3, ge=0, le=1)

    @classmethod
    def preset(cls, name: Literal["coco", "mpii", "none"]) -> Self:
        """Return the recipe of the COCO or the MPII experiments, or none at all."""
        if name == "coco":
            return cls()
        if name == "mpii":
            return cls(scale=0.25, rotation=30.0, half_body=0.0)
        return cls(scale=0.0, rotation=0.0, flip=0.0, half_body=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """One person as the network sees them.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        joints: (J, 2) float32, crop pixels; where not labelled, zero.
        visibility: (J,) uint8; 0 also for labelled joints that fall outside the crop.
        affine: (2, 3), frame pixels -> crop pixels.

    """

    image: Frame
    joints: NDArray[np.float32]
    visibility: NDArray[np.uint8]
    affine: Affine


def crop_record(
    dataset: PoseDataset,
    index: int,
    input_size: Size,
    *,
    augmentation: Augmentation | None = None,
    generator: np.random.Generator | None = None,
) -> Crop:
    """Cut record `index` out of its frame at `input_size` (height, width); arguments and errors as `crop_frame`.

    Raises:
        DataError: the frame cannot be read.

    """
    frame, record = dataset.frame(index), dataset.record(index)
    return crop_frame(frame, record, dataset.skeleton, input_size, augmentation=augmentation, generator=generator)


def crop_frame(
    frame: Frame,
    record: PoseRecord,
    skeleton: Skeleton,
    input_size: Size,
    *,
    augmentation: Augmentation | None = None,
    generator: np.random.Generator | None = None,
) -> Crop:
    """Cut a record out of its frame (h, w, 3) at `input_size` (height, width).

    Every call with an augmentation takes the same number of draws from `generator`, whatever the record is.

    Raises:
        ValueError: an augmentation without a generator.

    """
    if augmentation is None:
        affine, mirrored = box_to_affine(record.box, input_size), False
    elif generator is None:
        raise ValueError("an augmentation needs a generator")
    else:
        draw = _draw(augmentation, generator)
        mirrored = draw.flip
        half = _half_body(record.joints, record.visibility, skeleton, upper=draw.upper) if draw.half_body else None
        affine = box_to_affine(
            record.box if half is None else half,
            input_size,
            padding=PADDING if half is None else _HALF_BODY_MARGIN,
            rotation=draw.rotation,
            scale=draw.scale,
            flip=mirrored,
        )
    image = warp(frame, affine, input_size)
    joints, visibility = crop_joints(record.joints, record.visibility, affine, input_size)
    if mirrored:
        joints, visibility = joints[skeleton.flip_order], visibility[skeleton.flip_order]
    return Crop(image=image, joints=joints, visibility=visibility, affine=affine)


def box_to_affine(
    box: NDArray[np.floating],
    input_size: Size,
    *,
    padding: float = PADDING,
    rotation: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> Affine:
    """Map frame pixels to the pixels of a crop around `box` (x, y, width, height), aspect kept.

    The region cut out is the box, widened or heightened to the crop's aspect, times `padding` and `scale`
    (above 1 the person gets smaller), moved by `shift` in parts of the region's size. `rotation` turns the
    picture by so many degrees, clockwise as seen; `flip` mirrors it horizontally after everything else.
    """
    height, width = input_size
    x, y, box_width, box_height = (float(value) for value in box)
    region_height = max(box_height, box_width * height / width, 1e-3) * padding * scale
    zoom = height / region_height
    centre = np.array([x + box_width / 2, y + box_height / 2])
    centre += np.array(shift) * region_height * np.array([width / height, 1.0])
    cosine, sine = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    linear = zoom * np.array([[cosine, -sine], [sine, cosine]])
    if flip:
        linear[0] *= -1
    offset = np.array([(width - 1) / 2, (height - 1) / 2]) - linear @ centre
    return np.concatenate([linear, offset[:, None]], axis=1)


def warp(frame: Frame, affine: Affine, input_size: Size) -> Frame:
    """Resample `frame` (h, w, 3) by `affine` into a crop (H, W, 3); what lies outside the frame is black."""
    height, width = input_size
    out = cv2.warpAffine(frame, affine, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return out.astype(np.uint8, copy=False)


def transform(points: NDArray[np.floating], affine: Affine) -> NDArray[np.float64]:
    """Map points (..., 2) by `affine`."""
    mapped: NDArray[np.float64] = np.asarray(points, np.float64) @ affine[:, :2].T + affine[:, 2]
    return mapped


def invert(affine: Affine) -> Affine:
    """Return the map crop -> frame of a map frame -> crop."""
    inverse = np.linalg.inv(affine[:, :2])
    return np.concatenate([inverse, -(inverse @ affine[:, 2])[:, None]], axis=1)


def compose(second: Affine, first: Affine) -> Affine:
    """Return the map that applies `first`, then `second`."""
    linear = second[:, :2] @ first[:, :2]
    return np.concatenate([linear, transform(first[:, 2], second)[:, None]], axis=1)


def crop_joints(
    joints: NDArray[np.float32], visibility: NDArray[np.uint8], affine: Affine, input_size: Size
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Bring joints (J, 2) into the crop; those outside it become visibility 0. No joint is exchanged here."""
    height, width = input_size
    labelled = visibility > 0
    moved = np.where(labelled[:, None], transform(joints, affine), 0.0).astype(np.float32)
    inside = (moved >= -0.5).all(axis=1) & (moved[:, 0] <= width - 0.5) & (moved[:, 1] <= height - 0.5)
    return moved, np.where(labelled & inside, visibility, 0).astype(np.uint8)


def to_tensor(crops: "NDArray[np.uint8] | torch.Tensor") -> "torch.Tensor":
    """Turn uint8 crops (B, H, W, 3) into network input (B, 3, H, W) float32, ImageNet mean and deviation.

    A tensor stays on its device.
    """
    import torch  # not for whoever only reads a site's settings

    pixels = torch.from_numpy(np.ascontiguousarray(crops)) if isinstance(crops, np.ndarray) else crops
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1)
    return ((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()


@dataclass(frozen=True, kw_only=True)
class _Draw:
    scale: float
    rotation: float
    flip: bool
    half_body: bool
    upper: bool


def _draw(augmentation: Augmentation, generator: np.random.Generator) -> _Draw:
    zoom, turn = generator.standard_normal(2)
    turned, flipped, halved, upper = generator.random(4)
    return _Draw(
        scale=1 + augmentation.scale * float(np.clip(zoom, -1, 1)),
        rotation=augmentation.rotation * float(np.clip(turn, -2, 2)) * (turned < augmentation.rotation_probability),
        flip=bool(flipped < augmentation.flip),
        half_body=bool(halved < augmentation.half_body),
        upper=bool(upper < 0.5),
    )


def _half_body(
    joints: NDArray[np.float32], visibility: NDArray[np.uint8], skeleton: Skeleton, *, upper: bool
) -> NDArray[np.float64] | None:
    """Box around one half's labelled joints, centred on their mean; `None` where too few are labelled."""
    labelled = visibility > 0
    if labelled.sum() <= _HALF_BODY_MIN_JOINTS:
        return None
    lower_half = np.array([joint.endswith(_LOWER_BODY) for joint in skeleton.joints])
    wanted, other = labelled & (lower_half != upper), labelled & (lower_half == upper)
    chosen = wanted if wanted.sum() > 2 else other
    points = joints[chosen].astype(np.float64)
    size = np.maximum(points.max(axis=0) - points.min(axis=0), 1.0)
    return np.concatenate([points.mean(axis=0) - size / 2, size])
