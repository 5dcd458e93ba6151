"""What the simulator adds to training: the same steps in a bare loop and as a federation, in one process.

Both build their feature caches and networks from nothing. The bare loop has no ledger, no messages, no server and no
checkpoint: it calls the engine site by site and averages.
"""

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from wardpose.server.course import declare
from wardpose.server.ledger import ServerLedger
from wardpose.shared.config import FederationConfig, changed
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import build_model
from wardpose.shared.privacy.noise import secure_streams
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.training.cohort import build_cohort
from wardpose.shared.training.local import local_update
from wardpose.simulation.benchmarks.step import hardware
from wardpose.simulation.run import simulate


def measure_overhead(plan: FederationConfig, *, repetitions: int = 2) -> dict[str, Any]:
    """Time both ways, best of `repetitions`, interleaved.

    Returns:
        `rows` of `name`, `seconds`, `added_seconds`, `time_ratio`, and what they were measured on.

    Raises:
        ConfigError: a site of the plan has no data of its own.

    """
    plan = changed(plan, {"data": plan.data.model_copy(update={"validation": (), "test": ()}).model_dump()})
    bare, simulated = [], []
    for _ in range(repetitions):
        gc.collect()
        bare.append(_timed(_bare, plan))
        gc.collect()
        simulated.append(_timed(_simulated, plan))
    best = {"bare loop": min(bare), "simulator": min(simulated)}
    rows = [
        {
            "name": name,
            "seconds": round(seconds, 3),
            "added_seconds": round(seconds - best["bare loop"], 3),
            "time_ratio": round(seconds / best["bare loop"], 4),
        }
        for name, seconds in best.items()
    ]
    setting = {
        "sites": len(plan.sites),
        "rounds": plan.rounds,
        "steps": plan.training.steps,
        "mechanism": plan.mechanism.name,
        "strategy": plan.training.strategy,
    }
    return {"setting": setting, "hardware": hardware("cpu") | {"threads": str(torch.get_num_threads())}, "rows": rows}


def _timed(run: Any, plan: FederationConfig) -> float:
    with tempfile.TemporaryDirectory(prefix="wardpose-overhead-") as folder:
        start = time.perf_counter()
        run(plan, Path(folder))
        return time.perf_counter() - start


def _simulated(plan: FederationConfig, folder: Path) -> None:
    simulate(plan, folder / "run", report=False)


def _bare(plan: FederationConfig, folder: Path) -> None:
    mechanism = declare(plan, ServerLedger(folder / "ledger.sqlite"), run="bare").mechanism
    model = build_model(plan.model)
    cohorts = []
    for entry in plan.sites:
        if entry.data is None:
            raise ConfigError(f"sites.{entry.name}.data: missing (the benchmark needs sites with data of their own)")
        dataset = open_source(entry.data, skeleton=get_skeleton(plan.model.skeleton))
        cohort = build_cohort(
            dataset,
            model,
            mechanism,
            plan.training,
            cache_folder=folder / entry.name,
        )
        cohorts.append((cohort, len({dataset.record(i).patient_id for i in range(len(dataset))})))
    for _ in range(plan.rounds):
        updates = [
            local_update(
                model,
                cohort,
                mechanism,
                plan.training,
                streams=secure_streams(),
                declared_units=patients,
            ).update
            for cohort, patients in cohorts
        ]
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in updates[0]:
                parameters[name].add_(torch.stack([update[name] for update in updates]).mean(dim=0))
