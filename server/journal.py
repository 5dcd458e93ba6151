"""The run journal: what happened, round by round, in one SQLite file that everything else reads.

It holds only what the server may know: releases' facts, its own scores on public data and what it saw of the network.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from wardpose.shared.sqlite import as_rows, read_rows, transaction, understood

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, federation TEXT NOT NULL, mechanism TEXT NOT NULL, unit TEXT NOT NULL, delta REAL NOT NULL,
    overlap INTEGER NOT NULL, rounds INTEGER NOT NULL, config TEXT NOT NULL, score_name TEXT NOT NULL,
    started REAL NOT NULL, ended REAL, status TEXT NOT NULL, score_initial TEXT, score_final TEXT,
    ledger TEXT NOT NULL DEFAULT '', witness TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS rounds (
    run TEXT NOT NULL, round INTEGER NOT NULL, started REAL NOT NULL, seconds REAL NOT NULL, score REAL,
    bytes_down INTEGER NOT NULL, bytes_up INTEGER NOT NULL, epsilon_disjoint REAL, epsilon_overlap REAL,
    PRIMARY KEY (run, round)
);
CREATE TABLE IF NOT EXISTS sites (
    run TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, status TEXT NOT NULL, code INTEGER,
    bytes_up INTEGER NOT NULL,
    steps INTEGER NOT NULL, epsilon_spent REAL, epsilon_budget REAL, delta REAL, secure INTEGER,
    reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', PRIMARY KEY (run, round, site)
);
CREATE TABLE IF NOT EXISTS evaluations (
    run TEXT NOT NULL, number INTEGER NOT NULL, round INTEGER NOT NULL, last INTEGER NOT NULL, started REAL NOT NULL,
    seconds REAL NOT NULL, bytes_down INTEGER NOT NULL, bytes_up INTEGER NOT NULL, noise_multiplier REAL NOT NULL,
    sites TEXT NOT NULL, scores TEXT NOT NULL, chosen TEXT, PRIMARY KEY (run, number)
);
"""
# columns that journals of 0.1 may lack
_ADDED = {"sites": ("reason", "detail"), "runs": ("ledger", "witness", "reason", "detail")}


class Reason(StrEnum):
    """Why an answer is not believed; a label of the metrics."""

    PAYLOAD = "payload"
    SENDER = "sender"
    ORDER = "order"
    FACTS = "facts"
    ARRAYS = "arrays"
    FINITE = "finite"
    NORM = "norm"
    LEDGER = "ledger"
    SIGNATURE = "signature"


class Ending(StrEnum):
    """Why a run did not complete; a label of the metrics."""

    BUDGET = "budget"
    REFUSED = "refused"
    ABSENT = "absent"
    LEDGER = "ledger"
    CONFIGURATION = "configuration"
    DATA = "data"
    STORAGE = "storage"
    DEFECT = "defect"
    INTERRUPTED = "interrupted"
    KILLED = "killed"


@dataclass(frozen=True, kw_only=True)
class SiteRow:
    """One site in one round; round 0 is the preflight.

    Attributes:
        run: identity of the run.
        round: counted from 1.
        site: the site's name.
        status: `released`, `ready` (preflight), `refused` (by the site), `rejected` (its answer was not believed),
            `failed`, `late` or `absent` (not asked; charged for tries of the round that were lost, if at all).
        code: of the error reply, if any.
        bytes_up: size of the release.
        steps: noised gradients charged for this round, tries that were lost included.
        epsilon_spent: as the server counts it.
        epsilon_budget: as the site stated it; the federation's where it did not.
        delta: at which both are stated.
        secure: whether the noise was cryptographically secure, if known.
        reason: why an answer was rejected, one of `Reason`; empty for others.
        detail: one line about it, in the server's words.

    """

    run: str
    round: int
    site: str
    status: str
    code: int | None = None
    bytes_up: int = 0
    steps: int = 0
    epsilon_spent: float | None = None
    epsilon_budget: float | None = None
    delta: float | None = None
    secure: bool | None = None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One finished round.

    Attributes:
        run: identity of the run.
        round: counted from 1.
        started: Unix time.
        seconds: duration.
        score: on public validation data; `None` without any.
        bytes_down: weights sent, all sites.
        bytes_up: releases received.
        epsilon_disjoint: the federation's epsilon if patients are disjoint.
        epsilon_overlap: the federation's epsilon if a patient may be at `overlap` sites.

    """

    run: str
    round: int
    started: float
    seconds: float
    score: float | None
    bytes_down: int
    bytes_up: int
    epsilon_disjoint: float | None
    epsilon_overlap: float | None


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One evaluation on the sites' private patients.

    Attributes:
        run: identity of the run.
        number: of the evaluation in the run, counted from 1.
        round: after which it was made.
        last: whether it was the one after the last round.
        started: Unix time.
        seconds: duration.
        bytes_down: weights sent, all sites.
        bytes_up: releases received.
        noise_multiplier: sigma at each site.
        sites: site -> `released`, or why not.
        scores: what the releases say together, with standard errors (`server.estimates`); `None` where none came.
        chosen: the model that is kept, `private` or `public-only`; `None` where nothing was to be chosen.

    """

    run: str
    number: int
    round: int
    last: bool
    started: float
    seconds: float
    bytes_down: int
    bytes_up: int
    noise_multiplier: float
    sites: dict[str, str]
    scores: dict[str, Any] | None
    chosen: str | None


@dataclass(frozen=True, kw_only=True)
class _StoredEvaluation:
    """The same as the table has it."""

    run: str
    number: int
    round: int
    last: bool
    started: float
    seconds: float
    bytes_down: int
    bytes_up: int
    noise_multiplier: float
    sites: str
    scores: str
    chosen: str | None


@dataclass(frozen=True, kw_only=True)
class LastRound:
    """What a deadline is taken from.

    Attributes:
        seconds: that a round took.
        late: sites that missed its deadline.
        released: sites whose release was believed.

    """

    seconds: float
    late: int
    released: int


class RunJournal:
    """Write and read one or many runs of a coordinator."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(
        self,
        *,
        run: str,
        federation: str,
        mechanism: str,
        unit: str,
        delta: float,
        overlap: int,
        rounds: int,
        config: dict[str, Any],
        score_name: str,
        ledger: str = "",
        witness: str = "",
    ) -> None:
        """Write down that a run starts, or goes on; another that still says it runs was killed.

        `ledger` and `witness` are the files of the ledger that it is charged to and of that one's witness; empty where
        it is the folder's own.
        """
        with self._writing() as connection:
            connection.execute(
                "UPDATE runs SET status = 'interrupted', reason = ?, detail = 'its process ended before it did' "
                "WHERE status = 'running' AND run != ?",
                (Ending.KILLED, run),
            )
            connection.execute(
                "INSERT INTO runs "
                "(run, federation, mechanism, unit, delta, overlap, rounds, config, score_name, started, ledger, "
                "witness, status) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'running') "
                "ON CONFLICT (run) DO UPDATE SET "
                "status = 'running', ended = NULL, reason = '', detail = '', rounds = excluded.rounds, "
                "config = excluded.config, overlap = excluded.overlap, "
                "ledger = excluded.ledger, witness = excluded.witness",
                (
                    run,
                    federation,
                    mechanism,
                    unit,
                    delta,
                    overlap,
                    rounds,
                    json.dumps(config),
                    score_name,
                    time.time(),
                    ledger,
                    witness,
                ),
            )

    def score(self, run: str, moment: str, scores: dict[str, Any]) -> None:
        """Write down the test scores at `moment`, which is `initial` or `final`."""
        column = {"initial": "score_initial", "final": "score_final"}[moment]
        with self._writing() as connection:
            connection.execute(f"UPDATE runs SET {column} = ? WHERE run = ?", (json.dumps(scores), run))  # noqa: S608 (fixed names)

    def finish(self, run: str, status: str, *, reason: str = "", detail: str = "") -> None:
        """Write down how the run ended.

        Args:
            run: its identity.
            status: `completed`, `stopped` (too few sites left), `interrupted` or `failed`.
            reason: of another end than `completed`, one of `Ending`.
            detail: a line about it.

        """
        with self._writing() as connection:
            connection.execute(
                "UPDATE runs SET status = ?, ended = ?, reason = ?, detail = ? WHERE run = ?",
                (status, time.time(), reason, detail, run),
            )

    def site(self, *rows: SiteRow) -> None:
        """Write down what became of sites in a round; a later row of the same site and round replaces the earlier."""
        with self._writing() as connection:
            for row in rows:
                _insert(connection, "sites", row)

    def round(self, row: RoundRow, sites: Sequence[SiteRow]) -> None:
        """Write down a finished round with its sites."""
        with self._writing() as connection:
            _insert(connection, "rounds", row)
            for site in sites:
                _insert(connection, "sites", site)

    def evaluation(self, row: EvaluationRow) -> None:
        """Write down an evaluation."""
        values = vars(row) | {"sites": json.dumps(row.sites), "scores": json.dumps(row.scores)}
        with self._writing() as connection:
            marks = ", ".join("?" * len(values))
            connection.execute(
                f"INSERT OR REPLACE INTO evaluations ({', '.join(values)}) VALUES ({marks})",  # noqa: S608 (fixed names)
                tuple(values.values()),
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with transaction(self.path, _SCHEMA) as connection:
            for table, added in _ADDED.items():
                known = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
                for column in added:
                    if column not in known:
                        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
            yield connection

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs as they began, whatever the clock said, with `config` and scores as objects."""
        rows = read_rows(self.path, "SELECT * FROM runs ORDER BY rowid")
        with understood(self.path):
            for row in rows:
                for key in ("config", "score_initial", "score_final"):
                    row[key] = json.loads(row[key]) if row[key] else None
        return rows

    def run(self, run: str) -> dict[str, Any] | None:
        """Return one run, `None` when the journal does not know it."""
        return next((row for row in self.runs() if row["run"] == run), None)

    def rounds(self, run: str) -> list[RoundRow]:
        """Return the finished rounds of a run."""
        rows = read_rows(self.path, "SELECT * FROM rounds WHERE run = ? ORDER BY round", run)
        return as_rows(RoundRow, rows, self.path)

    def last_rounds(self, run: str, number: int) -> list[LastRound]:
        """Return the last finished rounds of a run, the newest first."""
        count = "(SELECT count(*) FROM sites s WHERE s.run = r.run AND s.round = r.round AND s.status = '{0}') AS {0}"
        query = (
            f"SELECT seconds, {count.format('late')}, {count.format('released')} "  # noqa: S608 (fixed names)
            "FROM rounds r WHERE run = ? ORDER BY round DESC LIMIT ?"
        )
        return as_rows(LastRound, read_rows(self.path, query, run, number), self.path)

    def evaluations(self, run: str) -> list[EvaluationRow]:
        """Return the evaluations of a run, in order; none in a journal of an earlier version."""
        query = "SELECT * FROM evaluations WHERE run = ? ORDER BY number"
        rows = read_rows(self.path, query, run, added="evaluations")
        stored = as_rows(_StoredEvaluation, [{**row, "last": bool(row["last"])} for row in rows], self.path)
        with understood(self.path):
            return [
                EvaluationRow(**(vars(row) | {"sites": dict(json.loads(row.sites)), "scores": json.loads(row.scores)}))
                for row in stored
            ]

    def sites(self, run: str) -> list[SiteRow]:
        """Return what became of each site in each round of a run."""
        rows = read_rows(self.path, "SELECT * FROM sites WHERE run = ? ORDER BY round, site", run)
        with understood(self.path):
            flags = [{**row, "secure": None if row["secure"] is None else bool(row["secure"])} for row in rows]
        return as_rows(SiteRow, flags, self.path)


def _insert(connection: Any, table: str, row: SiteRow | RoundRow) -> None:
    values = vars(row)
    columns = ", ".join(values)
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", tuple(values.values()))  # noqa: S608 (fixed names)
