"""How units are drawn for a step (Poisson coins), and which of a unit's frames take part."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.privacy.noise import RandomStream


def poisson_sample(n_units: int, rate: float, stream: RandomStream) -> NDArray[np.int64]:
    """Let each unit take part with probability `rate`, independently; one 64-bit word a unit is always drawn.

    A word takes part when it lies below floor(rate * 2^64), an integer computed exactly: the probability is
    the rate itself wherever rate * 2^64 is whole (every float64 of at least 2^-11), and less than 2^-64
    below it otherwise.

    Examples:
        >>> from wardpose.shared.privacy.noise import seeded_streams
        >>> poisson_sample(10, 0.3, seeded_streams(0).sampling).tolist()
        [0, 1, 3, 6]

    Returns:
        Numbers of the units drawn, ascending; possibly none.

    Raises:
        ValueError: the rate is not in [0, 1].

    """
    if not 0 <= rate <= 1:
        raise ValueError(f"sampling rate is {rate}; it must be between 0 and 1")
    words = stream.uint64(n_units)
    threshold = int(Fraction(rate) * 2**64)
    if threshold == 2**64:
        return np.arange(n_units, dtype=np.int64)
    return np.flatnonzero(words < np.uint64(threshold)).astype(np.int64)


def draw_bag(rows: NDArray[np.int64], frames: int, stream: RandomStream) -> NDArray[np.int64]:
    """Draw the `frames` records with which a unit takes part in one step.

    A random subset without repetition (every subset equally likely) where the unit has that many, otherwise
    independent draws with replacement. It gives variance, not amplification, and costs nothing: the bag's
    size is fixed.

    Examples:
        >>> from wardpose.shared.privacy.noise import seeded_streams
        >>> draw_bag(np.array([4, 7, 9]), 2, seeded_streams(0).sampling).tolist()
        [9, 4]
        >>> len(draw_bag(np.array([4]), 3, seeded_streams(0).sampling))  # with replacement where there are too few
        3

    Args:
        rows: (n,) record numbers of the unit, n at least 1.
        frames: F.
        stream: the site's sampling stream.

    Returns:
        (F,) record numbers.

    Raises:
        ValueError: the unit has no records.

    """
    if len(rows) == 0:
        raise ValueError("a unit without records cannot be drawn")
    if len(rows) < frames:
        return rows[_below(np.full(frames, len(rows)), stream)]
    order = np.array(rows)  # the first F places of a Fisher-Yates shuffle
    for place, jump in enumerate(_below(len(rows) - np.arange(frames), stream)):
        order[[place, place + jump]] = order[[place + jump, place]]
    return order[:frames]


def _below(bounds: NDArray[np.int64], stream: RandomStream) -> NDArray[np.int64]:
    """Draw uniform integers, each below its bound (all at least 1), by rejection: exact."""
    wide = bounds.astype(np.uint64)
    # 2^64 mod bound, by wrap-around: words at or above 2^64 minus it belong to an incomplete run.
    incomplete = (np.uint64(0) - wide) % wide
    words = stream.uint64(len(bounds)).copy()
    while (rejected := words < incomplete).any():
        words[rejected] = stream.uint64(int(rejected.sum()))
    return (words % wide).astype(np.int64)
