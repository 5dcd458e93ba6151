"""A video file, or a folder of frames, with a file of labels. Frames are decoded when they are asked for.

JSON labels:

    {"skeleton": "lsp14", "records": [{"frame": 12, "joints": [[x, y, v], ...], "person": "0", "patient": "p01",
      "also": ["nurse"], "box": [x, y, w, h], "head_size": 20.5, "group": "lying"}]}

`frame` is the file name in a folder; in a video it is the frame's number from 0, in the order a player shows them
(see `video_index`). All after `joints` may be left out, and then `person` is 0 and the box goes around the joints. CSV
labels have the same names as columns (`also` separated by `;`, the box as `box_x,box_y,box_width,box_height`) and each
joint as `<joint>_x,<joint>_y,<joint>_v`; an empty cell is a value left out, a joint whose cells are empty is not
labelled.
"""

from pathlib import Path
from typing import Any

import numpy as np

from wardpose.shared.data.dataset import FrameSource, ListDataset, changed
from wardpose.shared.data.fields import field, identifier, keypoints, numbers, short
from wardpose.shared.data.labels import label_of, read_labels
from wardpose.shared.data.patients import Owners, PatientRule
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading
from wardpose.shared.data.records import Frame
from wardpose.shared.data.video_file import Video
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import strip
from wardpose.shared.skeleton import Skeleton


def read_video(
    path: Path,
    labels: Path,
    *,
    layout: str | None = None,
    skeleton: Skeleton | None = None,
    patients: PatientRule | None = None,
    on_bad_record: OnBadRecord = "error",
    check_images: CheckImages = "header",
    index_folder: Path | None = None,
) -> ListDataset:
    """Read a video file or a frame folder. Record ids are `frame:person`.

    Patients named in the labels are used unless a patient rule is given.

    Args:
        path: the video, or the folder.
        labels: JSON or CSV.
        layout: name of the labels' skeleton; JSON may name its own, CSV can be told by its columns.
        skeleton: layout wanted; the labels' own when `None`.
        patients: where patient ids come from.
        on_bad_record: stop, or skip and list.
        check_images: frame sizes and counts only, or decode every frame.
        index_folder: where the indexes of videos are kept between processes; without it each process makes its own, for
            which it decodes the whole video once.

    Raises:
        DataError: a file is missing or malformed, or a record is bad and `on_bad_record` is `error`.

    """
    if not path.exists():
        raise DataError(f"{path}: is missing (allowed: a video file or a folder of frames)")
    entries, source = read_labels(labels, layout, numbered=not path.is_dir())
    reading = Reading(
        name=path.stem,
        file=labels,
        source=source,
        target=skeleton,
        patients=patients,
        on_bad_record=on_bad_record,
        check_images=check_images,
    )
    video = None if path.is_dir() else Video(path, index_folder=index_folder)
    for sentence in () if video is None else video.index.sentences():
        reading.note(f"{path}: {sentence}")
    for position, entry in enumerate(entries):
        with reading.record(label_of(position, entry)):
            _read_entry(entry, reading, path, video, source)
    return reading.finish()


class VideoFrame:
    """A frame of a video as a `FrameSource`."""

    def __init__(self, video: Video, number: int) -> None:
        self._video = video
        self._number = number

    def load(self) -> Frame:
        """Decode it; `DataError` names file and number when that fails."""
        return self._video.frame(self._number)

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, upright."""
        return self._video.size(self._number)

    def fingerprint(self) -> str:
        """Name and size of the video, and the frame's number."""
        return f"{self._video.path.name}:{self._video.path.stat().st_size}:{self._number}"

    def changed(self) -> str:
        """Inode and times of change of the video."""
        return changed(self._video.path)


def _read_entry(entry: Any, reading: Reading, path: Path, video: Video | None, source: Skeleton) -> None:
    stated = field(entry, "frame", (int, float, str))
    frame: FrameSource
    if video is None:
        name = stated if isinstance(stated, str) else str(identifier(entry, "frame"))
        frame = reading.folder(path).find(name)
    else:
        number = identifier(entry, "frame")
        if not isinstance(number, int):
            raise DataError(f"{path}: frame is {number!r} (allowed: 0 to {video.frame_count - 1})")
        video.check(number)
        name = str(number)
        frame = VideoFrame(video, number)
    unknown = set(entry) - {"frame", "joints", "person", "patient", "also", "box", "head_size", "group"}
    if unknown:
        raise DataError(
            f'key "{min(unknown)}" is unknown (allowed: frame, joints, person, patient, also, box, head_size, group)'
        )
    patient = entry.get("patient")
    also = entry.get("also") or []
    if not isinstance(also, list) or not all(isinstance(other, str) and other for other in also):
        raise DataError(f"also is {short(also)} (allowed: a list of patients)")
    if patient is not None and (not isinstance(patient, str) or not strip(patient)):
        raise DataError(f"patient is {patient!r} (allowed: a non-empty text)")
    if also and patient is None:
        raise DataError(f"also is {short(also)}, but patient is missing (allowed: both)")
    record_id = f"{name}:{entry.get('person', 0)}"
    frame_name = name if video is None else record_id
    owners = None if patient is None else Owners(patient, tuple(also))
    with reading.seen(record_id, frame=frame, frame_name=frame_name, owners=owners):
        joints = keypoints(field(entry, "joints", list), "joints", len(source))
        if not np.isin(joints[:, 2], (0, 1, 2)).all():
            raise DataError(
                f"joints have visibility {joints[~np.isin(joints[:, 2], (0, 1, 2)), 2][0]} (allowed: 0, 1, 2)"
            )
        head_size = entry.get("head_size")
        reading.add(
            record_id,
            joints=joints[:, :2].astype(np.float32),
            visibility=joints[:, 2].astype(np.uint8),
            box=None if entry.get("box") is None else numbers(entry["box"], "box", 4).astype(np.float32),
            frame=frame,
            frame_name=frame_name,
            head_size=None if head_size is None else float(field(entry, "head_size", (int, float))),
            group=str(entry.get("group") or ""),
            owners=owners,
        )
