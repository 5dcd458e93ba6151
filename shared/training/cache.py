"""Crops or frozen-trunk features of a cohort: computed once, kept on disk, memory-mapped ever after.

Where the first stages do not train, their output for a frame never changes, so private training reads it from
here instead of recomputing it. Random augmentation is pre-rendered: view 0 is the plain crop, views 1 .. V-1
are augmented ones. Row `i * V + v` is view v of record i; it belongs to the unit that owns record i.

**A row is a function of its record alone.** The generator of a view is seeded by the record's name (or by its
`view_key`, where names count the people of a picture) and the view's number, never by a place in the cohort, or whoever
leaves would re-crop everybody behind them. Features are computed in batches of one size, padded, so that no row's last
bit depends on how many there are. The public view of every row is that of its record (`PublicView.of_person`), moved to
where the row's crop is.

An entry is a folder named by a hash of everything that decides its content. It is built under a temporary
name and renamed, so it exists whole or not at all. It holds patients' data: keep it where the frames are
kept, and `delete_cache` it with the cohort.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.shared.anonymize.public_view import PublicView
from wardpose.shared.data.crops import Affine, Augmentation, compose, crop_frame, invert, to_tensor, warp
from wardpose.shared.data.dataset import ListDataset
from wardpose.shared.data.records import Frame, PoseDataset, PoseRecord
from wardpose.shared.errors import DataError
from wardpose.shared.files import PRIVATE, private_folder, write_json
from wardpose.shared.pose.model import ModelConfig, PoseModel, outline
from wardpose.shared.pose.trainable import Strategy

Precision = Literal["float16", "float32", "float64"]

ENTRY = "entry.json"
"""Marker of an entry of a cache: a folder that has it is whole."""

_FORMAT = 3
_VIEW_KEY = b"wardpose augmented view"  # of the pre-rendered augmentation, which hides nothing
_BUILD_BATCH = 8
_SEEN_BATCH = 16  # records whose frames are held at a time: the map of public views takes several


class FeatureMap(Protocol):
    """What takes the trunk's place for public views (`imputation`).

    Attributes:
        identity: hexadecimal SHA-256 of everything that decides it, the trunk aside.

    """

    identity: str

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[Any]:
        """Return features (B, C, h, w) of the trunk's shape for crops (B, H, W, 3); records do not mix."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What a loss needs of R (record, view) pairs.

    Attributes:
        inputs: (R, H, W, 3) uint8 crops, or (R, C, h, w) floating-point features of the frozen trunk.
        joints: (R, J, 2) float32, crop pixels.
        visibility: (R, J) uint8.

    """

    inputs: NDArray[Any]
    joints: NDArray[np.float32]
    visibility: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def are_crops(self) -> bool:
        """Whether the inputs are pixels, in front of the trunk."""
        return bool(self.inputs.dtype == np.uint8)


def build_rows(
    dataset: PoseDataset,
    model: PoseModel,
    strategy: Strategy,
    *,
    folder: Path | None,
    public_view: PublicView | None = None,
    augmentation: Augmentation | None = None,
    views: int = 1,
    features: bool = True,
    precision: Precision = "float32",
    limit_bytes: int | None = None,
    drawn_boxes: bool = False,
    impute: FeatureMap | None = None,
) -> tuple[Rows, Rows | None]:
    """Open or build the rows of `dataset` and, with a `public_view`, those of phi(crop) beside them.

    Args:
        dataset: the records.
        model: its frozen part computes the features; its device is used.
        strategy: decides what is frozen. Where nothing in front of the first trained layer is frozen, rows
            are crops.
        folder: the cohort's cache; in memory when absent.
        public_view: the declared map phi, applied to every crop.
        augmentation: of the views after the first; needed when `views` is above 1.
        views: rows per record.
        features: keep trunk features where there is a frozen trunk; else crops.
        precision: of stored features. float16 halves the files and moves features by a relative 5e-4 at most.
        drawn_boxes: crop only around boxes that somebody drew, and the whole frame where a box was computed from the
            keypoints, which it would give away.
        limit_bytes: most that all entries of `folder` may take together; older entries go first.
        impute: makes the features of public views, in the trunk's place.

    Raises:
        DataError: a frame cannot be read, or the rows do not fit in `limit_bytes` or on the disk.
        ValueError: `views` above 1 without an augmentation.

    """
    if views < 1 or (views > 1 and augmentation is None):
        raise ValueError(f"views is {views}; allowed: 1, or more together with an augmentation")
    frozen = features and model.front(strategy) != "full"
    height, width = model.config.input_size
    if frozen:
        shape, kind = _feature_shape(model.config, strategy), str(precision)
    else:
        shape, kind = (height, width, 3), "uint8"
    layout = _Layout(
        rows=len(dataset) * views,
        shape=tuple(shape),
        kind=kind,
        joints=len(dataset.skeleton),
        copies=1 if public_view is None else 2,
    )
    job = _Job(
        dataset, model, strategy, public_view, augmentation, views, layout, drawn_boxes, impute if frozen else None
    )
    if folder is None:
        arrays = {name: np.zeros(size, dtype) for name, size, dtype in layout.arrays()}
        job.fill(arrays)
        return _rows(arrays)
    entry = folder / _key(job, trunk_hash(model, strategy) if frozen else "")
    found = _opened(entry, layout)
    if found is None:  # not there, or damaged: it can be made again
        _build(entry, job, limit_bytes)
        found = _opened(entry, layout)
    if found is None:
        raise DataError(f"{entry}: was written, and cannot be read; is the disk sound?")
    os.utime(entry)
    return _rows(found)


def trunk_hash(model: PoseModel, strategy: Strategy) -> str:
    """Hexadecimal SHA-256 over every value that stands in front of the first layer that trains."""
    digest = hashlib.sha256()
    for name, value in sorted(model.frozen_state(strategy).items()):
        content = value.detach().cpu().contiguous()
        digest.update(f"{name}:{content.dtype}:{tuple(content.shape)};".encode())
        digest.update(content.numpy().data)
    return digest.hexdigest()


def delete_cache(folder: Path) -> None:
    """Remove every entry of a cohort's cache, half-built ones too; nothing else in `folder` is touched."""
    for entry in [*_entries(folder), *_unfinished(folder)]:
        shutil.rmtree(entry)


def cache_bytes(folder: Path) -> int:
    """Bytes that the entries of `folder` take."""
    return sum(file.stat().st_size for entry in _entries(folder) for file in entry.iterdir())


@dataclass(frozen=True, kw_only=True)
class _Layout:
    rows: int
    shape: tuple[int, ...]
    kind: str
    joints: int
    copies: int

    def arrays(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        yield "inputs", (self.rows, *self.shape), self.kind
        if self.copies == 2:
            yield "public", (self.rows, *self.shape), self.kind
        yield "joints", (self.rows, self.joints, 2), "float32"
        yield "visibility", (self.rows, self.joints), "uint8"

    def bytes(self) -> int:
        return sum(int(np.prod(shape)) * np.dtype(kind).itemsize for _, shape, kind in self.arrays())


@dataclass(frozen=True)
class _Job:
    dataset: PoseDataset
    model: PoseModel
    strategy: Strategy
    public_view: PublicView | None
    augmentation: Augmentation | None
    views: int
    layout: _Layout
    drawn_boxes: bool
    impute: FeatureMap | None

    def fill(self, arrays: dict[str, NDArray[Any]]) -> None:
        size = self.model.config.input_size
        crops: list[NDArray[np.uint8]] = []
        shown: list[NDArray[np.uint8]] = []
        rows = len(self.dataset) * self.views
        for index, record, frame, public in self._seen():
            known = record.box_source == "given" and record.view_key  # which follows from the box
            for view in range(self.views):
                crop = crop_frame(
                    frame,
                    record,
                    self.dataset.skeleton,
                    size,
                    augmentation=self.augmentation if view else None,
                    generator=_generator(known or record.record_id, view),
                )
                row = index * self.views + view
                arrays["joints"][row], arrays["visibility"][row] = crop.joints, crop.visibility
                crops.append(crop.image)
                if public is not None:
                    shown.append(warp(public[0], compose(crop.affine, invert(public[1])), size))
                if len(crops) == _BUILD_BATCH or row == rows - 1:
                    for name, pictures in (("inputs", crops), ("public", shown)):
                        if pictures:
                            arrays[name][row + 1 - len(pictures) : row + 1] = self._stored(pictures, name)
                        pictures.clear()

    def _seen(self) -> Iterator[tuple[int, PoseRecord, Frame, tuple[Frame, Affine] | None]]:
        """Give out records with their frames and public views, which are made a batch at a time."""
        for start in range(0, len(self.dataset), _SEEN_BATCH):
            rows = range(start, min(start + _SEEN_BATCH, len(self.dataset)))
            frames = [self.dataset.frame(index) for index in rows]
            records = [self._with_box(self.dataset.record(i), frame) for i, frame in zip(rows, frames, strict=True)]
            views: list[tuple[Frame, Affine] | None] = [None] * len(rows)
            if self.public_view is not None:
                views = list(self.public_view.of_people(frames, [record.box for record in records]))
            yield from zip(rows, records, frames, views, strict=True)

    def _with_box(self, record: PoseRecord, frame: Frame) -> PoseRecord:
        if self.drawn_boxes and record.box_source == "joints":
            whole = np.array([0, 0, frame.shape[1], frame.shape[0]], np.float32)
            return replace(record, box=whole, box_source="frame")
        return record

    def _stored(self, crops: list[NDArray[np.uint8]], name: str) -> NDArray[Any]:
        if self.layout.kind == "uint8":
            return np.stack(crops)
        full = np.stack(crops + crops[-1:] * (_BUILD_BATCH - len(crops)))
        if name == "public" and self.impute is not None:
            return self.impute(full)[: len(crops)].astype(self.layout.kind)
        return _features(self.model, self.strategy, full, self.layout.kind)[: len(crops)]


def _generator(record_id: str, view: int) -> np.random.Generator:
    """Return the generator of one view of one record, the same in every process and every cohort."""
    digest = hashlib.blake2b(f"{view}:{record_id}".encode(), key=_VIEW_KEY, digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest))


def _features(model: PoseModel, strategy: Strategy, crops: NDArray[np.uint8], precision: str) -> NDArray[Any]:
    first = next(model.parameters())
    with torch.no_grad():
        out = model.frozen_features(to_tensor(crops).to(first), strategy)
    return out.cpu().numpy().astype(precision)


@lru_cache(maxsize=64)
def _feature_shape(config: ModelConfig, strategy: Strategy) -> tuple[int, ...]:
    """(C, h, w) of the trunk's features, from a network without memory."""
    with torch.device("meta"):
        return tuple(outline(config).frozen_features(torch.empty(1, 3, *config.input_size), strategy).shape[1:])


def _rows(arrays: dict[str, NDArray[Any]]) -> tuple[Rows, Rows | None]:
    joints, visibility = arrays["joints"], arrays["visibility"]
    private = Rows(inputs=arrays["inputs"], joints=joints, visibility=visibility)
    if "public" not in arrays:
        return private, None
    return private, Rows(inputs=arrays["public"], joints=joints, visibility=visibility)


def _key(job: _Job, trunk: str) -> str:
    content = {
        "format": _FORMAT,
        "dataset": job.dataset.identity(),
        "pixels": job.dataset.pixels_marker() if isinstance(job.dataset, ListDataset) else "",
        "front": job.model.front(job.strategy) if trunk else "",
        "trunk": trunk,
        "input_size": job.model.config.input_size,
        "kind": job.layout.kind,
        "views": job.views,
        "drawn_boxes": job.drawn_boxes,
        "augmentation": job.augmentation.model_dump() if job.augmentation is not None and job.views > 1 else None,
        "public_view": job.public_view.identity() if job.public_view is not None else "",
    }
    if job.impute is not None and job.public_view is not None:
        content["impute"] = job.impute.identity
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_whole(entry: Path, layout: _Layout) -> bool:
    try:
        sizes = json.loads((entry / ENTRY).read_text())
        names = {f"{name}.npy" for name, _, _ in layout.arrays()}
        return names == set(sizes) and all((entry / name).stat().st_size == sizes[name] for name in names)
    except (OSError, ValueError, TypeError):
        return False


def _opened(entry: Path, layout: _Layout) -> dict[str, NDArray[Any]] | None:
    """Map an entry's files; `None` where one is missing or is not what the layout says."""
    if not _is_whole(entry, layout):
        return None
    arrays = {}
    for name, shape, kind in layout.arrays():
        try:
            array = np.load(entry / f"{name}.npy", mmap_mode="r")
        except Exception:  # whatever numpy's parser makes of a broken header
            return None
        if array.shape != shape or array.dtype != np.dtype(kind) or not array.flags.c_contiguous:
            return None
        arrays[name] = array
    return arrays


def _build(entry: Path, job: _Job, limit_bytes: int | None) -> None:
    folder = entry.parent
    private_folder(folder)
    if entry.exists():
        shutil.rmtree(entry)
    for rest in _unfinished(folder):
        if not _alive(int(rest.name.split("-")[1])):
            shutil.rmtree(rest)
    _make_room(folder, job, limit_bytes)
    temporary = Path(tempfile.mkdtemp(prefix=f".building-{os.getpid()}-", dir=folder))
    try:
        arrays = {name: _reserve(temporary / f"{name}.npy", shape, kind) for name, shape, kind in job.layout.arrays()}
        job.fill(arrays)
        for array in arrays.values():
            cast("np.memmap[Any, Any]", array).flush()  # msync: the pages are on disk before the marker says so
        sizes = {f"{name}.npy": (temporary / f"{name}.npy").stat().st_size for name in arrays}
        write_json(temporary / ENTRY, sizes)
        try:
            temporary.rename(entry)
        except OSError:
            if not _is_whole(entry, job.layout):  # else another process built the same entry first
                raise
            shutil.rmtree(temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _too_full(folder, job, str(error.strerror)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _reserve(path: Path, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """Make a memory-mapped array whose blocks the disk has promised: writing to it later cannot fail.

    Raises:
        OSError: the disk is full.

    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(kind), shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
    return cast(NDArray[Any], array)


def _too_full(folder: Path, job: _Job, reason: str) -> DataError:
    free = shutil.disk_usage(folder).free
    return DataError(
        f"{folder}: the cache of {job.dataset.name!r} needs {job.layout.bytes()} bytes and cannot be written "
        f"({reason}; {free} bytes are free); nothing half-written stays"
    )


def _make_room(folder: Path, job: _Job, limit_bytes: int | None) -> None:
    needed = job.layout.bytes()
    allowed = shutil.disk_usage(folder).free + cache_bytes(folder)
    if limit_bytes is not None:
        allowed = min(allowed, limit_bytes)
    if needed > allowed:
        raise DataError(
            f"{folder}: the cache of {job.dataset.name!r} needs {needed} bytes and may take {allowed}; "
            "allow more, or use fewer views or float16"
        )
    for old in sorted(_entries(folder), key=lambda path: path.stat().st_mtime):
        if cache_bytes(folder) + needed <= allowed:
            break
        shutil.rmtree(old)


def _entries(folder: Path) -> list[Path]:
    return [path.parent for path in folder.glob(f"[!.]*/{ENTRY}")] if folder.is_dir() else []


def _unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(".building-*-*")) if folder.is_dir() else []


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
