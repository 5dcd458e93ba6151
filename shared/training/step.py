"""One noised gradient: the private part of a step, and the public part beside it.

One step at weights w, with q the sampling rate, N the *declared* number of units and C the clip norm:

1. B: every unit takes part with probability q, by coins of the secret sampling stream; F frames of each.
2. s = sum over B of clip_C(unit gradient) + N(0, (sigma C)^2), noise also when B is empty.
3. u = mean gradient over a public batch that comes from another stream (feature mechanisms only).
4. the gradient is weight * u + s / (q N), and what public people add (`anchor`).

Neither |B| nor the realised number of units appears in it. Given w, u is independent of B and of the noise,
so a step is a Poisson-subsampled Gaussian query of sensitivity C and everything else is post-processing. Were
u the mean over B itself, everybody who knows phi(D) could solve for B, and nothing would be left of the
amplification by subsampling.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from statistics import NormalDist
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.clipping import ClipSum, ProjectClipSum, Query, add_noise, add_share
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import Streams
from wardpose.shared.privacy.sampling import poisson_sample
from wardpose.shared.training.anchor import PublicAnchor
from wardpose.shared.training.basis import PublicBasis
from wardpose.shared.training.cohort import CohortData, PublicData, RowIds, load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients, join
from wardpose.shared.training.projection import Projection, ProjectionReport
from wardpose.shared.training.public_part import PublicPart, PublicViews
from wardpose.shared.training.ridge import Ridge, RidgeReport, Whitening
from wardpose.shared.training.view_gate import ViewReport, judge_view
from wardpose.shared.vectors import Vector, map_vector

DeclaredUnits = int | Mapping[str, int]
"""N; by consent tier (the plain tier is "") where a mechanism has tiers."""


class StepObserver(Protocol):
    """Who may look at the units of a step from inside the site; it changes nothing, and nothing of it may leave."""

    def losses(self, values: list[float], *, frames: int) -> None:
        """Take note of the losses of a micro-batch's units, each of so many frames."""
        ...

    def norms(self, values: list[float]) -> None:
        """Take note of what units contribute before it is clipped."""
        ...


class StepGradient:
    """The noised gradients of one round; every call is one step.

    Args:
        engine: the gradients' engine, at the round's first weights.
        data: the cohort.
        mechanism: what a step does.
        streams: sampling, noise and public draws, all independent.
        declared_units: N.
        public: public data of the basis, the curvature and the judgement of the view, where the mechanism has them.
        first_step: steps that the run took before this round, the position in a schedule.
        anchor: what public people add to every step.
        observer: looks at the units, if anybody does.
        ridge: the closed form of `label-ridge`; made of public people or views when absent. For whoever takes many
            steps from the same weights.

    Attributes:
        coordinates: sum of all steps' gradients in the public frames' coordinates, (m,) float64, if asked for.
        view: whether the round uses the public view, where the mechanism asks for a judgement.

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
        anchor: PublicAnchor | None = None,
        observer: StepObserver | None = None,
        ridge: Ridge | None = None,
    ) -> None:
        views = None
        if mechanism.uses_public_views:
            if data.public is None:
                raise ConfigError(f'mechanism "{mechanism.name}" needs rows of the public view; the cohort has none')
            views = PublicViews(engine, data.public, mechanism.feature.labels)
        self.view: ViewReport | None = judge_view(engine, mechanism, public)
        if self.view is not None and not self.view.used:
            views = None
        self._engine = engine
        self._data = data
        self._mechanism = mechanism
        self._streams = streams
        self._declared = declared_units
        self._step = first_step
        self._views = views if mechanism.uses_difference else None
        self._public: PublicPart | None = None
        if views is not None and mechanism.adds_public_part:
            self._public = PublicPart(engine, data, views, mechanism, streams.public)
        self._projection = Projection(engine, mechanism, public, views) if mechanism.uses_basis else None
        self._ridge = ridge
        if ridge is None and mechanism.whitens:
            self._ridge = Ridge(engine, mechanism, public, views)
        self._rows = data.private
        if data.public is not None and mechanism.reads_views_alone:  # with the keypoints, which stay private
            self._rows = replace(data.private, inputs=data.public.inputs)
        self._anchor = anchor
        self._observer = observer
        self._chunk = 0
        self.coordinates: Tensor | None = None
        if mechanism.reads_private:
            expected_batch_size(mechanism.at(first_step), declared_units)

    def __call__(self, parameters: Vector) -> Vector:
        """Gradient at `parameters`, float64."""
        parts = []
        if self._mechanism.reads_private:
            parts.append(self._private(parameters, self._mechanism.at(self._step)))
        if self._public is not None:
            parts.append(self._public(parameters))
        if self._anchor is not None:
            parts.append(self._anchor(parameters))
        self._step += 1
        return map_vector(lambda *values: sum(values[1:], start=values[0]), *parts)

    def share(self, parameters: Vector, *, sites: int) -> Tensor:
        """Return what this site adds to a step over the cohorts of so many sites: (p,) int64, in grid steps.

        Raises:
            ConfigError: the mechanism's noise is not distributed.

        """
        mechanism = self._mechanism.at(self._step)
        if mechanism.distributed is None:
            raise ConfigError("the mechanism's noise is not distributed; a site's share alone would protect nobody")
        query = self._query(mechanism, parameters, None)
        total = query.zero()
        for gradients, count in self._gradients(parameters, self._sample(mechanism), mechanism):
            query.add(total, gradients, count)
        self._step += 1
        noised = add_share(
            total, mechanism.distributed, mechanism.noise_multiplier, sites=sites, stream=self._streams.noise
        )
        return torch.from_numpy(noised)

    @property
    def projection(self) -> ProjectionReport | None:
        """What became of the basis; `None` before the first step or without one."""
        return self._projection.report if self._projection is not None else None

    @property
    def ridge(self) -> RidgeReport | None:
        """What the closed form made of the noised sum; `None` before the first step or for other mechanisms."""
        return self._ridge.report if self._ridge is not None else None

    def _private(self, parameters: Vector, mechanism: Mechanism) -> Vector:
        """Bounded sums over the units that take part in this step, noised, over the expected batch size."""
        expected = expected_batch_size(mechanism, self._declared)
        basis = self._projection.at(parameters) if self._projection is not None else None
        whitening = self._ridge.at(parameters) if self._ridge is not None else None
        query = self._query(mechanism, parameters, whitening if basis is None else basis)
        residual = _residual_query(mechanism, parameters, basis)
        total = query.zero()
        rest = residual.zero() if residual is not None else {}
        for gradients, count in self._gradients(parameters, self._sample(mechanism), mechanism):
            query.add(total, gradients, count)
            if residual is not None and basis is not None:
                missed = map_vector(torch.sub, gradients, basis.decode_units(basis.encode(gradients)))
                residual.add(rest, missed, count)
        noised = add_noise(total, query, mechanism.noise_multiplier, self._streams.noise)
        if basis is not None:
            coefficients = noised["coefficients"]
            if mechanism.sends_coefficients:
                self._remember(basis.coordinates(coefficients) / expected)
            noised = basis.decode(coefficients)
            options = mechanism.projection.residual
            if residual is not None and options is not None:
                released = add_noise(rest, residual, options.noise_multiplier, self._streams.noise)
                noised = map_vector(torch.add, noised, released)
        if whitening is not None and self._ridge is not None:
            deviation = mechanism.noise_multiplier * query.max_grad_norm
            noised = whitening.decode(self._ridge.shrunk(noised["coefficients"], deviation))
        return map_vector(lambda value: value.double() / expected, noised)

    def _query(self, mechanism: Mechanism, parameters: Vector, within: PublicBasis | Whitening | None) -> Query:
        observer = self._observer
        watch = None if observer is None else lambda norms: observer.norms(norms.tolist())
        return _main_query(mechanism, parameters, within, watch)

    def _sample(self, mechanism: Mechanism) -> RowIds:
        """Draw the units that take part, each by its own coin, and rows of each."""
        units, stream = self._data.units, self._streams.sampling
        if mechanism.tiers:
            drawn = []
            for tier in ("", *sorted(mechanism.tiers)):
                members = units.of_tier(tier)
                drawn.append(members[poisson_sample(len(members), mechanism.rate(tier), stream)])
            chosen = np.concatenate(drawn).astype(np.int64)
        else:
            chosen = poisson_sample(len(units), mechanism.sample_rate, stream)
        return self._data.draw_rows(chosen, stream)

    def _gradients(self, parameters: Vector, ids: RowIds, mechanism: Mechanism) -> Iterator[tuple[Vector, int]]:
        """Yield micro-batches of one size, and how many of each are units; the size follows from public numbers."""
        if len(ids) and not self._chunk:
            most = self._engine.micro_batch(self._bags(ids[:1]))
            self._chunk = micro_batch_size(most, *_batch_size(mechanism, self._declared))
        scale = None if self._anchor is None else self._anchor.scale
        for start in range(0, len(ids), max(1, self._chunk)):
            count = min(self._chunk, len(ids) - start)
            rows = start + np.minimum(np.arange(self._chunk), count - 1)  # padded before features are computed, too
            watch = self._watch(count, frames=ids.shape[1])
            for gradients, _ in self._engine.padded(parameters, self._bags(ids[rows]), self._chunk, watch=watch):
                scaled = gradients if scale is None else map_vector(lambda g, d: g * d.to(g), gradients, scale)
                yield scaled, count

    def _watch(self, count: int, *, frames: int) -> Callable[[Tensor], None] | None:
        observer = self._observer
        if observer is None:
            return None
        return lambda losses: observer.losses(losses[:count].tolist(), frames=frames)

    def _bags(self, ids: RowIds) -> Bags:
        bags = load_bags(self._engine, self._rows, ids)
        return bags if self._views is None else join(bags, self._views.bags(ids))

    def _remember(self, step: Tensor) -> None:
        self.coordinates = step if self.coordinates is None else self.coordinates + step


def _main_query(
    mechanism: Mechanism,
    parameters: Vector,
    within: PublicBasis | Whitening | None,
    watch: Callable[[Tensor], None] | None,
) -> Query:
    if within is None:
        bound = mechanism.max_grad_norm if mechanism.is_private else float("inf")
        return ClipSum(bound, parameters, mechanism.discrete, watch)
    return ProjectClipSum(
        mechanism.max_grad_norm,
        within.encode,
        within.rank,
        before=mechanism.uses_basis and mechanism.projection.clip == "before",
        discrete=mechanism.discrete,
        watch=watch,
    )


def _residual_query(mechanism: Mechanism, parameters: Vector, basis: PublicBasis | None) -> ClipSum | None:
    """GEP's second query; without a basis nothing is left over that it could ask for."""
    options = mechanism.projection.residual
    return None if options is None or basis is None else ClipSum(options.max_grad_norm, parameters, mechanism.discrete)


def expected_batch_size(mechanism: Mechanism, declared_units: DeclaredUnits) -> float:
    """Return the expected units of a step by the declared numbers, the fixed denominator q N.

    Raises:
        ConfigError: not positive, or the numbers are not by tier although the mechanism has tiers (or the
            other way round).

    """
    return _batch_size(mechanism, declared_units)[0]


def micro_batch_size(most: int, expected: float, deviation: float) -> int:
    """Size at which a step's micro-batches, the last one padded, are expected to cost least.

    A micro-batch costs its rows and, for what is done once for all of them, about one row more (measured: 0.3 with a
    trunk in front of it, 1.2 without, 4 with a basis).

    Examples:
        >>> micro_batch_size(8, expected=16, deviation=0)  # two full ones
        8
        >>> micro_batch_size(8, expected=9, deviation=0)  # nine rows, not sixteen
        3
        >>> micro_batch_size(8, expected=16, deviation=4)  # somewhere between 8 and 24 units
        5

    Args:
        most: that fit in memory.
        expected: units of a step.
        deviation: standard deviation of their number.

    """
    spread = NormalDist(expected, max(deviation, 1e-9))
    counts = [max(1, round(spread.inv_cdf((part + 0.5) / 32))) for part in range(32)]
    return min(range(1, most + 1), key=lambda size: sum(math.ceil(count / size) for count in counts) * (size + 1))


def _batch_size(mechanism: Mechanism, declared_units: DeclaredUnits) -> tuple[float, float]:
    """Mean and standard deviation of the units of a step, by the declared numbers; raises as `expected_batch_size`."""
    tiers = {"", *mechanism.tiers}
    declared = {"": declared_units} if isinstance(declared_units, int) else dict(declared_units)
    if set(declared) - tiers or (mechanism.tiers and isinstance(declared_units, int)):
        raise ConfigError(f"declared units {declared_units!r} do not fit the mechanism's tiers {sorted(tiers)}")
    expected = sum(mechanism.rate(tier) * count for tier, count in declared.items())
    if expected <= 0:
        raise ConfigError(f"declared units {declared_units!r}: allowed: 1 or more")
    variance = sum(mechanism.rate(tier) * (1 - mechanism.rate(tier)) * count for tier, count in declared.items())
    return expected, math.sqrt(variance)
