"""Handing a plan to Flower, after it was held against the coordinator's limits."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from wardpose.server.bundle import run_config, write_bundle
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.coordinator import coordinator_accounts, load_coordinator
from wardpose.server.course import declare
from wardpose.server.forecast import refuse_crossing
from wardpose.shared.config import load_federation, wardpose_home
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_text

_CHECKPOINT = "checkpoint.safetensors"


def check_plan(plan: Path, *, directory: Path | None = None, resume: bool = False) -> dict[str, Any]:
    """Say what a plan would charge, without charging anything.

    Args:
        plan: the federation.yaml.
        directory: the run's folder; the federation's in Wardpose's home when absent.
        resume: go on with the run in the folder.

    Returns:
        `federation`, `rounds` that are left, and the `noise_multiplier` of the course (`None` for none, or a schedule).

    Raises:
        BudgetExceeded: a limit of the coordinator would be crossed: says which, at which round, and with which noise
            none would be; or nothing is left of the plan's own.
        ConfigError: plan or configuration is wrong, or the federation may not run.
        LedgerError: the ledger is lost or broken.

    """
    config = load_federation(plan)
    accounts = coordinator_accounts(load_coordinator())
    folder = (directory or wardpose_home() / "server" / config.name).resolve()
    accounts.check_run_folder(folder)
    ledger, state = accounts.ledger(), None
    if resume and (folder / _CHECKPOINT).exists():
        state = Checkpoint.load(folder / _CHECKPOINT)
    done, before = (0, "") if state is None else (state.round, state.course)
    course = declare(config, ledger, run=f"{config.name}-new", rounds_done=done, before=before)
    if accounts.config is not None:
        names = [entry.name for entry in config.sites]
        accounts.config.check_federation(config.name, names)
        refuse_crossing(accounts.config, ledger, course, [ledger.account_of(name) for name in names], rounds_done=done)
    mechanism = course.mechanism
    plain = mechanism.is_private and mechanism.schedule is None
    return {
        "federation": config.name,
        "rounds": config.rounds - done,
        "noise_multiplier": mechanism.noise_multiplier if plain else None,
    }


def submit_plan(plan: Path, connection: str | None, *, directory: Path | None = None, resume: bool = False) -> int:
    """Start a run with `flwr run` and the bundle without code; returns Flower's number of the run.

    Raises:
        ConfigError: Flower is not installed, or refused it.

    """
    program = shutil.which("flwr", path=str(Path(sys.executable).parent)) or shutil.which("flwr")
    if program is None:
        raise ConfigError(f"flwr: not found beside {sys.executable} (allowed: an environment with flwr installed)")
    with tempfile.TemporaryDirectory() as place:
        settings = Path(place) / "run-config.toml"
        write_text(settings, run_config(plan, directory, resume=resume))
        bundle = write_bundle(Path(place) / "bundle")
        where = [] if connection is None else [connection]
        finished = subprocess.run(  # noqa: S603 (our own arguments)
            [program, "run", str(bundle), *where, "--run-config", str(settings), "--format", "json"],
            env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        return int(json.loads(finished.stdout[finished.stdout.index("{") :])["run-id"])
    except (ValueError, KeyError, TypeError) as error:
        said = " ".join(f"{finished.stdout} {finished.stderr}".split())
        raise ConfigError(f"flwr run: {said[:400]}") from error
