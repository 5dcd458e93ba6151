"""How often the right person comes first: ranks over a table of how alike each view and each frame are."""

import math

import numpy as np
from numpy.typing import NDArray

Similarity = NDArray[np.float64]
"""(N, N): how likely view i is of the person on frame j."""


def places(similarity: Similarity, owners: NDArray[np.str_]) -> NDArray[np.float64]:
    """How many wrong guesses come before the right one, for each view that can be found.

    A tie counts half, so that a constant is at chance. Where somebody has several frames, a view is looked up among all
    other frames, and who has one frame only is looked for nowhere; else among all frames.
    """
    out = []
    for row, own, may in zip(similarity, *_lookups(owners), strict=True):
        if own.any():
            best, others = row[own].max(), row[may & ~own]
            out.append((others > best).sum() + (others == best).sum() / 2)
    return np.array(out, np.float64)


def ranks(similarity: Similarity, owners: NDArray[np.str_]) -> tuple[float, float]:
    """Rank-1 and rank-5 over the rows of `similarity`."""
    found = places(similarity, owners)
    return float((found < 1).mean()), float((found < 5).mean())


def reciprocal(similarity: Similarity, owners: NDArray[np.str_]) -> float:
    """Mean reciprocal rank: smoother than rank-1, and blind to how sure a network is."""
    return float((1 / (1 + places(similarity, owners))).mean())


def trials(owners: NDArray[np.str_]) -> int:
    """How many views can be found at all."""
    return int(_lookups(owners)[0].any(axis=1).sum())


def chance(owners: NDArray[np.str_], among: int) -> float:
    """Share of views whose person is among `among` guesses that are drawn without looking."""
    missed = []
    for own, may in zip(*_lookups(owners), strict=True):
        if own.any():
            others, all_of_them = int((may & ~own).sum()), int(may.sum())
            missed.append(math.comb(others, among) / math.comb(all_of_them, among) if others >= among else 0.0)
    return float(1 - np.mean(missed))


def _lookups(owners: NDArray[np.str_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N, N) each: which frames show the person of a view, and which it is looked up among."""
    several = len(set(owners.tolist())) < len(owners)
    allowed = ~np.eye(len(owners), dtype=bool) if several else np.ones((len(owners), len(owners)), bool)
    own: NDArray[np.bool_] = (owners[:, None] == owners[None, :]) & allowed
    return own, allowed
