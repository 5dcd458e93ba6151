"""Folders of coordinators in the states that somebody has to understand at a glance."""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.supercore.state.alembic.utils import run_migrations
from sqlalchemy import create_engine

from wardpose.server.journal import EvaluationRow, RoundRow, RunJournal, SiteRow
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.refusals import Refusal

EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=4, max_grad_norm=1.0)
DELTA = 1e-3
SITES = ("charite-berlin", "ukm-muenster", "st-anna", "nordklinik")


def start_run(folder: Path, *, run: str = "r1", sites: Sequence[str] = SITES, rounds: int = 12) -> RunJournal:
    """Begin a run that is charged to the folder's own ledger."""
    journal = RunJournal(folder / "journal.sqlite")
    config = {"sites": [{"name": name, "epsilon": None} for name in sites], "privacy": {"epsilon": 8.0}}
    journal.start(
        run=run, federation="ward-pose", mechanism="dp-sgd", unit="patient", delta=DELTA, overlap=2, rounds=rounds,
        config=config, score_name="pck@0.2",
    )  # fmt: skip
    journal.score(run, "initial", {"score": 0.361})
    return journal


def take_round(folder: Path, number: int, statuses: Mapping[str, str], *, run: str = "r1", ended: float) -> None:
    """Take one round: everybody who was ordered is charged, whatever came of it."""
    ledger, journal = Ledger(folder / "ledger.sqlite"), RunJournal(folder / "journal.sqlite")
    rows = []
    for site, status in statuses.items():
        if status != "absent":
            budget = Budget(epsilon=100.0, delta=DELTA)
            ledger.commit(ledger.reserve(site, [EVENT], run_id=run, round=number, budget=budget))
        rows.append(
            SiteRow(
                run=run, round=number, site=site, status=status, bytes_up=361_000 * (status == "released"), steps=4,
                code=Refusal.POLICY if status == "refused" else None, epsilon_budget=8.0, delta=DELTA, secure=True,
            )
        )  # fmt: skip
    journal.round(
        RoundRow(
            run=run, round=number, started=ended - 41.5, seconds=41.5, score=0.36 + 0.012 * number,
            bytes_down=88_000_000, bytes_up=sum(row.bytes_up for row in rows), epsilon_disjoint=0.9 + 0.1 * number,
            epsilon_overlap=1.4,
        ),
        rows,
    )  # fmt: skip


def busy_coordinator(folder: Path) -> Path:
    """Four sites, 7 of 12 rounds: one refused, one is late for the third time, one's ledger is apart."""
    now = time.time()
    first, second, third, fourth = SITES
    start_run(folder)
    for number in range(1, 8):
        statuses = {first: "released", second: "released", third: "released", fourth: "released"}
        if number >= 3:
            statuses[second] = "refused" if number == 3 else "absent"
        if number > 4:
            statuses[third] = "late"
        take_round(folder, number, statuses, ended=now - 70 * (8 - number))
    raise_alarm(folder, fourth, now - 300)
    return folder


def raise_alarm(folder: Path, site: str, raised: float) -> None:
    """Write down that a site's ledger and the coordinator's do not agree, as `Contact.alarm` does."""
    what = "it has seen entry 31 of this coordinator's ledger, which is not in it (an old backup? restore the newest)"
    with sqlite3.connect(folder / "contact.sqlite") as connection:
        connection.execute(
            "CREATE TABLE alarms (number INTEGER PRIMARY KEY, site TEXT NOT NULL, what TEXT NOT NULL, "
            "raised REAL NOT NULL, cleared REAL)"
        )
        connection.execute(
            "CREATE TABLE receipts (number INTEGER PRIMARY KEY, site TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, "
            "text TEXT NOT NULL, signature TEXT NOT NULL, acknowledged REAL)"
        )
        connection.execute("INSERT INTO alarms (site, what, raised) VALUES (?, ?, ?)", (site, what, raised))


def add_evaluation(folder: Path, *, run: str = "r1") -> None:
    """Add an evaluation on patients to a run."""
    model = {"per_joint": {}, "loss": {"value": 3.2, "error": 0.1}}
    scores = {
        "units": {"value": 141.0, "error": 4.0},
        "models": [
            {"score": {"value": 0.412, "error": 0.021}, **model},
            {"score": {"value": 0.371, "error": 0.021}, **model},
        ],
        "difference": {"value": 0.041, "error": 0.012},
    }
    RunJournal(folder / "journal.sqlite").evaluation(
        EvaluationRow(
            run=run, number=1, round=7, last=False, started=time.time(), seconds=12.0, bytes_down=10, bytes_up=10,
            noise_multiplier=4.0, sites=dict.fromkeys(SITES, "released"), scores=scores, chosen=None,
        )
    )  # fmt: skip


def superlink_database(path: Path, nodes: Mapping[str, tuple[str, float | None]]) -> Path:
    """Make a SuperLink's database; site -> its status and when its last heartbeat was."""
    engine = create_engine(f"sqlite:///{path}")
    run_migrations(engine)
    engine.dispose()
    with sqlite3.connect(path) as connection:
        for number, (name, (status, seen)) in enumerate(nodes.items(), start=1):
            until = None if seen is None else seen + 60
            connection.execute(
                "INSERT INTO node (node_id, name, status, online_until, heartbeat_interval) VALUES (?, ?, ?, ?, 30)",
                (number, name, status, until),
            )
    return path
