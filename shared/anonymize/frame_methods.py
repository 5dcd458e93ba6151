"""The trained generators at work on whole frames.

A frame is anonymised region by region: around each given box, or as a whole where there is none. A region is
brought to at most 256 pixels for the cover, so that the strength of the guidance grows with the person, and a
face near the camera is hidden as well as one far away.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from wardpose.shared.anonymize import key_exchange, keyed_code
from wardpose.shared.anonymize.desensitise import Desensitise, Mask, blend, person_mask
from wardpose.shared.anonymize.generator_view import padded
from wardpose.shared.anonymize.generators import (
    BITS,
    CodeDecoder,
    RecoverableGenerator,
    round_symbols,
)
from wardpose.shared.anonymize.public_view import CropMap, apply_all
from wardpose.shared.anonymize.tensors import to_frame, to_unit
from wardpose.shared.anonymize.weights_file import load_recoverable, parse_recoverable, read_info
from wardpose.shared.data.records import Frame

VIEW_SIDE = 256
"""Longest side in pixels at which a region's view, blur, mosaic ... is computed."""

COVER_SIDE = 128
"""The same of a recoverable cover: its guidance of 8-pixel blocks leaves a person 16 blocks."""

GUIDANCE = Desensitise(kind="mosaic", strength=8)

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the frame."""


class FrameMethod(Protocol):
    """A way to anonymise a frame."""

    @property
    def name(self) -> str:
        """Short human name."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether the result must be stored without loss."""
        ...

    def __call__(self, frame: Frame, boxes: Sequence[Box] | None = None) -> Frame:
        """Return the anonymised frame, same size; `boxes` are the persons, `None` means everywhere."""
        ...

    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything that decides the method."""
        ...


@dataclass(frozen=True)
class ViewMethod:
    """A map of crops on whole frames: over the scene where it keeps one, else on black.

    Its strength counts for a person 256 pixels long.
    """

    map: CropMap
    lossless: bool = False

    @property
    def name(self) -> str:
        """The map's."""
        return self.map.name

    def __call__(self, frame: Frame, boxes: Sequence[Box] | None = None) -> Frame:
        """Return the changed frame."""
        if self.map.keeps_scene:
            return _by_region(frame, boxes, self.map, VIEW_SIDE)
        return self.many([frame], [boxes])[0]

    def many(self, frames: Sequence[Frame], boxes: Sequence[Sequence[Box] | None]) -> list[Frame]:
        """Return the changed frames, each as if it were alone; regions of one size go through the network together."""
        if self.map.keeps_scene:
            return [self(frame, those) for frame, those in zip(frames, boxes, strict=True)]
        places = [_regions(frame, those) for frame, those in zip(frames, boxes, strict=True)]
        small = [
            _shrunk(frame[top:bottom, left:right], VIEW_SIDE)
            for frame, those in zip(frames, places, strict=True)
            for top, bottom, left, right in those
        ]
        views = iter(apply_all(self.map, small) if len(small) > 1 else map(self.map, small))
        out = []
        for frame, those in zip(frames, places, strict=True):
            canvas = np.zeros_like(frame)
            for top, bottom, left, right in those:
                view = _resized(next(views), bottom - top, right - left)
                canvas[top:bottom, left:right] = np.maximum(canvas[top:bottom, left:right], view)
            out.append(canvas)
        return out

    def identity(self) -> str:
        """SHA-256 over the map."""
        return hashlib.sha256(f"frames of {self.map.identity()} version 2".encode()).hexdigest()


class RecoverableMethod:
    """G_X of kind `recoverable`: what everybody may see, with the original inside for whoever holds the key."""

    lossless = True

    def __init__(self, path: Path, public_key: bytes, guidance: Desensitise = GUIDANCE) -> None:
        """Load G_X.

        Raises:
            ConfigError: the weights are of kind `public-view`.
            DataError: they cannot be read.

        """
        self._network: RecoverableGenerator = load_recoverable(path)[0]
        self._public_key, self._guidance = public_key, guidance
        self._sha256 = read_info(path).sha256
        self.name = f"recoverable({path.name})"

    def __call__(self, frame: Frame, boxes: Sequence[Box] | None = None) -> Frame:
        """Return cover and code."""
        return keyed_code.conceal(self.cover(frame, boxes), self.symbols(frame), self._public_key)

    def cover(self, frame: Frame, boxes: Sequence[Box] | None = None) -> Frame:
        """Draw the part that everybody sees."""
        return _by_region(frame, boxes, self._cover, COVER_SIDE)

    @torch.inference_mode()
    def symbols(self, frame: Frame) -> keyed_code.Symbols:
        """Compute the learned code of the whole frame."""
        companded = round_symbols(self._network.encode(to_unit(padded(frame, 4)[None])))[0]
        steps = torch.tensor([2.0**bits for bits in BITS]).view(-1, 1, 1)
        indices: keyed_code.Symbols = ((companded + 1) / 2 * steps - 0.5).round().byte().numpy()
        return indices

    def identity(self) -> str:
        """SHA-256 over weights, key and guidance."""
        parts = [self._sha256, self._public_key.hex(), self._guidance.model_dump_json(), "version 1", str(COVER_SIDE)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @torch.inference_mode()
    def _cover(self, region: Frame) -> Frame:
        height, width = region.shape[:2]
        image = to_unit(padded(region, 32)[None])
        guidance = to_unit(padded(self._guidance.apply(region), 32)[None])
        cover = self._network.cover(guidance, self._network.parts(image))
        return to_frame(cover[0, :, :height, :width])


class Recoverer:
    """G_Y: reads the code of a frame and draws the original again."""

    def __init__(self, content: bytes) -> None:
        """Load G_Y from the content of a weights file of kind `recoverable`.

        Raises:
            DataError: it cannot be used.

        """
        self._network: CodeDecoder = parse_recoverable(content, "recoverable weights")[1]

    def __call__(self, frame: Frame, private_key: bytes) -> Frame:
        """Recover one frame.

        Raises:
            RecoveryError: wrong key, no code, or the frame was changed.

        """
        return self.decode(keyed_code.reveal(frame, private_key), frame.shape[0], frame.shape[1])

    def with_wrong_key(self, frame: Frame) -> Frame:
        """Return what comes out when the checks are ignored and the key is a fresh one; for certificates."""
        symbols = keyed_code.reveal_unverified(frame, key_exchange.generate())
        return self.decode(symbols, frame.shape[0], frame.shape[1])

    def without_key(self, frame: Frame) -> Frame:
        """Return what comes out when the encrypted bits are taken for symbols; for certificates."""
        return self.decode(keyed_code.reveal_unverified(frame, None), frame.shape[0], frame.shape[1])

    @torch.inference_mode()
    def decode(self, symbols: keyed_code.Symbols, height: int, width: int) -> Frame:
        """Draw a frame from its symbols."""
        steps = torch.tensor([2.0**bits for bits in BITS]).view(-1, 1, 1)
        values = (torch.from_numpy(symbols).float() + 0.5) / steps * 2 - 1
        return to_frame(self._network(values[None])[0, :, :height, :width])


def _by_region(frame: Frame, boxes: Sequence[Box] | None, change: "Change", side: int) -> Frame:
    out = frame
    for top, bottom, left, right in _regions(frame, boxes):
        region = frame[top:bottom, left:right]
        changed = _resized(change(_shrunk(region, side)), region.shape[0], region.shape[1])
        if boxes is None:
            return changed
        whole = out.copy()
        whole[top:bottom, left:right] = changed
        out = blend(whole, out, _within(frame, (top, bottom, left, right)))
    return out


class Change(Protocol):
    """A change of a region's pixels that keeps its size."""

    def __call__(self, region: Frame, /) -> Frame:
        """Return the changed region."""
        ...


def _regions(frame: Frame, boxes: Sequence[Box] | None) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left, right of each region; a box grows by a quarter of its long side all around."""
    height, width = frame.shape[:2]
    if boxes is None:
        return [(0, height, 0, width)]
    regions = []
    for x, y, w, h in boxes:
        grow = 0.25 * max(w, h)
        top, bottom = max(0, int(y - grow)), min(height, int(y + h + grow) + 1)
        left, right = max(0, int(x - grow)), min(width, int(x + w + grow) + 1)
        if bottom > top and right > left:
            regions.append((top, bottom, left, right))
    return regions


def _within(frame: Frame, region: tuple[int, int, int, int]) -> Mask:
    """Soft mask of a region's inner part: the box and a tenth more, fading out before the region ends."""
    top, bottom, left, right = region
    long_side = max(bottom - top, right - left)
    inset = long_side / 6
    box = np.array([left + inset, top + inset, right - left - 2 * inset, bottom - top - 2 * inset], np.float32)
    at_edge = np.array([left == 0, top == 0, right == frame.shape[1], bottom == frame.shape[0]])
    box[:2] -= inset * at_edge[:2]
    box[2:] += inset * (at_edge[:2].astype(np.float32) + at_edge[2:])
    mask = person_mask((frame.shape[0], frame.shape[1]), box=np.maximum(box, 0))
    outside = np.ones(mask.shape, bool)
    outside[top:bottom, left:right] = False
    mask[outside] = 0
    return mask


def _shrunk(region: Frame, side: int) -> Frame:
    scale = side / max(region.shape[:2])
    if scale >= 1:
        return region
    size = max(1, round(region.shape[1] * scale)), max(1, round(region.shape[0] * scale))
    return np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), np.uint8)


def _resized(region: Frame, height: int, width: int) -> Frame:
    if region.shape[:2] == (height, width):
        return region
    return np.asarray(cv2.resize(region, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
