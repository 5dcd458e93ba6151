"""What an attacker can do with an anonymised crop, and how well a pose model still reads it.

Fixed attackers are small published models that the configuration points to (re-identification, face matching); where a
file is absent the measure is `None`, and the report says "not measured". Trained attackers are fresh networks that see
pairs of public crops and their anonymised form, as anybody who holds the anonymiser could make them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from wardpose.shared.data.crops import IMAGENET_MEAN, IMAGENET_STD
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError

Embeddings = NDArray[np.float32]
"""(N, D), rows of length 1."""


SAME_FACE = 0.5
"""Cosine of two embeddings from which on two aligned faces count as one person's."""


class AttackModels(BaseModel):
    """Paths of the fixed models; `None` leaves their measures out.

    Attributes:
        reidentification: ONNX, (N, 3, 256, 128) RGB with ImageNet statistics -> (N, D).
        face_detector: YuNet for OpenCV.
        face_matcher: ONNX, (N, 112, 112, 3) RGB in -1..1, aligned -> (N, D).
        pose: MoveNet Lightning as ONNX, (1, 192, 192, 3) int32 -> (1, 1, 17, 3).

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reidentification: Path | None = None
    face_detector: Path | None = None
    face_matcher: Path | None = None
    pose: Path | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> "AttackModels":
        """Take those of the usual names that are in `folder`."""

        def there(name: str) -> Path | None:
            return folder / name if (folder / name).is_file() else None

        return cls(
            reidentification=there("osnet_x025_msmt17.onnx"),
            face_detector=there("yunet_face_detector.onnx"),
            face_matcher=there("mobilefacenet_192d.onnx"),
            pose=there("movenet_lightning_192.onnx"),
        )


class Reidentification:
    """Embeds whole persons."""

    def __init__(self, path: Path) -> None:
        self._session, self._input = _session(path)

    def __call__(self, crops: Sequence[Frame]) -> Embeddings:
        """Embed crops (H, W, 3) of any size."""
        mean, std = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
        rows = []
        for crop in crops:
            small = cv2.resize(crop, (128, 256), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
            rows.append(self._session.run(None, {self._input: ((small - mean) / std).transpose(2, 0, 1)[None]})[0][0])
        return unit(np.stack(rows))


class FaceMatcher:
    """Finds faces and embeds them, aligned by five points."""

    # Where the five points (eyes, nose, corners of the mouth) lie in an aligned face of 112 x 112 pixels (ArcFace).
    TEMPLATE = np.array(
        [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
    )

    def __init__(self, detector: Path, matcher: Path) -> None:
        if not detector.is_file():
            raise DataError(f"{detector}: no such model")
        self._detector = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), 0.6)
        self._session, self._input = _session(matcher)

    def landmarks(self, frame: Frame) -> list[NDArray[np.float32]]:
        """Five points (5, 2) of each face found, best first."""
        scale = max(1.0, 320 / max(frame.shape[:2]))
        large = cv2.resize(frame, None, fx=scale, fy=scale)
        self._detector.setInputSize((large.shape[1], large.shape[0]))
        found = self._detector.detect(np.ascontiguousarray(large[..., ::-1]))[1]
        if found is None:
            return []
        ordered = sorted(np.asarray(found), key=lambda face: -face[14])
        return [np.asarray(face[4:14].reshape(5, 2) / scale, np.float32) for face in ordered]

    def embed(self, frame: Frame, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embedding (D,) of the face at these points."""
        affine = cv2.estimateAffinePartial2D(points, self.TEMPLATE, method=cv2.LMEDS)[0]
        face = cv2.warpAffine(frame, affine, (112, 112)).astype(np.float32)
        row = self._session.run(None, {self._input: ((face - 127.5) / 128)[None]})[0]
        return np.asarray(unit(row)[0], np.float32)


class MoveNet:
    """Reads the pose of one person, COCO-17."""

    def __init__(self, path: Path) -> None:
        self._session, self._input = _session(path)

    def __call__(self, crop: Frame) -> NDArray[np.float32]:
        """Joints (17, 2) in pixels of the crop, which is padded to a square."""
        height, width = crop.shape[:2]
        side = max(height, width)
        square = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = crop
        small = cv2.resize(square, (192, 192), interpolation=cv2.INTER_AREA).astype(np.int32)
        out = self._session.run(None, {self._input: small[None]})[0].reshape(17, 3)
        return np.asarray(out[:, [1, 0]] * side - np.array([left, top]), np.float32)


def linkage(queries: Embeddings, gallery: Embeddings) -> tuple[float, float]:
    """Rank-1 and rank-5: how often query i finds gallery row i first, or among the first five."""
    similarity = queries @ gallery.T
    own = np.diagonal(similarity)[:, None]
    # A tie counts half, so that constant embeddings are at chance and not at 0 or 1.
    rank = (similarity > own).sum(axis=1) + ((similarity == own).sum(axis=1) - 1) / 2
    return float((rank < 1).mean()), float((rank < 5).mean())


def face_match_rate(
    matcher: FaceMatcher,
    originals: Sequence[Frame],
    changed: Sequence[Frame],
    subjects: Sequence[str],
    false_match_rate: float = 1e-3,
) -> float:
    """Share of (changed picture, another original of the same subject) pairs that the matcher accepts.

    The threshold is the one at which untouched impostor pairs are accepted at `false_match_rate`. Changed faces are
    aligned by the original's points: the attacker is given the best case.
    """
    points = [matcher.landmarks(frame) for frame in originals]
    kept = [i for i, found in enumerate(points) if found]
    gallery = np.stack([matcher.embed(originals[i], points[i][0]) for i in kept])
    queries = np.stack([matcher.embed(changed[i], points[i][0]) for i in kept])
    names = np.array([subjects[i] for i in kept])
    same = names[:, None] == names[None, :]
    untouched = gallery @ gallery.T
    threshold = float(np.quantile(untouched[~same], 1 - false_match_rate))
    genuine = same & ~np.eye(len(kept), dtype=bool)
    return float(((queries @ gallery.T)[genuine] > threshold).mean())


def exposed_faces(
    matcher: FaceMatcher, originals: Sequence[Frame], changed: Sequence[Frame], threshold: float = SAME_FACE
) -> int:
    """On how many frames of a video a face is still found at its place and still matches the original.

    A patch without a face is not matched: what the network says of it is arbitrary.
    """
    exposed = 0
    for original, view in zip(originals, changed, strict=True):
        shown = matcher.landmarks(view)
        exposed += any(
            float(np.linalg.norm(points.mean(0) - other.mean(0))) < 2 * float(np.ptp(points, axis=0).max())
            and float(matcher.embed(original, points) @ matcher.embed(view, other)) > threshold
            for points in matcher.landmarks(original)
            for other in shown
        )
    return exposed


def unit(rows: NDArray[np.floating[Any]]) -> Embeddings:
    """Scale rows to length 1."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)


def _session(path: Path) -> tuple[Any, str]:
    if not path.is_file():
        raise DataError(f"{path}: no such model")
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError("measuring with ONNX models needs onnxruntime: pip install 'wardpose[certify]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, session.get_inputs()[0].name
