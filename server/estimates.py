"""What a noised sum of scores says, and how surely: ratios of its components with their standard errors.

Everything here is post-processing of releases, whose noise is known: independent normal values of one standard
deviation s in every component. For a ratio r = (a x) / (b x) of two sums of components the standard error is
s |a - r b| / (b x), to first order; it is that of the noise alone, for the patients that were measured. Where the
denominator is within five standard errors of 0 the ratio may be anything: it is *not measurable at this noise*.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.pose.metrics import pckh_columns
from wardpose.shared.privacy.evaluation import Evaluation, Layout
from wardpose.shared.skeleton import Skeleton

_MEASURABLE = 5.0  # standard errors that a denominator must be away from 0

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and how surely it is known.

    Attributes:
        value: unbiased (a ratio: to first order), so that a share may lie a little outside [0, 1]; `None` where it is
            not measurable at this noise.
        error: its standard error from the noise, one deviation.

    """

    value: float | None
    error: float | None

    def exceeds(self, standard_errors: float) -> bool:
        """Tell whether the value is above 0 by more than so many standard errors."""
        return self.value is not None and self.error is not None and self.value > standard_errors * self.error

    def to_json(self) -> dict[str, float | None]:
        """Plain values."""
        return {"value": self.value, "error": self.error}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Scores of one network.

    Attributes:
        score: share of the labelled joints that are right, by the plan's metric, over those that count in its mean.
        per_joint: of each joint, by name.
        loss: mean clipped loss in nats.

    """

    score: Estimate
    per_joint: dict[str, Estimate]
    loss: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "score": self.score.to_json(),
            "per_joint": {name: estimate.to_json() for name, estimate in self.per_joint.items()},
            "loss": self.loss.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one evaluation says.

    Attributes:
        units: how many units were measured.
        models: of one network, or of two.
        difference: score of the first less that of the second; `None` for one network.

    """

    units: Estimate
    models: tuple[Measured, ...]
    difference: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "units": self.units.to_json(),
            "models": [model.to_json() for model in self.models],
            "difference": None if self.difference is None else self.difference.to_json(),
        }


def scores_of(
    releases: Sequence[Floats], layout: Layout, evaluation: Evaluation, *, metric_skeleton: Skeleton
) -> Scores:
    """Return what the releases of some sites say together; every patient weighs the same, wherever they are.

    Args:
        releases: (D,) of each site, as they came.
        layout: of all of them.
        evaluation: that the course declares.
        metric_skeleton: of the networks.

    """
    total = np.sum(releases, axis=0) * layout.scale
    deviation = evaluation.noise_multiplier * layout.scale * math.sqrt(len(releases))
    joints = np.arange(layout.joints)
    counted = pckh_columns(metric_skeleton) if evaluation.metric == "pckh@0.5" else joints
    labelled = range(layout.kinds)
    right = [(0, 1), (0, 2)] if layout.pair else [(0,)]

    def share(kinds: Sequence[int], columns: NDArray[np.int64]) -> Estimate:
        return ratio(total, _pick(layout, kinds, columns), _pick(layout, labelled, columns), deviation)

    models = tuple(
        Measured(
            score=share(kinds, counted),
            per_joint={name: share(kinds, joints[i : i + 1]) for i, name in enumerate(metric_skeleton.joints)},
            loss=_loss(total, layout, model, evaluation.loss_clip, deviation),
        )
        for model, kinds in enumerate(right)
    )
    difference = None
    if layout.pair:
        better = _pick(layout, (1,), counted) - _pick(layout, (2,), counted)
        difference = ratio(total, better, _pick(layout, labelled, counted), deviation)
    return Scores(units=Estimate(value=float(total[-1]), error=deviation), models=models, difference=difference)


def ratio(total: Floats, above: Floats, below: Floats, deviation: float) -> Estimate:
    """Return (above . total) / (below . total).

    Examples:
        >>> ratio(np.array([30.0, 100.0]), np.array([1.0, 0.0]), np.array([0.0, 1.0]), deviation=2.0).value
        0.3
        >>> ratio(np.array([30.0, 9.0]), np.array([1.0, 0.0]), np.array([0.0, 1.0]), deviation=2.0).value is None
        True

    Args:
        total: (D,) noised sums.
        above: (D,) weights of the numerator.
        below: (D,) weights of the denominator.
        deviation: of the noise in each component.

    """
    denominator = float(below @ total)
    if denominator <= _MEASURABLE * deviation * float(np.linalg.norm(below)):
        return Estimate(value=None, error=None)
    value = float(above @ total) / denominator
    return Estimate(value=value, error=deviation * float(np.linalg.norm(above - value * below)) / denominator)


def _pick(layout: Layout, kinds: Sequence[int], columns: NDArray[np.int64]) -> Floats:
    """Ones at the shares of these kinds of these joints."""
    weights = np.zeros(layout.size)
    for kind in kinds:
        weights[kind * layout.joints + columns] = 1.0
    return weights


def _loss(total: Floats, layout: Layout, model: int, clip: float, deviation: float) -> Estimate:
    above, below = np.zeros(layout.size), np.zeros(layout.size)
    above[layout.kinds * layout.joints + model] = clip
    below[-1] = 1.0
    return ratio(total, above, below, deviation)
