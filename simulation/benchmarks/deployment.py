"""What a round of real processes costs beyond its training: SuperLink, SuperNodes and executors on loopback, with TLS.

Everything is as in hospitals, down to the bundle without code; sites differ in nothing but that their patients are
simulated. A round's overhead is the time from the end of the one before to its own, less what the slowest site spent in
training. Where it goes comes from what both sides write in their logs (`shared/laps.py`).
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wardpose.server.journal import RoundRow, RunJournal
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import DataError
from wardpose.shared.laps import LAPS, read_laps
from wardpose.simulation.benchmarks.step import hardware
from wardpose.simulation.dev import Deployment

_SITES = ("north", "south", "east")
_SERVER = ("charge", "prepare", "judge", "aggregate", "close")
_SITE = ("pull", "checks", "charge", "release", "push")


def plan(rounds: int) -> FederationConfig:
    """Return the federation that is measured: TinyViT-5M of which the head trains, a few small crops a site."""
    wards = [
        {"name": name, "data": {"kind": "ward", "hospital": name, "patients": 24, "frames_per_patient": 1, "seed": 1}}
        for name in _SITES
    ]
    return FederationConfig.model_validate(
        {
            "name": "deployment",
            "rounds": rounds,
            "sites": wards,
            "mechanism": {"sample_rate": 0.25, "frames_per_unit": 1, "noise_multiplier": 2.0},
            "model": {"input_size": [128, 96], "weights": "random"},
            "privacy": {"epsilon": 50.0, "delta": 1e-3},
            "training": {"strategy": "head", "steps": 4},
        }
    )


def measure_deployment(
    *, rounds: int = 5, folder: Path | None = None, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run a deployment of three sites and take its rounds apart.

    Args:
        rounds: of the federation; the first one carries the whole model.
        folder: where the deployment lies; it is kept. A temporary one when absent.
        report: hears what happens.

    Returns:
        `rows` of `round`, `overhead_s`, `bytes_down` and `bytes_up` (of one site), and where the seconds went, and what
        they were measured on.

    Raises:
        DataError: a round was not finished by all sites, so that there is nothing to compare.
        ProcessError: a process ended.

    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="wardpose-deployment-") as made:
            return measure_deployment(rounds=rounds, folder=Path(made), report=report)
    deployment, config = Deployment(folder, variables={LAPS: "1"}), plan(rounds)
    try:
        deployment.up(config, report=report)
        deployment.run(report=report)
    finally:
        deployment.down()
    journal = RunJournal(deployment.run_directory / "journal.sqlite")
    finished = journal.rounds(journal.runs()[-1]["run"])
    late = [row for row in journal.last_rounds(journal.runs()[-1]["run"], rounds) if row.released < len(_SITES)]
    if late or len(finished) < rounds:
        raise DataError(f"{folder}: {len(late)} rounds lack a site, {len(finished)} of {rounds} were finished")
    times = {name: _laps(deployment, f"exec-{name}") for name in _SITES}
    server = _laps(deployment, "superlink-exec")
    rows, before = [], finished[0].started
    for row in finished:
        rows.append(_row(row, before, server, times))
        before = row.started + row.seconds
    load = os.getloadavg()[0]
    return {
        "setting": {"sites": len(_SITES), "strategy": config.training.strategy, "steps": config.training.steps},
        "hardware": hardware("cpu") | {"cores": str(os.cpu_count()), "load": f"{load:.1f}"},
        "rows": rows,
    }


def _laps(deployment: Deployment, role: str) -> dict[str, dict[str, float]]:
    """Return what a process of the deployment wrote about its times; the last of each kind and number."""
    return dict(read_laps((deployment.processes.logs / f"{role}.log").read_text(errors="replace")))


def _row(
    row: RoundRow,
    before: float,
    server: dict[str, dict[str, float]],
    times: dict[str, dict[str, dict[str, float]]],
) -> dict[str, Any]:
    number = row.round
    own = server[f"round {number}"]
    sites = {name: laps[f"train {number}"] | laps[f"order {number}"] for name, laps in times.items()}
    slowest = max(sites.values(), key=lambda laps: sum(laps[name] for name in (*_SITE, "train")))
    training = max(laps["train"] for laps in sites.values())
    period = row.started + row.seconds - before
    at_site = sum(slowest[name] for name in (*_SITE, "train"))
    return {
        "round": number,
        "overhead_s": round(period - training, 2),
        "bytes_down": row.bytes_down // len(sites),
        "bytes_up": row.bytes_up // len(sites),
        "train_s": round(training, 2),
        **{f"server_{name}_s": round(own.get(name, 0.0), 2) for name in _SERVER},
        **{f"site_{name}_s": round(slowest[name], 2) for name in _SITE},
        "transport_s": round(own["wait"] - at_site, 2),
        "between_s": round(period - row.seconds, 2),
    }
