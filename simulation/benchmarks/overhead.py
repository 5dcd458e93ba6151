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

from wardpose.server.app import calibrated
from wardpose.shared.config import FederationConfig
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import build_model
from wardpose.shared.pose.skeleton import get_skeleton
from wardpose.shared.privacy.noise import secure_streams
from wardpose.shared.privacy.training import build_cohort, local_update
from wardpose.simulation.run import simulate


def overhead(config: FederationConfig, *, repetitions: int = 2) -> dict[str, Any]:
    """Time both ways, best of `repetitions`, interleaved.

    Returns:
        `bare_seconds`, `simulator_seconds`, `added_seconds`, `ratio`, `sites`, `rounds`, `steps_per_round`.

    Raises:
        ConfigError: a site of the plan has no data of its own.

    """
    plan = config.model_copy(update={"data": config.data.model_copy(update={"validation": (), "test": ()})})
    bare, simulated = [], []
    for _ in range(repetitions):
        gc.collect()
        bare.append(_timed(_bare, plan))
        gc.collect()
        simulated.append(_timed(_simulated, plan))
    return {
        "bare_seconds": round(min(bare), 3),
        "simulator_seconds": round(min(simulated), 3),
        "added_seconds": round(min(simulated) - min(bare), 3),
        "ratio": round(min(simulated) / min(bare), 4),
        "sites": len(plan.sites),
        "rounds": plan.rounds,
        "steps_per_round": plan.training.steps_per_round,
        "mechanism": plan.mechanism,
        "threads": torch.get_num_threads(),
    }


def _timed(run: Any, plan: FederationConfig) -> float:
    with tempfile.TemporaryDirectory(prefix="wardpose-overhead-") as folder:
        start = time.perf_counter()
        run(plan, Path(folder))
        return time.perf_counter() - start


def _simulated(plan: FederationConfig, folder: Path) -> None:
    simulate(plan, folder / "run", report=False)


def _bare(plan: FederationConfig, folder: Path) -> None:
    mechanism = calibrated(plan)
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
            strategy=plan.training.strategy,
            cache_folder=folder / entry.name,
            augmented_views=plan.training.augmented_views,
            augmentation=plan.training.augmentation,
        )
        cohorts.append((cohort, len({dataset.record(i).patient_id for i in range(len(dataset))})))
    for _ in range(plan.rounds):
        updates = [
            local_update(
                model,
                cohort,
                mechanism,
                strategy=plan.training.strategy,
                steps=plan.training.steps_per_round,
                optimizer=plan.training.optimizer,
                streams=secure_streams(),
                declared_units=patients,
                micro_batch=plan.training.micro_batch,
            ).update
            for cohort, patients in cohorts
        ]
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in updates[0]:
                parameters[name].add_(torch.stack([update[name] for update in updates]).mean(dim=0))
