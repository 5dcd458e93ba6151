import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.errors import DataError
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.evaluation import evaluate, predict, score
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.skeleton import LSP14, MPII16, Skeleton

CONFIG = ModelConfig(weights="random", input_size=(128, 96))


class Dots:
    """Frames with one joint each, the brightest point, so that a stand-in for the network can find it."""

    def __init__(self, n: int = 7, skeleton: Skeleton = LSP14, *, heads: bool = True) -> None:
        self.name, self.skeleton, self.notes, self._heads = "dots", skeleton, [], heads
        self._n = n

    def __len__(self) -> int:
        return self._n

    def _place(self, index: int) -> np.ndarray:
        return np.array([90.0 + 7 * index, 150.0 - 5 * index])

    def record(self, index: int) -> PoseRecord:
        visibility = np.zeros(len(self.skeleton), np.uint8)
        visibility[0] = 2
        joints = np.zeros((len(self.skeleton), 2), np.float32)
        joints[0] = self._place(index)
        return PoseRecord(
            record_id=str(index), patient_id=str(index), joints=joints, visibility=visibility,
            box=np.array([60, 60, 100, 110], np.float32), scale=110.0, head_size=20.0 if self._heads else None,
            area=5830.0, group="even" if index % 2 == 0 else "odd",
        )  # fmt: skip

    def frame(self, index: int) -> Frame:
        image = np.zeros((240, 300, 3), np.uint8)
        x, y = self._place(index)
        rows, columns = np.mgrid[:240, :300]
        image[:] = (255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18))[..., None].astype(np.uint8)
        return image

    def identity(self) -> str:
        return hashlib.sha256(b"dots").hexdigest()


class Finder(torch.nn.Module):
    """A "network" whose every joint is the brightest point of the crop."""

    def __init__(self, *, mirror_bias: float = 0.0) -> None:
        super().__init__()
        self.config, self.skeleton, self.mirror_bias = CONFIG, LSP14, mirror_bias
        self.batches: list[int] = []
        self.weights_source = "none"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(x))
        weight = (x.mean(1) - x.mean(1).amin((1, 2), keepdim=True)) ** 2
        weight = weight / weight.sum((1, 2), keepdim=True)
        columns = (weight.sum(1) * torch.arange(x.shape[3])).sum(1) + self.mirror_bias
        rows = (weight.sum(2) * torch.arange(x.shape[2])).sum(1)
        joints = torch.stack([columns, rows], -1)[:, None].expand(-1, 14, -1)
        targets = SimCC.of(CONFIG).encode(joints, torch.ones(len(x), 14))
        return targets.log_x, targets.log_y


def test_predictions_come_back_in_frame_pixels_in_order_for_any_batch_size() -> None:
    data, model = Dots(), Finder()
    joints, scores = predict(model, data, batch_size=3)  # type: ignore[arg-type]  # a stand-in
    assert model.batches == [3, 3, 1]
    assert joints.shape == (7, 14, 2)
    truth = np.array([data.record(i).joints[0] for i in range(7)])
    assert np.abs(joints[:, 0] - truth).max() < 0.5
    assert (scores > 0.9).all()


def test_flip_test_cancels_a_sideways_bias_and_adds_none_of_its_own() -> None:
    data = Dots()
    plain, _ = predict(Finder(), data)  # type: ignore[arg-type]  # a stand-in
    flipped, _ = predict(Finder(), data, flip_test=True)  # type: ignore[arg-type]  # a stand-in
    assert np.abs(plain - flipped).max() < 0.05
    biased, _ = predict(Finder(mirror_bias=1.0), data)  # type: ignore[arg-type]  # a stand-in
    cancelled, _ = predict(Finder(mirror_bias=1.0), data, flip_test=True)  # type: ignore[arg-type]  # a stand-in
    assert np.abs(biased - plain).max() > 1.0
    assert np.abs(cancelled - plain).max() < 0.2


def test_flip_test_exchanges_left_and_right() -> None:
    class Sided(Finder):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            # The right ankle at a fixed place left in the crop, the left ankle at its mirror image.
            joints = torch.full((len(x), 14, 2), 40.0)
            joints[:, 0, 0], joints[:, 5, 0] = 20.0, 95.0 - 20.0
            targets = SimCC.of(CONFIG).encode(joints, torch.ones(len(x), 14))
            return targets.log_x, targets.log_y

    plain, _ = predict(Sided(), Dots(1))  # type: ignore[arg-type]  # a stand-in
    flipped, _ = predict(Sided(), Dots(1), flip_test=True)  # type: ignore[arg-type]  # a stand-in
    assert np.abs(plain[0, [0, 5]] - flipped[0, [0, 5]]).max() < 0.05


def test_scores_hold_every_number() -> None:
    data = Dots()
    predicted = np.array([data.record(i).joints for i in range(7)])
    predicted[1] += 8  # 11.3 px: within 0.2 of the box, not within half a head
    predicted[2] += 500
    scores = score(predicted, data, confidence=np.ones((7, 14)))
    assert scores.pck_box_02 == pytest.approx(6 / 7)
    assert scores.pckh_05 == scores.pckh_01 == scores.auc == pytest.approx(5 / 7)
    assert scores.by_group == {"even": pytest.approx(3 / 4), "odd": 1.0}
    assert scores.per_joint["right_ankle"] == scores.pck_box_02
    assert np.isnan(scores.per_joint["left_ankle"])
    assert scores.per_joint_pckh is not None
    assert scores.oks_ap is not None
    assert 0.3 < scores.oks_ap["AP"] < 0.9
    assert np.isnan(scores.pck_torso_02)


def test_without_head_sizes_there_is_no_pckh() -> None:
    data = Dots(heads=False)
    scores = score(np.zeros((7, 14, 2)), data)
    assert scores.pck_box_02 == 0
    assert scores.pckh_05 is scores.pckh_01 is scores.auc is scores.per_joint_pckh is scores.oks_ap is None


def test_a_real_network_runs_and_another_skeleton_is_refused() -> None:
    model = build_model(CONFIG)
    scores = evaluate(model, Dots(3), flip_test=True, with_oks=True)
    assert scores.records == 3
    assert 0 <= scores.pck_box_02 <= 1
    with pytest.raises(DataError, match=r"mpii16.*lsp14"):
        predict(model, Dots(skeleton=MPII16))
    with pytest.raises(DataError, match="2 predictions for 3 records"):
        score(np.zeros((2, 14, 2)), Dots(3))


def test_an_empty_data_set_gives_empty_predictions() -> None:
    joints, scores = predict(build_model(CONFIG), Dots(0))
    assert joints.shape == (0, 14, 2)
    assert scores.shape == (0, 14)
