"""Where the persons of a frame are, from a JSON file: `{"sub/photo.jpg": [[x, y, width, height]], "clip.mp4#12": ...}`.

A frame without boxes is changed everywhere. A box that misses its frame would leave the person in it as they are, so it
is refused; and so that no name is mistyped in silence, those that fit no file are given back.
"""

from pathlib import Path
from typing import Any

from wardpose.client.anonymize.job import LeftOut, file_of
from wardpose.shared.anonymize.frame_methods import Box
from wardpose.shared.data.fields import numbers, read_json, short
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError


class PersonBoxes:
    """The boxes of a file, by the names of frames; none at all without a file."""

    def __init__(self, path: Path | None) -> None:
        """Read them.

        Raises:
            ConfigError: the file is not what it must be.

        """
        self._path = path
        self._boxes: dict[str, list[Box]] = {}
        if path is None:
            return
        try:
            content = read_json(path)
        except DataError as error:
            raise ConfigError(str(error)) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: must map file names to lists of [x, y, width, height]")
        for name, rows in content.items():
            self._boxes[name] = [self._box(name, row) for row in self._rows(name, rows)]

    def of(self, frame: Frame, name: str) -> list[Box] | None:
        """Return the boxes of a frame (height, width, 3); `None` where nobody said where its persons are.

        Raises:
            DataError: one of them lies outside the frame.

        """
        boxes = self._boxes.get(name, self._boxes.get(file_of(name)))
        height, width = frame.shape[:2]
        for box in boxes or ():
            x, y, wide, high = box
            if x >= width or y >= height or x + wide <= 0 or y + high <= 0:
                raise DataError(
                    f'{self._path}: "{name}" has the box {list(box)} (allowed: in its frame of {width} x {height} '
                    "pixels)"
                )
        return boxes or None

    def unused(self, source: Path) -> list[LeftOut]:
        """List the names that no file of a folder has, or a file for which there is no box."""
        if self._path is None:
            return []
        if source.is_dir():
            reason = f"named in {self._path}, but no file of {source}"
            return [LeftOut(name, reason) for name in self._boxes if not _is_file(source / file_of(name))]
        if any(file_of(name) == source.name for name in self._boxes):
            return []
        return [LeftOut(source.name, f"not named in {self._path}, so it was changed everywhere")]

    def _rows(self, name: str, rows: object) -> list[object]:
        if not isinstance(rows, list):
            raise ConfigError(f'{self._path}: "{name}" has {short(rows)} (allowed: a list of [x, y, width, height])')
        return rows

    def _box(self, name: str, row: object) -> Box:
        try:
            return read_box(row, f'{self._path}: "{name}"')
        except DataError as error:
            raise ConfigError(str(error)) from error


def read_box(values: Any, where: str) -> Box:
    """Return x, y, width, height of a person.

    Raises:
        DataError: they are no four numbers, or the box has no area; begins with `where`.

    """
    try:
        x, y, wide, high = numbers(values, "a box", 4).tolist()
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if min(wide, high) <= 0:
        raise DataError(f"{where} has the box {short(values)} (allowed: width and height above 0)")
    return (x, y, wide, high)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
