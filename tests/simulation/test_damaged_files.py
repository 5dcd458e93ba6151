"""Bits that flip and files that are cut, in what a site or a coordinator keeps: one line, never a traceback."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wardpose.client.journal import SiteJournal
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.heads import Heads
from wardpose.server.journal import RoundRow, RunJournal, SiteRow
from wardpose.shared.errors import WardposeError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger

BUDGET = Budget(epsilon=50.0, delta=1e-5)
EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=2.0, steps=5, max_grad_norm=1.0)
SITE = SiteRow(run="run", round=1, site="north", status="released")
TRIES = 40


def make_ledger(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(3):
        reservation = ledger.reserve("ward", [EVENT], run_id="run", round=number, budget=BUDGET)
        patients = {f"p{name}": "" for name in range(20)}
        ledger.declare("ward", identity="x", reservation=reservation, patients=patients, budget=BUDGET)


def use_ledger(path: Path) -> None:
    before = Ledger(path)
    before.verify()
    assert sum(charge.times for charge in before.charges("ward")) == 3  # refused, or nothing is lost
    before.patients(delta=1e-5)
    before.reserve("ward", [EVENT], run_id="run", round=9, budget=BUDGET)


def make_journal(path: Path) -> None:
    journal = SiteJournal(path)
    number = journal.received(run="run", round_number=1, federation="f", mechanism="dp-sgd")
    journal.finished(number, "released", detail="x" * 200)
    journal.remember(7, "a" * 64)


def use_journal(path: Path) -> None:
    journal = SiteJournal(path)
    journal.orders()
    journal.head()
    journal.finished(journal.received(run="r", round_number=2, federation="f", mechanism="m"), "refused")
    journal.remember(9, "b" * 64)


def make_runs(path: Path) -> None:
    journal = RunJournal(path)
    journal.start(
        run="run", federation="f", mechanism="m", unit="patient", delta=1e-5, overlap=1, rounds=3, config={"a": [1]},
        score_name="pck",
    )  # fmt: skip
    row = RoundRow(
        run="run", round=1, started=1.0, seconds=2.0, score=0.5, bytes_down=1, bytes_up=1, epsilon_disjoint=1.0,
        epsilon_overlap=None,
    )  # fmt: skip
    journal.round(row, [SITE])
    journal.score("run", "final", {"pck": 0.5})


def use_runs(path: Path) -> None:
    journal = RunJournal(path)
    journal.runs()
    journal.rounds("run")
    journal.sites("run")
    journal.site(SITE)


def make_heads(path: Path) -> None:
    heads = Heads(path)
    heads.remember("north", 3, "a" * 64)
    heads.accept_another("north", "lost")
    heads.remember("north", 1, "b" * 64)


def use_heads(path: Path) -> None:
    heads = Heads(path)
    heads.check("north", 9, "c" * 64, grown=True)
    heads.remember("north", 9, "c" * 64)


def make_checkpoint(path: Path) -> None:
    Checkpoint(run="run", round=1, weights={"a": np.ones((3, 4), np.float32)}, dropped={"south": "late"}).save(path)


def use_checkpoint(path: Path) -> None:
    Checkpoint.run_of(path)
    Checkpoint.load(path)


FILES: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "ledger": (make_ledger, use_ledger),
    "site journal": (make_journal, use_journal),
    "run journal": (make_runs, use_runs),
    "heads": (make_heads, use_heads),
    "checkpoint": (make_checkpoint, use_checkpoint),
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Flip a bit anywhere or in the first bytes, scramble a stretch, or cut the end off."""
    data = bytearray(content)
    kind = chance.choice(["flip", "flip", "header", "stretch", "cut"])
    if kind == "cut":
        return bytes(data[: chance.randrange(len(data))])
    start = chance.randrange(min(len(data), 100) if kind == "header" else len(data))
    if kind == "stretch":
        length = len(data[start : start + chance.choice([4, 64, 1024])])
        data[start : start + length] = chance.randbytes(length)
    else:
        data[start] ^= 1 << chance.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str) -> None:
    make, use = FILES[name]
    whole = tmp_path / "whole"
    make(whole)
    if name != "checkpoint":
        connection = sqlite3.connect(whole)  # all of it in the one file
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()
    use_first = tmp_path / "first"
    use_first.write_bytes(whole.read_bytes())
    use(use_first)
    chance, said = random.Random(f"{name} 1"), dict[Path, str]()
    for number in range(TRIES):
        path = tmp_path / f"{number}.file"
        path.write_bytes(damaged(whole.read_bytes(), chance))
        try:
            use(path)
        except WardposeError as error:
            said[path] = str(error)
    assert len(said) > TRIES / 10
    assert all(str(path) in line and "\n" not in line for path, line in said.items())
