import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from wardpose.server.journal import RoundRow, RunJournal, SiteRow


def start(journal: RunJournal, run: str = "r1") -> None:
    journal.start(
        run=run,
        federation="f",
        mechanism="dp-sgd",
        unit="patient",
        delta=1e-5,
        overlap=2,
        rounds=3,
        config={"sites": []},
        score_name="pck@0.2",
    )


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "journal.sqlite")
    start(journal)
    row = RoundRow(
        run="r1",
        round=1,
        started=5.0,
        seconds=2.5,
        score=0.5,
        bytes_down=10,
        bytes_up=20,
        epsilon_disjoint=1.0,
        epsilon_overlap=2.0,
    )
    site = SiteRow(run="r1", round=1, site="a", status="released", bytes_up=20, steps=4, epsilon_spent=1.0, secure=True)
    journal.round(row, [site])
    assert RunJournal(tmp_path / "journal.sqlite").rounds("r1") == [row]
    assert RunJournal(tmp_path / "journal.sqlite").sites("r1") == [site]


def test_a_resumed_run_keeps_its_start_and_scores(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "journal.sqlite")
    start(journal)
    journal.score("r1", "initial", {"score": 0.25})
    journal.finish("r1", "interrupted")
    before = journal.run("r1")
    start(journal)
    after = journal.run("r1")
    assert before is not None
    assert after is not None
    assert after["started"] == before["started"]
    assert after["score_initial"] == {"score": 0.25}
    assert (after["status"], after["ended"]) == ("running", None)


def test_a_missing_journal_reads_as_empty_and_is_not_made(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path / "none.sqlite")
    assert journal.runs() == []
    assert journal.rounds("x") == []
    assert not journal.path.exists()


def test_a_journal_of_version_0_1_goes_on(tmp_path: Path) -> None:
    """Its rows had neither reason nor detail."""
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE sites (run TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, status TEXT NOT NULL, "
            "code INTEGER, bytes_up INTEGER NOT NULL, steps INTEGER NOT NULL, epsilon_spent REAL, epsilon_budget REAL, "
            "delta REAL, secure INTEGER, PRIMARY KEY (run, round, site));"
            "INSERT INTO sites VALUES ('r1', 1, 'a', 'released', NULL, 9, 4, 1.0, 8.0, 1e-5, 1);"
        )
    journal = RunJournal(path)
    old = SiteRow(
        run="r1", round=1, site="a", status="released", bytes_up=9, steps=4, epsilon_spent=1.0, epsilon_budget=8.0,
        delta=1e-5, secure=True,
    )  # fmt: skip
    assert journal.sites("r1") == [old]
    new = SiteRow(run="r1", round=2, site="a", status="rejected", reason="norm", detail="too long")
    journal.site(new)
    assert RunJournal(path).sites("r1") == [old, new]


def test_a_run_that_was_killed_does_not_run_for_ever(tmp_path: Path) -> None:
    """One coordinator holds a folder at a time: when another run starts there, the first cannot be at work."""
    journal = RunJournal(tmp_path / "journal.sqlite")
    start(journal)
    start(journal, "r2")
    assert {run["run"]: run["status"] for run in journal.runs()} == {"r1": "interrupted", "r2": "running"}
    start(journal)
    assert {run["run"]: run["status"] for run in journal.runs()} == {"r1": "running", "r2": "interrupted"}


def test_the_latest_run_is_the_one_that_began_last_whatever_the_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = RunJournal(tmp_path / "journal.sqlite")
    for run, now in (("ahead", 2e9), ("right", 1.8e9), ("behind", 0.0)):
        monkeypatch.setattr("wardpose.server.journal.time.time", lambda now=now: now)
        start(journal, run)
    assert [row["run"] for row in journal.runs()] == ["ahead", "right", "behind"]
    start(journal, "ahead")  # it goes on: still the first that began
    assert journal.runs()[0]["status"] == "running"
