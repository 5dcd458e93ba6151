"""A model, or two, on a site's own patients: scores with intervals, by joint, by group, and how sure it should be.

    report = evaluate(estimator, dataset, public=False)
    report.scores["pckh@0.5"].low

What is measured on patients is about these patients: no noise was added and no ledger was charged. Such figures are for
the site alone, and every form of the report says so.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.records import PoseDataset, PoseRecord
from wardpose.shared.errors import DataError
from wardpose.shared.pose.estimators import Estimator, estimate_records
from wardpose.shared.pose.intervals import SCORES, Interval, Sample, interval

STAYS = (
    "These figures were measured on this site's patients: no noise protects them, no ledger was charged, no epsilon "
    "covers them. They may not leave the site."
)
LEAVES = "These figures are of public data: they may leave."

_BINS = 10
_FEW = 10  # patients: an interval over fewer says little


@dataclass(frozen=True)
class Calibration:
    """How often joints of one range of confidence are right.

    Attributes:
        low: of the range.
        high: of the range.
        joints: in it.
        confidence: their mean.
        right: share of them within half a head, or 0.2 of the box where no head is known.

    """

    low: float
    high: float
    joints: int
    confidence: float
    right: float


@dataclass(kw_only=True)
class Report:
    """What was measured.

    Attributes:
        model: its name.
        data: name of the data set.
        records: scored.
        patients: whose they are.
        scores: by name.
        per_joint: PCK@0.2 of each joint.
        per_joint_pckh: PCKh@0.5 of each joint; empty without heads.
        groups: column -> group -> (records, patients, scores).
        calibration: by ranges of confidence.
        calibration_error: mean distance of confidence and share of right joints, weighted by joints (Guo et al. 2017).
        against: name of the other model; empty without one.
        difference: this model's scores less the other's, on the same drawn patients.
        may_leave: whether the figures may leave the site.
        why: the sentence that says so.
        notes: what the reader should know.
        worst: rows of the records with the largest mean error.
        median: rows of the records around the median.

    """

    model: str
    data: str
    records: int
    patients: int
    scores: dict[str, Interval]
    per_joint: dict[str, Interval]
    per_joint_pckh: dict[str, Interval]
    groups: dict[str, dict[str, dict[str, Any]]]
    calibration: list[Calibration]
    calibration_error: float
    against: str = ""
    difference: dict[str, Interval] = field(default_factory=dict)
    may_leave: bool = False
    why: str = STAYS
    notes: list[str] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)
    median: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the form that `--json` prints; what is not a number is `null`."""
        content = asdict(self)
        del content["worst"], content["median"]
        numbers: dict[str, Any] = _without_nan(content)
        return numbers


@dataclass(frozen=True, eq=False)
class Measured:
    """A report and what it is of.

    Attributes:
        report: the figures.
        joints: (N, J, 2) predicted, frame pixels.
        scores: (N, J).

    """

    report: Report
    joints: NDArray[np.float32]
    scores: NDArray[np.float32]


def evaluate(
    estimator: Estimator,
    dataset: PoseDataset,
    *,
    public: bool,
    groups: dict[str, list[str]] | None = None,
    against: Estimator | None = None,
    seed: int = 0,
    shown: int = 6,
    batch_size: int = 32,
) -> Measured:
    """Score a model on a data set in its skeleton.

    Args:
        estimator: the model.
        dataset: with patients, where they are known: intervals are over these.
        public: whether the data is nobody's.
        groups: column -> the group of each record.
        against: another model, which is scored on the same records.
        seed: of the drawing of patients.
        shown: how many of the worst and of the median records are named.
        batch_size: crops at a time.

    Raises:
        DataError: the data set is empty or in another skeleton, or a frame cannot be read.

    """
    if not len(dataset):
        raise DataError(f"{dataset.name}: holds no record (allowed: one or more)")
    records = [dataset.record(i) for i in range(len(dataset))]
    joints, scores = estimate_records(estimator, dataset, batch_size=batch_size)
    sample = Sample.of(joints, scores, records, estimator.skeleton)
    calibration = _calibration(sample, scores)
    total = sum(part.joints for part in calibration)
    ranked = _ranked(sample)
    report = Report(
        model=estimator.name,
        data=dataset.name,
        records=len(records),
        patients=len(set(sample.patients.tolist())),
        scores={name: interval(sample, score, seed=seed) for name, score in SCORES.items()},
        per_joint=_per_joint(sample, sample.box, 0.2, seed),
        per_joint_pckh={} if np.isnan(sample.head).all() else _per_joint(sample, sample.head, 0.5, seed),
        groups=_groups(sample, groups or {}, seed),
        calibration=calibration,
        calibration_error=sum(part.joints * abs(part.confidence - part.right) for part in calibration) / max(1, total),
        may_leave=public,
        why=LEAVES if public else STAYS,
        notes=_notes(dataset, records, sample),
        worst=ranked[::-1][:shown],
        median=ranked[max(0, (len(ranked) - shown) // 2) :][:shown],
    )
    if against is not None:
        theirs, sure = estimate_records(against, dataset, batch_size=batch_size)
        other = Sample.of(theirs, sure, records, estimator.skeleton)
        report.against = against.name
        report.difference = {name: interval(sample, score, seed=seed, against=other) for name, score in SCORES.items()}
    return Measured(report, joints, scores)


def _per_joint(sample: Sample, errors: NDArray[np.float64], threshold: float, seed: int) -> dict[str, Interval]:
    out = {}
    for column, name in enumerate(sample.skeleton.joints):
        labelled = (~np.isnan(errors[:, column])).astype(float)
        right = (errors[:, column] <= threshold).astype(float)

        def share(
            _: Sample, weights: NDArray[np.int64], right: Any = right, labelled: Any = labelled
        ) -> NDArray[np.float64]:
            with np.errstate(invalid="ignore"):
                value: NDArray[np.float64] = (weights @ right) / (weights @ labelled)
            return value

        out[name] = interval(sample, share, seed=seed)
    return out


def _groups(sample: Sample, groups: dict[str, list[str]], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for column, names in groups.items():
        out[column] = {}
        for name in sorted(set(names) - {""}):
            part = sample.select(np.array([other == name for other in names]))
            scores = {score: interval(part, SCORES[score], seed=seed) for score in ("pck@0.2", "pckh@0.5", "oks_ap")}
            patients = len(set(part.patients.tolist()))
            out[column][name] = {"records": len(part.patients), "patients": patients, "scores": scores}
    return out


def _calibration(sample: Sample, scores: NDArray[np.float32]) -> list[Calibration]:
    errors, within = (sample.box, 0.2) if np.isnan(sample.head).all() else (sample.head, 0.5)
    counted = ~np.isnan(errors)
    sure, right = np.asarray(scores, np.float64)[counted], errors[counted] <= within
    places = np.clip((sure * _BINS).astype(int), 0, _BINS - 1)
    out = []
    for place in range(_BINS):
        inside = places == place
        if inside.any():
            out.append(
                Calibration(
                    place / _BINS,
                    (place + 1) / _BINS,
                    int(inside.sum()),
                    float(sure[inside].mean()),
                    float(right[inside].mean()),
                )
            )
    return out


def _ranked(sample: Sample) -> list[int]:
    """Rows by their mean error, the best first; those without a labelled joint are left out."""
    errors = np.where(np.isfinite(sample.box), sample.box, np.nan)
    rows = np.flatnonzero(~np.isnan(errors).all(axis=1))
    means = np.nanmean(errors[rows], axis=1)
    return [int(row) for row in rows[np.argsort(means, kind="stable")]]


def _notes(dataset: PoseDataset, records: Sequence[PoseRecord], sample: Sample) -> list[str]:
    notes = list(dataset.notes)
    patients = len(set(sample.patients.tolist()))
    if not getattr(dataset, "patients_named", True):
        notes.append("No patient is named: intervals are over records, and too short where a person has several.")
    elif patients < _FEW:
        notes.append(f"There are {patients} patients: an interval over so few is a rough guide.")
    computed = sum(record.box_source == "joints" for record in records)
    if computed:
        notes.append(f"{computed} boxes were computed from the labelled joints: a box that is given is less exact.")
    return notes


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
