"""The un-noised part of feature-DP: gradients of phi(x), drawn knowing nothing of private draws."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import RandomStream
from wardpose.shared.privacy.sampling import poisson_sample
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, RowIds, load_bags, pseudo_labelled
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.vectors import Vector, map_vector


class PublicViews:
    """Rows of phi(x) with the labels that the mechanism lets be public.

    Pseudo-labels are what the round's first weights predict from phi(x): functions of released weights and of
    the public view alone, so that a frame's keypoints enter through the private part only.
    """

    def __init__(self, engine: UnitGradients, rows: Rows, labels: Literal["ground-truth", "pseudo"]) -> None:
        self._engine = engine
        self._rows = rows
        self._start = engine.parameters() if labels == "pseudo" else None

    def __len__(self) -> int:
        return len(self._rows)

    def bags(self, ids: RowIds) -> Bags:
        """Load the rows (U, F) as bags."""
        bags = load_bags(self._engine, self._rows, ids)
        return bags if self._start is None else pseudo_labelled(self._engine, self._start, bags)


class PublicPart:
    """Mean gradient of phi(x) over a public batch, times the public weight; one call a step.

    Args:
        engine: the gradients' engine.
        data: the cohort; its private rows are not touched.
        views: its public views.
        mechanism: how the batch is drawn.
        stream: the public stream, independent of sampling and noise.

    """

    def __init__(
        self,
        engine: UnitGradients,
        data: CohortData,
        views: PublicViews,
        mechanism: Mechanism,
        stream: RandomStream,
    ) -> None:
        self._engine = engine
        self._data = data
        self._views = views
        self._options = mechanism.feature
        self._rate = mechanism.feature.rate or mechanism.sample_rate
        self._stream = stream
        self._order: list[int] = []
        self._fixed: Vector | None = None
        self._chunk = 0

    def __call__(self, parameters: Vector) -> Vector:
        """Public gradient at `parameters`, float64; with `once-per-round`, the first call's."""
        if self._fixed is not None:
            return self._fixed
        ids = self._data.draw_rows(self._draw(), self._stream)
        total = map_vector(torch.zeros_like, parameters)
        for bags in self._bags(ids):
            total = map_vector(torch.add, total, self._engine.summed(parameters, bags))
        scale = self._options.weight / max(1, len(ids))
        mean = map_vector(lambda value: torch.nan_to_num(value.double() * scale, 0.0, 0.0, 0.0), total)
        if self._options.draw == "once-per-round":
            self._fixed = mean
        return mean

    def _draw(self) -> NDArray[np.int64]:
        count = len(self._data.units)
        if self._options.draw == "once-per-round":
            return np.arange(count)
        if self._options.draw == "poisson":
            return np.asarray(poisson_sample(count, self._rate, self._stream), np.int64)
        size = min(count, max(1, round(self._rate * count)))
        if len(self._order) < size:
            self._order += np.argsort(self._stream.uint64(count), kind="stable").tolist()
        drawn, self._order = self._order[:size], self._order[size:]
        return np.array(drawn, np.int64)

    def _bags(self, ids: RowIds) -> Iterator[Bags]:
        if len(ids) and not self._chunk:
            self._chunk = self._engine.micro_batch(self._views.bags(ids[:1]))
        for start in range(0, len(ids), max(1, self._chunk)):
            yield self._views.bags(ids[start : start + self._chunk])
