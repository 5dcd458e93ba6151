"""Where people are, as somebody else found it: COCO JSON (annotations or results), CSV, or the file of `anonymize`.

CSV has the columns `file`, `x`, `y`, `width`, `height` in pixels, and may have `frame`, the number in a video.
In JSON a video's frame is the image `clip.mp4#12`, or `frame_000012`, as CVAT names it, where one video is looked at.
"""

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from wardpose.client.anonymize.boxes import read_box
from wardpose.client.joints.people import Box
from wardpose.client.joints.reels import Reels, Shot
from wardpose.shared.data.fields import field, identifier, read_json, short
from wardpose.shared.data.tables import number, read_table
from wardpose.shared.errors import ConfigError, DataError

_COLUMNS = ("x", "y", "width", "height")


class GivenBoxes:
    """The boxes of a file, by the names of frames."""

    def __init__(self, path: Path) -> None:
        """Read them.

        Raises:
            ConfigError: the file is not what it must be; names the entry.

        """
        self._path = path
        self._boxes: dict[str, list[Box]] = defaultdict(list)
        self._used: set[str] = set()
        try:
            if path.suffix.lower() in (".csv", ".tsv", ".txt"):
                self._read_table()
            else:
                self._read_json(read_json(path))
        except DataError as error:
            message = str(error)
            raise ConfigError(message if message.startswith(str(path)) else f"{path}: {message}") from error

    def of(self, shot: Shot, size: tuple[int, int], *, alone: bool) -> list[Box]:
        """Return the boxes in a frame.

        Args:
            shot: which.
            size: (height, width) of it.
            alone: whether there is only one video, so that its name need not be said.

        Raises:
            DataError: a box lies outside the frame.

        """
        boxes: list[Box] = []
        for name in _names(shot, alone=alone):
            if name in self._boxes:
                self._used.add(name)
                boxes = self._boxes[name]
                break
        height, width = size
        for x, y, wide, high in boxes:
            if x >= width or y >= height or x + wide <= 0 or y + high <= 0:
                raise DataError(
                    f"{self._path}: {shot.source} has the box {[x, y, wide, high]} (allowed: in its frame of {width} x "
                    f"{height} pixels)"
                )
        return boxes

    def unused(self) -> list[str]:
        """List the names that no frame has."""
        return sorted(set(self._boxes) - self._used)

    def check(self, reels: Reels) -> None:
        """See that the file names at least one of the frames.

        Raises:
            ConfigError: it names none.

        """
        alone = len(reels.reels) == 1
        for reel in reels.reels:
            for entry in range(reel.entries):
                if any(name in self._boxes for name in _names(reel.shot(entry), alone=alone)):
                    return
        raise ConfigError(
            f"{self._path}: names none of the frames (allowed: names as {short(reels.reels[0].shot(0).source)}; it has "
            f"{', '.join(short(name) for name in sorted(self._boxes)[:3]) or 'none'})"
        )

    def _read_table(self) -> None:
        table = read_table(self._path)
        missing = [column for column in ("file", *_COLUMNS) if column not in table.columns]
        if missing:
            raise DataError(
                f"columns {short(list(table.columns))}: {missing[0]} is missing (allowed: file, frame, x, y, width, "
                "height)"
            )
        for row in table.rows:
            cells = [number(row.cells[column], decimal_comma=table.decimal_comma) for column in _COLUMNS]
            frame = row.cells.get("frame", "")
            if frame and not re.fullmatch(r"\d+(\.0+)?", frame):
                raise DataError(f'row {row.line}: frame is "{frame}" (allowed: a number from 0)')
            name = row.cells["file"] + (f"#{int(float(frame))}" if frame else "")
            self._add(name, cells, f"row {row.line}")

    def _read_json(self, content: Any) -> None:
        if isinstance(content, list):  # a results file: images are told by their ids
            for position, entry in enumerate(content):
                self._add(str(identifier(entry, "image_id")), field(entry, "bbox", list), f"entry {position}")
            return
        if not isinstance(content, dict):
            raise DataError(f"holds {short(content)} (allowed: COCO annotations, COCO results)")
        if "annotations" not in content:
            for name, rows in content.items():
                for position, row in enumerate(rows if isinstance(rows, list) else [rows]):
                    self._add(name, row, f'"{name}" {position}')
            return
        images = {identifier(image, "id"): field(image, "file_name", str) for image in field(content, "images", list)}
        for position, entry in enumerate(field(content, "annotations", list)):
            image = identifier(entry, "image_id")
            if image not in images:
                raise DataError(f"annotations {position}: image_id {image} is not among the images")
            if entry.get("iscrowd") not in (1, "1", True):
                self._add(images[image].replace("\\", "/"), field(entry, "bbox", list), f"annotations {position}")

    def _add(self, name: str, values: Any, where: str) -> None:
        self._boxes[name].append(read_box(values, where))


def _names(shot: Shot, *, alone: bool) -> list[str]:
    """Return what a frame may be called, the surest first."""
    path = PurePosixPath(shot.source)
    if shot.number is None:
        stem = str(path.with_suffix(""))
        digits = [str(int(path.stem))] if path.stem.isascii() and path.stem.isdecimal() else []
        return list(dict.fromkeys([shot.source, path.name, stem, path.stem, *digits]))
    names = [f"{shot.source}#{shot.number}", f"{path.name}#{shot.number}", f"{path.stem}#{shot.number}"]
    if alone:
        names += [f"frame_{shot.number:06d}{ending}" for ending in (".PNG", ".png", ".jpg", "")]
    return names
