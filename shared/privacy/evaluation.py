"""Scores of a network on private patients: one bounded, noised sum over all units, and what it costs.

A unit's frames are marked joint by joint: right or wrong by the metric, or not labelled. What a unit contributes are
*shares* of its own frames, so that a patient with a thousand frames weighs as much as one with two:

    one network     (right_j, wrong_j for each joint j;  loss / L;  1)
    two networks    (both_j, first_j, second_j, neither_j for each joint j;  loss_1 / L, loss_2 / L;  1)

`first_j` is the share of frames in which the first network alone is right about joint j; losses are clipped to [0, L].
The last component counts the units. The whole is divided by sqrt(J + losses + 1), which makes it a vector of norm at
most C = 1, and one Gaussian of standard deviation sigma is added to the sum. Ratios (PCK) are formed by whoever
receives it: post-processing, which costs nothing.

**Theorem.** Whatever the frames, labels and weights are, the sum moves by at most 1 when a unit comes or goes
(add-remove), and by at most 2 when one is replaced (replace-one, which the accountant knows about: `accounting`).

*Proof.* For each joint the shares of a unit are at least 0, and sum to the share of frames in which the joint is
labelled, at most 1; numbers in [0, 1] that sum to at most 1 have squares that sum to at most 1. J joints, the losses
and the count therefore have squares that sum to at most J + losses + 1, and the scaled vector has norm at most 1. A
loss that is no number counts as L, a joint whose place is no number is wrong: nothing is left that could be infinite.
(The vector is clipped to norm 1 all the same, by `clipping.ClipSum`; the bound does not rest on this paragraph.) Every
unit always takes part, and its vector is a function of its own frames and of the weights alone, since networks see one
unit's frames at a time. So adding or removing a unit adds or removes one vector of norm at most 1, and replacing one
exchanges two of them. By the rules of `units` a patient is in one unit at most. ∎

There is no amplification by subsampling: everybody takes part (q = 1), so each evaluation is a full Gaussian step.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from wardpose.shared.privacy.accounting import Adjacency, Event, Noise, UnitKind

EVALUATION = "evaluation"
"""Name of the mechanism in events, and in a site's `policy.mechanisms`."""

CLIP = 1.0
"""C: the most that one unit contributes to the released sum."""

Metric = Literal["pck@0.2", "pckh@0.5"]


class Evaluation(BaseModel):
    """What a course declares of evaluations on private patients; unit, adjacency and kind of noise are the course's.

    Attributes:
        metric: when a joint is right.
        noise_multiplier: sigma, standard deviation of the noise of each component of the scaled sum.
        times: how often the course may evaluate.
        frames: most frames of a unit that are looked at, evenly spread over its own.
        loss_clip: L, in nats.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric = "pck@0.2"
    noise_multiplier: float = Field(ge=1e-3, le=200, allow_inf_nan=False)
    times: int = Field(default=1, ge=1, le=1000)
    frames: int = Field(default=4, ge=1, le=256)
    loss_clip: float = Field(default=10.0, ge=1e-3, le=1e6, allow_inf_nan=False)

    def event(self, times: int, *, unit: UnitKind, adjacency: Adjacency, noise: Noise) -> Event:
        """Return what so many evaluations cost every unit, whatever its consent tier.

        Examples:
            >>> Evaluation(noise_multiplier=4.0).event(
            ...     1, unit="patient", adjacency="add-remove", noise="gaussian"
            ... ).sample_rate
            1.0

        """
        return Event(
            mechanism=EVALUATION,
            unit=unit,
            sample_rate=1.0,
            noise_multiplier=self.noise_multiplier,
            steps=times,
            max_grad_norm=CLIP,
            noise=noise,
            adjacency=adjacency,
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where what stands in the vector.

    Examples:
        >>> layout = Layout(joints=14, pair=False)
        >>> layout.size, layout.scale  # 28 shares, loss, count; sqrt(14 + 1 + 1)
        (30, 4.0)

    Attributes:
        joints: J.
        pair: whether two networks are compared.

    """

    joints: int
    pair: bool

    @property
    def kinds(self) -> int:
        """How many shares a joint has."""
        return 4 if self.pair else 2

    @property
    def losses(self) -> int:
        """How many networks, hence losses, there are."""
        return 2 if self.pair else 1

    @property
    def size(self) -> int:
        """D, number of components."""
        return self.kinds * self.joints + self.losses + 1

    @property
    def scale(self) -> float:
        """What vectors are divided by, so that their norm is at most `CLIP`."""
        return math.sqrt(self.joints + self.losses + 1)


def unit_vector(
    layout: Layout,
    *,
    right: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    losses: NDArray[np.floating],
    loss_clip: float,
) -> NDArray[np.float64]:
    """Return one unit's contribution (D,), of norm at most 1.

    Examples:
        >>> vector = unit_vector(
        ...     Layout(joints=1, pair=False),
        ...     right=np.array([[[True], [False]]]),  # one network, two frames, one joint
        ...     labelled=np.array([[True], [True]]),
        ...     losses=np.array([[1.0, float("nan")]]),
        ...     loss_clip=10.0,
        ... )
        >>> (vector * 3**0.5).round(3).tolist()  # half right, half wrong; mean of 0.1 and 1; one unit
        [0.5, 0.5, 0.55, 1.0]

    Args:
        layout: of the vector.
        right: (M, F, J), networks x frames x joints.
        labelled: (F, J); what is not labelled is neither right nor wrong.
        losses: (M, F) in nats, anything.
        loss_clip: L.

    """
    marks = [right[0], ~right[0]]
    if layout.pair:
        first, second = right
        marks = [first & second, first & ~second, ~first & second, ~first & ~second]
    shares = [(mark & labelled).mean(axis=0, dtype=np.float64) for mark in marks]
    known = np.where(np.isnan(losses), loss_clip, losses).astype(np.float64)
    clipped = np.clip(known, 0.0, loss_clip).mean(axis=1) / loss_clip
    return np.concatenate([*shares, clipped, [1.0]]) / layout.scale


def chosen_rows(rows: NDArray[np.int64], frames: int) -> NDArray[np.int64]:
    """Return at most so many rows of a unit, evenly spread over its own: a function of that unit alone.

    Examples:
        >>> chosen_rows(np.arange(10), 4).tolist(), chosen_rows(np.arange(3), 4).tolist()
        ([0, 3, 6, 9], [0, 1, 2])

    """
    if len(rows) <= frames:
        return rows
    return rows[np.linspace(0, len(rows) - 1, frames).round().astype(np.int64)]
