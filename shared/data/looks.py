"""What may come between a camera and a person, put into training crops of public people: sheets, things, light.

Pixels change, joints do not: a network learns to say where a covered joint is. Everything is drawn from a seed and the
place of the crop in its batch, apart from the draws of the geometry (`crops.Augmentation`), which stay what they are.

**For public people only.** What is put in front of a person is cut out of *another* crop of the batch, so that a
gradient would no longer depend on one record alone, which is what the privacy of a unit rests on. Hence `looks` is a
key of the public phase, and private training refuses it (`training.settings.LocalTraining`). Example:

    crops = change_looks(crops, LSP14, Looks(blanket=0.5, colour=0.8), seed=(0, 2, step))
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from wardpose.shared.data.crops import Crop
from wardpose.shared.data.records import Frame
from wardpose.shared.skeleton import Skeleton

_SIDE = (0.15, 0.45)
"""Sides of what stands in front, in parts of the crop's."""

_BEGIN = (-0.2, 1.8)
"""Where a blanket begins, from the shoulders (0) to the hips (1) and beyond."""

_HALF_WIDTH = (0.7, 1.6)
_LENGTH = 5.0
"""A blanket's size, in lengths of the torso."""

_LIGHT, _CONTRAST, _SATURATION, _MIXING = (0.6, 1.4), (0.6, 1.4), (0.3, 1.6), 0.15
_GREY = 0.2
"""Share of the recoloured crops that lose their colours."""


class Looks(BaseModel):
    """How often what is done to a crop; nothing by default.

    Attributes:
        occlusion: probability of a rectangle over part of the person: a piece of another person's crop, or noise.
        blanket: probability of a plain, striped or mottled sheet over the body below some line across it.
        colour: probability of another brightness, contrast, saturation and mixture of the channels; a fifth turn grey.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    occlusion: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    blanket: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    colour: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)


def change_looks(crops: Sequence[Crop], skeleton: Skeleton, looks: Looks, *, seed: Sequence[int]) -> list[Crop]:
    """Return the crops of a batch of public people as something else would have shown them; only images change.

    Args:
        crops: of one size; what stands in front of one is cut out of another.
        skeleton: of their joints.
        looks: how often what is done.
        seed: of everything that is drawn; the crop's place in the batch is added.

    """
    return [
        _changed(crops, place, skeleton, looks, np.random.default_rng([*seed, place])) for place in range(len(crops))
    ]


def _changed(
    crops: Sequence[Crop], place: int, skeleton: Skeleton, looks: Looks, generator: np.random.Generator
) -> Crop:
    covered, hidden, recoloured = generator.random(3) < (looks.blanket, looks.occlusion, looks.colour)
    crop = crops[place]
    image = crop.image
    if covered:
        image = _with_blanket(image, crop, skeleton, generator)
    if hidden:
        image = _with_occluder(image, crops, place, generator)
    if recoloured:
        image = _recoloured(image, generator)
    return crop if image is crop.image else replace(crop, image=image)


def _with_blanket(image: Frame, crop: Crop, skeleton: Skeleton, generator: np.random.Generator) -> Frame:
    """Lay a sheet over the body from a line across the torso, or below it, down to beyond the feet."""
    height, width = image.shape[:2]
    shoulders, torso = _torso(crop, skeleton)
    across = np.array([-torso[1], torso[0]])
    line = shoulders + generator.uniform(*_BEGIN) * torso
    half = generator.uniform(*_HALF_WIDTH) * across
    corners = np.array([line - half, line + half, line + _LENGTH * torso + half, line + _LENGTH * torso - half])
    corners += generator.uniform(-0.3, 0.3, (4, 2)) * np.linalg.norm(torso)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(corners).astype(np.int32)), 1)
    return np.where(mask[..., None] > 0, _cloth(height, width, generator), image)


def _torso(crop: Crop, skeleton: Skeleton) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middle of the shoulders and the way from there to that of the hips, (2,) each, in crop pixels.

    Where they are not known, the body is taken to lie the way down of the frame that the crop was cut out of.
    """
    height, width = crop.image.shape[:2]
    ends = []
    for part in ("shoulder", "hip"):
        rows = [skeleton.index(f"{side}_{part}") for side in ("right", "left")]
        if (crop.visibility[rows] == 0).any():
            break
        ends.append(crop.joints[rows].mean(axis=0).astype(np.float64))
    if len(ends) == 2 and np.linalg.norm(ends[1] - ends[0]) >= 0.05 * height:
        return ends[0], ends[1] - ends[0]
    down = crop.affine[:, 1] / max(float(np.linalg.norm(crop.affine[:, 1])), 1e-9)
    return np.array([width / 2, height / 2]) - 0.3 * height * down, 0.3 * height * down


def _cloth(height: int, width: int, generator: np.random.Generator) -> Frame:
    """Draw a sheet (H, W, 3): one colour, with stripes of some width, or mottled; lit unevenly."""
    colour, second = generator.uniform(20, 255, (2, 3))
    pattern: NDArray[Any] = np.zeros((height, width))
    kind = generator.integers(3)
    if kind == 1:
        angle, period = generator.uniform(0, np.pi), generator.uniform(4, 24)
        y, x = np.mgrid[:height, :width]
        pattern = ((x * np.cos(angle) + y * np.sin(angle)) / period % 1 < 0.5).astype(float)
    elif kind == 2:
        pattern = cv2.resize(generator.random((12, 9)), (width, height), interpolation=cv2.INTER_LINEAR)
    shade = cv2.resize(generator.uniform(0.75, 1.15, (5, 4)), (width, height), interpolation=cv2.INTER_LINEAR)
    cloth = (colour + pattern[..., None] * (second - colour)) * shade[..., None]
    out: Frame = np.clip(cloth, 0, 255).astype(np.uint8)
    return out


def _with_occluder(image: Frame, crops: Sequence[Crop], place: int, generator: np.random.Generator) -> Frame:
    """Put a rectangle around a random visible joint: of another crop of the batch, or noise where there is none."""
    height, width = image.shape[:2]
    visible = np.flatnonzero(crops[place].visibility)
    centre = generator.uniform(0, 1, 2) * (width, height)
    if len(visible):
        centre = crops[place].joints[generator.choice(visible)].astype(np.float64)
    tall, wide = (max(1, round(side)) for side in generator.uniform(*_SIDE, 2) * (height, width))
    x, y = np.round(centre - (wide / 2, tall / 2)).astype(int)
    left, right, top, bottom = max(x, 0), min(x + wide, width), max(y, 0), min(y + tall, height)
    out = image.copy()
    if len(crops) > 1 and generator.random() < 0.7:
        other = crops[(place + int(generator.integers(1, len(crops)))) % len(crops)].image
        from_x, from_y = generator.integers(width - wide + 1), generator.integers(height - tall + 1)
        piece = other[from_y : from_y + tall, from_x : from_x + wide]
    else:
        piece = generator.integers(0, 256, (tall, wide, 3), np.uint8)
    out[top:bottom, left:right] = piece[top - y : bottom - y, left - x : right - x]
    return out


def _recoloured(image: Frame, generator: np.random.Generator) -> Frame:
    """Change brightness, contrast, saturation and the mixture of the channels by one linear map; grey stays grey."""
    light, contrast, saturation = (generator.uniform(*span) for span in (_LIGHT, _CONTRAST, _SATURATION))
    mixing = np.eye(3) + generator.uniform(-_MIXING, _MIXING, (3, 3))
    mixing /= mixing.sum(axis=1, keepdims=True)
    saturation *= generator.random() >= _GREY
    towards_grey = saturation * np.eye(3) + (1 - saturation) * np.full((3, 3), 1 / 3)
    linear = light * contrast * towards_grey @ mixing
    offset = light * (1 - contrast) * float(image.mean())
    return np.clip(np.round(image @ linear.T + offset), 0, 255).astype(np.uint8)
