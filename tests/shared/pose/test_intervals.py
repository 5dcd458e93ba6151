import numpy as np
import pytest

from wardpose.shared.data.records import PoseRecord
from wardpose.shared.pose import metrics
from wardpose.shared.pose.intervals import SCORES, Sample, interval, pck
from wardpose.shared.skeleton import LSP14


def records(count, *, patients, seed=0, heads=True):
    """Records whose labels are random, some joints not labelled, and predictions with errors of many sizes."""
    random = np.random.default_rng(seed)
    made, predicted = [], []
    for i in range(count):
        joints = random.uniform(0, 200, (14, 2)).astype(np.float32)
        visibility = random.choice([0, 1, 2], 14, p=[0.2, 0.2, 0.6]).astype(np.uint8)
        if i == 3:
            visibility[:] = 0
        joints[visibility == 0] = 0
        made.append(
            PoseRecord(
                record_id=str(i), patient_id=f"p{i % patients}", joints=joints, visibility=visibility,
                box=np.array([0, 0, 150, 200], np.float32), scale=200.0,
                head_size=30.0 if heads else None, area=15000.0,
            )
        )  # fmt: skip
        predicted.append(joints + random.normal(0, random.choice([2, 10, 40]), (14, 2)))
    return made, np.array(predicted), random.uniform(0, 1, (count, 14))


def test_scores_are_those_of_the_metrics_and_of_pycocotools() -> None:
    made, predicted, scores = records(80, patients=20)
    sample = Sample.of(predicted, scores, made, LSP14)
    joints, visibility = np.array([r.joints for r in made]), np.array([r.visibility for r in made])
    head = metrics.relative_errors(predicted, joints, visibility, np.full(80, 30.0))
    coco = metrics.oks_ap(
        predicted, scores.mean(axis=1), joints, visibility,
        boxes=[r.box for r in made], areas=[r.area for r in made], skeleton=LSP14,
    )  # fmt: skip
    wanted = {
        "pck@0.2": metrics.share_correct(sample.box, 0.2),
        "pckh@0.5": metrics.share_correct(head, 0.5),
        "pckh@0.1": metrics.share_correct(head, 0.1),
        "auc": metrics.area_under_curve(head),
        "oks_ap": coco["AP"],
    }
    for name, value in wanted.items():
        found = interval(sample, SCORES[name], replicates=40)
        assert found.value == pytest.approx(value, abs=1e-9), name
        assert found.low < found.value < found.high


def test_what_counts_is_how_many_patients_there_are() -> None:
    few, many = (Sample.of(*records(100, patients=n)[1:], records(100, patients=n)[0], LSP14) for n in (4, 100))
    same = few.box[:25].repeat(4, axis=0)  # each patient's records are alike
    alone = Sample(box=same, head=same, oks=few.oks, sure=few.sure, patients=np.arange(100).astype(str), skeleton=LSP14)
    together = Sample(
        box=same, head=same, oks=few.oks, sure=few.sure, patients=np.arange(25).repeat(4).astype(str), skeleton=LSP14
    )
    width = [found.high - found.low for found in (interval(alone, pck), interval(together, pck))]
    assert width[1] > 1.6 * width[0]
    assert interval(many, pck) == interval(many, pck)
    assert interval(many, pck, seed=1) != interval(many, pck)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    held = 0
    for _ in range(120):
        good = random.beta(8, 4, 40)  # a share of right joints for each patient; the mean is 2 / 3
        errors = np.where(random.uniform(size=(40, 3, 14)) < good[:, None, None], 0.1, 0.9).reshape(120, 14)
        sample = Sample(
            box=errors, head=errors, oks=np.ones(120), sure=np.ones(120),
            patients=np.arange(40).repeat(3).astype(str), skeleton=LSP14,
        )  # fmt: skip
        found = interval(sample, pck, replicates=200)
        held += found.low <= 2 / 3 <= found.high
    assert held >= 105  # 120 x 0.95, less three standard deviations


def test_the_difference_of_two_models_is_drawn_in_pairs() -> None:
    made, predicted, scores = records(60, patients=30)
    ours = Sample.of(predicted, scores, made, LSP14)
    joints = np.array([r.joints for r in made])
    theirs = Sample.of(joints + 1.02 * (predicted - joints), scores, made, LSP14)  # a little worse, everywhere
    apart = interval(ours, SCORES["auc"], against=theirs)
    alone = interval(ours, SCORES["auc"])
    assert 0 < apart.low <= apart.value <= apart.high
    assert apart.high - apart.low < 0.2 * (alone.high - alone.low)
    assert interval(ours, pck, against=ours).low == interval(ours, pck, against=ours).high == 0


def test_without_labels_there_is_no_number() -> None:
    made, predicted, scores = records(5, patients=2, heads=False)
    sample = Sample.of(predicted, scores, made, LSP14)
    assert np.isnan(interval(sample, SCORES["auc"]).value)
    nothing = sample.select(np.zeros(5, bool))
    assert all(np.isnan(interval(nothing, score).value) for score in SCORES.values())
