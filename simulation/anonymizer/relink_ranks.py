"""How often the right person comes first: ranks over a table of how alike each view and each frame are."""

import math

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.errors import DataError

Similarity = NDArray[np.float64]
"""(N, N): how likely view i is of the person on frame j."""


def places(similarity: Similarity, owners: NDArray[np.str_]) -> NDArray[np.float64]:
    """How many wrong guesses come before the right one, (N,); a tie counts half, so that a constant is at chance."""
    out = []
    for row, own, may in zip(similarity, targets(owners), _allowed(owners), strict=True):
        best, others = row[own].max(), row[may & ~own]
        out.append((others > best).sum() + (others == best).sum() / 2)
    return np.array(out, np.float64)


def ranks(similarity: Similarity, owners: NDArray[np.str_]) -> tuple[float, float]:
    """Rank-1 and rank-5 over the rows of `similarity`."""
    found = places(similarity, owners)
    return float((found < 1).mean()), float((found < 5).mean())


def chance(owners: NDArray[np.str_], among: int) -> float:
    """Share of views whose person is among `among` guesses that are drawn without looking."""
    allowed, own = _allowed(owners).sum(axis=1), targets(owners).sum(axis=1)
    missed = [
        math.comb(int(a - o), among) / math.comb(int(a), among) if a - o >= among else 0.0
        for a, o in zip(allowed, own, strict=True)
    ]
    return float(1 - np.mean(missed))


def _allowed(owners: NDArray[np.str_]) -> NDArray[np.bool_]:
    """(N, N): which frames a view is looked up among."""
    several = len(set(owners.tolist())) < len(owners)
    return ~np.eye(len(owners), dtype=bool) if several else np.ones((len(owners), len(owners)), bool)


def targets(owners: NDArray[np.str_]) -> NDArray[np.bool_]:
    """(N, N): which frames show the person of a view.

    Raises:
        DataError: nobody of these frames is that person.

    """
    own: NDArray[np.bool_] = (owners[:, None] == owners[None, :]) & _allowed(owners)
    if not own.any(axis=1).all():
        raise DataError("somebody has one frame only where others have several: there is nothing to find")
    return own
