"""The border every reader shares: a record is checked here once, and is an error or a listed skip when it is bad."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.dataset import FrameSource, ImageFile, ListDataset, Skipped
from wardpose.shared.data.patients import Owners, PatientLookup, PatientRule
from wardpose.shared.data.picture_folder import PictureFolder
from wardpose.shared.data.pictures import PictureError, PictureHeader
from wardpose.shared.data.record_checks import (
    OutsideError,
    box_of_joints,
    check_box,
    check_joints,
    clipped,
    is_of_joints,
)
from wardpose.shared.data.records import PoseRecord
from wardpose.shared.data.same_pictures import same_pictures
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import PatientError
from wardpose.shared.skeleton import Skeleton, convert

OnBadRecord = Literal["error", "skip"]
"""What to do with a record that cannot be used: stop with a `DataError`, or leave it out, count and list it."""

CheckImages = Literal["header", "decode"]
"""Whether opening a source reads image headers only (fast), or decodes every frame once (finds truncated files)."""

AREA_OF_BOX = 0.53
"""A person's area in parts of the box where there is no mask (COCO's mean)."""

_NOTED = 5


class Reading:
    """Gather the records of one source.

    Attributes:
        name: of the data set to be.
        file: the annotation file, named in every error.
        source: layout of the file's joints.
        target: layout of the data set to be.

    """

    def __init__(
        self,
        *,
        name: str,
        file: Path,
        source: Skeleton,
        target: Skeleton | None,
        patients: PatientRule | None,
        on_bad_record: OnBadRecord,
        check_images: CheckImages = "header",
    ) -> None:
        self.name = name
        self.file = file
        self.source = source
        self.target = target or source
        self._lookup = PatientLookup(patients)
        self._on_bad_record = on_bad_record
        self._check_images = check_images
        self._records: list[PoseRecord] = []
        self._frames: list[FrameSource] = []
        self._owners: list[Owners | None] = []
        self._bystanders: list[tuple[str, Owners]] = []
        self._seen_in: list[FrameSource] = []
        self._ids: set[str] = set()
        self._twice: list[tuple[str, Owners | None]] = []
        self._skipped: list[Skipped] = []
        self._notes: list[str] = []
        self._folders: dict[Path, PictureFolder] = {}
        self._header: tuple[FrameSource, PictureHeader] | None = None
        self._turned: dict[Path, int] = {}
        self._outside = 0
        self._unmapped = self._without_joints = 0
        self._boxes_of_joints = 0

    def note(self, sentence: str) -> None:
        """Add a sentence that the user should read."""
        self._notes.append(sentence)

    def folder(self, root: Path) -> PictureFolder:
        """Open a folder of pictures that the labels name; what is odd about it will be noted.

        Raises:
            DataError: there is no such folder.

        """
        if not root.is_dir():
            raise DataError(f"{root}: is no folder (allowed: the folder of the pictures)")
        if root not in self._folders:
            self._folders[root] = PictureFolder(root)
        return self._folders[root]

    @contextmanager
    def record(self, label: str) -> Iterator[None]:
        """Guard the reading of one record: a `DataError` inside names file and record, or becomes a skip."""
        try:
            yield
        except PatientError as error:  # leaving the record out would not make the other ones certain
            raise PatientError(f"{self.file}: record {label}: {error}") from error
        except DataError as error:
            if self._on_bad_record == "error":
                raise DataError(f"{self.file}: record {label}: {error}") from error
            kind: Literal["picture", "outside", "record"] = "record"
            if isinstance(error, PictureError | OutsideError):
                kind = "picture" if isinstance(error, PictureError) else "outside"
            self._skipped.append(Skipped(record=label, reason=str(error), kind=kind))

    def add(
        self,
        record_id: str,
        *,
        joints: NDArray[np.float32],
        visibility: NDArray[np.uint8],
        box: NDArray[np.float32] | None,
        frame: FrameSource,
        frame_name: str,
        stated_size: tuple[int, int] | None = None,
        box_may_stick_out: bool = False,
        head_size: float | None = None,
        area: float | None = None,
        group: str = "",
        owners: Owners | None = None,
        view_key: str = "",
    ) -> None:
        """Check one record in the source's layout and keep it.

        Args:
            record_id: unique in this source.
            joints: (J, 2) pixels.
            visibility: (J,) 0, 1 or 2.
            box: (4,) x, y, width, height; `None`: around the labelled joints.
            frame: where its pixels are.
            frame_name: the frame's file name, for the patient rule.
            stated_size: (height, width) that the annotation gives, to be compared with the image.
            box_may_stick_out: the box is a square around a centre, so that only its centre must lie in the frame.
            head_size: pixels, or `None`.
            area: square pixels, or `None`: from the box.
            group: sub-population.
            owners: its patients where the annotation names them; the patient rule goes before.
            view_key: see `PoseRecord`; for ids that count the people of a picture.

        A person without a labelled joint, in this layout or the one asked for, is a bystander.

        Raises:
            DataError: anything is wrong with it.

        """
        with self.seen(record_id, frame=frame, frame_name=frame_name, owners=owners):
            self._add(
                record_id,
                joints=joints,
                visibility=visibility,
                box=box,
                frame=frame,
                frame_name=frame_name,
                stated_size=stated_size,
                box_may_stick_out=box_may_stick_out,
                head_size=head_size,
                area=area,
                group=group,
                owners=owners,
                view_key=view_key,
            )

    @contextmanager
    def seen(self, record_id: str, *, frame: FrameSource, frame_name: str, owners: Owners | None) -> Iterator[None]:
        """Guard the reading of a person in a frame: whoever cannot be used can be seen in it nevertheless."""
        try:
            yield
        except PatientError:
            raise
        except DataError:
            with contextlib.suppress(DataError):
                self.bystander(record_id, frame=frame, frame_name=frame_name, owners=owners)
            raise

    def _add(
        self,
        record_id: str,
        *,
        joints: NDArray[np.float32],
        visibility: NDArray[np.uint8],
        box: NDArray[np.float32] | None,
        frame: FrameSource,
        frame_name: str,
        stated_size: tuple[int, int] | None,
        box_may_stick_out: bool,
        head_size: float | None,
        area: float | None,
        group: str,
        owners: Owners | None,
        view_key: str,
    ) -> None:
        if record_id in self._ids:
            self._twice.append(
                (record_id, self._lookup.owners(record_id, frame_name) if self._lookup.known else owners)
            )
            raise DataError(f'duplicate record id "{record_id}" (allowed: each id once)')
        height, width = self._frame_size(frame, stated_size)
        check_joints(joints, visibility, self.source)
        if not visibility.any():
            self._ids.add(record_id)
            self._without_joints += 1
            self.bystander(record_id, frame=frame, frame_name=frame_name, owners=owners)
            return
        inside = (joints >= -0.5).all(axis=1) & (joints[:, 0] <= width) & (joints[:, 1] <= height)
        outside = (visibility > 0) & ~inside
        visibility = np.where(outside, 0, visibility).astype(np.uint8)
        if not visibility.any():
            raise OutsideError(
                f"no labelled joint lies in the frame of {width} x {height} pixels (allowed: one or more)"
            )
        joints = np.where(visibility[:, None] > 0, joints, 0).astype(np.float32)
        computed = box is None
        box = clipped(box_of_joints(joints, visibility), height, width) if box is None else box
        box = check_box(box, height, width, may_stick_out=box_may_stick_out)
        computed = computed or is_of_joints(box, joints, visibility, height, width)
        for what, value in (("head_size", head_size), ("area", area)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise DataError(f"{what} is {value} (allowed: a finite number above 0, or null)")
        if self.target is not self.source:
            joints, visibility = convert(joints, visibility, source=self.source, target=self.target)
        if self._lookup.known:
            owners = self._lookup.owners(record_id, frame_name)
        if not visibility.any():
            # The record is sound; the layout asked for has none of its joints (a face alone, for example).
            self._ids.add(record_id)
            self._unmapped += 1
            self.bystander(record_id, frame=frame, frame_name=frame_name, owners=owners)
            return
        self._ids.add(record_id)
        self._outside += int(outside.sum())
        self._boxes_of_joints += computed
        self._frames.append(frame)
        self._owners.append(owners)
        self._records.append(
            PoseRecord(
                record_id=record_id,
                patient_id=record_id,
                joints=joints,
                visibility=visibility,
                box=box,
                box_source="joints" if computed else "given",
                scale=float(max(box[2], box[3])),
                head_size=head_size,
                area=float(AREA_OF_BOX * box[2] * box[3]) if area is None else area,
                group=group,
                picture=frame.fingerprint(),
                view_key=view_key,
            )
        )

    def bystander(self, record_id: str, *, frame: FrameSource, frame_name: str, owners: Owners | None) -> None:
        """Note a person who can be seen in a frame but gives no record; they are among the owners of its records.

        One whom the patient rule does not know is nobody whose records are here.

        Raises:
            PatientError: it is not certain who it is.

        """
        if self._lookup.known:
            try:
                owners = self._lookup.owners(record_id, frame_name)
            except PatientError:
                raise
            except DataError:
                return
        if owners is not None:
            self._bystanders.append((frame.fingerprint(), owners))
            self._seen_in.append(frame)

    def finish(self) -> ListDataset:
        """Return the data set.

        Raises:
            DataError: no record is left.
            PatientError: it is not certain which records are of one patient.

        """
        self._drop_doubles()
        notes = list(self._notes)
        if self._skipped:
            shown = "; ".join(f"{skip.record}: {skip.reason}" for skip in self._skipped[:_NOTED])
            more = "; ..." if len(self._skipped) > _NOTED else ""
            notes.append(f"{self.file}: {len(self._skipped)} bad records skipped ({shown}{more})")
        if self._without_joints:
            notes.append(f"{self.file}: {self._without_joints} people without labelled joints left out")
        if self._unmapped:
            notes.append(
                f"{self.file}: {self._unmapped} people without a labelled joint of {self.target.name} left out"
            )
        if not self._records:
            reason = f" ({notes[-1]})" if notes else ""
            raise DataError(f"{self.file}: the set is empty{reason} (allowed: at least one usable record)")
        if self._outside:
            notes.append(f"{self.file}: {self._outside} joints outside their frame taken as not labelled")
        if self._boxes_of_joints:
            notes.append(f"{self.file}: {self._boxes_of_joints} boxes were computed from the joints, not drawn")
        if self._turned:
            path, orientation = next(iter(self._turned.items()))
            notes.append(
                f"{self.file}: {len(self._turned)} pictures carry an EXIF orientation that turns or mirrors them "
                f"({path.name}: {orientation} ...): their labels are taken to be of the upright picture"
            )
        notes += [sentence for folder in self._folders.values() for sentence in folder.notes()]
        records, named = self._settle_patients(notes)
        return ListDataset(
            name=self.name,
            skeleton=self.target,
            records=records,
            frames=self._frames,
            notes=notes,
            skipped=self._skipped,
            patients_named=named,
        )

    def _drop_doubles(self) -> None:
        """Leave out the first record, too, where another patient's has its id: the first would hide the second."""
        doubles = defaultdict(list)
        for record_id, owners in self._twice:
            doubles[record_id].append(owners)
        for i in reversed(range(len(self._records))):
            record, owners = self._records[i], self._owners[i]
            if owners is not None and any(other != owners for other in doubles[record.record_id]):
                self._bystanders.append((record.picture, owners))
                self._seen_in.append(self._frames[i])
                del self._records[i], self._frames[i], self._owners[i]
                reason = f'another patient\'s record has its id "{record.record_id}" (allowed: each id once)'
                self._skipped.append(Skipped(record=record.record_id, reason=reason))

    def _settle_patients(self, notes: list[str]) -> tuple[list[PoseRecord], bool]:
        """Give each record its patients, in one spelling; say whether all were named."""
        named = [i for i, owners in enumerate(self._owners) if owners is not None]
        try:
            found = [(self._records[i].record_id, self._owners[i] or Owners("")) for i in named]
            settled = self._lookup.settle(found + list(self._bystanders))
        except PatientError as error:
            raise PatientError(f"{self.file}: {error}") from error
        same = same_pictures([*self._frames, *self._seen_in])
        records = [replace(record, picture=same.get(record.picture, record.picture)) for record in self._records]
        seen: dict[str, list[str]] = defaultdict(list)
        for (picture, _), owners in zip(self._bystanders, settled[len(named) :], strict=True):
            seen[same.get(picture, picture)] += [owners.patient_id, *owners.also_patients]
        for i, owners in zip(named, settled[: len(named)], strict=True):
            others = dict.fromkeys([*owners.also_patients, *seen[records[i].picture]])
            also = tuple(other for other in others if other != owners.patient_id)
            records[i] = replace(records[i], patient_id=owners.patient_id, also_patients=also)
        if not named:
            notes.append(f"{self.name}: patients are not known, so every record counts as its own patient")
        elif len(named) < len(records):
            missing = [record.record_id for i, record in enumerate(records) if self._owners[i] is None]
            notes.append(
                f"{self.file}: {len(missing)} records name no patient ({', '.join(missing[:_NOTED])} ...), so each of "
                "them counts as its own"
            )
        if doubtful := self._lookup.doubtful():
            notes.append(
                f"{self._lookup.file}: {len(doubtful)} numbers are taken for record ids, but could be frames' "
                f"({'; '.join(doubtful[:_NOTED])})"
            )
        if unused := self._lookup.unused():
            notes.append(f"{self._lookup.file}: {len(unused)} rows name no record here ({', '.join(unused[:_NOTED])})")
        return records, len(named) == len(records)

    def _frame_size(self, frame: FrameSource, stated: tuple[int, int] | None) -> tuple[int, int]:
        if isinstance(frame, ImageFile):
            if self._header is None or self._header[0] != frame:
                if self._check_images == "decode":
                    frame.load()
                self._header = frame, frame.header()
            header = self._header[1]
            return self._upright_size(frame, header, stated)
        height, width = frame.size() if self._check_images == "header" else frame.load().shape[:2]
        _check_size((height, width), stated)
        return height, width

    def _upright_size(self, frame: ImageFile, header: PictureHeader, stated: tuple[int, int] | None) -> tuple[int, int]:
        """Size of the upright picture, of which labels are taken to be unless their size says otherwise."""
        upright = header.height, header.width
        if stated == header.stored != upright:
            raise DataError(
                f"{frame.name} is stored with {_size(header.stored)} pixels and turned to {_size(upright)} by its EXIF "
                f"orientation {header.orientation}, but its labels say {_size(header.stored)}: they were made on the "
                "picture as it is stored (allowed: labels of the upright picture; or remove the orientation from the "
                "file, as by exiftool -Orientation=)"
            )
        _check_size(upright, stated)
        if header.orientation != 1 and (stated is None or header.stored == upright):
            self._turned[frame.path] = header.orientation
        return upright


def _check_size(found: tuple[int, int], stated: tuple[int, int] | None) -> None:
    if stated is not None and stated != found:
        raise DataError(f"image is {_size(found)} pixels, the annotation says {_size(stated)} (allowed: the same)")


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
