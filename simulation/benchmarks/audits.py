"""How near audits come to the claims: every mechanism with its noise, and with half of it.

All at sampling rate 1, where a canary's gap is half the noise that is claimed, and half the noise is told best.
"""

from collections.abc import Sequence
from typing import Any, get_args

import torch

from wardpose.simulation.auditing.audit import run_audit
from wardpose.simulation.auditing.plan import AuditPlan, Name
from wardpose.simulation.auditing.verdict import METHODS
from wardpose.simulation.benchmarks.step import hardware

MECHANISMS: tuple[Name, ...] = get_args(Name)


def measure_audits(*, canaries: int, seed: int, mechanisms: Sequence[Name] = MECHANISMS) -> dict[str, Any]:
    """Audit each mechanism intact and with halved noise.

    Args:
        canaries: of each audit, in all steps together.
        seed: of canaries, coins and noise.
        mechanisms: rows.

    Returns:
        `rows` of `name`, `claimed` epsilon, the lower bounds `intact` and `halved`, those of the intact engine and of
        halved noise by each method and for independent noise, and `steps`; and what they were measured with.

    """
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in mechanisms:
        plan = AuditPlan(mechanism=name, canaries=canaries, sample_rate=1.0, seed=seed)
        halved_plan = AuditPlan(mechanism=name, canaries=canaries, sample_rate=1.0, seed=seed, broken="halved-noise")
        intact, halved = run_audit(plan), run_audit(halved_plan)
        row: dict[str, Any] = {
            "name": name,
            "claimed": round(intact.epsilon_claimed, 3),
            "intact": round(intact.result.epsilon_lower, 3),
            "halved": round(halved.result.epsilon_lower, 3),
        }
        for method in METHODS:
            row[f"intact, {method}"] = round(intact.result.epsilons[method], 3)
            row[f"halved, {method}"] = round(halved.result.epsilons[method], 3)
        for state, found in (("intact", intact), ("halved", halved)):
            shown = found.result.independent_epsilon
            row[f"{state}, independent noise"] = None if shown is None else round(shown, 3)
        rows.append({**row, "steps": plan.runs})
    setting = {"canaries": canaries, "delta": plan.delta, "confidence": plan.confidence, "seed": seed}
    return {"rows": rows, "setting": setting, "hardware": hardware("cpu")}
