"""Finished rows of a table in a folder, so that a measurement of an hour can be interrupted and go on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from wardpose.shared import files
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError


class FinishedRows:
    """Rows and their pictures, kept under what they depend on."""

    def __init__(self, folder: Path | None, depends_on: dict[str, Any]) -> None:
        """Open the folder; `None` keeps nothing.

        Args:
            folder: made where it is missing.
            depends_on: JSON of everything that all rows share.

        Raises:
            ConfigError: the folder holds rows that depend on something else.

        """
        self._folder = folder
        if folder is None:
            return
        stored = folder / "setting.json"
        content = json.loads(json.dumps(depends_on))
        if stored.is_file() and json.loads(stored.read_text()) != content:
            raise ConfigError(f"{folder}: holds rows of another configuration or of other data")
        files.write_json(stored, content)

    def of(self, key: str, make: Callable[[], tuple[dict[str, Any], Frame]]) -> tuple[dict[str, Any], Frame]:
        """Return the finished row and its picture, or make and keep them; arguments and errors as `get`."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, *found)
        return found

    def get(self, key: str) -> tuple[dict[str, Any], Frame] | None:
        """Return a finished row and its picture; `key` names the row and everything that decides it alone.

        Raises:
            DataError: it is not readable.

        """
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            row: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: not a finished row; delete it") from error
        return row, read_picture(path.with_suffix(".png"))

    def put(self, key: str, row: dict[str, Any], picture: Frame) -> None:
        """Keep a row; the picture is written first, so a row that is there is whole."""
        path = self._path(key)
        if path is not None:
            content = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1]
            files.write_bytes(path.with_suffix(".png"), bytes(content))
            files.write_json(path, row)

    def _path(self, key: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"row-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
