"""The bench: canaries put into steps of the engine, and read off what they release."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardpose.shared.errors import WardposeError
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism
from wardpose.shared.privacy.noise import Streams, seeded_streams
from wardpose.shared.privacy.units import UnitIndex
from wardpose.shared.training.basis import build_basis, public_frames
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.ridge import Ridge, like_rows, rows_of
from wardpose.shared.training.step import StepGradient
from wardpose.shared.vectors import Vector, flatten
from wardpose.simulation.auditing.canaries import (
    STRATEGY,
    KnownGradients,
    Table,
    make_orthogonal,
    make_table,
    small_model,
)
from wardpose.simulation.auditing.plan import FRAMES, LOOSE, PEOPLE, AuditPlan, break_mechanism

_OVER = 3.0  # weakest canary's norm over the clip norm
_SEEN = 0.3  # share of a mean public gradient from which a canary counts as seen in the public batch
_PUBLIC = "audit"  # identity of the public data


class Bench:
    """The canaries, the engine's steps on them, and the auditor's scores.

    Attributes:
        table: the canaries.
        claimed: the mechanism as accounted for, its clip norm a third of the weakest canary's.
        actual: what is run.
        efficiency: see `Audit`.

    """

    def __init__(self, plan: AuditPlan) -> None:
        self._plan = plan
        self._model = small_model(plan.seed)
        self.table: Table = make_table(
            self._model,
            plan.per_run,
            plan.seed,
            pairs=plan.by_replacement,
            public_frames=PEOPLE if plan.whitens else FRAMES + 40 if plan.projects else 0,
            candidates=4 if plan.pictures else 1,
            strategy="maps" if plan.whitens else STRATEGY,
        )
        self._known = KnownGradients(self._model, self.table)
        self._parameters = self._known.parameters()
        self._ridge = self._closed_form() if plan.whitens else None
        self._check_table()
        if not plan.pictures:
            span = self._span() if plan.projects else None
            table = self._turned(self.table)
            self.table = self._turned(make_orthogonal(table, pairs=plan.by_replacement, span=span), back=True)
            self._known = KnownGradients(self._model, self.table)
        whole = self._contributions(plan.claimed(LOOSE))
        norms = whole.norm(dim=1, keepdim=True)
        self.claimed = plan.claimed(float(norms.min()) / _OVER)
        self.actual = break_mechanism(self.claimed, plan.broken)
        self._duals = self._dual_vectors(whole / norms * self.claimed.max_grad_norm)
        self._spread = self.claimed.max_grad_norm * self._duals[: plan.per_run].norm(dim=1).numpy()
        self.efficiency = float((1 / self._spread).mean())

    def release(self, bits: NDArray[np.bool_], mechanism: Mechanism, streams: Streams, *, known: bool = True) -> Tensor:
        """Return one step's released gradient, times the declared batch size, (p,) float64.

        Args:
            bits: (n,) which canaries are in, or are the first variant.
            mechanism: what the engine runs.
            streams: its coins and noise.
            known: look gradients up rather than differentiate.

        """
        n = self._plan.per_run
        ids = np.arange(n) + n * ~bits if self._plan.by_replacement else np.flatnonzero(bits)
        return self._step(ids.astype(np.int64), mechanism, streams, n, known=known) * (mechanism.sample_rate * n)

    def score(self, released: Tensor) -> NDArray[np.float64]:
        """Score each canary, (n,): between in and out 1 apart (variants 2) but for the noise; NaN: unseen."""
        n = self._plan.per_run
        values = (self._duals @ released).numpy()
        scores = values[:n]
        if not self._plan.by_replacement:
            return np.asarray(scores)
        return np.where(values[n:] > _SEEN, scores, np.nan)

    def likelihoods(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much likelier scores (..., n) are of a canary that was in, by the claim without sampling; logarithms."""
        middle, gap = (0.0, 2.0) if self._plan.by_replacement else (0.5, 1.0)
        return np.asarray((scores - middle) * gap / (self.claimed.noise_multiplier * self._spread) ** 2)

    def _step(
        self, ids: NDArray[np.int64], mechanism: Mechanism, streams: Streams, declared: int, *, known: bool = True
    ) -> Tensor:
        """One step of the real engine on the rows `ids`; with gradients looked up or differentiated."""
        table = self.table
        public = None
        if mechanism.reads_public_people:
            known_public = known and mechanism.uses_basis  # a curvature is not looked up
            public = PublicData(rows=table.take(table.public_frames, known=known_public), identity=_PUBLIC)
        data = CohortData(
            private=table.take(ids, known=known),
            public=table.take(table.public_views(ids), known=known) if mechanism.uses_public_views else None,
            units=_units(len(ids)),
            views=1,
            frames_per_unit=1,
        )
        engine = self._known if known else UnitGradients(self._model, table.strategy)
        step = StepGradient(
            engine, data, mechanism, streams=streams, declared_units=declared, public=public, ridge=self._ridge
        )
        released = step(self._parameters)
        return flatten(released if self._ridge is None else self._undone(released, self._ridge))

    def _closed_form(self) -> Ridge:
        """Make the curvature of every step: its public frames and the weights never change."""
        table = self.table
        public = PublicData(rows=table.take(table.public_frames, known=False), identity=_PUBLIC)
        return Ridge(self._known, self._plan.claimed(LOOSE), public, None)

    def _undone(self, released: Vector, ridge: Ridge) -> Vector:
        """Take a released gradient back to the coordinates in which its noise is the same in each: it is public how."""
        whitening = ridge.at(self._parameters)
        rows = rows_of({name: value[None] for name, value in released.items()})
        turned = rows @ whitening.vectors / whitening.scale[:, None]
        return like_rows(turned, self._parameters, units=False)

    def _turned(self, table: Table, *, back: bool = False) -> Table:
        """Take a table's gradients to the coordinates in which they are clipped, or back; the same without any."""
        if self._ridge is None:
            return table
        whitening = self._ridge.at(self._parameters)
        rows, scale = rows_of(table.gradients), whitening.scale[:, None]
        rows = rows / scale @ whitening.vectors.mT if back else rows @ whitening.vectors * scale
        return replace(table, gradients=like_rows(rows, table.gradients))

    def _contributions(self, mechanism: Mechanism) -> Tensor:
        """Find what each row adds to a released sum: a step on it alone, without noise, sampling and public part."""
        bare = mechanism.model_copy(
            update={"noise_multiplier": 0.0, "sample_rate": 1.0, "feature": FeatureOptions(weight=0.0)}
        )
        rows = (2 if self._plan.by_replacement else 1) * self._plan.per_run
        streams = seeded_streams(self._plan.seed + 1)
        return torch.stack([self._step(np.array([row]), bare, streams, 1) for row in range(rows)])

    def _dual_vectors(self, contributions: Tensor) -> Tensor:
        """Rows that read the canaries' (and the public gradients') coefficients off a released gradient."""
        n = self._plan.per_run
        known = contributions
        if self._plan.by_replacement:
            views = [{name: value[2 * n + i] for name, value in self.table.gradients.items()} for i in range(n)]
            public = torch.stack([flatten(view).double() for view in views])
            known = torch.cat([(contributions[:n] - contributions[n:]) / 2, public])
        duals: Tensor = torch.linalg.solve(known @ known.T, known)
        return duals

    def _span(self) -> Tensor:
        """Orthonormal rows (k, p) that span the basis of every step: its public frames and weights never change."""
        rows = self.table.take(self.table.public_frames, known=True)
        options = self._plan.claimed(LOOSE).projection
        frames, held_out = public_frames(
            lambda ids: load_bags(self._known, rows, ids), _PUBLIC, len(rows), options, refresh=0
        )
        basis = build_basis(self._known, self._parameters, frames, held_out, options)
        directions = torch.stack([flatten(basis.decode(unit)) for unit in torch.eye(basis.rank, dtype=torch.float64)])
        span: Tensor = torch.linalg.qr(directions.double().T).Q.T
        return span

    def _check_table(self) -> None:
        """Hold one noiseless step with the pictures' gradients looked up against the same with differentiated ones."""
        n = self._plan.per_run
        typical = torch.stack([value[:n].flatten(1).square().sum(dim=1) for value in self.table.gradients.values()])
        quiet = self._plan.claimed(float(typical.sum(dim=0).sqrt().mean()) / _OVER)
        quiet = quiet.model_copy(update={"noise_multiplier": 0.0})
        ids = np.arange(n, dtype=np.int64)
        looked_up, computed = (
            self._step(ids, quiet, seeded_streams(self._plan.seed), n, known=known) for known in (True, False)
        )
        error = float((looked_up - computed).norm() / computed.norm().clamp(min=1e-30))
        if not error < 1e-2:
            raise WardposeError(f"audit: gradients looked up and differentiated differ by {error:.2g}; allowed: 0.01")


def _units(count: int) -> UnitIndex:
    return UnitIndex([(str(unit),) for unit in range(count)], unit="frame") if count else _Nobody()


class _Nobody(UnitIndex):
    """What is left when every canary's coin says out; a site's cohort is never empty, an audited one may be."""

    def __init__(self) -> None:
        super().__init__([("0",)], unit="frame")
        self.names, self.tiers, self._rows = (), (), []
