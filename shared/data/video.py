"""A video file, or a folder of frames, with a file of labels. Frames are decoded when they are asked for.

JSON labels:

    {"skeleton": "lsp14", "records": [{"frame": 12, "joints": [[x, y, v], ...], "person": "0", "patient": "p01",
      "also": ["nurse"], "box": [x, y, w, h], "head_size": 20.5, "group": "lying"}]}

`frame` is the frame number from 0 in a video, the file name in a folder; all after `joints` may be left out, and then
`person` is 0 and the box goes around the joints. CSV labels have the same names as columns (`also` separated by `;`,
the box as `box_x,box_y,box_width,box_height`) and each joint as `<joint>_x,<joint>_y,<joint>_v`; an empty cell is a
value left out, a joint whose cells are empty is not labelled.
"""

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wardpose.shared.data.dataset import FrameSource, ListDataset
from wardpose.shared.data.fields import field, numbers, short
from wardpose.shared.data.labels import label_of, read_labels
from wardpose.shared.data.patients import Owners, PatientRule
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError
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
        check_images: headers and frame counts only, or decode every frame.

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
    video = None if path.is_dir() else Video(path)
    for position, entry in enumerate(entries):
        with reading.record(label_of(position, entry)):
            _read_entry(entry, reading, path, video, source)
    return reading.finish()


class Video:
    """An open video file; frames by number, in any order, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._next = 0
        self._capture = self._open()
        self.frame_count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))

    def frame(self, number: int) -> Frame:
        """Decode frame `number`, from 0.

        Raises:
            DataError: it does not decode; names file and number.

        """
        with self._lock:
            if number != self._next:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            good, picture = self._capture.read()
            self._next = number + 1
            # A decoder that passed over a damaged frame has counted fewer frames than were asked for.
            if not good or round(self._capture.get(cv2.CAP_PROP_POS_FRAMES)) != number + 1:
                self._next = -1
                picture = self._from_the_start(number)
            if picture is None:
                raise DataError(
                    f"{self.path}: frame {number} is corrupt (allowed: a frame that decodes, of {self.frame_count})"
                )
        return np.ascontiguousarray(picture[..., ::-1])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]  # the file is opened anew in the other process

    def _from_the_start(self, number: int) -> Any:
        """Read on from the first frame until the time stamp is that of `number`; `None` when it is passed over."""
        self._capture = self._open()
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        for _ in range(self.frame_count):
            good, picture = self._capture.read()
            arrived = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * rate / 1000) if good else -1
            if arrived >= number:
                return picture if arrived == number else None
        return None

    def _open(self) -> Any:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise DataError(f"{self.path}: is no video that can be opened (allowed: a file that OpenCV decodes)")
        return capture


class _VideoFrame:
    def __init__(self, video: Video, number: int) -> None:
        self._video = video
        self._number = number

    def load(self) -> Frame:
        return self._video.frame(self._number)

    def size(self) -> tuple[int, int]:
        return self._video.height, self._video.width

    def fingerprint(self) -> str:
        return f"{self._video.path.name}:{self._video.path.stat().st_size}:{self._number}"


def _read_entry(entry: Any, reading: Reading, path: Path, video: Video | None, source: Skeleton) -> None:
    stated = field(entry, "frame", (int, str))
    frame: FrameSource
    if video is None:
        name = str(stated)
        frame = reading.folder(path).find(name)
    else:
        if not isinstance(stated, int) or not 0 <= stated < video.frame_count:
            raise DataError(f"frame is {stated!r} (allowed: 0 to {video.frame_count - 1})")
        name = str(stated)
        frame = _VideoFrame(video, stated)
    joints = numbers(field(entry, "joints", list), "joints", 3 * len(source)).reshape(-1, 3)
    if not np.isin(joints[:, 2], (0, 1, 2)).all():
        raise DataError(f"joints have visibility {joints[~np.isin(joints[:, 2], (0, 1, 2)), 2][0]} (allowed: 0, 1, 2)")
    unknown = set(entry) - {"frame", "joints", "person", "patient", "also", "box", "head_size", "group"}
    if unknown:
        raise DataError(
            f'key "{min(unknown)}" is unknown (allowed: frame, joints, person, patient, also, box, head_size, group)'
        )
    patient = entry.get("patient")
    also = entry.get("also") or []
    if not isinstance(also, list) or not all(isinstance(other, str) and other for other in also):
        raise DataError(f"also is {short(also)} (allowed: a list of patients)")
    if patient is not None and (not isinstance(patient, str) or not patient):
        raise DataError(f"patient is {patient!r} (allowed: a non-empty text)")
    head_size = entry.get("head_size")
    record_id = f"{name}:{entry.get('person', 0)}"
    reading.add(
        record_id,
        joints=joints[:, :2].astype(np.float32),
        visibility=joints[:, 2].astype(np.uint8),
        box=None if entry.get("box") is None else numbers(entry["box"], "box", 4).astype(np.float32),
        frame=frame,
        frame_name=name if video is None else record_id,
        head_size=None if head_size is None else float(field(entry, "head_size", (int, float))),
        group=str(entry.get("group") or ""),
        owners=None if patient is None else Owners(patient, tuple(also)),
    )
