"""What is exported is read by onnxruntime, by our own reader, and by rtmlib as its users call it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wardpose.shared.data.lsp import read_lsp
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.pose.estimators import OnnxEstimator, TorchEstimator, estimate_records, open_estimator
from wardpose.shared.pose.model import BUNDLED_WEIGHTS
from wardpose.shared.pose.onnx_export import Exported, export_onnx, write_compared
from wardpose.shared.pose.weights import load_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model():
    return load_model(BUNDLED_WEIGHTS)


@pytest.fixture(scope="module")
def ward():
    return WardDataset("north", patients=4, frames_per_patient=1, seed=5)


def crops_of(dataset, size):
    from wardpose.shared.data.crops import crop_record

    return np.stack([crop_record(dataset, i, size).image for i in range(len(dataset))])


@pytest.fixture(scope="module")
def exported(model, ward, tmp_path_factory) -> Exported:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    crops = crops_of(ward, model.config.input_size)
    return export_onnx(model, path, crops=crops, statement="Nobody.", licence="Apache-2.0")


def test_names_shapes_and_metadata_are_what_runners_expect(exported: Exported) -> None:
    proto = onnx.load(exported.path)
    onnx.checker.check_model(proto)
    shapes = {
        value.name: [size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    batch = shapes["input"][0]
    assert isinstance(batch, str)  # any number of crops
    assert shapes == {"input": [batch, 3, 128, 96], "simcc_x": [batch, 14, 192], "simcc_y": [batch, 14, 256]}
    assert [value.name for value in proto.graph.output] == ["simcc_x", "simcc_y"]
    facts = json.loads({entry.key: entry.value for entry in proto.metadata_props}["wardpose"])
    assert {"skeleton": "lsp14", "padding": 1.25, "colours": "bgr", "epsilon": "Nobody."}.items() <= facts.items()
    assert facts["mean"] == [123.675, 116.28, 103.53]
    assert facts["licence"] == "Apache-2.0"
    assert exported.largest < 0.1
    assert not [entry for node in proto.graph.node for entry in node.metadata_props]  # no paths of this machine


def test_our_reader_gives_the_joints_of_torch(model, ward, exported: Exported) -> None:
    wanted = estimate_records(TorchEstimator(model), ward)
    found = estimate_records(open_estimator(str(exported.path)), ward, batch_size=3)
    assert found[0] == pytest.approx(wanted[0], abs=0.1)
    assert found[1] == pytest.approx(wanted[1], abs=1e-3)


def test_rtmlib_takes_the_file_as_it_is(model, ward, exported: Exported) -> None:
    """Body-only interface, weights by path, pictures as cv2 reads them: BGR."""
    if "WARDPOSE_REQUIRE_DATA" not in os.environ:
        pytest.importorskip("rtmlib")
    from rtmlib import RTMPose

    runner = RTMPose(str(exported.path), model_input_size=(96, 128), backend="onnxruntime", device="cpu")
    estimator = TorchEstimator(model)
    close = []
    for i in range(len(ward)):
        record = ward.record(i)
        x, y, width, height = record.box.tolist()
        joints, scores = runner(np.ascontiguousarray(ward.frame(i)[..., ::-1]), bboxes=[[x, y, x + width, y + height]])
        wanted, sure = estimate_records(estimator, _Only(ward, i))
        # It cuts crops half a pixel aside and rounds to bins of half a pixel: two pixels of the crop, in the frame's.
        zoom = max(height, width * 128 / 96) * 1.25 / 128
        near = np.linalg.norm(joints[0] - wanted[0], axis=-1) < 2 * zoom
        close += near[sure[0] > 0.3].tolist()
        assert 0 < scores.min() <= scores.max() < 1.5
    assert len(close) > 15
    assert np.mean(close) > 0.9


class _Only:
    """One record of a data set."""

    def __init__(self, dataset, index):
        self._dataset, self._index = dataset, index
        self.name, self.skeleton, self.notes = dataset.name, dataset.skeleton, []

    def __len__(self):
        return 1

    def record(self, _):
        return self._dataset.record(self._index)

    def frame(self, _):
        return self._dataset.frame(self._index)


def test_a_file_that_differs_is_not_written(model, ward, exported: Exported, tmp_path: Path) -> None:
    other = load_model(BUNDLED_WEIGHTS)
    with torch.no_grad():
        other.head.x.bias[::2] += 3
    crops = crops_of(ward, model.config.input_size)
    content = exported.path.read_bytes()
    with pytest.raises(DataError, match="differ from torch"):
        write_compared(content, other, tmp_path / "m.onnx", crops=crops, most_pixels=0.1)
    assert not list(tmp_path.iterdir())
    write_compared(content, model, tmp_path / "m.onnx", crops=crops, most_pixels=0.1)
    assert (tmp_path / "m.onnx").read_bytes() == content


def public_simcc(path: Path, *, joints: int = 17, height: int = 64, width: int = 48, bins: int = 2, batch="b") -> Path:
    """A network with RTMPose's shapes: where a joint is follows from the brightness of the crop's corner."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kind = onnx.TensorProto.FLOAT
    tensors = [
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([[[5.0]]], np.float32), "five"),
        numpy_helper.from_array(np.eye(width * bins, dtype=np.float32)[7][None, None].repeat(joints, 1), "x"),
        numpy_helper.from_array(np.eye(height * bins, dtype=np.float32)[9][None, None].repeat(joints, 1), "y"),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=1),
        helper.make_node("ReduceMean", ["mean"], ["grey"], axes=[1, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["grey", "zero"], ["row"]),
        helper.make_node("Transpose", ["row"], ["column"], perm=[1, 0, 2]),
        helper.make_node("Mul", ["column", "zero_float"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["simcc_x"]),
        helper.make_node("Add", ["y", "nothing"], ["simcc_y"]),
    ]
    tensors.append(numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "zero_float"))
    given = [helper.make_tensor_value_info("input", kind, [batch, 3, height, width])]
    made = [
        helper.make_tensor_value_info("simcc_x", kind, [batch, joints, width * bins]),
        helper.make_tensor_value_info("simcc_y", kind, [batch, joints, height * bins]),
    ]
    graph = helper.make_graph(nodes, "simcc", given, made, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("batch", ["b", 1])
@pytest.mark.parametrize("joints", [17, 26, 133])
def test_a_public_network_is_decoded_as_public_runners_do(tmp_path: Path, joints: int, batch) -> None:
    estimator = OnnxEstimator(public_simcc(tmp_path / "rtmpose.onnx", joints=joints, batch=batch))
    assert estimator.skeleton.name == "coco17"
    assert estimator.input_size == (64, 48)
    found = estimator(np.zeros((2, 64, 48, 3), np.uint8))
    assert found.joints.shape == (2, 17, 2)
    assert (found.joints == (3.5, 4.5)).all()
    assert (found.scores == 1).all()


def test_what_is_no_simcc_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gives 5 joints"):
        OnnxEstimator(public_simcc(tmp_path / "five.onnx", joints=5))
    with pytest.raises(DataError, match="no SimCC"):
        OnnxEstimator(_without_output(public_simcc(tmp_path / "one.onnx"), tmp_path / "cut.onnx"))
    with pytest.raises(ConfigError, match="flip-test"):
        open_estimator(str(tmp_path / "five.onnx"), flip_test=True)
    with pytest.raises(ConfigError, match="has no file"):
        open_estimator("random")


def _without_output(path: Path, to: Path) -> Path:
    proto = onnx.load(path)
    del proto.graph.output[1]
    onnx.save(proto, to)
    return to


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(("precision", "decoding"), [("fp32", False), ("fp32", True), ("fp16", False), ("int8", False)])
def test_four_hundred_real_crops_give_the_joints_of_torch(model, data_root, tmp_path, precision, decoding) -> None:
    dataset = read_lsp(data_root / "lspet", split="test", skeleton=model.skeleton)
    crops = crops_of(dataset, model.config.input_size)
    assert len(crops) == 400
    made = export_onnx(model, tmp_path / "m.onnx", crops=crops, precision=precision, decoding=decoding)
    print(replace(made, path=Path("m")))
    if precision == "fp32":
        assert made.largest < 0.1
    assert made.usual < {"fp32": 0.01, "fp16": 0.1, "int8": 6}[precision]
