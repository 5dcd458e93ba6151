"""Joints as labelling tools name them: one by one, in any order, in any spelling."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import COCO17, LSP14, MPII16, Skeleton


def joint_name(joint: Any) -> str:
    """Write `Left Eye`, `left-eye` and `leftEye` as `left_eye`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(joint).strip())
    return re.sub(r"[\s_.-]+", "_", words).lower()


def skeleton_of(names: Iterable[str], *, file: Path, none: str) -> Skeleton:
    """Return the layout that has all these joints; of two that have them COCO's, then LSP's.

    Args:
        names: of the joints that a file labels.
        file: which.
        none: what is wrong with a file that labels none, as a phrase.

    Raises:
        DataError: there is none, or no layout has them all; names the first that does not fit.

    """
    wanted = {joint_name(name) for name in names}
    if not wanted:
        raise DataError(f"{file}: {none}")
    layouts = (COCO17, LSP14, MPII16)
    for skeleton in layouts:
        if wanted <= set(skeleton.joints):
            return skeleton
    best = max(layouts, key=lambda skeleton: len(wanted & set(skeleton.joints)))
    odd = min(wanted - set(best.joints))
    raise DataError(f'{file}: joint "{odd}" is not in {best.name} (allowed: {", ".join(best.joints)})')


def in_order(found: Mapping[str, tuple[float, float, int]], skeleton: Skeleton) -> NDArray[np.float64]:
    """Return x, y, visibility (J, 3) of the joints found, by name; zeros for those that are not there."""
    out = np.zeros((len(skeleton), 3))
    for name, triple in found.items():
        out[skeleton.index(joint_name(name))] = triple if triple[2] else (0, 0, 0)
    return out
