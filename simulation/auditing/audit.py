"""Does the engine lose as much privacy as it claims, or more? An audit of real steps with planted canaries.

One step with a few dozen canaries shows little. But steps that start from the same weights, each on a cohort of its
own, are one mechanism in which every canary's coin touches one step only: it has the (epsilon, delta) of a single
step for every coin. So thousands of such steps are run and their canaries pooled, which is what the one-run theorem
(Steinke, Nasr and Jagielski 2023) needs many of:

1. in each run, every canary is put in by a fair coin (`dp-sgd`, `projected`), or is one of two variants with equal
   public view (`feature`, `feature-projective`, which make no claim about membership);
2. `StepGradient` does the step: it samples, clips, sums and adds noise;
3. the released gradient is scored with each canary's *dual* vector, orthogonal to all other canaries' contributions.
   Under feature-DP the public gradients are known as well: who is in the public batch is solved for by the same least
   squares, and a canary that does not seem to be in it is not guessed.

The claim is the accountant's for one step. How near a bound comes to it depends on how much canaries overlap, and on
the claim: that of the discrete Gaussian is Rényi accounting's, some 7 % above the truth here. Under
`feature-projective` both add up, so that half the noise is not quite refuted; a skipped clip is, everywhere.

A broken engine (`BREAKS`) is the same code run on other values than those that the claim is about; no ledger and no
patient's data are anywhere near.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardpose.shared.errors import ConfigError, WardposeError
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import SeededStream, Streams, seeded_streams
from wardpose.shared.privacy.units import UnitIndex
from wardpose.shared.training.cohort import CohortData, PublicData
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.step import StepGradient
from wardpose.shared.vectors import flatten
from wardpose.simulation.auditing.bounds import AuditResult
from wardpose.simulation.auditing.bounds import audit as bound_epsilon
from wardpose.simulation.auditing.canaries import STRATEGY, KnownGradients, Table, make_table, small_model

Name = Literal["dp-sgd", "projected", "feature", "feature-projective"]
Break = Literal["halved-noise", "skipped-clip", "shared-batch"]

BREAKS: dict[Break, str] = {
    "halved-noise": "noise of half the standard deviation that is accounted for",
    "skipped-clip": "gradients are summed without clipping",
    "shared-batch": "the public gradient is taken over the private batch, not over an independent draw",
}

_OVER = 3.0  # weakest canary's norm over the clip norm
_LOOSE = 64.0  # a clip norm that clips no canary
_FULL_BATCH_GAP = 0.5  # canary's gap over the noise: halved noise is then told best from the claim
_SECRET_BATCH = (0.1, 2.0)  # sampling rate and noise multiplier where a revealed batch is told best
_RANK, _FRAMES = 64, 96
_SEEN = 0.3  # share of a mean public gradient from which a canary counts as seen in the public batch


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What is audited.

    Attributes:
        mechanism: one that claims privacy.
        canaries: how many in all runs together; rounded up to whole runs.
        broken: what is deliberately wrong, if anything.
        sample_rate: q; by default 1, and 0.1 where the secrecy of the batch is what is looked at (`feature*`, intact
            or with a shared batch).
        noise_multiplier: sigma; by default what tells broken from intact best.
        delta: at which epsilon is claimed.
        confidence: of the lower bound.
        per_run: canaries of one run; 0: 16, and 8 where a projection leaves them less room.
        seed: of everything: canaries, coins and noise.

    Raises:
        ConfigError: the break does not exist in the mechanism, or a number is out of range.

    """

    mechanism: Name = "dp-sgd"
    canaries: int = 100_000
    broken: Break | None = None
    sample_rate: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-6
    confidence: float = 0.95
    per_run: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.broken == "shared-batch" and not self.by_replacement:
            raise ConfigError(
                f'audit: mechanism "{self.mechanism}" has no public batch to share; allowed with shared-batch: '
                "feature, feature-projective"
            )
        if self.per_run == 0:
            object.__setattr__(self, "per_run", 8 if self.projects else 16)
        if not 2 <= self.per_run <= _RANK // 2 or self.canaries < self.per_run:
            raise ConfigError(
                f"audit: {self.canaries} canaries, {self.per_run} in a run; allowed: 2 to {_RANK // 2} in a run, and "
                "at least one run"
            )

    @property
    def by_replacement(self) -> bool:
        """Whether canaries are exchanged for one of equal public view, rather than put in or left out."""
        return self.mechanism in ("feature", "feature-projective")

    @property
    def projects(self) -> bool:
        """Whether private gradients are projected on a public basis."""
        return self.mechanism in ("projected", "feature-projective")

    @property
    def runs(self) -> int:
        """How many steps."""
        return -(-self.canaries // self.per_run)

    def claimed(self, max_grad_norm: float) -> Mechanism:
        """Return the mechanism as it is accounted for."""
        secret = self.by_replacement and self.broken in (None, "shared-batch")
        rate = self.sample_rate if self.sample_rate is not None else _SECRET_BATCH[0] if secret else 1.0
        sigma = self.noise_multiplier
        if sigma is None:
            full = (2.0 if self.by_replacement else 1.0) / _FULL_BATCH_GAP
            sigma = _SECRET_BATCH[1] if secret and self.sample_rate is None else full
        return Mechanism(
            name=self.mechanism,
            unit="frame",
            sample_rate=rate,
            noise_multiplier=sigma,
            max_grad_norm=max_grad_norm,
            adjacency="replace-one" if self.by_replacement else "add-remove",
            projection=ProjectionOptions(
                rank=_RANK, energy=1.0, frames=_FRAMES, held_out=8, min_captured_energy=0.0, storage="stored"
            ),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What came of it.

    Attributes:
        plan: what was audited.
        claimed: the mechanism as accounted for.
        epsilon_claimed: of one step.
        result: the lower bound.
        scores: (m,) of all canaries, 1 apart between in and out (2 between the variants) were there no noise; 0 for
            those that are not guessed.
        included: (m,) whether each was in (was the first variant).
        efficiency: mean share of a canary's gap that the score sees; the rest is overlap with other canaries.

    """

    plan: AuditPlan
    claimed: Mechanism
    epsilon_claimed: float
    result: AuditResult
    scores: NDArray[np.float64]
    included: NDArray[np.bool_]
    efficiency: float

    @property
    def violated(self) -> bool:
        """Whether the claim is refuted."""
        return self.result.violates(self.epsilon_claimed)


def run_audit(plan: AuditPlan) -> Audit:
    """Run the steps, score the canaries, bound epsilon.

    Raises:
        WardposeError: looking gradients up does not give what differentiating them gives.

    """
    bench = Bench(plan)
    generator = np.random.default_rng([plan.seed, 1])
    included = generator.random((plan.runs, plan.per_run)) < 0.5
    streams = _streams(plan)
    scores = np.stack([bench.score(bench.release(bits, bench.actual, streams)) for bits in included])
    claimed = bench.claimed
    return Audit(
        plan=plan,
        claimed=claimed,
        epsilon_claimed=accounting.epsilon(claimed.events(1), delta=plan.delta, adjacency=claimed.adjacency),
        result=bound_epsilon(scores.ravel(), included.ravel(), delta=plan.delta, confidence=plan.confidence),
        scores=scores.ravel(),
        included=included.ravel(),
        efficiency=bench.efficiency,
    )


def break_mechanism(mechanism: Mechanism, broken: Break | None) -> Mechanism:
    """Return the values with which a broken engine runs while claiming those of `mechanism`."""
    if broken == "halved-noise":
        return mechanism.model_copy(update={"noise_multiplier": mechanism.noise_multiplier / 2})
    if broken == "skipped-clip":
        # Noise is sigma C: a clip norm that clips nothing, and as much noise as before.
        scale = _LOOSE / mechanism.max_grad_norm
        values = {"max_grad_norm": _LOOSE, "noise_multiplier": mechanism.noise_multiplier / scale}
        return mechanism.model_copy(update=values)
    return mechanism


def _streams(plan: AuditPlan) -> Streams:
    streams = seeded_streams(plan.seed)
    if plan.broken == "shared-batch":
        # The public draw repeats the private coins: B' = B in every step.
        twins = (SeededStream(plan.seed, "sampling"), SeededStream(plan.seed, "sampling"))
        return replace(streams, sampling=twins[0], public=twins[1])
    return streams


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
            public_frames=_FRAMES + 40 if plan.projects else 0,
        )
        self._known = KnownGradients(self._model, self.table)
        self._parameters = self._known.parameters()
        norms = self._contributions(plan.claimed(_LOOSE)).norm(dim=1)
        self.claimed = plan.claimed(float(norms.min()) / _OVER)
        self.actual = break_mechanism(self.claimed, plan.broken)
        self._duals = self._dual_vectors(self._contributions(self.claimed))
        gaps = self.claimed.max_grad_norm * self._duals[: plan.per_run].norm(dim=1)
        self.efficiency = float((1 / gaps).mean())
        self._check_table()

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
        """Score each canary, (n,)."""
        n = self._plan.per_run
        values = (self._duals @ released).numpy()
        scores = values[:n]
        if not self._plan.by_replacement:
            return np.asarray(scores)
        return np.where(values[n:] > _SEEN, scores, 0.0)

    def _step(
        self, ids: NDArray[np.int64], mechanism: Mechanism, streams: Streams, declared: int, *, known: bool = True
    ) -> Tensor:
        """One step of the real engine on the rows `ids`; with gradients looked up or differentiated."""
        table = self.table
        public = None
        if mechanism.uses_basis:
            public = PublicData(rows=table.take(table.public_frames, known=known), identity="audit")
        data = CohortData(
            private=table.take(ids, known=known),
            public=table.take(table.public_views(ids), known=known) if mechanism.uses_public_views else None,
            units=_units(len(ids)),
            views=1,
            frames_per_unit=1,
        )
        engine = self._known if known else UnitGradients(self._model, STRATEGY)
        step = StepGradient(engine, data, mechanism, streams=streams, declared_units=declared, public=public)
        return flatten(step(self._parameters))

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

    def _check_table(self) -> None:
        """Hold one noiseless step with differentiated gradients against the same with gradients looked up."""
        n = self._plan.per_run
        quiet = self.claimed.model_copy(update={"noise_multiplier": 0.0})
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
