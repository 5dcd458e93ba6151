"""Training batches of the anonymiser: public crops with their guidance, person mask and joints.

The batch of a step depends on the seed and on the step's number alone, so a resumed training sees the same
batches.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import torch
from torch import Tensor

from wardpose.shared.anonymize.desensitise import Desensitise, person_mask
from wardpose.shared.anonymize.tensors import to_unit
from wardpose.shared.data.crops import Augmentation, crop_record, transform
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.records import Frame, PoseDataset
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What one step learns from; images in 0..1.

    Attributes:
        image: (B, 3, H, W).
        guidance: (B, 3, H, W), the desensitised image.
        mask: (B, 1, H, W), 1 on the person.
        joints: (B, 14, 2) crop pixels.
        visibility: (B, 14), 0 not labelled; a picture without labels has only zeros.

    """

    image: Tensor
    guidance: Tensor
    mask: Tensor
    joints: Tensor
    visibility: Tensor

    def to(self, device: torch.device) -> Self:
        """Move everything."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})


class Feed:
    """Draws batches from data sets in given shares, and from folders of pictures without labels."""

    def __init__(
        self,
        datasets: Sequence[tuple[PoseDataset, float]],
        *,
        size: tuple[int, int],
        guidance: Desensitise,
        augmentation: Augmentation | None,
        pictures: Sequence[Path] = (),
        picture_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not datasets:
            raise DataError("the anonymiser has no data to train on")
        for dataset, _ in datasets:
            if dataset.skeleton != LSP14:
                raise DataError(f"{dataset.name}: the anonymiser trains on lsp14, not on {dataset.skeleton.name}")
        self._datasets = [dataset for dataset, _ in datasets]
        self._pictures = list(pictures)
        shares = [share for _, share in datasets] + ([picture_share] if self._pictures else [])
        self._shares = np.array(shares) / sum(shares)
        self._size, self._guidance, self._augmentation, self._seed = size, guidance, augmentation, seed

    def identity(self) -> dict[str, str]:
        """Name -> SHA-256 of everything that may be drawn."""
        data = {dataset.name: dataset.identity() for dataset in self._datasets}
        if self._pictures:
            digest = hashlib.sha256()
            for path in self._pictures:
                digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
            data["pictures"] = digest.hexdigest()
        return data

    def batch(self, step: int, count: int) -> Batch:
        """Draw the batch of one step."""
        generator = np.random.default_rng([self._seed, step])
        return collate([self._draw(generator) for _ in range(count)], self._guidance)

    def _draw(self, generator: np.random.Generator) -> "Sample":
        source = int(generator.choice(len(self._shares), p=self._shares))
        if source == len(self._datasets):
            path = self._pictures[int(generator.integers(len(self._pictures)))]
            return _window(read_picture(path), self._size, generator)
        dataset = self._datasets[source]
        index = int(generator.integers(len(dataset)))
        return sample(dataset, index, self._size, self._augmentation, generator)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One crop before it becomes a row of a batch.

    Attributes:
        image: (H, W, 3).
        joints: (14, 2) crop pixels.
        visibility: (14,), 0 not labelled.
        box: (4,) x, y, width, height of what holds the person's box in the crop, in crop pixels.

    """

    image: Frame
    joints: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    visibility: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    box: np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def sample(
    dataset: PoseDataset,
    index: int,
    size: tuple[int, int],
    augmentation: Augmentation | None = None,
    generator: np.random.Generator | None = None,
) -> Sample:
    """Crop one record."""
    crop = crop_record(dataset, index, size, augmentation=augmentation, generator=generator)
    x, y, width, height = (float(value) for value in dataset.record(index).box)
    corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]])
    moved = transform(corners, crop.affine)
    box = np.concatenate([moved.min(axis=0), np.ptp(moved, axis=0)]).astype(np.float32)
    return Sample(image=crop.image, joints=crop.joints, visibility=crop.visibility, box=box)


def crop_mask(size: tuple[int, int], one: Sample) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Soft person mask of a crop; the whole crop where no joint is labelled."""
    seen = one.visibility > 0
    if not seen.any():
        return np.ones(size, np.float32)
    low, high = one.joints[seen].min(axis=0), one.joints[seen].max(axis=0)
    box = np.concatenate([low, high - low]).astype(np.float32)
    return person_mask(size, box=box, joints=one.joints, visibility=one.visibility)


def collate(samples: Sequence[Sample], guidance: Desensitise) -> Batch:
    """Stack crops and add guidance and mask."""
    masks = [crop_mask((one.image.shape[0], one.image.shape[1]), one) for one in samples]
    return Batch(
        image=to_unit(np.stack([one.image for one in samples])),
        guidance=to_unit(np.stack([guidance.apply(one.image) for one in samples])),
        mask=torch.from_numpy(np.stack(masks)[:, None]),
        joints=torch.from_numpy(np.stack([one.joints for one in samples])),
        visibility=torch.from_numpy(np.stack([one.visibility for one in samples])),
    )


def _window(picture: Frame, size: tuple[int, int], generator: np.random.Generator) -> Sample:
    """Cut a random window at a random scale."""
    zoom = max(size[0] / picture.shape[0], size[1] / picture.shape[1]) * float(generator.uniform(1, 2))
    whole = cv2.resize(picture, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
    top = int(generator.integers(max(1, whole.shape[0] - size[0])))
    left = int(generator.integers(max(1, whole.shape[1] - size[1])))
    window = cv2.resize(whole[top : top + size[0], left : left + size[1]], (size[1], size[0]))
    return Sample(
        image=np.asarray(window, np.uint8),
        joints=np.zeros((len(LSP14), 2), np.float32),
        visibility=np.zeros(len(LSP14), np.uint8),
        box=np.array([0, 0, size[1], size[0]], np.float32),
    )
