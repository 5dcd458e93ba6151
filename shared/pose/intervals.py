"""Scores with intervals: patients are drawn again with replacement, each with all their records (cluster bootstrap).

Records of one patient resemble each other, so that an interval over records would be too short (Efron and Tibshirani,
"An Introduction to the Bootstrap", chapter 8: the unit that was sampled is resampled). Percentile intervals, seeded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wardpose.shared.data.records import PoseRecord
from wardpose.shared.pose import metrics
from wardpose.shared.skeleton import Skeleton

REPLICATES = 1000
OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Interval:
    """A score and the interval that holds it with 95 % confidence; NaN where nothing is labelled.

    Attributes:
        value: from all records.
        low: 2.5th percentile over the replicates.
        high: 97.5th percentile.

    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What scores are computed from, of N records.

    Attributes:
        box: (N, J) errors in parts of the box's long side; NaN where not labelled.
        head: (N, J) errors in parts of the head; NaN where not labelled or without a head.
        oks: (N,) object keypoint similarity; NaN where nothing is labelled.
        sure: (N,) mean confidence of the record.
        patients: (N,) names.
        skeleton: of the joints.

    """

    box: NDArray[np.float64]
    head: NDArray[np.float64]
    oks: NDArray[np.float64]
    sure: NDArray[np.float64]
    patients: NDArray[np.str_]
    skeleton: Skeleton

    @classmethod
    def of(cls, predicted: ArrayLike, scores: ArrayLike, records: Sequence[PoseRecord], skeleton: Skeleton) -> Self:
        """Compare predicted joints (N, J, 2) with scores (N, J) with the labels of N records."""
        guess = np.asarray(predicted, np.float64)
        shape = (len(records), len(skeleton))
        joints = np.array([record.joints for record in records]).reshape(*shape, 2)
        visibility = np.array([record.visibility for record in records]).reshape(shape)
        scale = np.array([record.scale for record in records])
        heads = np.array([record.head_size or np.nan for record in records])
        return cls(
            box=metrics.relative_errors(guess, joints, visibility, scale),
            head=metrics.relative_errors(guess, joints, visibility, heads),
            oks=_oks(guess, joints, visibility, np.array([record.area for record in records]), skeleton),
            sure=np.asarray(scores, np.float64).reshape(shape).mean(axis=1),
            patients=np.array([record.patient_id for record in records]),
            skeleton=skeleton,
        )

    def select(self, rows: NDArray[np.bool_]) -> "Sample":
        """Return some of the records."""
        return Sample(
            box=self.box[rows],
            head=self.head[rows],
            oks=self.oks[rows],
            sure=self.sure[rows],
            patients=self.patients[rows],
            skeleton=self.skeleton,
        )


Score = Callable[[Sample, NDArray[np.int64]], NDArray[np.float64]]
"""A sample of N records and how often each counts, (R, N) -> (R,)."""


def _share(errors: NDArray[np.float64], weights: NDArray[np.int64], thresholds: Sequence[float]) -> NDArray[np.float64]:
    labelled = (~np.isnan(errors)).sum(axis=1)
    right = np.mean([(errors <= threshold).sum(axis=1) for threshold in thresholds], axis=0)
    with np.errstate(invalid="ignore"):
        share: NDArray[np.float64] = (weights @ right) / (weights @ labelled)
    return share


def pck(sample: Sample, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """PCK@0.2 of the box."""
    return _share(sample.box, weights, [0.2])


def pckh_05(sample: Sample, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """PCKh@0.5."""
    return _share(sample.head[:, metrics.pckh_columns(sample.skeleton)], weights, [0.5])


def pckh_01(sample: Sample, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """PCKh@0.1."""
    return _share(sample.head[:, metrics.pckh_columns(sample.skeleton)], weights, [0.1])


def auc(sample: Sample, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the PCKh curve from 0 to 0.5."""
    return _share(sample.head[:, metrics.pckh_columns(sample.skeleton)], weights, metrics.AUC_THRESHOLDS.tolist())


def oks_ap(sample: Sample, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """COCO's average precision with one person an image, as pycocotools computes it, record by record.

    Mean over similarities 0.5 to 0.95 and 101 recalls of the best precision at that recall or a higher one.
    """
    counted = ~np.isnan(sample.oks)
    order = np.argsort(-sample.sure[counted], kind="stable")
    oks, weight = sample.oks[counted][order], weights[:, counted][:, order]
    if not len(oks):
        return np.full(len(weights), np.nan)
    out = np.zeros(len(weights))
    for row, times in enumerate(weight):
        total = times.sum()
        if total == 0:
            out[row] = np.nan
            continue
        seen = np.maximum(np.cumsum(times), 1)
        for threshold in OKS_THRESHOLDS:
            hits = np.cumsum(times * (oks >= threshold))
            precision = np.maximum.accumulate((hits / seen)[::-1])[::-1]
            at = np.searchsorted(hits / total, _RECALLS, side="left")
            out[row] += np.where(at < len(oks), precision[np.minimum(at, len(oks) - 1)], 0).mean()
    return out / len(OKS_THRESHOLDS)


SCORES: dict[str, Score] = {
    "pck@0.2": pck,
    "pckh@0.5": pckh_05,
    "pckh@0.1": pckh_01,
    "auc": auc,
    "oks_ap": oks_ap,
}
"""All scores of a model, by name."""


def resample(patients: NDArray[np.str_], generator: np.random.Generator, replicates: int) -> NDArray[np.int64]:
    """Draw patients with replacement, (R, N): how often each record counts in each replicate."""
    names, places = np.unique(patients, return_inverse=True)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    drawn: NDArray[np.int64] = counts[:, places]
    return drawn


def interval(
    sample: Sample, score: Score, *, seed: int = 0, replicates: int = REPLICATES, against: Sample | None = None
) -> Interval:
    """Compute a score with its interval.

    Args:
        sample: the records.
        score: one of `SCORES`.
        seed: of the drawing; equal seeds draw equal patients.
        replicates: how often patients are drawn.
        against: of the same records; then the score is the difference to theirs, with the same patients drawn in both.

    """
    nobody = Interval(float("nan"), float("nan"), float("nan"))
    if not len(sample.patients):
        return nobody
    once = np.ones((1, len(sample.patients)), np.int64)
    value = score(sample, once)[0] - (0 if against is None else score(against, once)[0])
    if np.isnan(value):
        return nobody
    weights = resample(sample.patients, np.random.default_rng(seed), replicates)
    drawn = score(sample, weights) - (0 if against is None else score(against, weights))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _oks(
    guess: NDArray[np.float64],
    joints: NDArray[np.float32],
    visibility: NDArray[np.uint8],
    areas: NDArray[np.float64],
    skeleton: Skeleton,
) -> NDArray[np.float64]:
    """Object keypoint similarity (COCO): exp(-d² / (2 area (2 sigma)²)), mean over the labelled joints."""
    labelled = visibility > 0
    spread = (2 * np.array(skeleton.oks_sigmas)) ** 2
    with np.errstate(over="ignore", invalid="ignore"):
        squared = ((guess - joints) ** 2).sum(axis=-1)
        alike = np.exp(-squared / (2 * spread * (areas[:, None] + np.spacing(1))))
    alike = np.where(labelled & np.isfinite(alike), alike, 0)
    count = labelled.sum(axis=1)
    return np.where(count > 0, alike.sum(axis=1) / np.maximum(count, 1), np.nan)
