"""Ratios of noised sums: unbiased, with the standard errors that they show, and silent where they say nothing."""

import math

import numpy as np
import pytest

from wardpose.server.estimates import Estimate, scores_of
from wardpose.shared.privacy.evaluation import Evaluation, Layout, unit_vector
from wardpose.shared.skeleton import LSP14, MPII16

PATIENTS = 400


def marks(pair: bool, joints: int = 14) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, labelled and losses of 400 patients with three frames each."""
    draw = np.random.default_rng(5)
    networks = 2 if pair else 1
    skill = np.array([0.7, 0.4])[:networks, None, None, None]
    right = draw.random((networks, PATIENTS, 3, joints)) < skill
    return right, draw.random((PATIENTS, 3, joints)) < 0.6, draw.uniform(0, 4, (networks, PATIENTS, 3))


def exact(pair: bool, joints: int = 14) -> np.ndarray:
    right, labelled, losses = marks(pair, joints)
    layout = Layout(joints=joints, pair=pair)
    vectors = [
        unit_vector(layout, right=right[:, p], labelled=labelled[p], losses=losses[:, p], loss_clip=4.0)
        for p in range(PATIENTS)
    ]
    return np.sum(vectors, axis=0)


def share(right: np.ndarray, labelled: np.ndarray) -> float:
    """PCK of a plain loop over patients, frames and joints."""
    hits = labels = 0.0
    for patient in range(PATIENTS):
        for frame in range(3):
            for joint in range(right.shape[-1]):
                if labelled[patient, frame, joint]:
                    labels += 1 / 3
                    hits += right[patient, frame, joint] / 3
    return hits / labels


@pytest.mark.parametrize("sites", [1, 4])
def test_values_and_standard_errors_are_those_of_many_releases(sites: int) -> None:
    evaluation, layout = Evaluation(noise_multiplier=1.0, loss_clip=4.0), Layout(joints=14, pair=True)
    right, labelled, losses = marks(pair=True)
    truth = [share(right[0], labelled), share(right[1], labelled)]
    draw, found = np.random.default_rng(1), []
    for _ in range(600):
        noise = draw.normal(0, 1.0, (sites, layout.size))
        noise[0] += exact_pair
        found.append(scores_of(list(noise), layout, evaluation, metric_skeleton=LSP14))
    for values, errors, true in (
        ([f.models[0].score.value for f in found], [f.models[0].score.error for f in found], truth[0]),
        ([f.models[1].score.value for f in found], [f.models[1].score.error for f in found], truth[1]),
        ([f.difference.value for f in found], [f.difference.error for f in found], truth[0] - truth[1]),  # type: ignore[union-attr]
        ([f.units.value for f in found], [f.units.error for f in found], PATIENTS),
        ([f.models[0].loss.value for f in found], [f.models[0].loss.error for f in found], losses[0].mean()),
        (
            [f.models[0].per_joint["neck"].value for f in found],
            [f.models[0].per_joint["neck"].error for f in found],
            (right[0] & labelled)[..., 12].sum() / labelled[..., 12].sum(),
        ),
    ):
        spread, shown = np.std(values), np.mean(errors)  # type: ignore[arg-type]
        assert shown == pytest.approx(spread, rel=0.15)
        assert abs(np.mean(values) - true) < 4 * spread / math.sqrt(len(found)) + 0.05 * spread  # type: ignore[arg-type]


exact_pair = exact(pair=True)


def test_what_cannot_be_measured_is_not_shown() -> None:
    layout = Layout(joints=14, pair=True)
    loud = Evaluation(noise_multiplier=200.0)
    draw = np.random.default_rng(2)
    for _ in range(50):
        found = scores_of([exact_pair + draw.normal(0, 200.0, layout.size)], layout, loud, metric_skeleton=LSP14)
        assert found.models[0].per_joint["neck"] == Estimate(value=None, error=None)
        assert found.difference is not None
        if found.difference.value is not None:
            assert abs(found.difference.value) < 3
    nobody = scores_of(
        [draw.normal(0, 3.0, layout.size)], layout, Evaluation(noise_multiplier=3.0), metric_skeleton=LSP14
    )
    assert nobody.models[0].score.value is None
    assert not nobody.difference.exceeds(0.0)  # type: ignore[union-attr]
    assert nobody.units.value is not None  # a count has no denominator


def test_pckh_leaves_out_the_joints_that_mpii_leaves_out() -> None:
    layout = Layout(joints=16, pair=False)
    evaluation = Evaluation(noise_multiplier=1.0, metric="pckh@0.5")
    right, labelled, losses = marks(pair=False, joints=16)
    out = [MPII16.index(name) for name in ("pelvis", "thorax")]
    right[..., out] = False
    vectors = [
        unit_vector(layout, right=right[:, p], labelled=labelled[p], losses=losses[:, p], loss_clip=10.0)
        for p in range(PATIENTS)
    ]
    found = scores_of([np.sum(vectors, axis=0)], layout, evaluation, metric_skeleton=MPII16)
    kept = [joint for joint in range(16) if joint not in out]
    assert found.models[0].score.value == pytest.approx(share(right[0][..., kept], labelled[..., kept]), rel=1e-9)
    assert found.models[0].per_joint["pelvis"].value == 0.0


def test_a_difference_must_be_larger_than_its_errors() -> None:
    assert Estimate(value=0.1, error=0.04).exceeds(2.0)
    assert not Estimate(value=0.1, error=0.06).exceeds(2.0)
    assert not Estimate(value=-0.5, error=0.01).exceeds(2.0)
    assert not Estimate(value=None, error=None).exceeds(0.0)
