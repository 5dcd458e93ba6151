"""Detectors as the `onnx` helper makes them: networks of constants with the outputs that real ones have."""

from pathlib import Path

import numpy as np
import pytest

from wardpose.client.joints.detector import Detector
from wardpose.client.joints.predict import Request, predict
from wardpose.shared.errors import ConfigError, DataError

onnx = pytest.importorskip("onnx")
SIZE = (64, 96)  # height, width


def constants(path: Path, **outputs: np.ndarray) -> Path:
    """Write a network that gives these outputs, whatever it sees; its input is used, so that it is fed."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes = [helper.make_node("ReduceSum", ["input"], ["sum"], keepdims=0)]
    nodes.append(helper.make_node("Sub", ["sum", "sum"], ["zero"]))
    tensors, made = [], []
    for name, value in outputs.items():
        tensors.append(numpy_helper.from_array(value, f"{name}_value"))
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        nodes.append(helper.make_node("Cast", ["zero"], [f"{name}_zero"], to=kind))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_zero"], [name]))
        made.append(helper.make_tensor_value_info(name, kind, value.shape))
    given = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, *SIZE])
    graph = helper.make_graph(nodes, "constants", [given], made, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_rtmdet_with_classes(tmp_path: Path) -> None:
    dets = np.array([[[10, 5, 30, 60, 0.9], [50, 5, 90, 60, 0.8], [11, 6, 30, 60, 0.7], [0, 0, 9, 9, 0.2]]], np.float32)
    labels = np.array([[0, 2, 0, 0]], np.int64)
    detector = Detector(constants(tmp_path / "rtmdet.onnx", dets=dets, labels=labels))
    frame = np.zeros((128, 160, 3), np.uint8)  # shrunk by two
    assert detector(frame) == [pytest.approx((20, 10, 40, 110))]  # no second class, no double, no doubt


def test_yolox_without_suppression(tmp_path: Path) -> None:
    cells = [(SIZE[0] // stride, SIZE[1] // stride) for stride in (8, 16, 32)]
    output = np.full((1, sum(high * wide for high, wide in cells), 7), -3, np.float32)
    output[..., 4:] = 0.0
    row = cells[0][0] * cells[0][1] + 1 * cells[1][1] + 2  # stride 16: second row, third column
    output[0, row] = [0.5, 0.25, np.log(1.25), np.log(2.0), 0.9, 0.8, 0.1]
    output[0, row + 1] = [0.5, 0.25, np.log(1.25), np.log(2.0), 0.9, 0.1, 0.9]  # another class
    detector = Detector(constants(tmp_path / "yolox_tiny.onnx", output=output))
    centre, size = np.array([2.5 * 16, 1.25 * 16]), np.array([20, 32])
    expected = [*(centre - size / 2), *size]
    assert detector(np.zeros((*SIZE, 3), np.uint8)) == [pytest.approx(expected)]


def test_yolox_with_suppression_and_boxes_that_stick_out(tmp_path: Path) -> None:
    dets = np.array([[[-10, -5, 30, 100, 0.9], [200, 5, 290, 60, 0.8], [np.nan, 0, 9, 9, 0.9]]], np.float32)
    detector = Detector(constants(tmp_path / "d.onnx", dets=dets), style="yolox")
    assert detector(np.zeros((*SIZE, 3), np.uint8)) == [pytest.approx((0, 0, 30, 64))]


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    odd = constants(tmp_path / "yolox.onnx", output=np.zeros((1, 10, 7), np.float32))
    with pytest.raises(DataError, match="10 rows"):
        Detector(odd)(np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ConfigError, match="detector-style"):
        Detector(constants(tmp_path / "d.onnx", dets=np.zeros((1, 1, 5), np.float32)))
    with pytest.raises(DataError, match="cannot be read"):
        Detector(tmp_path / "none-rtmdet.onnx")
    (tmp_path / "rtmdet.onnx").write_bytes(b"no network")
    with pytest.raises(DataError, match="onnxruntime cannot run it"):
        Detector(tmp_path / "rtmdet.onnx")


def test_people_of_a_detector_are_followed(tmp_path: Path) -> None:
    from support.figures import Discs, ward

    def boxes(n):
        return [(5, 20, 30, 70), (115, 20, 30, 70)]

    scale = SIZE[0] / 120
    corners = np.array([(x, y, x + wide, y + high) for x, y, wide, high in boxes(0)[::-1]]) * scale
    dets = np.concatenate([corners, [[0.9], [0.8]]], axis=1)[None].astype(np.float32)
    outcome = predict(
        Request(
            sources=(ward(tmp_path / "a.mkv", boxes, 3),),
            outputs=(tmp_path / "a.csv",),
            estimator=Discs(),
            detector=Detector(constants(tmp_path / "rtmdet.onnx", dets=dets)),
        )
    )
    assert (outcome.frames, outcome.people) == (3, 2)
