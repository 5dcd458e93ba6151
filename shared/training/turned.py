"""Public people turned by any angle, as a data set: whatever is done with a frame then sees a turned frame."""

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.crops import box_to_affine, transform, warp
from wardpose.shared.data.record_checks import box_of_joints
from wardpose.shared.data.records import Frame, PoseDataset, PoseRecord

_FRAMED = 1.8  # side of a turned frame over the long side of the person's box: room for the crop of any angle
_SIDES = 64, 640  # pixels of a turned frame


class Turned:
    """Copies of some records, each in a frame that is turned by any angle and may be mirrored; copy 0 is upright.

    Args:
        dataset: the people.
        rows: which records.
        copies: of each of them.

    """

    def __init__(self, dataset: PoseDataset, rows: NDArray[np.int64], copies: int) -> None:
        self.name = f"{dataset.name}, turned"
        self.skeleton = dataset.skeleton
        self.notes: list[str] = []
        self._dataset = dataset
        self._rows = rows
        self._copies = copies

    def __len__(self) -> int:
        """Count the copies."""
        return len(self._rows) * self._copies

    def record(self, index: int) -> PoseRecord:
        """Return a copy's annotation."""
        record, affine, _, flip = self._turn(index)
        order = self.skeleton.flip_order if flip else slice(None)
        labelled = record.visibility > 0
        joints = np.where(labelled[:, None], transform(record.joints, affine), 0.0).astype(np.float32)[order]
        visibility = record.visibility[order]
        if int(labelled.sum()) >= 4:
            box = box_of_joints(joints, visibility)
        else:
            x, y, width, height = record.box
            corners = transform(np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]]), affine)
            box = np.concatenate([corners.min(axis=0), np.ptp(corners, axis=0)]).astype(np.float32)
        name = f"{record.record_id}/{index % self._copies}"
        return replace(record, record_id=name, view_key="", picture="", joints=joints, visibility=visibility, box=box)

    def frame(self, index: int) -> Frame:
        """Return a copy's picture, a square around the person."""
        _, affine, size, _ = self._turn(index)
        return warp(self._dataset.frame(int(self._rows[index // self._copies])), affine, (size, size))

    def identity(self) -> str:
        """Hexadecimal SHA-256 over the people, the rows and the copies."""
        content = f"{self._dataset.identity()}/{self._rows.tolist()}/{self._copies}"
        return hashlib.sha256(content.encode()).hexdigest()

    def _turn(self, index: int) -> tuple[PoseRecord, NDArray[np.float64], int, bool]:
        record = self._dataset.record(int(self._rows[index // self._copies]))
        copy = index % self._copies
        seed = hashlib.sha256(f"{copy}:{record.record_id}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(seed[:8]))
        angle, flip = (float(generator.uniform(0, 360)), bool(generator.random() < 0.5)) if copy else (0.0, False)
        size = int(np.clip(_FRAMED * float(max(record.box[2:])), *_SIDES))
        affine = box_to_affine(record.box, (size, size), padding=_FRAMED, rotation=angle, flip=flip)
        return record, affine, size, flip
