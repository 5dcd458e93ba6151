"""The round loop through the apps that hospitals run: who comes back, who pays, and what a kill leaves."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Message
from support.federations import charged_steps, rows_of, tiny_federation

from wardpose.client.app import app as client_app
from wardpose.server.app import _better, run_federation
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.contact import open_alarms
from wardpose.server.folder import held
from wardpose.server.heads import Heads
from wardpose.server.journal import RunJournal
from wardpose.server.scoring import Scorer, arrays_of
from wardpose.server.summary import summarise
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.pose.weights import load_model, read_metadata
from wardpose.shared.refusals import Refusal
from wardpose.shared.site_config import load_site
from wardpose.simulation.grid import Fault, FaultKind, InProcessGrid
from wardpose.simulation.layout import prepare_sites
from wardpose.simulation.run import simulate

SITES = ("north", "south")


def run(folder: Path, faults: Sequence[Fault] = (), *, resume: bool = False, **changes: Any) -> dict[str, Any]:
    return simulate(tiny_federation(SITES, **changes), folder, faults=faults, resume=resume, report=False)


def south(kind: FaultKind, *rounds: int) -> list[Fault]:
    return [Fault(site="south", round=number, kind=kind) for number in rounds]


def statuses(folder: Path, site: str = "south") -> dict[int, str]:
    return {number: row.status for (number, name), row in rows_of(folder).items() if name == site}


IMPATIENT = {"deadline_seconds": 1, "wait_seconds": 1}


def test_a_late_site_comes_back_however_often_it_was_late(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", south("straggle", 1, 2, 3, 4), rounds=5, server=IMPATIENT)
    assert statuses(tmp_path / "run") == {0: "ready", 1: "late", 2: "late", 3: "late", 4: "late", 5: "released"}
    assert summary["status"] == "completed"
    assert charged_steps(tmp_path / "run", "south") == (5, 5)


def test_a_round_in_which_everybody_is_late_is_not_the_last(tmp_path: Path) -> None:
    faults = [Fault(site=site, round=1, kind="straggle") for site in SITES]
    summary = run(tmp_path / "run", faults, server=IMPATIENT)
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    assert [statuses(tmp_path / "run", site)[2] for site in SITES] == ["released"] * 2


def test_a_site_that_misses_the_preflight_is_asked_again_and_not_charged_meanwhile(tmp_path: Path) -> None:
    calls: list[Message] = []

    def silent_at_first(_: Message, answer: Message) -> Message | None:
        calls.append(answer)
        return None if len(calls) == 1 else answer

    fault = Fault(site="south", round=0, kind="replace", replace=silent_at_first)
    run(tmp_path / "run", [fault], rounds=3, server=IMPATIENT)
    assert statuses(tmp_path / "run") == {0: "ready", 1: "absent", 2: "released", 3: "released"}
    assert charged_steps(tmp_path / "run", "south") == (2, 2)


def test_a_late_site_that_does_not_answer_the_next_preflight_is_not_ordered(tmp_path: Path) -> None:
    calls: list[Message] = []

    def silent_second(_: Message, answer: Message) -> Message | None:
        calls.append(answer)
        return None if len(calls) == 2 else answer

    silent = Fault(site="south", round=0, kind="replace", replace=silent_second)
    run(tmp_path / "run", [silent, *south("straggle", 1)], rounds=3, server=IMPATIENT)
    assert [statuses(tmp_path / "run")[number] for number in (1, 2, 3)] == ["late", "absent", "released"]
    assert charged_steps(tmp_path / "run", "south") == (2, 2)


def test_on_resume_a_late_site_comes_back_and_one_that_refused_does_not(tmp_path: Path) -> None:
    for kind, after in (("straggle", "released"), ("refuse", None)):
        folder = tmp_path / str(kind)
        run(folder, south(kind, 1), rounds=1, server=IMPATIENT)  # type: ignore[arg-type]
        run(folder, rounds=2, resume=True)
        assert statuses(folder).get(2) == after


def test_a_site_that_fails_again_and_again_is_left_alone_until_a_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, south("crash-after-training", 1, 2, 3), rounds=4)
    assert [statuses(folder)[number] for number in (1, 2, 3, 4)] == ["failed"] * 3 + ["absent"]
    assert charged_steps(folder, "south") == (3, 3)
    run(folder, rounds=5, resume=True)
    assert statuses(folder)[5] == "released"


def test_below_the_quorum_nobody_is_charged(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", south("crash", 0), server={"minimum_sites": 2})
    assert (summary["status"], summary["rounds"]) == ("stopped", 0)
    assert charged_steps(tmp_path / "run", "north") == (0, 0)
    assert statuses(tmp_path / "run") == {0: "failed"}


@pytest.mark.parametrize("resume", [True, False])
def test_a_ledger_that_went_back_stops_its_own_site_in_this_run_and_the_next(tmp_path: Path, resume: bool) -> None:
    folder = tmp_path / "run"
    config = tiny_federation(SITES, rounds=1)
    run(folder, rounds=1)
    site = load_site(folder / "sites" / "south" / "site.yaml")  # its disk broke: ledger and journal are gone
    for lost in (site.ledger, site.state / "journal.sqlite"):
        for file in lost.parent.glob(f"{lost.name}*"):
            file.unlink()
    changed = config.model_copy(update={"rounds": 2})
    with InProcessGrid(client_app, prepare_sites(config, folder)) as grid:
        run_federation(grid, changed, folder, resume=resume)
    row = rows_of(folder)[0, "south"]
    assert (row.status, row.code) == ("refused", Refusal.APART)  # the site is told what it once had
    assert [alarm.site for alarm in open_alarms(folder / "contact.sqlite")] == ["south"]
    assert statuses(folder, "north")[2] == "released"
    before = charged_steps(folder, "south")
    Heads(folder / "heads.sqlite").accept_another("south", "its disk broke; the hospital wrote on 3 May")
    with InProcessGrid(client_app, prepare_sites(config, folder)) as grid:
        run_federation(grid, config, folder, resume=False)
    assert statuses(folder)[1] == "released"
    assert open_alarms(folder / "contact.sqlite") == []
    assert charged_steps(folder, "south")[0] == before[0] + 1


def test_a_kill_between_checkpoint_and_journal_loses_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write = tmp_path / "run", RunJournal.round

    def killed(self: RunJournal, row: Any, sites: Any) -> None:
        if row.round == 2:
            raise KeyboardInterrupt
        write(self, row, sites)

    with monkeypatch.context() as patch:
        patch.setattr(RunJournal, "round", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, rounds=3)
    assert Checkpoint.load(folder / "checkpoint.safetensors").round == 2
    summary = run(folder, rounds=3, resume=True)
    assert [row["round"] for row in summary["history"]] == [1, 2, 3]
    assert statuses(folder) == {0: "ready", 1: "released", 2: "released", 3: "released"}
    assert charged_steps(folder, "south") == (3, 3)


def test_a_round_that_is_redone_shows_all_that_was_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, save = tmp_path / "run", Checkpoint.save

    def killed(self: Checkpoint, path: Path) -> None:
        if self.round == 2:
            raise KeyboardInterrupt
        save(self, path)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                run(folder, rounds=3, resume=folder.exists())
    assert [site["steps"] for site in summarise(folder)["sites"]] == [3, 3], "also while the round is not closed"
    summary = run(folder, rounds=3, resume=True)
    assert rows_of(folder)[2, "south"].steps == 3
    assert [site["steps"] for site in summary["sites"]] == [5, 5]
    assert charged_steps(folder, "south") == (5, 5)


def test_two_coordinators_do_not_share_a_folder(tmp_path: Path) -> None:
    run(tmp_path / "run", rounds=1)
    plan = (tmp_path / "run" / "federation.yaml").read_bytes()
    with held(tmp_path / "run"), pytest.raises(ConfigError, match="another coordinator"):
        run(tmp_path / "run", rounds=2, resume=True)
    assert (tmp_path / "run" / "federation.yaml").read_bytes() == plan


def test_what_does_not_combine_to_numbers_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    server = {"aggregation": {"name": "fedadam", "learning_rate": 1e39, "tau": 1e-30}}
    summary = run(folder, server=server)
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    state, start = Checkpoint.load(folder / "checkpoint.safetensors"), load_model(folder / "initial.safetensors")
    for name, value in arrays_of(start).items():
        np.testing.assert_array_equal(state.weights[name], value)
    assert state.aggregator == {}
    assert "is not finite: weights unchanged" in caplog.text


def test_the_link_itself_is_nobodys_fault(tmp_path: Path) -> None:
    def gone(*_: Message) -> Message:
        raise httpx.ConnectError("no route to the SuperLink")

    with pytest.raises(httpx.ConnectError):
        run(tmp_path / "run", [Fault(site="south", round=1, kind="replace", replace=gone)])
    run(tmp_path / "run", resume=True)
    assert statuses(tmp_path / "run")[2] == "released"


def test_a_new_run_in_the_same_folder_overwrites_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    config = tiny_federation(SITES, rounds=1)
    paths = prepare_sites(config, tmp_path / "sites")
    runs = []
    for number in range(2):
        with InProcessGrid(client_app, paths) as grid:
            run_federation(grid, config, folder, resume=False)
        runs.append((folder / "latest-run").read_text().strip())
        if number == 0:
            shutil.copy(folder / "model.safetensors", tmp_path / "first.safetensors")
    assert read_metadata(folder / "model.safetensors")["run"] == runs[1]
    assert (folder / f"model.{runs[0]}.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes()


def test_an_unfinished_runs_checkpoint_is_kept_when_another_run_starts(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    config = tiny_federation(SITES, server={"minimum_sites": 2})
    paths = prepare_sites(config, tmp_path / "sites")
    with InProcessGrid(client_app, paths, faults=south("refuse", 2)) as grid:
        run_federation(grid, config.model_copy(update={"rounds": 3}), folder, resume=False)
    stopped = (folder / "latest-run").read_text().strip()
    with InProcessGrid(client_app, paths) as grid:
        run_federation(grid, config, folder, resume=False)
    assert Checkpoint.load(folder / f"checkpoint.{stopped}.safetensors").run == stopped
    assert Checkpoint.load(folder / "checkpoint.safetensors").run != stopped


# Which of two released models is kept: by public data, which costs nothing.


def test_the_model_before_the_rounds_is_kept_where_public_people_see_no_difference(tmp_path: Path) -> None:
    ward = {"kind": "ward", "hospital": "public", "patients": 2, "frames_per_patient": 1, "seed": 7}
    summary = run(
        tmp_path / "run",
        rounds=1,
        data={"validation": [ward]},
        server={"deadline_seconds": 120, "wait_seconds": 1, "keep": "better"},
        training={"steps": 1, "optimizer": {"name": "sgd", "learning_rate": 1e-12}},
    )
    for name, candidate in (("model", "public-only"), ("model-private", "private")):
        metadata = read_metadata(tmp_path / "run" / f"{name}.safetensors")
        assert (metadata["candidate"], metadata["run"]) == (candidate, summary["run"])
    assert charged_steps(tmp_path / "run", "south") == (1, 1)  # what was not kept was released all the same


def test_the_better_model_is_that_with_the_higher_score_on_public_people() -> None:
    ward = {"kind": "ward", "hospital": "public", "patients": 3, "frames_per_patient": 1, "seed": 7}
    shape = {"input_size": [128, 96], "last_stride": 16}
    model = build_model(ModelConfig.model_validate(shape))
    scorer = Scorer(tiny_federation(SITES, model=shape, data={"validation": [ward]}), model)
    trained = arrays_of(model)
    blind = {name: 0 * value for name, value in trained.items()}
    assert scorer.validation(trained) != scorer.validation(blind)
    assert (_better(scorer, trained, blind), _better(scorer, blind, trained)) == ("private", "public-only")
    assert _better(scorer, trained, trained) == "public-only"
