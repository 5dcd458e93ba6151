"""People in a frame, found by a detector that its user has as an ONNX file; none comes with the package.

Three kinds of output are understood, as mmdeploy and rtmlib export them:

* `dets` (1, N, 5) and, where there are several classes, `labels` (1, N): corners and score after suppression (RTMDet,
  and YOLOX with it);
* (1, N, 5 + classes) of YOLOX without suppression: centre and size on the grids of strides 8, 16 and 32, objectness,
  classes (Ge et al. 2021, "YOLOX", section 2.2).

The frame is shrunk into the upper left of the input, on grey 114, as all of them are trained. What the pixels are
scaled by is not in such files: RTMDet's take BGR with a mean and deviation, YOLOX's BGR as it is.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from wardpose.client.joints.people import Box
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.pose.estimators import open_onnx

Style = Literal["rtmdet", "yolox"]

_MEAN = np.array([103.53, 116.28, 123.675], np.float32)  # BGR, of RTMDet
_DEVIATION = np.array([57.375, 57.12, 58.395], np.float32)
_GREY = 114
_STRIDES = (8, 16, 32)
_SUPPRESSED = 0.45  # overlap of two boxes of which the less sure one goes
_PERSON = 0


class Detector:
    """A detector at work."""

    def __init__(self, path: Path, *, style: str = "", threshold: float = 0.5) -> None:
        """Open it.

        Args:
            path: of the ONNX file.
            style: how pixels are scaled: `rtmdet` or `yolox`; told by the file's name when empty.
            threshold: least score of a person.

        Raises:
            ConfigError: the style is unknown, or onnxruntime is not installed.
            DataError: the file cannot be run, or its input is no picture of fixed size.

        """
        named = [known for known in get_args(Style) if known in path.name.lower()]
        self._style = style or (named[0] if len(named) == 1 else "")
        if self._style not in get_args(Style):
            raise ConfigError(
                f'{path}: --detector-style "{self._style}" is not allowed ({", ".join(get_args(Style))}; the name of '
                "the file does not say it)"
            )
        if not 0 < threshold < 1:
            raise ConfigError(f"--detector-threshold {threshold} is not allowed (above 0, below 1)")
        self._path, self._threshold = path, threshold
        self._session, content = open_onnx(path)
        self._sha256 = hashlib.sha256(content).hexdigest()
        self._input = self._session.get_inputs()[0]
        shape = self._input.shape
        if len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
            raise DataError(f"{path}: its input is {shape} (allowed: (1, 3, H, W), with H and W fixed)")
        self._size = (int(shape[2]), int(shape[3]))

    def __call__(self, frame: Frame) -> list[Box]:
        """Find the people in a frame (h, w, 3) RGB, the surest first."""
        height, width = frame.shape[:2]
        scale = min(self._size[0] / height, self._size[1] / width)
        small = cv2.resize(frame, (max(1, int(width * scale)), max(1, int(height * scale))))
        canvas = np.full((*self._size, 3), _GREY, np.float32)
        canvas[: small.shape[0], : small.shape[1]] = small[..., ::-1]
        if self._style == "rtmdet":
            canvas = (canvas - _MEAN) / _DEVIATION
        x = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32)
        corners, scores = self._people(self._session.run(None, {self._input.name: x}))
        corners = corners / scale
        kept = cv2.dnn.NMSBoxes(
            np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist(),
            scores.tolist(),
            self._threshold,
            _SUPPRESSED,
        )
        return [box for index in kept if (box := _inside(corners[int(index)], height, width)) is not None]

    def identity(self) -> str:
        """SHA-256 over the file and how it is used."""
        return hashlib.sha256(f"{self._sha256}|{self._style}|{self._threshold}".encode()).hexdigest()

    def _people(self, outputs: list[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Corners (N, 4) in pixels of the input and scores (N,) of what is a person."""
        first = np.asarray(outputs[0], np.float32)
        if first.ndim != 3 or len(first) != 1 or first.shape[-1] < 5:
            raise DataError(
                f"{self._path}: its output is {list(first.shape)} (allowed: (1, N, 5) after suppression, or (1, N, 5 + "
                "classes) of YOLOX)"
            )
        rows = first[0]
        if rows.shape[-1] == 5:
            chosen = np.ones(len(rows), bool)
            if len(outputs) > 1 and np.shape(outputs[1]) == (1, len(rows)):
                chosen = np.asarray(outputs[1])[0] == _PERSON
            return rows[chosen, :4], rows[chosen, 4]
        cells = [(self._size[0] // stride, self._size[1] // stride, stride) for stride in _STRIDES]
        grid = np.concatenate(
            [
                np.stack([*np.meshgrid(np.arange(wide), np.arange(high)), np.full((high, wide), stride)], -1).reshape(
                    -1, 3
                )
                for high, wide, stride in cells
            ]
        ).astype(np.float32)
        if len(grid) != len(rows):
            raise DataError(
                f"{self._path}: its output has {len(rows)} rows (allowed: {len(grid)}, one for each cell of an input "
                f"of {self._size[1]} x {self._size[0]})"
            )
        stride = grid[:, 2:]
        centre, size = (rows[:, :2] + grid[:, :2]) * stride, np.exp(np.minimum(rows[:, 2:4], 20)) * stride
        return np.concatenate([centre - size / 2, centre + size / 2], 1), rows[:, 4] * rows[:, 5 + _PERSON]


def _inside(corners: NDArray[np.float32], height: int, width: int) -> Box | None:
    if not np.isfinite(corners).all():
        return None
    left, top = max(0.0, float(corners[0])), max(0.0, float(corners[1]))
    right, bottom = min(float(width), float(corners[2])), min(float(height), float(corners[3]))
    return (left, top, right - left, bottom - top) if right - left >= 1 and bottom - top >= 1 else None
