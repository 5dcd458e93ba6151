"""Handing a plan to Flower, after it was held against the coordinator's limits and every site was asked."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wardpose.server.bundle import run_config, write_bundle
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.coordinator import Accounts, coordinator_accounts, load_coordinator
from wardpose.server.course import declare
from wardpose.server.forecast import charges_of, refuse_crossing
from wardpose.server.home import ServerHome
from wardpose.server.journal import RoundRow, SiteRow
from wardpose.server.ledger import ServerLedger
from wardpose.server.limits import NoiseLimits
from wardpose.server.operator import ask, program
from wardpose.server.outcome import RUNNING, Outcome, outcome
from wardpose.server.runs import Run, make_latest, new_run
from wardpose.shared.config import FederationConfig, load_federation, wardpose_home
from wardpose.shared.errors import BudgetExceeded, ConfigError
from wardpose.shared.files import write_text
from wardpose.shared.ledger_views import finite
from wardpose.shared.privacy.budget import Budget
from wardpose.shared.privacy.course import Course

_CHECKPOINT = "checkpoint.safetensors"
_BEGIN_SECONDS = 300.0  # that a ServerApp may take to begin, beside what the plan waits for sites
_POLL_SECONDS = 0.5

Report = Callable[[str], None]


def check_plan(
    plan: Path,
    *,
    directory: Path | None = None,
    resume: bool = False,
    spend_rest: bool = False,
    coordinator: Path | None = None,
) -> dict[str, Any]:
    """Say what a plan would charge, without charging anything.

    Args:
        plan: the federation.yaml.
        directory: the run's folder; the federation's in Wardpose's home when absent.
        resume: go on with the run in the folder.
        spend_rest: also where it would train on noise.
        coordinator: the coordinator.yaml; the environment's when absent.

    Returns:
        `federation`, `rounds` that are left, the `noise_multiplier` of the course (`None` for none, or a schedule), and
        `sites`: `name`, `epsilon_spent`, `epsilon_after` (`None` for infinite) and `epsilon_budget`.

    Raises:
        BudgetExceeded: a limit of the coordinator would be crossed: says which, at which round, and with which noise
            none would be; or nothing, or next to nothing, is left of the plan's own.
        ConfigError: plan or configuration is wrong, or the federation may not run.
        LedgerError: the ledger is lost or broken.

    """
    config = load_federation(plan)
    accounts = coordinator_accounts(load_coordinator(coordinator))
    folder = (directory or wardpose_home() / "server" / config.name).resolve()
    accounts.check_run_folder(folder)
    ledger, state = accounts.ledger(), None
    if resume and (folder / _CHECKPOINT).exists():
        state = Checkpoint.load(folder / _CHECKPOINT)
    done, before = (0, "") if state is None else (state.round, state.course)
    course = declare(config, ledger, run=f"{config.name}-new", rounds_done=done, before=before)
    _refuse_limits(accounts, config, ledger, course, done)
    mechanism = course.mechanism
    sites = _costs(config, ledger, course, done)
    if state is None and not spend_rest and accounts.config is not None:  # one that goes on has declared its noise
        refuse_noise(config, course, sites, accounts.config.noise)
    plain = mechanism.is_private and mechanism.schedule is None
    return {
        "federation": config.name,
        "rounds": config.rounds - done,
        "noise_multiplier": mechanism.noise_multiplier if plain else None,
        "sites": sites,
    }


def refuse_noise(config: FederationConfig, course: Course, sites: list[dict[str, Any]], limits: NoiseLimits) -> None:
    """Refuse a run that would cost the patients the rest of their budget and learn nothing.

    Args:
        config: the plan.
        course: with the calibrated noise.
        sites: as `check_plan` returns them.
        limits: the coordinator's.

    Raises:
        BudgetExceeded: says why it would train on noise, and what is allowed.

    """
    mechanism = course.mechanism
    if not mechanism.is_private:
        return
    why = []
    sigma = mechanism.effective_noise_multiplier
    stated = config.mechanism.noise_multiplier or mechanism.schedule is not None
    if not stated and sigma > limits.largest_multiplier:
        why.append(f"sigma is calibrated to {sigma:.4g} (allowed: at most {limits.largest_multiplier:g})")
    total = config.privacy.epsilon
    for site in sites:
        spent = float("inf") if site["epsilon_spent"] is None else site["epsilon_spent"]
        if 1 - spent / total < limits.smallest_share:
            why.append(
                f"site {site['name']} has {max(0.0, total - spent):.4g} left of epsilon {total:g} "
                f"(allowed: at least {limits.smallest_share * total:.4g})"
            )
    if why:
        raise BudgetExceeded(
            f"this run would train on noise: {'; '.join(why)}. Nothing was charged. Allowed: a larger privacy.epsilon "
            "that the sites' policies bear, fewer rounds, other limits under noise in coordinator.yaml, or --spend-rest"
        )


def _refuse_limits(
    accounts: Accounts, config: FederationConfig, ledger: ServerLedger, course: Course, done: int
) -> None:
    if accounts.config is not None:
        names = [entry.name for entry in config.sites]
        accounts.config.check_federation(config.name, names)
        refuse_crossing(accounts.config, ledger, course, [ledger.account_of(name) for name in names], rounds_done=done)


def _costs(config: FederationConfig, ledger: ServerLedger, course: Course, done: int) -> list[dict[str, Any]]:
    """Return what each site's account was charged and will have been after the run, at the plan's delta."""
    budget = Budget(
        epsilon=float("inf"),
        delta=config.privacy.delta,
        adjacency=course.mechanism.adjacency,
        unit=course.mechanism.unit,
    )
    first = max(done + 1, course.first_round)
    new = charges_of(course, first, course.last_round) if done < config.rounds else []
    order, found = ledger.first_order(), []
    known: dict[tuple[Any, ...], tuple[float, float]] = {}
    for entry in config.sites:
        charged = ledger.charges(ledger.account_of(entry.name))
        key = tuple(charged)
        if key not in known:
            known[key] = (budget.spent(charged, order), budget.spent([*charged, *new], order))
        spent, after = known[key]
        found.append(
            {
                "name": entry.name,
                "epsilon_spent": finite(spent),
                "epsilon_after": finite(after),
                "epsilon_budget": entry.epsilon or config.privacy.epsilon,
            }
        )
    return found


def submit_new(home: ServerHome, plan: Path, *, preflight: str, spend_rest: bool = False) -> tuple[Run, dict[str, Any]]:
    """Check a plan, make its run's folder, and hand it to Flower.

    Args:
        home: the server's.
        plan: the federation.yaml.
        preflight: `strict`, or `only` (see `server.app`).
        spend_rest: also where it would train on noise.

    Returns:
        The run, and what `check_plan` found. One that only asks lies in `checks/`, no run to an exporter.

    Raises:
        BudgetExceeded: as `check_plan`.
        ConfigError: likewise, or Flower does not take it; no folder is left.

    """
    config = load_federation(plan)
    found = check_plan(plan, directory=home.runs, spend_rest=spend_rest, coordinator=home.coordinator)
    run = new_run(home.folder / "checks" if preflight == "only" else home.runs, config)
    try:
        hand_over(home, run, preflight=preflight)
    except BaseException:
        discard(run)
        raise
    return run, found


def discard(run: Run) -> None:
    """Remove the folder of a run in which nothing was charged."""
    for path in sorted(run.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    run.folder.rmdir()


def hand_over(home: ServerHome, run: Run, *, resume: bool = False, preflight: str = "") -> int:
    """Start a run, or go on with it, with the bundle without code; returns Flower's number.

    Raises:
        ConfigError: Flower does not take it.

    """
    with tempfile.TemporaryDirectory() as place:
        settings = Path(place) / "run-config.toml"
        write_text(settings, run_config(run.plan, run.folder, resume=resume, preflight=preflight))
        bundle = write_bundle(Path(place) / "bundle")
        number = int(ask(home.operator, "run", str(bundle), "--run-config", str(settings))["run-id"])
    run.submitted(number)
    if preflight != "only":
        make_latest(run)
    return number


def ask_sites(home: ServerHome, run: Run, *, report: Report = lambda line: None) -> list[SiteRow]:
    """Wait until the sites were asked whether they would take part, and return what each said.

    Returns:
        The journal's rows of round 0; none where the run ended before, or has not begun in time.

    """
    config = load_federation(run.plan)
    until = time.monotonic() + _BEGIN_SECONDS + config.server.wait_seconds + config.server.deadline_seconds
    said = False
    while time.monotonic() < until:
        rows = run.journal.runs()
        asked = [row for row in run.journal.sites(rows[-1]["run"]) if row.round == 0] if rows else []
        if asked or outcome(run, home.database).status != RUNNING:
            return asked
        if rows and not said:
            report("asking every site whether its policy allows the run")
            said = True
        time.sleep(_POLL_SECONDS)
    return []


def wait_for_end(
    home: ServerHome, run: Run, *, after: float, report: Report = lambda line: None, watch: Callable[[], object] = bool
) -> Outcome:
    """Report a run's rounds until it has ended.

    Args:
        home: the server's.
        run: the run.
        after: Unix time; rounds that started before are not reported.
        report: told of every round.
        watch: called now and then; may raise to stop waiting.

    """
    shown: set[int] = set()
    while True:
        found = outcome(run, home.database)
        rows = run.journal.runs()
        for row in run.journal.rounds(rows[-1]["run"]) if rows else []:
            if row.started > after and row.round not in shown:
                report(describe_round(row))
                shown.add(row.round)
        if found.status != RUNNING:
            return found
        watch()
        time.sleep(_POLL_SECONDS)


def describe_round(row: RoundRow) -> str:
    """Say a round in a line."""
    score = "-" if row.score is None else f"{row.score:.3f}"
    return f"round {row.round}: score {score}, {row.bytes_up / 1e6:.1f} MB up, {row.seconds:.1f} s"


def submit_plan(plan: Path, connection: str | None, *, directory: Path | None = None, resume: bool = False) -> int:
    """Start a run by an operator's own connection, without a server's home; returns Flower's number of the run.

    Raises:
        ConfigError: Flower is not installed, or refused it.

    """
    with tempfile.TemporaryDirectory() as place:
        settings = Path(place) / "run-config.toml"
        write_text(settings, run_config(plan, directory, resume=resume))
        bundle = write_bundle(Path(place) / "bundle")
        where = [] if connection is None else [connection]
        finished = subprocess.run(  # noqa: S603 (our own arguments)
            [program("flwr"), "run", str(bundle), *where, "--run-config", str(settings), "--format", "json"],
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
