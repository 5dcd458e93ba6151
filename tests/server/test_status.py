"""The coordinator's status page says what happened and what to do, whatever its files are."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.sites import damage
from support.status_folders import (
    DELTA,
    EVENT,
    SITES,
    add_evaluation,
    busy_coordinator,
    start_run,
    superlink_database,
    take_round,
)

from wardpose.server.facts import Places, find_runs, late_in_a_row, read_spending, run_folders
from wardpose.server.folder import held
from wardpose.server.journal import Ending, RunJournal, SiteRow
from wardpose.server.status import server_status
from wardpose.shared.privacy.budget import Budget
from wardpose.shared.privacy.filters import Charged
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.rounds_left import MOST_ROUNDS, rounds_left
from wardpose.shared.status_html import render
from wardpose.shared.status_view import StatusView


def text(view: StatusView) -> str:
    return " | ".join([view.headline, view.next_step, view.last_error, *(f"{f.what} {f.todo}" for f in view.findings)])


def cell(view: StatusView, title: str, row: str, column: str) -> str:
    table = next(table for table in view.tables if table.title == title)
    found = next(cells for cells in table.rows if cells[0].text == row)
    return found[table.headings.index(column)].text


def test_who_refused_who_is_late_and_whose_ledger_is_apart(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / "run").mkdir()
    nodes = {SITES[0]: ("online", now - 12), SITES[2]: ("online", now - 47), SITES[3]: ("offline", now - 4000)}
    database = superlink_database(tmp_path / "state.sqlite", nodes)
    view = server_status(Places(directory=busy_coordinator(tmp_path / "run"), superlink=database), now=now)
    assert (view.name, view.tone) == ("ward-pose", "bad")
    assert view.headline == "Round 8 of 12 is under way; 3 things need somebody now."
    assert view.next_step.startswith("nordklinik: ")
    for part in (
        "ukm-muenster: refused: the site's policy does not allow this order.",
        "st-anna: late in 3 rounds in a row",
        "nordklinik: ledgers apart",
        "ukm-muenster: is not registered.",
        "st-anna: is not connected; last seen 47 s ago.",
    ):
        assert part in text(view)
    assert cell(view, "Sites", "st-anna", "last answer") == "late, round 7"
    assert cell(view, "Sites", "charite-berlin", "connection") == "online"
    assert cell(view, "Sites", "nordklinik", "ledgers") == "apart"
    assert "free baseline" in next(fact.note for fact in view.facts if fact.name.startswith("PCK"))
    assert view.curve is not None
    assert view.curve.levels[0][1] == 0.361
    assert "<table" in render(view)


def test_reading_changes_no_file(tmp_path: Path) -> None:
    busy_coordinator(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.sqlite")}
    server_status(Places(directory=tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.sqlite")} == before


def test_before_the_first_run_it_says_how_to_begin(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        view = server_status(Places(directory=folder))
        assert (view.headline, view.tone) == ("No run yet.", "plain")
        assert "wardpose server submit" in view.next_step
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("reason", list(Ending))
def test_every_end_has_its_next_step(reason: Ending, tmp_path: Path) -> None:
    start_run(tmp_path).finish("r1", "failed", reason=reason, detail="LedgerError: it is <b>full</b>")
    view = server_status(Places(directory=tmp_path))
    assert view.headline == "The run failed after round 0 of 12."
    assert view.last_error == "LedgerError: it is <b>full</b>"
    assert view.next_step == view.findings[0].todo != ""
    assert "&lt;b&gt;full" in render(view)


def test_a_finished_run_needs_nobody(tmp_path: Path) -> None:
    journal = start_run(tmp_path, rounds=1)
    take_round(tmp_path, 1, dict.fromkeys(SITES, "released"), ended=time.time())
    journal.score("r1", "final", {"score": 0.44})
    journal.finish("r1", "completed")
    view = server_status(Places(directory=tmp_path))
    assert (view.headline, view.findings) == ("The run is completed: 1 of 1 rounds.", ())
    journal.score("r1", "final", {"score": 0.30})
    (fact,) = [fact for fact in server_status(Places(directory=tmp_path)).facts if fact.name.startswith("PCK")]
    assert fact.note.endswith("the rounds were not worth it")


def test_a_round_without_a_release_is_told(tmp_path: Path) -> None:
    start_run(tmp_path)
    take_round(tmp_path, 1, dict.fromkeys(SITES, "late"), ended=time.time())
    assert "No release came in round 1: charged, and nothing learned." in text(
        server_status(Places(directory=tmp_path))
    )


def test_scores_that_were_paid_for_stand_beside_the_free_one(tmp_path: Path) -> None:
    busy_coordinator(tmp_path)
    add_evaluation(tmp_path)
    view = server_status(Places(directory=tmp_path))
    assert cell(view, "Evaluations on patients", "1", "private model") == "0.412 ± 0.021"
    assert cell(view, "Evaluations on patients", "1", "free model (public-only)") == "0.371 ± 0.021"


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("journal.sqlite", b"", "holds no run"),
        ("journal.sqlite", b"SQLite format 3\0 and then nothing", "The run journal cannot be read"),
        ("journal.sqlite", b"dear sir or madam" * 500, "The run journal cannot be read"),
        ("contact.sqlite", b"dear sir or madam" * 500, "The record of contacts cannot be read"),
        ("ledger-alarms.sqlite", b"dear sir or madam" * 500, "The record of alarms cannot be read"),
        ("server.crt", b"no certificate", "A certificate cannot be read"),
        ("state.sqlite", b"dear sir or madam" * 500, "The SuperLink's database cannot be read"),
    ],
)
def test_the_page_outlives_its_files(file: str, content: bytes, part: str, tmp_path: Path) -> None:
    busy_coordinator(tmp_path)
    for path in tmp_path.glob(f"{file}*"):
        path.unlink()
    (tmp_path / file).write_bytes(content)
    places = Places(
        directory=tmp_path, superlink=tmp_path / "state.sqlite", certificates={"server": tmp_path / "server.crt"}
    )
    if file != "state.sqlite":
        places = replace(places, superlink=None)
    view = server_status(places)
    assert part in text(view)
    assert view.tone in ("bad", "warning")
    assert "<html" in render(view)


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "rolled-back"])
def test_a_ledger_that_is_lost_is_told_and_the_rest_is_shown(how: str, tmp_path: Path) -> None:
    busy_coordinator(tmp_path)
    damage(tmp_path / "ledger.sqlite", how)
    view = server_status(Places(directory=tmp_path))
    assert "The coordinator's ledger cannot be read" in text(view)
    assert "restore the newest backup" in text(view)
    assert cell(view, "Sites", "st-anna", "last answer") == "late, round 7"


def test_runs_of_several_folders_are_one_history(tmp_path: Path) -> None:
    for number, run in enumerate(("second", "first")):
        folder = tmp_path / run
        folder.mkdir()
        start_run(folder, run=run)
        take_round(folder, 1, dict.fromkeys(SITES, "released"), run=run, ended=1000.0 + number)
    assert [folder.name for folder in run_folders(tmp_path)] == ["second", "first"]  # as they were begun
    runs = find_runs(tmp_path)
    assert runs is not None
    assert (runs.last["run"], runs.folder.name, len(runs.rounds)) == ("first", "first", 2)
    assert server_status(Places(directory=tmp_path)).headline.startswith("Round 2 of 12")


def test_rounds_left_are_those_that_the_ledger_would_take(tmp_path: Path) -> None:
    start_run(tmp_path)
    take_round(tmp_path, 1, {SITES[0]: "released"}, ended=1.0)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    runs = find_runs(tmp_path)
    assert runs is not None
    (account, *_) = read_spending(runs).sites
    assert (account.sigma, account.budget) == (1.0, 8.0)
    budget = Budget(epsilon=8.0, delta=DELTA)
    taken = 0
    while taken < 100:
        try:
            ledger.reserve(SITES[0], [EVENT], run_id="r1", round=2 + taken, budget=budget)
        except Exception:
            break
        taken += 1
    assert account.rounds_left == taken > 3


def test_what_costs_nothing_may_go_on_for_ever() -> None:
    free = Charged(course="", events=())
    terms = {"epsilon": 1.0, "delta": 1e-5, "adjacency": "add-remove", "unit": "patient", "order": None}
    assert rounds_left((free,), free, **terms) >= MOST_ROUNDS - 1  # type: ignore[arg-type]


def test_late_in_a_row_begins_anew_with_an_answer() -> None:
    def rows(*statuses: str) -> list[SiteRow]:
        return [SiteRow(run="r", round=n, site="a", status=status) for n, status in enumerate(statuses, start=1)]

    assert late_in_a_row(rows("late", "released", "late", "absent", "late")) == 2
    assert late_in_a_row(rows("late", "late", "released")) == 0
    assert late_in_a_row([]) == 0


def test_a_run_that_begins_again_has_no_end(tmp_path: Path) -> None:
    start_run(tmp_path).finish("r1", "stopped", reason=Ending.ABSENT, detail="nobody")
    journal = start_run(tmp_path)
    assert (journal.runs()[-1]["reason"], journal.runs()[-1]["status"]) == ("", "running")
    start_run(tmp_path, run="r2")
    assert RunJournal(journal.path).runs()[0]["reason"] == Ending.KILLED


def test_a_run_whose_process_was_killed_is_not_under_way(tmp_path: Path) -> None:
    start_run(tmp_path)
    with held(tmp_path):
        assert server_status(Places(directory=tmp_path)).headline == "Round 1 of 12 is under way."
    view = server_status(Places(directory=tmp_path))
    assert view.headline == "The run was interrupted after round 0 of 12."
    assert "wardpose server resume" in view.next_step


def test_a_run_that_never_began_is_told(tmp_path: Path) -> None:
    (tmp_path / "r2").mkdir()
    (tmp_path / "latest").symlink_to("r2")
    view = server_status(Places(directory=tmp_path))
    assert (view.tone, "r2" in view.headline, "never began" in view.headline) == ("bad", True, True)
    (tmp_path / "r1").mkdir()
    start_run(tmp_path / "r1")
    view = server_status(Places(directory=tmp_path))
    assert view.headline.startswith("Round 1 of 12")
    assert "Run r2, submitted last, failed: it never began." in text(view)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("r1")
    assert "submitted last" not in text(server_status(Places(directory=tmp_path)))
    assert len(run_folders(tmp_path)) == 1
