"""Does the engine lose as much privacy as it claims, or more? An audit of real steps with planted canaries.

One step with a few dozen canaries shows little. But steps that start from the same weights, each on a cohort of its
own, are one mechanism in which every canary's coin touches one step only: it has the (epsilon, delta) of a single
step for every coin. So thousands of such steps are run and their canaries pooled:

1. in each run, every canary is put in by a fair coin (`dp-sgd`, `projected`), or is one of two variants with equal
   public view (`feature`, `feature-projective`, which make no claim about membership);
2. `StepGradient` does the step: it samples, clips, sums and adds noise;
3. the released gradient is scored with each canary's *dual* vector, orthogonal to all other canaries' contributions.
   Under feature-DP the public gradients are known as well: who is in the public batch is solved for by the same least
   squares, and a canary that does not seem to be in it is not guessed.

What the scores refute is in `verdict`. Canaries are orthogonal, inside the basis of a projection too, so that no score
loses anything to other canaries; with `AuditPlan.pictures` they are pictures whose gradients overlap as they will.

The claim is the accountant's for one step. That of the discrete Gaussian is Rényi accounting's, some 7 % above the
truth here; the lower bound is in the same currency, and so does not pay for it.

A broken engine (`BREAKS`) is the same code run on other values than those that the claim is about; no ledger and no
patient's data are anywhere near.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import SeededStream, Streams, seeded_streams
from wardpose.simulation.auditing.bench import Bench
from wardpose.simulation.auditing.plan import AuditPlan
from wardpose.simulation.auditing.verdict import Verdict, judge


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """What came of it.

    Attributes:
        plan: what was audited.
        claimed: the mechanism as accounted for.
        epsilon_claimed: of one step.
        result: the lower bounds.
        scores: (m,) of all canaries, 1 apart between in and out (2 between the variants) were there no noise; NaN for
            those that are not guessed.
        included: (m,) whether each was in (was the first variant).
        efficiency: mean share of a canary's gap that the score sees; the rest is overlap with other canaries.

    """

    plan: AuditPlan
    claimed: Mechanism
    epsilon_claimed: float
    result: Verdict
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
        result=judge(
            bench.likelihoods(scores),
            included,
            claimed=claimed,
            delta=plan.delta,
            confidence=plan.confidence,
            # Of whitened steps it is not shown that noise is independent from canary to canary once they are undone.
            orthogonal=not plan.pictures and not plan.whitens,
        ),
        scores=scores.ravel(),
        included=included.ravel(),
        efficiency=bench.efficiency,
    )


def _streams(plan: AuditPlan) -> Streams:
    streams = seeded_streams(plan.seed)
    if plan.broken == "shared-batch":
        # The public draw repeats the private coins: B' = B in every step.
        twins = (SeededStream(plan.seed, "sampling"), SeededStream(plan.seed, "sampling"))
        return replace(streams, sampling=twins[0], public=twins[1])
    return streams
