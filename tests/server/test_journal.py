from pathlib import Path

from wardpose.server.journal import RoundRow, RunJournal, SiteRow


def start(journal: RunJournal) -> None:
    journal.start(
        run="r1",
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
