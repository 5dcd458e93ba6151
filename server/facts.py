"""What a coordinator's files say, read for exporter, status page and `wardpose watch` alike; nothing is written.

`--directory` is one run's folder, or a folder of such (`runs/` of a server's home), whose runs are then one history.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardpose.server.budget import GlobalBudget
from wardpose.server.coordinator_config import CoordinatorConfig
from wardpose.server.folder import LOCK
from wardpose.server.home import ServerHome
from wardpose.server.journal import Ending, EvaluationRow, RoundRow, RunJournal, SiteRow
from wardpose.server.ledger import ServerLedger
from wardpose.server.runs import Run
from wardpose.server.spent import LedgerPlace, ledger_of, refuse_lost
from wardpose.shared.errors import DataError
from wardpose.shared.privacy.accounting import UNITS
from wardpose.shared.privacy.entries import RESERVE
from wardpose.shared.rounds_left import last_round, rounds_left
from wardpose.shared.yaml_config import load_yaml

JOURNAL = "journal.sqlite"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a coordinator's files are.

    Attributes:
        directory: of one run, or of all.
        coordinator: the coordinator.yaml of a home, which names the ledger before any run does; `None` without a home.
        superlink: the SuperLink's database, if it may be read.
        certificates: by name, to see when they end.

    """

    directory: Path
    coordinator: Path | None = None
    superlink: Path | None = None
    certificates: Mapping[str, Path] = field(default_factory=dict)


def places_of(home: ServerHome) -> Places:
    """Return the places of a server's home."""
    certificates = {"authority": home.authority, "server": home.certificate}
    return Places(directory=home.runs, coordinator=home.coordinator, superlink=home.database, certificates=certificates)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All runs of a coordinator, oldest first.

    Attributes:
        folder: of the latest.
        runs: as the journals have them.
        rounds: finished ones, of all runs.
        sites: what became of each site in each round, of all runs.
        evaluations: of the latest run.

    """

    folder: Path
    runs: tuple[dict[str, Any], ...]
    rounds: tuple[RoundRow, ...]
    sites: tuple[SiteRow, ...]
    evaluations: tuple[EvaluationRow, ...]

    @property
    def last(self) -> dict[str, Any]:
        """The latest run."""
        return self.runs[-1]

    @property
    def names(self) -> list[str]:
        """Names of the latest run's sites, in the plan's order."""
        return [entry["name"] for entry in self.last["config"]["sites"]]

    @property
    def last_rounds(self) -> list[RoundRow]:
        """Finished rounds of the latest run."""
        return [row for row in self.rounds if row.run == self.last["run"]]

    def here(self, name: str | None = None) -> list[SiteRow]:
        """Return what became of the sites, or of one, in the latest run."""
        run = self.last["run"]
        return [row for row in self.sites if row.run == run and name in (None, row.site)]

    def stated(self, name: str) -> tuple[float | None, float, float]:
        """Return the budget and delta that a site last stated (else the plan's) and its highest epsilon."""
        plan: dict[str, Any] = next((entry for entry in self.last["config"]["sites"] if entry["name"] == name), {})
        rows = [row for row in self.sites if row.site == name]
        budgets = [row.epsilon_budget for row in rows if row.epsilon_budget is not None]
        deltas = [row.delta for row in rows if row.delta is not None]
        planned = plan.get("epsilon") or self.last["config"]["privacy"]["epsilon"]
        return (
            budgets[-1] if budgets else planned,
            deltas[-1] if deltas else self.last["delta"],
            max((row.epsilon_spent or 0.0 for row in rows), default=0.0),
        )


def run_folders(directory: Path) -> list[Path]:
    """Return the folders that hold runs: the directory itself, or those in it, as they were begun."""
    if (directory / JOURNAL).exists():
        return [directory]
    found = [path.parent for path in directory.glob(f"*/{JOURNAL}") if not path.parent.is_symlink()]  # `latest`
    return sorted(found, key=lambda folder: (_began(folder), folder.name))


def _began(folder: Path) -> float:
    try:
        runs = RunJournal(folder / JOURNAL).runs()
        return float(runs[0]["started"]) if runs else (folder / JOURNAL).stat().st_mtime
    except DataError:
        return (folder / JOURNAL).stat().st_mtime


def find_runs(directory: Path) -> Runs | None:
    """Read all journals; `None` where there is no run yet.

    Raises:
        DataError: a journal is locked or broken.

    """
    runs, rounds, sites = [], [], []
    evaluations: list[EvaluationRow] = []
    folder = directory
    for place in run_folders(directory):
        journal = RunJournal(place / JOURNAL)
        for run in journal.runs():
            folder = place
            runs.append(run)
            rounds += journal.rounds(run["run"])
            sites += journal.sites(run["run"])
            evaluations = journal.evaluations(run["run"])
    if not runs:
        return None
    _find_killed(runs[-1], folder)
    return Runs(
        folder=folder, runs=tuple(runs), rounds=tuple(rounds), sites=tuple(sites), evaluations=tuple(evaluations)
    )


def coordinator_ledger(file: Path) -> LedgerPlace:
    """Return the ledger that a coordinator.yaml names.

    Raises:
        ConfigError: the file is missing or wrong.

    """
    return load_yaml(file, CoordinatorConfig).ledger


def before_first_run(places: Places) -> LedgerPlace:
    """Return the coordinator's ledger where no run began yet: a home's, which knows of no charge.

    Charges that were imported were made elsewhere, and say nothing of runs here.

    Raises:
        DataError: there is no home, or a run began: its journal is empty, or gone although the ledger was charged.
        ConfigError: coordinator.yaml is missing or wrong.
        LedgerError: the ledger is missing, empty, locked, broken or rolled back.

    """
    journals = run_folders(places.directory)
    if places.coordinator is None or journals:
        raise DataError(f"{(journals or [places.directory])[0] / JOURNAL}: holds no run")
    place = coordinator_ledger(places.coordinator)
    refuse_lost(places.directory, place)
    entries = place.open().entries() if place.path.exists() else ()
    if any(entry.kind == RESERVE and "imported" not in entry.body for entry in entries):
        raise DataError(f"{places.directory}: holds no run, but runs were charged to {place.path} (restore its backup)")
    return place


def _find_killed(run: dict[str, Any], folder: Path) -> None:
    """See whether somebody is at work on a run that says it runs: one that was killed could not say otherwise."""
    if run["status"] == "running" and (folder / LOCK).exists() and not Run(folder).at_work():
        run |= {"status": "interrupted", "reason": Ending.KILLED, "detail": "its process ended before the run did"}


@dataclass(frozen=True, kw_only=True)
class SiteAccount:
    """What a site spent, by the server's ledger or what the site stated, whichever is more.

    Attributes:
        name: the site's.
        spent: epsilon.
        budget: as the site stated it, else the plan's.
        delta: of both.
        rounds_left: how many more rounds like its last one its budget bears; `None` where it was never charged one.
        sigma: noise multiplier of its last round; `None` likewise.

    """

    name: str
    spent: float
    budget: float | None
    delta: float
    rounds_left: int | None = None
    sigma: float | None = None

    @property
    def remaining(self) -> float | None:
        """Budget less what is spent, at least 0."""
        return None if self.budget is None else max(0.0, self.budget - self.spent)


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What the coordinator's ledger says.

    Attributes:
        sites: of the latest run's plan.
        disjoint: the federation's epsilon of a patient at one site.
        overlap: of one at several.
        entries: of the ledger.
        place: of its file.

    """

    sites: tuple[SiteAccount, ...]
    disjoint: float
    overlap: float
    entries: int
    place: LedgerPlace


def read_spending(runs: Runs) -> Spending:
    """Read the coordinator's ledger.

    Raises:
        LedgerError: the ledger is missing, empty, locked, broken or rolled back.

    """
    refuse_lost(runs.folder)
    place = ledger_of(runs.folder)
    ledger = ServerLedger(place.path, readonly=place.path.exists(), witness=place.witness)  # none before any charge
    last = runs.last
    budget = GlobalBudget(ledger, delta=last["delta"], overlap=last["overlap"], unit=last["unit"])
    disjoint, overlap = budget.federation(runs.names)
    return Spending(
        sites=tuple(_account(runs, ledger, budget, name) for name in runs.names),
        disjoint=disjoint,
        overlap=overlap,
        entries=ledger.head()[0],
        place=place,
    )


def _account(runs: Runs, ledger: ServerLedger, budget: GlobalBudget, name: str) -> SiteAccount:
    limit, delta, stated = runs.stated(name)
    account = ledger.account_of(name)
    last = last_round(ledger, account, run=runs.last["run"])
    spent = max(stated, budget.epsilon(name, delta=delta))
    left = None
    if last is not None and limit is not None:
        left = rounds_left(
            tuple(ledger.charges(account)),
            last,
            epsilon=limit,
            delta=delta,
            adjacency=last.events[0].adjacency,
            unit=next((known for known in UNITS if known == runs.last["unit"]), UNITS[0]),
            order=ledger.first_order(),
        )
    sigma = None if last is None else min(event.noise_multiplier for event in last.events)
    return SiteAccount(name=name, spent=spent, budget=limit, delta=delta, rounds_left=left, sigma=sigma)


def late_in_a_row(rows: list[SiteRow]) -> int:
    """Return how many rounds in a row, up to the last one it was ordered in, a site was late."""
    number = 0
    for row in reversed([row for row in rows if row.round > 0 and row.status != "absent"]):
        if row.status != "late":
            break
        number += 1
    return number
