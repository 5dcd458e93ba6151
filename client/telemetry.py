"""What training looked like from inside, round by round: for the hospital's own eyes, and nobody else's.

Losses, gradient norms and speeds are made of patients' frames, and nothing noised them. They are kept in one file of
the site's state folder that its owner alone may read, and shown where only the site's own machine can see them
(`wardpose.shared.status_server`): no release, no message to the coordinator and no shared metric has any of them.
Looking costs nothing. *Choosing* by them what is sent (a clip norm, when to stop) would give something of them away,
which nobody charged for.

A round never fails over this: what cannot be written is left out.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared import files
from wardpose.shared.anonymize.public_view import PublicView
from wardpose.shared.data.crops import Affine
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DamagedError

logger = logging.getLogger("wardpose.client")

FILE = "training.json"
QUANTILES = (0.1, 0.5, 0.9)
_KEPT = 100  # rounds
_LARGEST = 1 << 20  # bytes of a file that is believed to be ours


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One round as the site saw it.

    Attributes:
        run: its identity.
        round: counted from 1.
        ended: Unix time.
        seconds: of its steps.
        loss: mean over the units that took part in a step, at the weights of that step, in nats; `None` for none.
        clipped: share of them whose contribution was shortened.
        norms: norms of their contributions before clipping, by quantile (`QUANTILES`).
        max_grad_norm: C.
        frames_per_second: that were differentiated.
        gpu_bytes: most memory of the GPU that was in use; `None` on a CPU.
        views_per_second: frames that the anonymiser (the public view) took; `None` where they were in the cache.

    """

    run: str
    round: int
    ended: float
    seconds: float
    loss: float | None
    clipped: float | None
    norms: tuple[float, ...]
    max_grad_norm: float
    frames_per_second: float | None
    gpu_bytes: int | None = None
    views_per_second: float | None = None


@dataclass
class Observer:
    """Look at the steps of one round; it changes none of them.

    Attributes:
        unit_norms: of each unit's contribution before clipping.
        unit_losses: of each unit.
        frames: that were differentiated.
        views: frames that the public view took.
        view_seconds: that it took for them.

    """

    unit_norms: list[float] = field(default_factory=list)
    unit_losses: list[float] = field(default_factory=list)
    frames: int = 0
    views: int = 0
    view_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def losses(self, values: list[float], *, frames: int) -> None:
        """Take note of the losses of a micro-batch's units, each of so many frames."""
        self.unit_losses.extend(values)
        self.frames += frames * len(values)

    def norms(self, values: list[float]) -> None:
        """Take note of what units contribute before it is clipped."""
        self.unit_norms.extend(values)

    def viewed(self, frames: int, seconds: float) -> None:
        """Take note of frames that the public view took."""
        self.views += frames
        self.view_seconds += seconds

    def begin(self) -> None:
        """Take note that the steps begin."""
        self.started = time.perf_counter()

    def row(self, *, run: str, round_number: int, max_grad_norm: float, gpu_bytes: int | None) -> TrainingRow:
        """Sum the round up."""
        seconds = time.perf_counter() - self.started
        norms = sorted(norm for norm in self.unit_norms if math.isfinite(norm))
        losses = [loss for loss in self.unit_losses if math.isfinite(loss)]
        units = len(self.unit_norms)
        clipped = units - sum(norm <= max_grad_norm for norm in norms)  # those that are not finite count as nothing
        return TrainingRow(
            run=run,
            round=round_number,
            ended=time.time(),
            seconds=seconds,
            loss=sum(losses) / len(losses) if losses else None,
            clipped=clipped / units if units else None,
            norms=tuple(norms[round(share * (len(norms) - 1))] for share in QUANTILES) if norms else (),
            max_grad_norm=max_grad_norm,
            frames_per_second=self.frames / seconds if seconds > 0 and self.frames else None,
            gpu_bytes=gpu_bytes,
            views_per_second=self.views / self.view_seconds if self.view_seconds > 0 else None,
        )


@dataclass(frozen=True)
class _ObservedView(PublicView):
    observer: Observer = field(default_factory=Observer)

    def of_people(self, frames: Sequence[Frame], boxes: Sequence[NDArray[np.floating]]) -> list[tuple[Frame, Affine]]:
        started = time.perf_counter()
        found = super().of_people(frames, boxes)
        self.observer.viewed(len(frames), time.perf_counter() - started)
        return found


def observed(view: PublicView | None, observer: Observer) -> PublicView | None:
    """Return the same view, timed."""
    return None if view is None else _ObservedView(view.map, view.geometry, observer)


def keep(folder: Path, row: TrainingRow) -> None:
    """Add a round to the file of a state folder.

    A file that cannot be read begins anew, one that cannot be written is left as it is.
    """
    path = folder / FILE
    try:
        before = training_rows(folder)
    except DamagedError as error:
        logger.warning("%s; it begins anew", error)
        before = []
    rows = [asdict(each) for each in [*before, row][-_KEPT:]]
    try:
        files.write_bytes(path, json.dumps(rows).encode(), mode=0o600)
    except OSError as error:
        logger.warning("%s: the round's own figures are not kept: %s", path, error)


def training_rows(folder: Path) -> list[TrainingRow]:
    """Return the last rounds of a state folder, oldest first; none before the first.

    Raises:
        DamagedError: the file cannot be read.

    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        rows: Any = json.loads(path.read_bytes())
        if not isinstance(rows, list):
            raise TypeError("no list")
        return [TrainingRow(**{**row, "norms": tuple(float(norm) for norm in row["norms"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); is it damaged, or of another version?") from error
