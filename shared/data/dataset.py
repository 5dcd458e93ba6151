"""A data set in memory: annotations are held, frames are read when they are asked for."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from wardpose.shared.data.pictures import PictureError, PictureHeader, picture_header, picture_size, read_picture
from wardpose.shared.data.records import Frame, PoseDataset, PoseRecord, patients_named
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import Skeleton, convert


class FrameSource(Protocol):
    """Where the pixels of one record come from."""

    def load(self) -> Frame:
        """Decode the frame (h, w, 3) uint8 RGB; `DataError` names the file when that fails."""
        ...

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels without decoding; `DataError` when the file is missing or is no image."""
        ...

    def fingerprint(self) -> str:
        """Say cheaply which file this is: relative name and size in bytes."""
        ...

    def changed(self) -> str:
        """Say cheaply which state of the file this is: inode and times of change, which a copy over it moves."""
        ...


def changed(path: Path) -> str:
    """Inode and times of change of a file; `PictureError` when it is missing."""
    try:
        found = path.stat()
    except OSError as error:
        raise PictureError(f"{path}: is missing (allowed: an existing file)") from error
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_ctime_ns}"


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """A frame stored as an image file, read by the rule of `pictures`.

    Attributes:
        root: folder of the data set.
        name: file name relative to it.

    """

    root: Path
    name: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root / self.name

    def load(self) -> Frame:
        """Decode the file; a cut one is an error, not a half-grey frame."""
        return read_picture(self.path)

    def size(self) -> tuple[int, int]:
        """(height, width) of the upright picture, from the header alone."""
        return picture_size(self.path)

    def header(self) -> PictureHeader:
        """Read what the file says about its picture."""
        return picture_header(self.path)

    def fingerprint(self) -> str:
        """Relative name and size in bytes."""
        try:
            return f"{self.name}:{self.path.stat().st_size}"
        except OSError as error:
            raise PictureError(f"{self.path}: image is missing (allowed: an existing picture)") from error

    def changed(self) -> str:
        """Inode and times of change."""
        return changed(self.path)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A bad record that was left out.

    Attributes:
        record: which one, as its file names it.
        reason: what is wrong with it.
        kind: whether its picture, its place in the frame, or anything else of it is bad.

    """

    record: str
    reason: str
    kind: Literal["picture", "outside", "record"] = "record"


class ListDataset:
    """Records in a list, each with the source of its frame; a `PoseDataset`.

    Attributes:
        name: short human name.
        skeleton: joint layout of every record.
        notes: sentences the user should read.
        skipped: bad records that were left out, in file order.
        patients_named: whether patients were named, and not invented, one for each record.

    """

    def __init__(
        self,
        *,
        name: str,
        skeleton: Skeleton,
        records: Sequence[PoseRecord],
        frames: Sequence[FrameSource],
        notes: Sequence[str] = (),
        skipped: Sequence[Skipped] = (),
        patients_named: bool = True,
    ) -> None:
        self.name = name
        self.skeleton = skeleton
        self.notes = list(notes)
        self.skipped = tuple(skipped)
        self.patients_named = patients_named
        self._records = tuple(records)
        self._frames = tuple(frames)
        if len(self._records) != len(self._frames):
            raise ValueError(f"{len(self._records)} records but {len(self._frames)} frames")

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> PoseRecord:
        """Return the annotation alone; reads no pixels."""
        return self._records[index]

    def frame(self, index: int) -> Frame:
        """Decode the record's frame; `DataError` names the file."""
        return self._frames[index].load()

    def source(self, index: int) -> FrameSource:
        """Return where the record's pixels come from."""
        return self._frames[index]

    def frame_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the record's frame without decoding it."""
        return self._frames[index].size()

    def identity(self) -> str:
        """Hexadecimal SHA-256 over layout, annotations, patients, relative file names and sizes.

        Pixels are not read, so that the identity of a large cohort costs one `stat` a record: an image replaced
        by another of the same name and size in bytes goes unnoticed. Where the folder lies does not matter.
        """
        digest = hashlib.sha256(f"{self.name}|{self.skeleton.name}|{len(self)}".encode())
        for record, frame in zip(self._records, self._frames, strict=True):
            facts = [record.record_id, record.patient_id, record.also_patients, record.group, frame.fingerprint()]
            numbers = [record.scale, record.head_size, record.area]
            digest.update(json.dumps([facts, numbers]).encode())
            for array in (record.joints, record.visibility, record.box):
                digest.update(array.tobytes())
        return digest.hexdigest()

    def pixels_marker(self) -> str:
        """Hexadecimal SHA-256 over when each frame's file last changed: what was made of its pixels is as old."""
        digest = hashlib.sha256()
        for frame in self._frames:
            digest.update(frame.changed().encode() + b"\0")
        return digest.hexdigest()

    def select(self, indices: Sequence[int]) -> "ListDataset":
        """Return the records at `indices`, in that order."""
        return ListDataset(
            name=self.name,
            skeleton=self.skeleton,
            records=[self._records[index] for index in indices],
            frames=[self._frames[index] for index in indices],
            notes=self.notes,
            skipped=self.skipped,
            patients_named=self.patients_named,
        )

    def only_patients(self, patients: Collection[str]) -> "ListDataset":
        """Return the records that belong to these patients.

        Raises:
            DataError: a patient has no record here.

        """
        wanted = set(patients)
        known = {record.patient_id for record in self._records}
        if wanted - known:
            raise DataError(
                f'{self.name}: patient "{min(wanted - known)}" has no record (allowed: one of {len(known)} patients)'
            )
        return self.select([i for i, record in enumerate(self._records) if record.patient_id in wanted])

    def only_records(self, records: Sequence[str], *, listed_in: Path) -> "ListDataset":
        """Return the records with these ids, in that order.

        Raises:
            DataError: an id is unknown or listed twice; names the file that lists it.

        """
        index = {record.record_id: i for i, record in enumerate(self._records)}
        seen: set[str] = set()
        for record in records:
            if record not in index:
                raise DataError(
                    f'{listed_in}: record "{record}" is not in {self.name} (allowed: its {len(self)} records)'
                )
            if record in seen:
                raise DataError(f'{listed_in}: record "{record}" is listed twice (allowed: each record once)')
            seen.add(record)
        return self.select([index[record] for record in records])

    def in_skeleton(self, skeleton: Skeleton) -> "ListDataset":
        """Return the same records with their joints expressed in another layout.

        Raises:
            DataError: a record has no labelled joint in it.

        """
        records = []
        for record in self._records:
            joints, visibility = convert(record.joints, record.visibility, source=self.skeleton, target=skeleton)
            if not visibility.any():
                raise DataError(f"{self.name}: record {record.record_id} has no labelled joint of {skeleton.name}")
            records.append(replace(record, joints=joints, visibility=visibility))
        return ListDataset(
            name=self.name,
            skeleton=skeleton,
            records=records,
            frames=self._frames,
            notes=self.notes,
            skipped=self.skipped,
            patients_named=self.patients_named,
        )

    def _parts(self) -> tuple[tuple[PoseRecord, ...], tuple[FrameSource, ...]]:
        return self._records, self._frames


class _DatasetFrame:
    """A frame of a data set that makes its frames itself."""

    def __init__(self, dataset: PoseDataset, index: int) -> None:
        self._dataset = dataset
        self._index = index

    def load(self) -> Frame:
        return self._dataset.frame(self._index)

    def size(self) -> tuple[int, int]:
        height, width = self.load().shape[:2]
        return height, width

    def fingerprint(self) -> str:
        return f"{self._dataset.identity()}:{self._index}"

    def changed(self) -> str:
        return ""  # made, not stored: what decides its pixels is in the identity


def listed(dataset: PoseDataset) -> ListDataset:
    """Hold any data set's annotations as a list; its frames are still made by itself."""
    if isinstance(dataset, ListDataset):
        return dataset
    return ListDataset(
        name=dataset.name,
        skeleton=dataset.skeleton,
        records=[dataset.record(index) for index in range(len(dataset))],
        frames=[_DatasetFrame(dataset, index) for index in range(len(dataset))],
        notes=dataset.notes,
        patients_named=patients_named(dataset),
    )


def concatenate(datasets: Sequence[PoseDataset]) -> ListDataset:
    """Join data sets of one skeleton, in order.

    Where two parts use the same record id, every record and patient id gets its part's number and name in front:
    what two sources call the same is then not the same person.

    Raises:
        DataError: nothing to join, or skeletons differ.

    """
    if not datasets:
        raise DataError("concatenate: no data set was given (allowed: one or more)")
    skeletons = {dataset.skeleton.name for dataset in datasets}
    if len(skeletons) > 1:
        names = ", ".join(f"{dataset.name}: {dataset.skeleton.name}" for dataset in datasets)
        raise DataError(f"concatenate: skeletons differ ({names}; allowed: one skeleton)")
    parts = [listed(dataset) for dataset in datasets]
    if len(parts) == 1:
        return parts[0]
    ids = [part.record(index).record_id for part in parts for index in range(len(part))]
    clash = len(set(ids)) < len(ids)
    records: list[PoseRecord] = []
    frames: list[FrameSource] = []
    for number, part in enumerate(parts):
        prefix = f"{number}:{part.name}/"
        own_records, own_frames = part._parts()
        records += [_prefixed(record, prefix) for record in own_records] if clash else own_records
        frames += own_frames
    return ListDataset(
        name="+".join(part.name for part in parts),
        skeleton=parts[0].skeleton,
        records=records,
        frames=frames,
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        skipped=[skip for part in parts for skip in part.skipped],
        patients_named=all(part.patients_named for part in parts),
    )


def _prefixed(record: PoseRecord, prefix: str) -> PoseRecord:
    return replace(
        record,
        record_id=prefix + record.record_id,
        patient_id=prefix + record.patient_id,
        also_patients=tuple(prefix + patient for patient in record.also_patients),
        picture=prefix + record.picture if record.picture else "",
    )
