"""What a ledger costs when it is old: a charge, the epsilon of everything, and a check of every entry.

The history is written in one transaction (a million waits for the disk would take an hour), by the code that appends
otherwise; what is timed afterwards is what a site does: open, reserve with the budget checked, commit, each row signed,
add up, verify.
Each size runs in a process of its own, whose memory beyond that of its imports is what is stated. The named peer of a
charge is SQLite alone: one row of the same length, durable by the same journal.
"""

import json
import multiprocessing
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wardpose.client.journal import SiteJournal
from wardpose.shared.privacy.chain import Chain
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.entries import COMMIT, RESERVE
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.signing import create_key_pair
from wardpose.simulation.benchmarks.step import hardware

DELTA = 1e-6


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        sizes: numbers of events, each a ledger of its own.
        cohorts: that share them.
        kinds: courses of different noise that a cohort's events are of.
        charges: how many are timed.

    """

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    cohorts: int = 200
    kinds: int = 8
    charges: int = 50


def measure_ledger(setting: Setting, folder: Path | None = None) -> dict[str, Any]:
    """Measure all sizes.

    Args:
        setting: what is measured.
        folder: on the disk to measure; the system's folder for temporary files when absent.

    Returns:
        `rows` of `events`; `append_ms` (median of a reservation or a commit, budget checked and durable) and
        `append_p95_ms`; `peer_ms` (the same bytes in SQLite alone) and `append_ratio`; `epsilon_s` of the whole
        history; `accounts_s` of every cohort by itself; `open_s` with a witness; `verify_s` of every entry; `peak_mib`
        beyond the imports.

    """
    rows = []
    for events in setting.sizes:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            _fill(Path(place), setting, events)
            rows.append({"events": events, **_in_another_process(Path(place), setting)})
    return {"rows": rows, "setting": asdict(setting), "hardware": hardware("cpu")}


def _courses(kinds: int) -> list[Course]:
    return [
        Course(
            run=f"run-{number}",
            federation="study",
            mechanism=Mechanism(sample_rate=0.01, noise_multiplier=round(4 + 0.1 * number, 4), max_grad_norm=1.0),
            steps=8,
            last_round=1_000_000,
        )
        for number in range(kinds)
    ]


def _fill(folder: Path, setting: Setting, events: int) -> None:
    """Write a history of so many reservations of one event each, every one of them committed."""
    courses, chance = _courses(setting.kinds), random.Random(events)  # noqa: S311 (a made-up history)
    written = [[event.to_json() for event in course.events(1)] for course in courses]
    journal = SiteJournal(folder / "state" / "journal.sqlite")
    with Chain(folder / "ledger.sqlite", witness=journal).transaction() as append:
        for number in range(events):
            place = chance.randrange(setting.kinds)
            cohort = f"cohort-{number % setting.cohorts}"
            course = courses[place]
            body = {"cohort": cohort, "run": course.run, "round": number, "events": written[place], "budget": {}}
            body["course"] = course.identity
            if number == 0:
                body["order"] = 16
            reservation = append(RESERVE, body)
            append(COMMIT, {"cohort": cohort, "reservation": reservation.sequence})
            append.checkpoint_when_due()


def _in_another_process(folder: Path, setting: Setting) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (folder, setting))


def _measure(folder: Path, setting: Setting) -> dict[str, float]:
    before = _peak_mib()
    journal = SiteJournal(folder / "state" / "journal.sqlite")
    path = folder / "ledger.sqlite"
    signer = create_key_pair(folder / "node.key", folder / "node.pub")
    Ledger(path, witness=journal).renewed(signer, "signing two million rows takes long")
    opened = _seconds(lambda: Ledger(path, witness=journal, signer=signer))
    ledger = Ledger(path, witness=journal, signer=signer)
    appends = _charges(ledger, setting)
    found = {
        "append_ms": 1e3 * statistics.median(appends),
        "append_p95_ms": 1e3 * statistics.quantiles(appends, n=20)[-1],
        "peer_ms": 1e3 * statistics.median(_bare(folder, setting.charges)),
        "open_s": opened,
        "epsilon_s": _seconds(lambda: ledger.account("cohort-0", DELTA, whole_ledger=True)),
        "accounts_s": _seconds(lambda: [ledger.account(name, DELTA) for name in ledger.cohorts()]),
        "verify_s": _seconds(ledger.verify),
    }
    found["append_ratio"] = found["append_ms"] / found["peer_ms"]
    return {name: round(value, 4) for name, value in {**found, "peak_mib": _peak_mib() - before}.items()}


def _charges(ledger: Ledger, setting: Setting) -> list[float]:
    (course, *_) = _courses(setting.kinds)
    budget = Budget(epsilon=1e6, delta=DELTA, unit="patient")
    taken = []
    for number in range(setting.charges):
        begun = time.perf_counter()
        reservation = ledger.reserve(
            "cohort-0", course.events(1), run_id=course.run, round=number, budget=budget, course=course
        )
        half = time.perf_counter()
        ledger.commit(reservation)
        taken += [half - begun, time.perf_counter() - half]
    return taken


def _bare(folder: Path, count: int) -> list[float]:
    """Seconds that SQLite takes for one durable row of a charge's length, a connection each time as the ledger has."""
    path, text = folder / "bare.sqlite", json.dumps({"text": "x" * 600})
    taken = []
    for number in range(count):
        begun = time.perf_counter()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows VALUES (?, ?)", (number, text))
        connection.execute("COMMIT")
        connection.close()
        taken.append(time.perf_counter() - begun)
    return taken


def _seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def _peak_mib() -> float:
    """Return what this program's memory came to at most; `getrusage` would say what its parent's did."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def sizes_from(text: str) -> tuple[int, ...]:
    """Read sizes as they are written on the command line, with commas between.

    Raises:
        ConfigError: one of them is no number of events.

    """
    from wardpose.shared.errors import ConfigError

    parts: Sequence[str] = text.split(",")
    if not all(part.strip().isdigit() and 1 <= int(part) <= 10**7 for part in parts):
        raise ConfigError(f"--events {text!r} (allowed: numbers from 1 to {10**7}, with commas between)")
    return tuple(int(part) for part in parts)
