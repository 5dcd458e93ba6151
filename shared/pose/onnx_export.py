"""A pose model as an ONNX file that public SimCC runners (rtmlib, Pose2Sim, Sports2D) take as it is.

* input `input`, (B, 3, H, W) float: a crop 1.25 times the box, normalised by ImageNet's mean and deviation in 0..255.
  These runners give OpenCV's BGR to RGB's numbers (rtmlib 0.0.16, `RTMPose.preprocess`), as RTMPose's own example does.
  The file therefore takes exactly that (`colours: bgr`) and turns it round itself; `rgb` is for everybody else.
* outputs `simcc_x` (B, J, W · split ratio) and `simcc_y` (B, J, H · split ratio): each joint's distribution over the
  bins, over the peak of a label. Its largest bin is the joint (bin / split ratio, in crop pixels), its height the score
  from 0 to about 1, at which such runners set thresholds; its logarithm decodes as the network's own logits do.
* with decoding, `joints` (B, J, 2) in crop pixels and `scores` (B, J) instead, finer than a bin.

The metadata key `wardpose` holds JSON that says all this, and where the weights are from.
"""

import contextlib
import io
import json
import logging
import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wardpose.shared.data.crops import IMAGENET_MEAN, IMAGENET_STD, PADDING
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.files import ASKED_FOR, write_bytes
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.estimators import ONNX_KEY, Colours, OnnxEstimator, TorchEstimator
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.weights import state_hash

Precision = Literal["fp32", "fp16", "int8"]

OPSET = 18

MOST_PIXELS = 0.1
"""By which no joint of an fp32 file may differ from torch, in crop pixels."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        bytes: of it.
        crops: on which it was compared with torch.
        largest: difference of a joint's place, in crop pixels.
        usual: the 95th percentile of these differences.
        largest_score: difference of a joint's score.

    """

    path: Path
    bytes: int
    crops: int
    largest: float
    usual: float
    largest_score: float


def export_onnx(
    model: PoseModel,
    path: Path,
    *,
    crops: NDArray[np.uint8],
    colours: Colours = "bgr",
    decoding: bool = False,
    precision: Precision = "fp32",
    statement: str = "",
    licence: str = "",
    most_pixels: float | None = None,
) -> Exported:
    """Write a model as ONNX, after comparing it with torch.

    Args:
        model: the model, on the CPU.
        path: of the file, which is replaced atomically.
        crops: (B, H, W, 3) uint8 RGB of real frames, on which both are compared.
        colours: order of the input's channels.
        decoding: give joints and scores instead of distributions.
        precision: of weights and arithmetic.
        statement: what epsilon the weights cost, as one sentence.
        licence: of the weights.
        most_pixels: refuse a larger difference; 0.1 for fp32 and none else when absent.

    Raises:
        ConfigError: `onnx` or `onnxscript` is not installed.
        DataError: the file's joints differ by more than is allowed; nothing is written.

    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it and says so less clearly)
    except ImportError as error:
        raise ConfigError(f"{path}: needs onnx and onnxscript (allowed: pip install 'wardpose[onnx]')") from error
    proto = _traced(model, colours, decoding)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True)
    elif precision == "int8":
        proto = _quantised(proto)
    del proto.metadata_props[:]
    facts = _facts(model, colours, decoding, precision, statement, licence)
    onnx.helper.set_model_props(proto, {ONNX_KEY: json.dumps(facts)})
    proto.producer_name, proto.doc_string = "wardpose", statement
    allowed = MOST_PIXELS if most_pixels is None and precision == "fp32" else most_pixels
    return write_compared(proto.SerializeToString(), model, path, crops=crops, most_pixels=allowed)


def write_compared(
    content: bytes, model: PoseModel, path: Path, *, crops: NDArray[np.uint8], most_pixels: float | None
) -> Exported:
    """Write an ONNX file that gives the joints of a model, and no other.

    Raises:
        DataError: its joints differ by more than `most_pixels` on the crops; nothing is written.

    """
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "model.onnx"
        candidate.write_bytes(content)
        found, wanted = OnnxEstimator(candidate)(crops), TorchEstimator(model)(crops)
    apart = np.linalg.norm(found.joints - wanted.joints, axis=-1)
    largest = float(apart.max())
    if not np.isfinite(apart).all() or (most_pixels is not None and largest > most_pixels):
        raise DataError(
            f"{path}: its joints differ from torch's by up to {largest:.3f} pixels on {len(crops)} crops (allowed: "
            f"{most_pixels}); nothing was written"
        )
    write_bytes(path, content, mode=ASKED_FOR)
    return Exported(
        path=path,
        bytes=len(content),
        crops=len(crops),
        largest=largest,
        usual=float(np.percentile(apart, 95)),
        largest_score=float(np.abs(found.scores - wanted.scores).max()),
    )


class _AsExported(nn.Module):
    """The model between what runners feed and what they read."""

    def __init__(self, model: PoseModel, colours: Colours, *, decoding: bool) -> None:
        super().__init__()
        self.scale: Tensor
        self.offset: Tensor
        self.model, self._turned, self._decoding = model, colours == "bgr", decoding
        self._codec = SimCC.of(model.config)
        self._peak = self._codec.label_sigma * math.sqrt(2 * math.pi)
        mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (deviation.flip(0) / deviation).view(1, 3, 1, 1))
        self.register_buffer("offset", ((mean.flip(0) - mean) / deviation).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._turned:  # channel 0 is blue, with red's mean and deviation
            x = x.flip(1) * self.scale + self.offset
        logits_x, logits_y = self.model(x)
        if self._decoding:
            return self._codec.decode(logits_x, logits_y)
        return logits_x.softmax(-1) * self._peak, logits_y.softmax(-1) * self._peak


def _traced(model: PoseModel, colours: Colours, decoding: bool) -> Any:
    names = ["joints", "scores"] if decoding else ["simcc_x", "simcc_y"]
    height, width = model.config.input_size
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _AsExported(model, colours, decoding=decoding),
                (torch.zeros(2, 3, height, width),),
                input_names=["input"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    if program is None:
        raise DataError("torch gave no ONNX program")
    proto = program.model_proto
    for node in proto.graph.node:  # where in our source each node comes from
        del node.metadata_props[:]
    return proto


def _quantised(proto: Any) -> Any:
    """Give matrix products 8-bit weights, a scale a column, and activations quantised as they come.

    Ranges that were measured on somebody's frames would stay in the file, and are worse: on 24 LSP crops the 95th
    percentile of the moves is 5.7 pixels with 8-bit ranges against 2.7 without, 2.7 with 16-bit ones, and 3.0 where
    weights alone have 8 bits. (The median is 0.03 pixels, and 0.17 with 8-bit ranges: what moves far are few joints, by
    up to 50 pixels.)
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime advises there to optimise first, which the exporter has done
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
            onnx.save(proto, before)
            kinds = ["MatMul", "Gemm"]
            quantize_dynamic(before, after, op_types_to_quantize=kinds, per_channel=True, weight_type=QuantType.QInt8)
            return onnx.load(after)
    finally:
        root.setLevel(level)


def _facts(
    model: PoseModel, colours: Colours, decoding: bool, precision: Precision, statement: str, licence: str
) -> dict[str, Any]:
    config = model.config
    return {
        "version": 1,
        "skeleton": config.skeleton,
        "joints": list(model.skeleton.joints),
        "input_size": list(config.input_size),
        "split_ratio": config.split_ratio,
        "label_sigma": config.label_sigma,
        "colours": colours,
        "mean": [round(255 * value, 3) for value in IMAGENET_MEAN],
        "std": [round(255 * value, 3) for value in IMAGENET_STD],
        "padding": PADDING,
        "decoding": decoding,
        "precision": precision,
        "weights": state_hash(model),
        "epsilon": statement,
        "licence": licence,
    }
