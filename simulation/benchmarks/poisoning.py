"""What one poisoning site does to the model, rule by rule: it sends its update turned round and ten times as long.

Every row is a whole federation with the apps that hospitals run, seeded alike, so that rows differ in the poison and in
what stands against it alone:

* `honest`: all sites are honest.
* `bare`: the poison meets the rule with neither bound nor median.
* `clipped`: every update is shortened to the median of the norms first (`server.admission.clip_to_median`).
* `guarded`: the default. The poison is longer than its mechanism can make it, and its site leaves the run.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message

from wardpose.client.app import app as client_app
from wardpose.server.app import run_federation
from wardpose.server.summary import summarise
from wardpose.shared.config import AdmissionConfig, FederationConfig, changed
from wardpose.shared.signing import Signer, load_signer
from wardpose.shared.wire import arrays_of, pack_together
from wardpose.simulation.benchmarks.step import hardware
from wardpose.simulation.forging import signed_again
from wardpose.simulation.grid import Fault, InProcessGrid
from wardpose.simulation.layout import prepare_sites

RULES = ("fedavg", "fedadam", "fedmedian", "fedtrimmedavg", "krum")
GUARDS = {
    "bare": AdmissionConfig(slack=1e12, clip_to_median=False),
    "clipped": AdmissionConfig(slack=1e12),
    "guarded": AdmissionConfig(),
}


def measure_poisoning(plan: FederationConfig, *, rules: Sequence[str] = RULES, factor: float = -10.0) -> dict[str, Any]:
    """Score a federation with and without its last site poisoning every round, under each rule.

    Args:
        plan: sites have data of their own, all of it public here; it is seeded.
        rules: `server.aggregation.name` of each row.
        factor: by which the poisoning site multiplies its update.

    Returns:
        `rows` of `name` (the rule) and the test scores `honest`, `bare`, `clipped` and `guarded`, the score `before`
        any training, and what they were measured on.

    """
    plan = changed(plan, {"seed": 1 if plan.seed is None else plan.seed})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rule in rules:
            row: dict[str, Any] = {"name": rule}
            for column in ("honest", *GUARDS):
                guards = GUARDS.get(column, AdmissionConfig())
                run = _with(plan, rule, guards)
                sites = prepare_sites(plan, folder / f"{rule}-{column}")
                poison = [] if column == "honest" else _poison(plan, sites, factor)
                with InProcessGrid(client_app, sites, faults=poison) as grid:
                    run_federation(grid, run, folder / f"{rule}-{column}", resume=False)
                summary = summarise(folder / f"{rule}-{column}")
                row[column] = round(summary["score_final"], 3)
                row["before"] = round(summary["score_initial"], 3)
            rows.append(row)
    setting = {
        "sites": len(plan.sites),
        "factor": factor,
        "rounds": plan.rounds,
        "mechanism": plan.mechanism.name,
        "score": plan.server.score,
    }
    return {"rows": rows, "hardware": hardware("cpu"), "setting": setting}


def _poison(plan: FederationConfig, sites: Mapping[str, Path], factor: float) -> list[Fault]:
    """Return the last site's faults: in every round it multiplies its update, and signs it as every site does."""
    name = plan.sites[-1].name
    replace = multiplying(factor, load_signer(sites[name].parent / "node.key"))
    return [Fault(site=name, round=number, kind="replace", replace=replace) for number in range(1, plan.rounds + 1)]


def multiplying(factor: float, signer: Signer) -> Any:
    """Make the fault's replacement that multiplies every number of a release, and signs it with the site's key."""

    def replace(_: Message, answer: Message) -> Message:
        if answer.has_content():
            poison = {name: value * np.float32(factor) for name, value in arrays_of(answer.content).items()}
            answer.content["arrays"] = pack_together(poison)
            signed_again(answer.content, signer)
        return answer

    return replace


def _with(plan: FederationConfig, rule: str, guards: AdmissionConfig) -> FederationConfig:
    aggregation = {"name": rule, "malicious": 1 if rule == "krum" else 0}
    server = plan.server.model_dump() | {"aggregation": aggregation, "admission": guards.model_dump()}
    return changed(plan, {"server": server})
