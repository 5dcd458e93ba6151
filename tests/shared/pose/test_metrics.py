import json
import math
from pathlib import Path

import numpy as np
import pytest

from wardpose.shared.pose import metrics
from wardpose.shared.skeleton import COCO17, LSP14, MPII16


def _random(n: int = 40, joints: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 200, (n, joints, 2))
    predicted = truth + generator.normal(0, 12, truth.shape)
    visibility = generator.integers(0, 3, (n, joints))
    head = generator.uniform(15, 50, n)
    head[3] = np.nan
    return predicted, truth, visibility, head


def test_pckh_is_mpii_s_definition_by_a_plain_loop() -> None:
    predicted, truth, visibility, head = _random()
    visibility[:, 5] = 0
    errors = metrics.relative_errors(predicted, truth, visibility, head)
    counted = errors[:, metrics.pckh_columns(MPII16)]
    for threshold in (0.5, 0.1):
        right = dict.fromkeys(MPII16.joints, 0)
        total = dict(right)
        for i in range(len(truth)):
            if math.isnan(head[i]):
                continue
            for j, name in enumerate(MPII16.joints):
                if visibility[i, j] == 0:
                    continue
                total[name] += 1
                right[name] += math.dist(predicted[i, j], truth[i, j]) <= threshold * head[i]
        table = metrics.per_joint(errors, threshold, MPII16)
        for name in MPII16.joints:
            assert table[name] == pytest.approx(right[name] / total[name]) if total[name] else math.isnan(table[name])
        body = [name for name in MPII16.joints if name not in ("pelvis", "thorax")]
        mean = sum(right[name] for name in body) / sum(total[name] for name in body)
        assert metrics.share_correct(counted, threshold) == pytest.approx(mean)
        assert 0 < mean < 1
    curve = [metrics.share_correct(counted, t) for t in np.arange(51) / 100]
    assert metrics.area_under_curve(counted) == pytest.approx(sum(curve) / 51, abs=2e-3)


def test_a_joint_on_the_threshold_is_correct_and_nan_predictions_are_wrong() -> None:
    truth = np.zeros((1, 3, 2))
    predicted = np.array([[[5.0, 0], [5.01, 0], [np.nan, 0]]])
    errors = metrics.relative_errors(predicted, truth, np.ones((1, 3)), [10.0])
    assert metrics.share_correct(errors, 0.5) == pytest.approx(1 / 3)
    assert metrics.share_correct(errors, 1e9) == pytest.approx(2 / 3)


def test_nothing_labelled_or_no_reference_is_nan_and_not_a_score() -> None:
    truth = np.zeros((2, 3, 2))
    for visibility, reference in ((np.zeros((2, 3)), [10.0, 10.0]), (np.ones((2, 3)), [np.nan, 0.0])):
        errors = metrics.relative_errors(truth, truth, visibility, reference)
        assert math.isnan(metrics.share_correct(errors, 0.5))


def test_labels_of_hidden_joints_do_not_matter() -> None:
    predicted, truth, visibility, head = _random()
    before = metrics.relative_errors(predicted, truth, visibility, head)
    truth[visibility == 0] = 1e9
    np.testing.assert_array_equal(before, metrics.relative_errors(predicted, truth, visibility, head))


def test_torso_is_left_shoulder_to_right_hip() -> None:
    joints = np.zeros((2, 14, 2))
    joints[:, LSP14.index("left_shoulder")] = (30, 40)
    visibility = np.ones((2, 14))
    visibility[1, LSP14.index("right_hip")] = 0
    lengths = metrics.torso_lengths(joints, visibility, LSP14)
    assert lengths[0] == 50
    assert math.isnan(lengths[1])


def test_oks_is_perfect_for_the_truth_and_falls_with_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    _, truth, visibility, _ = _random(joints=14)
    boxes = np.tile([0.0, 0.0, 200.0, 200.0], (40, 1))

    def ap(offset: float, images: list[str] | None = None) -> float:
        scores = metrics.oks_ap(
            truth + offset, np.linspace(0, 1, 40), truth, visibility,
            boxes=boxes, areas=np.full(40, 20000.0), skeleton=LSP14, images=images,
        )  # fmt: skip
        return scores["AP"]

    assert ap(0.0) == pytest.approx(1.0)
    assert ap(0.0, ["a", "b"] * 20) == pytest.approx(1.0)
    assert 0.05 < ap(12.0) < 0.95
    assert ap(1000.0) == 0.0
    assert capsys.readouterr().out == ""


def test_oks_without_labels_is_coco_s_minus_one() -> None:
    empty = {"images": [], "categories": [], "annotations": []}
    assert metrics.oks_ap_of_coco(empty, [], COCO17)["AP"] == -1
    nothing = metrics.oks_ap(
        np.zeros((1, 14, 2)), [1.0], np.zeros((1, 14, 2)), np.zeros((1, 14)),
        boxes=[[0, 0, 10, 10]], areas=[53.0], skeleton=LSP14,
    )  # fmt: skip
    assert nothing["AP"] == -1


@pytest.mark.realdata
def test_reference_model_scores_what_its_results_file_is_known_for(data_root: Path) -> None:
    folder = data_root / "lspet" / "annotations"
    truth = json.loads((folder / "test_coco17.json").read_text())
    results = json.loads((folder / "test_movenet_thunder_results.json").read_text())
    scores = metrics.oks_ap_of_coco(truth, results, COCO17)
    assert scores["AP"] == pytest.approx(0.611, abs=0.0006)
    assert scores["AP50"] == pytest.approx(0.875, abs=0.0006)

    # The same through arrays: one prediction per record, one person per image.
    by_image = {result["image_id"]: result for result in results}
    people = [a for a in truth["annotations"] if a["image_id"] in by_image]
    assert len(people) == len(truth["annotations"]) == 400
    labels = np.array([a["keypoints"] for a in people], float).reshape(-1, 17, 3)
    guesses = np.array([by_image[a["image_id"]]["keypoints"] for a in people], float).reshape(-1, 17, 3)
    again = metrics.oks_ap(
        guesses[..., :2], [by_image[a["image_id"]]["score"] for a in people], labels[..., :2], labels[..., 2],
        boxes=[a["bbox"] for a in people], areas=[a["area"] for a in people], skeleton=COCO17,
    )  # fmt: skip
    assert again["AP"] == pytest.approx(scores["AP"], abs=1e-9)
    long_side = [max(a["bbox"][2:]) for a in people]
    errors = metrics.relative_errors(guesses[..., :2], labels[..., :2], labels[..., 2], long_side)
    assert 0.84 < metrics.share_correct(errors, 0.2) < 0.95


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_predictions_that_are_no_numbers_score_nothing_anywhere(bad: float) -> None:
    truth = np.random.default_rng(3).uniform(0, 200, (20, 14, 2))
    marks, lengths = np.full((20, 14), 2), np.full(20, 50.0)
    predicted = np.full_like(truth, bad)
    scores = np.full(20, bad)
    errors = metrics.relative_errors(predicted, truth, marks, lengths)
    assert metrics.share_correct(errors, 0.5) == 0
    assert metrics.area_under_curve(errors) == 0
    assert set(metrics.per_joint(errors, 0.2, LSP14).values()) == {0.0}
    boxes = np.tile([0.0, 0.0, 200.0, 200.0], (20, 1))
    areas = np.full(20, 20000.0)
    found = metrics.oks_ap(predicted, scores, truth, marks, boxes=boxes, areas=areas, skeleton=LSP14)
    assert [found[name] for name in ("AP", "AP50", "AP75", "AP_L", "AR")] == [0.0] * 5
    predicted = truth.copy()
    predicted[:, ::2, 0] = bad  # half of the joints
    assert metrics.share_correct(metrics.relative_errors(predicted, truth, marks, lengths), 0.5) == 0.5
    found = metrics.oks_ap(predicted, np.ones(20), truth, marks, boxes=boxes, areas=areas, skeleton=LSP14)
    assert found["AP50"] == 1.0
    assert found["AP"] == pytest.approx(0.1)


def test_a_reference_without_end_makes_nothing_correct() -> None:
    truth = np.zeros((3, 2, 2))
    errors = metrics.relative_errors(truth + 1e300, truth, np.ones((3, 2)), [math.inf, -5.0, 1e-300])
    assert np.isnan(errors[:2]).all()
    assert metrics.share_correct(errors, 0.5) == 0
