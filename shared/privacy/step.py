"""One noised gradient: the private part of a step, and the public part beside it.

One step at weights w, with q the sampling rate, N the *declared* number of units and C the clip norm:

1. B: every unit takes part with probability q, by coins of the secret sampling stream; F frames of each.
2. s = sum over B of clip_C(unit gradient) + N(0, (sigma C)^2), noise also when B is empty.
3. u = mean gradient over a public batch that comes from another stream (feature mechanisms only).
4. the gradient is weight * u + s / (q N).

Neither |B| nor the realised number of units appears in it. Given w, u is independent of B and of the noise,
so a step is a Poisson-subsampled Gaussian query of sensitivity C and everything else is post-processing. Were
u the mean over B itself, everybody who knows phi(D) could solve for B, and nothing would be left of the
amplification by subsampling.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.basis import PublicBasis
from wardpose.shared.privacy.cohort import CohortData, PublicData, RowIds, load_bags
from wardpose.shared.privacy.gradients import Bags, UnitGradients, Vector, join, map_vector
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import Streams
from wardpose.shared.privacy.projection import Projection, ProjectionReport
from wardpose.shared.privacy.public_part import PublicPart, PublicViews
from wardpose.shared.privacy.queries import ClipSum, ProjectClipSum, Query, add_noise
from wardpose.shared.privacy.units import poisson_sample

DeclaredUnits = int | Mapping[str, int]
"""N; by consent tier (the plain tier is "") where a mechanism has tiers."""


class StepGradient:
    """The noised gradients of one round; every call is one step.

    Args:
        engine: the gradients' engine, at the round's first weights.
        data: the cohort.
        mechanism: what a step does.
        streams: sampling, noise and public draws, all independent.
        declared_units: N.
        public: public data of the basis, where the mechanism's basis comes from public data.
        first_step: steps that the run took before this round, the position in a schedule.

    Raises:
        ConfigError: the mechanism needs public views, public data or tiers that are not given.

    """

    def __init__(
        self,
        engine: UnitGradients,
        data: CohortData,
        mechanism: Mechanism,
        *,
        streams: Streams,
        declared_units: DeclaredUnits,
        public: PublicData | None = None,
        first_step: int = 0,
    ) -> None:
        views = None
        if mechanism.uses_public_views:
            if data.public is None:
                raise ConfigError(f'mechanism "{mechanism.name}" needs rows of the public view; the cohort has none')
            views = PublicViews(engine, data.public, mechanism.feature.labels)
        self._private = (
            _PrivatePart(engine, data, mechanism, streams, declared_units, public, views, first_step)
            if mechanism.reads_private
            else None
        )
        self._public = PublicPart(engine, data, views, mechanism, streams.public) if views is not None else None

    def __call__(self, parameters: Vector) -> Vector:
        """Gradient at `parameters`, float64."""
        parts = [part(parameters) for part in (self._private, self._public) if part is not None]
        return parts[0] if len(parts) == 1 else map_vector(torch.add, *parts)

    @property
    def projection(self) -> ProjectionReport | None:
        """What became of the basis; `None` before the first step or without one."""
        return self._private.report if self._private is not None else None

    @property
    def coordinates(self) -> Tensor | None:
        """Sum of all steps' gradients in the public frames' coordinates, (m,) float64, if asked for."""
        return self._private.coordinates if self._private is not None else None


class _PrivatePart:
    def __init__(
        self,
        engine: UnitGradients,
        data: CohortData,
        mechanism: Mechanism,
        streams: Streams,
        declared_units: DeclaredUnits,
        public: PublicData | None,
        views: PublicViews | None,
        first_step: int,
    ) -> None:
        self._engine = engine
        self._data = data
        self._whole = mechanism
        self._mechanism = mechanism.at(first_step)
        self._step = first_step
        self._streams = streams
        self._declared = declared_units
        self._expected = expected_batch_size(self._mechanism, declared_units)
        self._views = views if mechanism.uses_difference else None
        self._projection = Projection(engine, mechanism, public, views) if mechanism.uses_basis else None
        self._chunk = 0
        self.coordinates: Tensor | None = None

    @property
    def report(self) -> ProjectionReport | None:
        return self._projection.report if self._projection is not None else None

    def __call__(self, parameters: Vector) -> Vector:
        self._mechanism = self._whole.at(self._step)
        self._expected = expected_batch_size(self._mechanism, self._declared)
        self._step += 1
        basis = self._projection.at(parameters) if self._projection is not None else None
        query = self._query(parameters, basis)
        residual = self._residual_query(parameters, basis)
        ids = self._data.draw_rows(self._sample(), self._streams.sampling)
        total = query.zero()
        rest = residual.zero() if residual is not None else {}
        for gradients in self._gradients(parameters, ids):
            total = map_vector(torch.add, total, query(gradients))
            if residual is not None and basis is not None:
                missed = map_vector(torch.sub, gradients, basis.decode_units(basis.encode(gradients)))
                rest = map_vector(torch.add, rest, residual(missed))
            del gradients  # before the next ones are made
        noised = add_noise(total, query, self._mechanism.noise_multiplier, self._streams.noise)
        if basis is not None:
            self._remember(basis, noised["coefficients"])
            noised = basis.decode(noised["coefficients"])
            options = self._mechanism.projection.residual
            if residual is not None and options is not None:
                released = add_noise(rest, residual, options.noise_multiplier, self._streams.noise)
                noised = map_vector(torch.add, noised, released)
        return map_vector(lambda value: value.double() / self._expected, noised)

    def _query(self, parameters: Vector, basis: PublicBasis | None) -> Query:
        mechanism = self._mechanism
        if basis is None:
            bound = float("inf") if mechanism.name == "none" else mechanism.max_grad_norm
            return ClipSum(bound, parameters, mechanism.discrete)
        return ProjectClipSum(
            mechanism.max_grad_norm,
            basis.encode,
            basis.rank,
            before=mechanism.projection.clip == "before",
            discrete=mechanism.discrete,
        )

    def _residual_query(self, parameters: Vector, basis: PublicBasis | None) -> ClipSum | None:
        options = self._mechanism.projection.residual
        if options is None or basis is None:
            return None
        return ClipSum(options.max_grad_norm, parameters, self._mechanism.discrete)

    def _sample(self) -> NDArray[np.int64]:
        """Draw the units that take part, each by its own coin."""
        units, stream = self._data.units, self._streams.sampling
        if not self._mechanism.tiers:
            return np.asarray(poisson_sample(len(units), self._mechanism.sample_rate, stream), np.int64)
        drawn = []
        for tier in ("", *sorted(self._mechanism.tiers)):
            members = units.of_tier(tier)
            drawn.append(members[poisson_sample(len(members), self._mechanism.rate(tier), stream)])
        return np.concatenate(drawn).astype(np.int64)

    def _gradients(self, parameters: Vector, ids: RowIds) -> Iterator[Vector]:
        if len(ids) and not self._chunk:
            self._chunk = self._engine.micro_batch(self._bags(ids[:1]))
        for start in range(0, len(ids), max(1, self._chunk)):
            yield from self._engine.per_unit(parameters, self._bags(ids[start : start + self._chunk]))

    def _bags(self, ids: RowIds) -> Bags:
        bags = load_bags(self._engine, self._data.private, ids)
        return bags if self._views is None else join(bags, self._views.bags(ids))

    def _remember(self, basis: PublicBasis, coefficients: Tensor) -> None:
        if self._mechanism.projection.uplink == "coefficients":
            step = basis.coordinates(coefficients) / self._expected
            self.coordinates = step if self.coordinates is None else self.coordinates + step


def expected_batch_size(mechanism: Mechanism, declared_units: DeclaredUnits) -> float:
    """Return the expected units of a step by the declared numbers, the fixed denominator q N.

    Raises:
        ConfigError: not positive, or the numbers are not by tier although the mechanism has tiers (or the
            other way round).

    """
    tiers = {"", *mechanism.tiers}
    declared = {"": declared_units} if isinstance(declared_units, int) else dict(declared_units)
    if set(declared) - tiers or (mechanism.tiers and isinstance(declared_units, int)):
        raise ConfigError(f"declared units {declared_units!r} do not fit the mechanism's tiers {sorted(tiers)}")
    expected = sum(mechanism.rate(tier) * count for tier, count in declared.items())
    if expected <= 0:
        raise ConfigError(f"declared units {declared_units!r}: allowed: 1 or more")
    return expected
