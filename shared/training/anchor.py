"""Help from public people: their un-noised gradient beside the noised one, and the scale in which units are clipped.

Two things that public data can do for any mechanism, at no cost of privacy.

**Anchor.** Step t adds `weight * u_t` to the noised gradient, u_t being the mean gradient of a batch of public people
at the step's weights, shortened to `max_grad_norm`. Given the weights, u_t is a function of public data and of the
public stream's draws, which are independent of the coins and the noise: it is the same with and without any patient.
A step is hence still one Poisson-subsampled Gaussian query of sensitivity C and post-processing of its answer, and the
event that is charged stays the same. A server that chooses the "public" people by what it saw of earlier rounds
chooses adaptively, as it may with the weights themselves; a site trains on public people that its own `site.yaml`
names.

**Preconditioner** (AdaDPS: Li et al. 2022, arXiv 2202.05963). A unit's gradient g is multiplied, coordinate by
coordinate, by d = c / max(r, r_floor), r being the root of the public people's second moments at the round's first
weights, and *then* clipped to C and noised. For whatever d, `clip_C(d * g)` is no longer than C: the sensitivity is C
as before, whoever chose d, also if it is hostile; what is no finite number counts as nothing, as everywhere
(`privacy.clipping`). Coordinates that matter little no longer drown in noise of the scale of those that matter much.
The constant c keeps the public gradients' mean square as it was, so that C means what it meant.
"""

import numpy as np
import torch

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.noise import RandomStream
from wardpose.shared.training.cohort import PublicData, load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.training.settings import AnchorOptions
from wardpose.shared.vectors import Vector, flatten, map_vector

_FLOOR = 0.1  # of the root mean square over coordinates: no coordinate counts more than ten times as much


class PublicAnchor:
    """What public people add to the steps of one round; every call is one step.

    Args:
        engine: the gradients' engine, at the round's first weights.
        public: rows of the public people, of the same front as the engine's strategy.
        options: what is asked for.
        stream: the public stream, independent of sampling and noise.

    Raises:
        ConfigError: there are no public people.

    """

    def __init__(self, engine: UnitGradients, public: PublicData, options: AnchorOptions, stream: RandomStream) -> None:
        if not len(public.rows):
            raise ConfigError("training.anchor: the public data hold nobody (allowed: at least one record)")
        self._engine = engine
        self._rows = public.rows
        self._options = options
        self._stream = stream
        self._order: list[int] = []
        self.scale: Vector | None = self._preconditioner() if options.precondition else None

    def __call__(self, parameters: Vector) -> Vector:
        """Weighted mean gradient of the next public batch at `parameters`, float64, in the scale of the units'."""
        bags = self._next()
        total = self._engine.summed(parameters, bags)
        mean = map_vector(lambda value: torch.nan_to_num(value.double() / len(bags), 0.0, 0.0, 0.0), total)
        if self.scale is not None:
            mean = map_vector(torch.mul, mean, self.scale)
        norm = float(flatten(mean).norm())
        factor = self._options.weight * min(1.0, self._options.max_grad_norm / norm) if norm > 0 else 0.0
        return map_vector(lambda value: value * factor, mean)

    def _next(self) -> Bags:
        """Load the next people of a shuffled order that goes on step after step."""
        size = min(len(self._rows), self._options.batch)
        if len(self._order) < size:
            self._order += np.argsort(self._stream.uint64(len(self._rows)), kind="stable").tolist()
        drawn, self._order = self._order[:size], self._order[size:]
        return load_bags(self._engine, self._rows, np.array(drawn, np.int64)[:, None])

    def _preconditioner(self) -> Vector:
        parameters = self._engine.parameters()
        bags = self._next()
        squares = map_vector(lambda value: torch.zeros_like(value, dtype=torch.float64), parameters)
        for gradients in self._engine.per_unit(parameters, bags):
            squares = map_vector(
                lambda total, value: total + torch.nan_to_num(value.double().square().sum(0), 0.0, 0.0, 0.0),
                squares,
                gradients,
            )
        mean = flatten(squares).sum() / len(bags)
        count = flatten(squares).numel()
        if not 0 < float(mean) < float("inf"):
            return map_vector(torch.ones_like, squares)
        floor = _FLOOR * (mean / count).sqrt()
        inverse = map_vector(lambda value: 1 / (value / len(bags)).sqrt().clamp(min=float(floor)), squares)
        kept = flatten(map_vector(lambda value, d: value / len(bags) * d.square(), squares, inverse)).sum()
        return map_vector(lambda d: d * (mean / kept).sqrt(), inverse)
