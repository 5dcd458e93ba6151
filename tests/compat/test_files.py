"""Files of earlier releases, read by today's code (`docs/evolution.md`)."""

import json
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from compat.make import COURSE, DELTA, read
from flwr.app import ConfigRecord, RecordDict

from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import BudgetExceeded, ConfigError, LedgerError, WireError
from wardpose.shared.messages import RoundOrder
from wardpose.shared.privacy import chain
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.budget import Window
from wardpose.shared.privacy.entries import entry_hash
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.wire import unpack_body

FILES = Path(__file__).parent / "files"
RELEASES = sorted(path.parent.name for path in FILES.glob("*/events.json"))


def same(now: Any, then: Any, where: str = "") -> None:
    """Assert that what was read then is read now; values may have come to stand beside it."""
    if isinstance(then, dict):
        assert isinstance(now, dict), where
        assert set(then) <= set(now), f"{where}: {sorted(set(then) - set(now))} is not read any more"
        for key, value in then.items():
            same(now[key], value, f"{where}/{key}")
    elif isinstance(then, list):
        assert isinstance(now, list), where
        assert len(now) == len(then), where
        for place, value in enumerate(then):
            same(now[place], value, f"{where}/{place}")
    elif isinstance(then, float) and isinstance(now, int | float):
        assert math.isclose(now, then, rel_tol=1e-6), f"{where}: {now}, was {then}"
    else:
        assert now == then, where


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a release's files."""
    return Path(shutil.copytree(FILES / request.param, tmp_path / "release"))


def test_there_are_files_of_a_release() -> None:
    assert "0.1.0" in RELEASES


def test_everything_durable_is_read_to_the_same_values(release: Path) -> None:
    then = json.loads((release / "facts.json").read_text())
    same(read(release), then)
    noted = {key for entry in Ledger(release / "ledger.sqlite").entries() for key in entry.body.get("members", {})}
    assert set(then["patients' keys"].values()) == noted


def test_a_value_that_changed_is_noticed() -> None:
    for changed in ({"a": [1.0, 2.5]}, {"a": [1.0]}, {}, {"a": [1.0, "2"]}):
        with pytest.raises(AssertionError):
            same(changed, {"a": [1.0, 2.0]})
    same({"a": [1.0, 2.0], "b": 3}, {"a": [1.0, 2.0]})


def test_an_old_ledger_goes_on_and_what_was_charged_stays_charged(release: Path) -> None:
    ledger = Ledger(release / "ledger.sqlite")
    before = ledger.epsilon("ward-7", DELTA)
    with pytest.raises(BudgetExceeded):
        ledger.reserve("ward-7", COURSE.events(3), run_id="x", round=3, budget=Budget(epsilon=before, delta=DELTA))
    budget = Budget(epsilon=8.0, delta=DELTA)
    ledger.reserve("ward-7", COURSE.events(3), run_id="compat-1", round=3, budget=budget, course=COURSE)
    assert ledger.account("ward-7", DELTA).rule == "course"
    assert ledger.epsilon("ward-7", DELTA) > before


@pytest.mark.parametrize("version", [1, 2])
def test_a_ledger_that_knows_patients_otherwise_is_refused_and_not_read_as_less(tmp_path: Path, version: int) -> None:
    """Version 1 named nobody, 2 hashed ids as they were written: read as one of today's, they would start anew."""
    old = Path(shutil.copytree(FILES / f"ledger-{version}", tmp_path / "old")) / "ledger.sqlite"
    before = old.read_bytes()
    with pytest.raises(
        LedgerError, match=rf"ledger.sqlite: is a ledger of version {version} \(this code reads version 3\)"
    ):
        Ledger(old)
    with pytest.raises(LedgerError, match="what it charged stays charged"):
        Ledger.open_readonly(old)
    assert old.read_bytes() == before


def test_a_ledger_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setattr("wardpose.shared.privacy.chain.VERSION", 4)
    monkeypatch.setattr("wardpose.shared.privacy.entries.VERSION", 4)
    Ledger(path).declare("ward", identity="a" * 64)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="is a ledger of version 4"):
        Ledger(path)


def test_what_a_ledger_is_never_changes(release: Path) -> None:
    """Whoever wants to check a ledger without our code needs this and nothing else."""
    with sqlite3.connect(release / "ledger.sqlite") as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        rows = connection.execute("SELECT sequence, kind, body, previous, hash FROM entries").fetchall()
    assert application.to_bytes(4, "big") == b"WPL1"
    assert rows[0][1] == "genesis"
    assert json.loads(rows[0][2])["version"] == 3
    assert {kind for _, kind, *_ in rows} <= {"genesis", "cohort", "reserve", "commit", "checkpoint"}
    assert (rows[-1][0], rows[-1][4]) == Ledger(release / "ledger.sqlite").head()


def test_an_event_of_a_later_version_is_refused_not_guessed(release: Path) -> None:
    for value in json.loads((release / "events.json").read_text()):
        with pytest.raises(ConfigError, match=r"unknown keys \['amplified_by'\]"):
            Event.from_json({**value, "amplified_by": 2})
        bare = {key: value[key] for key in value if key not in ("noise", "tier", "adjacency", "seeded")}
        assert Event.from_json(bare).noise == "gaussian"
        with pytest.raises(ConfigError, match=r"missing keys \['steps'\]"):
            Event.from_json({key: bare[key] for key in bare if key != "steps"})


@pytest.mark.parametrize("change", [{"protocol": 2}, {"protocol": 4}, {"amplified_by": 2}])
def test_a_message_of_another_protocol_is_refused(change: dict[str, int]) -> None:
    text = (FILES / "0.1.0" / "RoundOrder.json").read_text()
    body = json.dumps({**json.loads(text), **change})
    with pytest.raises(WireError, match=r"protocol|amplified_by"):
        unpack_body(RecordDict({"body": ConfigRecord({"json": body, "signature": ""})}), RoundOrder, arrays=False)


def test_a_sum_of_before_months_is_checked_as_it_was_and_then_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints hold the hash of a sum without months; what they vouch for is read again, once."""
    monkeypatch.setattr(chain, "_SPACING", 8)
    folder = Path(shutil.copytree(FILES / "ledger-3-sums", tmp_path / "old"))
    facts = json.loads((folder / "facts.json").read_text())
    journal = SiteJournal(folder / "journal.sqlite")

    def opened() -> Ledger:
        return Ledger(folder / "ledger.sqlite", witness=journal, clock=lambda: 1_800_000_000.0)

    ledger = opened()
    ledger.verify()
    assert list(ledger.head()) == facts["head"]
    assert facts["checkpoints"] == 4
    same({cohort: ledger.epsilon(cohort, 1e-5) for cohort in ledger.cohorts()}, facts["epsilon"])
    same([list(found) for found in ledger.patients(delta=1e-5)], facts["patients"])
    months = {entry.body["time"] // 2_592_000 for entry in ledger.entries() if entry.kind == "reserve"}
    assert len(months) > 2  # the clock went on while it was written
    whole = Window()
    now = Window(month=ledger.month())
    assert ledger.charges("ward", now) == []
    assert ledger.charges("ward", Window(study="posture")) == ledger.charges("ward", whole)
    ledger.reserve("other", COURSE.events(3), run_id="x", round=3, budget=Budget(epsilon=50.0, delta=1e-5))
    assert ledger.entries()[-1].body["form"] == 2
    read: list[int] = []
    real = chain.next_entry
    monkeypatch.setattr(chain, "next_entry", lambda row, *rest: (read.append(row[0]), real(row, *rest))[1])
    assert opened().charges("other", now) == ledger.charges("other", now) != []
    assert min(read) == 40


def test_a_sum_of_before_months_that_is_false_is_found(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FILES / "ledger-3-sums", tmp_path / "old"))
    connection = sqlite3.connect(folder / "ledger.sqlite")
    rows = connection.execute("SELECT sequence, kind, body FROM entries ORDER BY sequence").fetchall()
    connection.execute("DROP TRIGGER entries_stay")
    previous = "0" * 64
    for sequence, kind, body in rows:
        if kind == "checkpoint":
            changed = json.loads(body)
            changed["state"] = "0" * 64
            body = json.dumps(changed, sort_keys=True, separators=(",", ":"))
        digest = entry_hash(sequence, kind, body, previous)
        connection.execute(
            "UPDATE entries SET body = ?, previous = ?, hash = ? WHERE sequence = ?", (body, previous, digest, sequence)
        )
        previous = digest
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="it is no sum of what was before"):
        Ledger(folder / "ledger.sqlite")
