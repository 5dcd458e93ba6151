"""From crops to joints, whatever computes them: our network in torch, or any SimCC network in an ONNX file.

    estimator = open_estimator("bundled")
    found = estimator(crops)                       # uint8 RGB, cut at estimator.input_size
    joints, scores = estimate_records(estimator, dataset)

What a public SimCC file does not say about itself is what public runners assume: ImageNet's mean and deviation over
RGB, a crop 1.25 times the box, the most likely bin as the place, and the mean of the axes' peaks as the score. Files of
`wardpose export` say everything in their metadata and are decoded as the network itself is.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardpose.shared.data import crops as cropping
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.model import BUNDLED_WEIGHTS, NAMED_WEIGHTS, PoseModel
from wardpose.shared.pose.weights import load_model, state_hash
from wardpose.shared.side_by_side import even_parts, side_by_side
from wardpose.shared.skeleton import COCO17, Skeleton, get_skeleton

ONNX_KEY = "wardpose"
"""Metadata key under which an exported file says, as JSON, what it is."""

Colours = Literal["rgb", "bgr"]
"""Order of a picture's channels."""

_PUBLIC_JOINTS = {17: COCO17, 26: COCO17, 133: COCO17}
"""Outputs of public networks whose first 17 joints are COCO's: COCO, Halpe-26, COCO-WholeBody."""


@dataclass(frozen=True)
class Estimates:
    """Joints of B crops.

    Attributes:
        joints: (B, J, 2) crop pixels.
        scores: (B, J) from 0 to 1.

    """

    joints: NDArray[np.float32]
    scores: NDArray[np.float32]


class Estimator(Protocol):
    """A network that finds one person's joints in a crop.

    Attributes:
        name: short human name.
        skeleton: joints, in the order of the output.
        input_size: (height, width) of its crops.
        padding: how much larger than the person's box a crop is.

    """

    name: str
    skeleton: Skeleton
    input_size: tuple[int, int]
    padding: float

    def __call__(self, crops: NDArray[np.uint8]) -> Estimates:
        """Find the joints in crops (B, H, W, 3) uint8 RGB."""
        ...

    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything that decides the joints."""
        ...


class TorchEstimator:
    """A `PoseModel` at work."""

    padding = cropping.PADDING

    def __init__(
        self, model: PoseModel, *, device: str | torch.device = "cpu", flip_test: bool = False, name: str = ""
    ) -> None:
        """Take a model, which is moved to `device`; with `flip_test` the mirrored crop has its say, too."""
        self._model = model.to(device)
        self._device, self._flip_test = device, flip_test
        self._codec = SimCC.of(model.config)
        self.name = name or model.weights_source
        self.skeleton = model.skeleton
        self.input_size = model.config.input_size

    def __call__(self, crops: NDArray[np.uint8]) -> Estimates:
        """Find the joints in crops (B, H, W, 3); on a CPU each thread looks at crops of its own."""
        if torch.device(self._device).type != "cpu":
            return self._estimates(crops)
        found = side_by_side(self._estimates, [crops[part] for part in even_parts(len(crops))])
        return Estimates(
            np.concatenate([part.joints for part in found]), np.concatenate([part.scores for part in found])
        )

    def identity(self) -> str:
        """SHA-256 over weights and configuration."""
        facts = [state_hash(self._model), self._model.config.model_dump_json(exclude={"weights"}), str(self._flip_test)]
        return hashlib.sha256("|".join(facts).encode()).hexdigest()

    def _estimates(self, crops: NDArray[np.uint8]) -> Estimates:
        pixels = torch.from_numpy(np.ascontiguousarray(crops)).to(self._device)
        with torch.inference_mode():
            x = cropping.to_tensor(pixels)
            joints, scores = self._codec.decode(*logits_of(self._model, x, flip_test=self._flip_test))
        return Estimates(joints.cpu().numpy(), scores.cpu().numpy())


class OnnxEstimator:
    """A SimCC network in an ONNX file: one input (B, 3, H, W), two outputs (B, J, bins)."""

    def __init__(self, path: Path, *, colours: Colours | None = None) -> None:
        """Open the file.

        Args:
            path: of the file.
            colours: order of its channels; as its metadata says, or else RGB, when absent.

        Raises:
            ConfigError: onnxruntime is not installed.
            DataError: the file is missing, broken, or no SimCC network.

        """
        self.name = path.name
        self._session, content = open_onnx(path)
        self._sha256 = hashlib.sha256(content).hexdigest()
        ours = _metadata(self._session, path)
        self._input = self._session.get_inputs()[0]
        self.padding = float(ours.get("padding", cropping.PADDING))
        self._colours = colours or ours.get("colours", "rgb")
        self._decodes = bool(ours.get("decoding", False))
        shape, outputs = self._input.shape, [output.shape for output in self._session.get_outputs()[:2]]
        if self._decodes:
            self.input_size, self._split = (int(shape[2]), int(shape[3])), float(ours["split_ratio"])
        else:
            self.input_size, self._split = _form(shape, outputs, path)
        self.skeleton = _skeleton_of(outputs[0][1], ours, path)
        self._codec = None
        if ours:
            self._codec = SimCC(
                input_size=self.input_size, split_ratio=self._split, label_sigma=float(ours["label_sigma"])
            )
        self._mean = np.array(ours.get("mean", [255 * value for value in cropping.IMAGENET_MEAN]), np.float32)
        self._deviation = np.array(ours.get("std", [255 * value for value in cropping.IMAGENET_STD]), np.float32)

    def __call__(self, crops: NDArray[np.uint8]) -> Estimates:
        """Find the joints in crops (B, H, W, 3)."""
        pixels = crops[..., ::-1] if self._colours == "bgr" else crops
        x = ((pixels.astype(np.float32) - self._mean) / self._deviation).transpose(0, 3, 1, 2)
        kind = np.float16 if self._input.type == "tensor(float16)" else np.float32
        stack = np.ascontiguousarray(x, kind)
        fixed = isinstance(self._input.shape[0], int)  # a file that takes one crop at a time
        batches = np.split(stack, len(stack)) if fixed and len(stack) > 1 else [stack]
        found = [self._session.run(None, {self._input.name: batch})[:2] for batch in batches]
        if self._decodes:
            return Estimates(*(np.concatenate(parts).astype(np.float32) for parts in zip(*found, strict=True)))
        simcc_x, simcc_y = (np.concatenate(parts).astype(np.float32) for parts in zip(*found, strict=True))
        return self._decoded(simcc_x[:, : len(self.skeleton)], simcc_y[:, : len(self.skeleton)])

    def identity(self) -> str:
        """SHA-256 over the file and how it is fed."""
        return hashlib.sha256(f"{self._sha256}|{self._colours}".encode()).hexdigest()

    def _decoded(self, simcc_x: NDArray[np.float32], simcc_y: NDArray[np.float32]) -> Estimates:
        if self._codec is not None:  # the label's density over its peak, whose logarithm are the logits
            tiny = np.finfo(np.float32).tiny
            logits = [torch.from_numpy(np.log(np.maximum(values, tiny))) for values in (simcc_x, simcc_y)]
            joints, scores = self._codec.decode(*logits)
            return Estimates(joints.numpy(), scores.numpy())
        places = np.stack([values.argmax(-1) for values in (simcc_x, simcc_y)], -1) / self._split
        peaks = (simcc_x.max(-1) + simcc_y.max(-1)) / 2
        return Estimates(places.astype(np.float32), np.clip(peaks, 0, 1).astype(np.float32))


def open_estimator(
    model: str, *, device: str = "cpu", flip_test: bool = False, colours: Colours | None = None
) -> TorchEstimator | OnnxEstimator:
    """Open a network by name or file.

    Args:
        model: `bundled`, a pose model's `.safetensors`, or a SimCC network's `.onnx`.
        device: of a torch model.
        flip_test: let the mirrored crop have its say, in torch.
        colours: order of an ONNX file's channels, where it does not say it and is not fed RGB.

    Raises:
        ConfigError: an option does not belong to this kind of file, or onnxruntime is not installed.
        DataError: the file cannot be used.

    """
    if model.lower().endswith(".onnx"):
        if flip_test:
            raise ConfigError(f"{model}: --flip-test is for safetensors (allowed: an ONNX file as it is)")
        return OnnxEstimator(Path(model), colours=colours)
    if colours is not None:
        raise ConfigError(f"{model}: the order of channels is an ONNX file's matter (allowed: none for safetensors)")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f'--device "{device}" is unknown (allowed: cpu, cuda)')
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has none (allowed: cpu)")
    return TorchEstimator(load_model(model_path(model)), device=device, flip_test=flip_test, name=Path(model).name)


def model_path(model: str) -> Path:
    """Return the file of a model: of the bundled one, too.

    Raises:
        ConfigError: another name than `bundled`, of a model without a file.

    """
    if model == "bundled":
        return BUNDLED_WEIGHTS
    if model in NAMED_WEIGHTS:
        raise ConfigError(f'model "{model}" has no file (allowed: bundled, or the path of a model)')
    return Path(model)


def open_onnx(path: Path) -> tuple[Any, bytes]:
    """Open an ONNX file on the CPU and return the session and the file's content.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file is missing, or not one that onnxruntime runs.

    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path}: needs onnxruntime (allowed: pip install 'wardpose[onnx]')") from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]), content
    except Exception as error:  # onnxruntime's errors have no common class
        raise DataError(f"{path}: onnxruntime cannot run it ({' '.join(str(error).split())[:200]})") from error


def estimate_boxes(
    estimator: Estimator, frames: Sequence[NDArray[np.uint8]], boxes: Sequence[NDArray[np.floating]], *, batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find the joints of N persons: `frames[i]` (h, w, 3) RGB shows one in `boxes[i]` (x, y, width, height).

    Returns:
        joints (N, J, 2) in frame pixels and scores (N, J).

    """
    joints = np.zeros((len(boxes), len(estimator.skeleton), 2), np.float32)
    scores = np.zeros(joints.shape[:2], np.float32)
    for start in range(0, len(boxes), batch_size):
        rows = range(start, min(start + batch_size, len(boxes)))
        affines = [cropping.box_to_affine(boxes[i], estimator.input_size, padding=estimator.padding) for i in rows]
        pictures = [
            cropping.warp(frames[i], affine, estimator.input_size) for i, affine in zip(rows, affines, strict=True)
        ]
        found = estimator(np.stack(pictures))
        for i, affine, points, score in zip(rows, affines, found.joints, found.scores, strict=True):
            joints[i] = cropping.transform(points, cropping.invert(affine))
            scores[i] = score
    return joints, scores


def estimate_records(
    estimator: Estimator, dataset: PoseDataset, *, batch_size: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Find the joints of every record of `dataset` from its box.

    Returns:
        joints (N, J, 2) in frame pixels and scores (N, J) from 0 to 1.

    Raises:
        DataError: the data set is in another skeleton, or a frame cannot be read.

    """
    if dataset.skeleton.name != estimator.skeleton.name:
        raise DataError(
            f"{dataset.name}: skeleton {dataset.skeleton.name}, but the model predicts {estimator.skeleton.name}"
        )
    parts = []
    for start in range(0, len(dataset), batch_size):
        rows = range(start, min(start + batch_size, len(dataset)))
        frames, boxes = [dataset.frame(i) for i in rows], [dataset.record(i).box for i in rows]
        parts.append(estimate_boxes(estimator, frames, boxes, batch_size=batch_size))
    if not parts:
        shape = (0, len(estimator.skeleton))
        return np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    joints, scores = zip(*parts, strict=True)
    return np.concatenate(joints), np.concatenate(scores)


def logits_of(model: PoseModel, x: Tensor, *, flip_test: bool) -> tuple[Tensor, Tensor]:
    """Logits of crops (B, 3, H, W); under `flip_test` of the mean of their distributions and of the mirrored crops'."""
    logits_x, logits_y = model(x)
    if not flip_test:
        return logits_x, logits_y
    order = torch.from_numpy(model.skeleton.flip_order).to(x.device)
    mirrored_x, mirrored_y = (logits[:, order] for logits in model(x.flip(-1)))
    # Pixel p is p' = W - 1 - p in the mirrored crop, so bin b is bin W·s - s - b there: reversed, s - 1 bins too far.
    shift = int(model.config.split_ratio) - 1
    back = mirrored_x.flip(-1)
    back = torch.cat([back[..., shift:], back[..., -1:].expand(*back.shape[:-1], shift)], dim=-1)
    return _mean_distribution(logits_x, back), _mean_distribution(logits_y, mirrored_y)


def _mean_distribution(a: Tensor, b: Tensor) -> Tensor:
    return torch.logaddexp(a.log_softmax(-1), b.log_softmax(-1)) - math.log(2.0)


def _form(shape: Any, outputs: list[Any], path: Path) -> tuple[tuple[int, int], float]:
    """Size of the crops and bins a pixel, from the shapes of the input and the two outputs."""
    whole = all(isinstance(size, int) for size in [*shape[1:], *(out[-1] for out in outputs if out)])
    if len(shape) != 4 or not whole or shape[1] != 3 or [len(out) for out in outputs] != [3, 3]:
        raise DataError(
            f"{path}: inputs {shape} and outputs {outputs} are no SimCC network's (allowed: one input (B, 3, H, W) "
            "and two outputs (B, J, bins))"
        )
    height, width = int(shape[2]), int(shape[3])
    split = float(outputs[0][-1] / width)
    if outputs[1][-1] != round(split * height) or split < 1:
        raise DataError(
            f"{path}: {outputs[0][-1]} and {outputs[1][-1]} bins do not fit a crop of {width} x {height} pixels "
            "(allowed: the same number of bins a pixel on both axes)"
        )
    return (height, width), split


def _metadata(session: Any, path: Path) -> dict[str, Any]:
    """Read what an exported file says about itself; nothing of one that is not ours."""
    text = session.get_modelmeta().custom_metadata_map.get(ONNX_KEY)
    if text is None:
        return {}
    try:
        content: dict[str, Any] = json.loads(text)
        return {**content, "label_sigma": float(content["label_sigma"]), "skeleton": str(content["skeleton"])}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: its metadata {ONNX_KEY} cannot be read ({error!r})") from error


def _skeleton_of(joints: Any, ours: dict[str, Any], path: Path) -> Skeleton:
    if ours:
        return get_skeleton(ours["skeleton"])
    if joints not in _PUBLIC_JOINTS:
        known = ", ".join(map(str, _PUBLIC_JOINTS))
        raise DataError(f"{path}: gives {joints} joints and does not say which (allowed: {known}, or a file of ours)")
    return _PUBLIC_JOINTS[joints]
