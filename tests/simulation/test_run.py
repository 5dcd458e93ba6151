"""The whole path in one process: the apps that hospitals run, real ledgers, rendered frames, injected faults."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from wardpose.client.journal import SiteJournal
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.scoring import arrays_of
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.weights import load_model, read_metadata
from wardpose.shared.privacy.accounting import epsilon
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site
from wardpose.simulation.grid import Fault
from wardpose.simulation.layout import prepare_sites
from wardpose.simulation.run import simulate

FREE = ("none", "public-only")


def plan(**changes: Any) -> dict[str, Any]:
    sites = [
        {
            "name": name,
            "data": {"kind": "ward", "hospital": name, "patients": 12, "frames_per_patient": 2, "seed": 1},
        }
        for name in ("north", "south")
    ]
    base: dict[str, Any] = {
        "name": "small",
        "rounds": 2,
        "mechanism": {"name": "dp-sgd", "sample_rate": 0.5, "frames_per_unit": 2, "noise_multiplier": 3.0},
        "sites": sites,
        "data": {"test": [{"kind": "ward", "hospital": "north", "patients": 4, "frames_per_patient": 1, "seed": 9}]},
        "model": {"input_size": [64, 64], "weights": "random"},
        "privacy": {"epsilon": 6.0, "delta": 1e-3},
        "training": {"strategy": "head", "steps": 2},
        "server": {"deadline_seconds": 60, "wait_seconds": 1},
    }
    return base | changes


def mechanism(name: str, **options: Any) -> dict[str, Any]:
    """The plan's mechanism under another name, with further options."""
    values = plan()["mechanism"] | {"name": name} | options
    return {key: value for key, value in values.items() if name not in FREE or key != "noise_multiplier"}


def run(folder: Path, *, faults: tuple[Fault, ...] = (), resume: bool = False, **changes: Any) -> dict[str, Any]:
    config = FederationConfig.model_validate(plan(**changes))
    return simulate(config, folder, faults=faults, resume=resume, report=False)


def run_with_south(folder: Path, config: dict[str, Any], change: Callable[[dict[str, Any]], None], **how: Any) -> Any:
    """Lay the sites out, change south's site.yaml, and run; returns the summary and south's site.yaml."""
    federation = FederationConfig.model_validate(config)
    path = prepare_sites(federation, folder)["south"]
    site = yaml.safe_load(path.read_text())
    change(site)
    path.write_text(yaml.safe_dump(site))
    return simulate(federation, folder, report=False, **how), path


def of_site(summary: dict[str, Any], name: str) -> dict[str, Any]:
    return next(site for site in summary["sites"] if site["name"] == name)


def ledger(folder: Path, site: str) -> Ledger:
    return Ledger(load_site(folder / "sites" / site / "site.yaml").ledger)


def spent(folder: Path, site: str) -> float:
    return ledger(folder, site).epsilon(f"{site}-cohort", delta=1e-3)


def test_two_hospitals_train_and_pay_exactly_for_what_they_did(tmp_path: Path) -> None:
    summary = run(tmp_path / "run")
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    assert summary["not_private"] is None
    for site in summary["sites"]:
        events = ledger(tmp_path / "run", site["name"]).events(f"{site['name']}-cohort")
        assert sum(event.steps for event in events) == site["steps"] == 4
        assert {(event.sample_rate, event.noise_multiplier, event.unit) for event in events} == {(0.5, 3.0, "patient")}
        assert site["epsilon_spent"] == pytest.approx(epsilon(events, delta=COURSE_SHARE * 1e-3), rel=1e-9)
        assert 0 < site["epsilon_spent"] <= site["epsilon_budget"] == 6.0
        assert site["bytes_up"] > 0
    together = summary["epsilon_federation"]
    assert together["disjoint"] == pytest.approx(summary["sites"][0]["epsilon_spent"])
    assert together["overlap"] > together["disjoint"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_a_run_folder_is_never_overwritten_and_a_finished_run_not_begun_again(tmp_path: Path) -> None:
    first = run(tmp_path / "run", rounds=1)
    with pytest.raises(ConfigError, match="holds a run already"):
        run(tmp_path / "run", rounds=1)
    files = [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".safetensors", ".json", ".yaml")]
    before = {path: path.stat().st_mtime_ns for path in files}
    told: list[str] = []
    config = FederationConfig.model_validate(plan(rounds=1))
    assert simulate(config, tmp_path / "run", resume=True, report=False, observe_message=told.append) == first
    assert told == [f"{tmp_path / 'run'}: the run was finished, all 1 rounds; nothing is started"]
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert run(tmp_path / "run", resume=True, rounds=2)["rounds"] == 2  # another plan is another matter


@pytest.mark.parametrize("kind", ["crash-after-training", "straggle"])
def test_a_lost_release_is_charged_on_both_sides(tmp_path: Path, kind: Any) -> None:
    faults = (Fault(site="south", round=1, kind=kind),)
    summary = run(tmp_path / "run", faults=faults, server={"deadline_seconds": 15, "wait_seconds": 1}, rounds=2)
    south = of_site(summary, "south")
    assert summary["status"] == "completed"
    assert (south["rounds_released"], south["steps"]) == (1, 4)
    assert south["epsilon_spent"] == pytest.approx(spent(tmp_path / "run", "south"))
    assert spent(tmp_path / "run", "south") == pytest.approx(spent(tmp_path / "run", "north"))


def test_a_crash_before_training_is_charged_by_the_server_until_the_site_says_that_nothing_left(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", faults=(Fault(site="south", round=1, kind="crash"),))
    south = of_site(summary, "south")
    assert south["rounds_released"] == 1
    assert sum(event.steps for event in ledger(tmp_path / "run", "south").events("south-cohort")) == 2
    assert south["epsilon_spent"] == spent(tmp_path / "run", "south")  # the signed word came with the next preflight
    summary = run(tmp_path / "other", faults=(Fault(site="south", round=2, kind="crash"),))
    assert of_site(summary, "south")["epsilon_spent"] > spent(tmp_path / "other", "south")  # no contact since


def test_a_site_that_refuses_leaves_and_the_others_go_on(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", faults=(Fault(site="south", round=1, kind="refuse"),), rounds=3)
    assert summary["status"] == "completed"
    released = {site["name"]: site["rounds_released"] for site in summary["sites"]}
    assert released == {"north": 3, "south": 0}


def test_a_spent_budget_ends_the_run_cleanly_with_a_checkpoint(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", rounds=40, privacy=plan()["privacy"] | {"epsilon": 2.0})
    assert summary["status"] == "stopped"
    assert 0 < summary["rounds"] < 40
    for site in summary["sites"]:
        assert site["epsilon_spent"] <= 2.0
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    known = read_metadata(tmp_path / "run" / "model.safetensors")
    card = (tmp_path / "run" / "model-card.md").read_text()
    assert known["card"] == card
    assert known["epsilon"] in card
    assert known["epsilon"].startswith("Whoever sees the model")
    assert "the run is stopped" in card


def test_a_policy_that_forbids_the_mechanism_is_heard_before_anything_is_charged(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def change(site: dict[str, Any]) -> None:
        site["policy"]["mechanisms"] = ["projected"]

    summary, _ = run_with_south(folder, plan(rounds=1), change)
    south = of_site(summary, "south")
    assert (south["epsilon_spent"], south["steps"], south["status"]) == (0.0, 0, "refused")
    assert Ledger(folder / "ledger.sqlite").events("south") == ()


def test_a_round_answers_when_the_site_declared_it_would(tmp_path: Path) -> None:
    """However long the round itself takes, what it comes to is seen at whole multiples of the declared time alone."""
    times: dict[tuple[str, str], list[float]] = {}

    def observe(site: str, event: str) -> None:
        times.setdefault((site, event), []).append(time.monotonic())

    def change(site: dict[str, Any]) -> None:
        site["answer_seconds"] = 4.0

    summary, _ = run_with_south(tmp_path / "run", plan(), change, observe_site=observe)
    assert of_site(summary, "south")["rounds_released"] == 2
    took = {
        site: [end - start for start, end in zip(times[site, "started"], times[site, "finished"], strict=True)][1:3]
        for site in ("north", "south")
    }  # without the preflight before, and the receipts behind
    assert len(took["south"]) == 2
    for seconds in took["south"]:
        assert seconds >= 4.0
        assert seconds % 4.0 == pytest.approx(0.0, abs=0.5)
    assert took["north"][1] < 4.0


def test_a_refusal_after_patients_were_read_is_paid_for_and_keeps_the_declared_time_too(tmp_path: Path) -> None:
    times: list[float] = []
    (tmp_path / "torn.json").write_text("{")

    def change(site: dict[str, Any]) -> None:
        site["answer_seconds"] = 3.0
        site["cohort"]["data"] = {
            "kind": "coco", "annotations": str(tmp_path / "torn.json"), "images": str(tmp_path),
            "patients": {"pattern": "(p)"},
        }  # fmt: skip

    def observe(site: str, event: str) -> None:
        if site == "south":
            times.append(time.monotonic())

    summary, _ = run_with_south(tmp_path / "run", plan(rounds=1), change, observe_site=observe)
    assert of_site(summary, "south")["status"] == "failed"
    assert times[3] - times[2] >= 3.0  # behind the preflight, and before the receipts
    assert spent(tmp_path / "run", "south") == spent(tmp_path / "run", "north") > 0


PUBLIC = {"kind": "ward", "hospital": "public", "patients": 12, "frames_per_patient": 1, "seed": 5}
SMALL_BASIS = {"frames": 6, "held_out": 3, "rank": 4, "min_captured_energy": 0.0}


@pytest.mark.parametrize("name", ["projected", "feature", "feature-projective", "public-only"])
def test_every_mechanism_takes_the_same_path(tmp_path: Path, name: str) -> None:
    options = {"projection": SMALL_BASIS} if "project" in name else {}
    changes: dict[str, Any] = {"data": {"public": [PUBLIC]}, "public_view": {"kind": "blur", "strength": 4.0}}
    summary = run(tmp_path / "run", mechanism=mechanism(name, **options), rounds=1, **changes)
    assert summary["status"] == "completed"
    assert [site["rounds_released"] for site in summary["sites"]] == [1, 1]
    for site in summary["sites"]:
        charged = spent(tmp_path / "run", site["name"])
        assert site["epsilon_spent"] == pytest.approx(charged)
        assert (charged > 0) == (name != "public-only")


def test_a_basis_that_the_gate_rejects_is_told_to_the_site(tmp_path: Path) -> None:
    for threshold, said in ((0.0, "projected: "), (1.0, "NOT projected")):
        folder = tmp_path / str(threshold)
        chosen = mechanism("projected", projection=SMALL_BASIS | {"min_captured_energy": threshold})
        run(folder, mechanism=chosen, rounds=1, data={"public": [PUBLIC]})
        (order,) = SiteJournal(folder / "sites" / "north" / "state" / "journal.sqlite").orders()
        assert order.status == "released"
        assert order.detail.startswith(said)


def test_coefficients_say_the_same_as_the_whole_update(tmp_path: Path) -> None:
    def final(uplink: str) -> tuple[dict[str, Any], Any]:
        summary = run(
            tmp_path / uplink,
            mechanism=mechanism("projected", projection=SMALL_BASIS | {"uplink": uplink}),
            rounds=2,
            seed=3,
            data={"public": [PUBLIC]},
            training=plan()["training"] | {"optimizer": {"name": "sgd", "learning_rate": 0.1}},
        )
        return summary, Checkpoint.load(tmp_path / uplink / "checkpoint.safetensors").weights

    whole, expected = final("full")
    short, weights = final("coefficients")
    start = arrays_of(load_model(tmp_path / "full" / "initial.safetensors"))
    assert short["sites"][0]["bytes_up"] == 2 * int(SMALL_BASIS["frames"]) * 8
    assert whole["sites"][0]["bytes_up"] > 1000 * short["sites"][0]["bytes_up"]
    moved = np.concatenate([(expected[name] - start[name]).ravel() for name in start])
    apart = np.concatenate([(expected[name] - weights[name]).ravel() for name in start])
    assert np.linalg.norm(moved) > 1e-3
    assert np.linalg.norm(apart) < 1e-3 * np.linalg.norm(moved)


def test_a_public_view_without_a_certificate_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def change(site: dict[str, Any]) -> None:
        site["policy"]["certificate"] = {}

    config = plan(rounds=1, mechanism=mechanism("feature"), public_view={"kind": "blur", "strength": 4.0})
    summary, _ = run_with_south(folder, config, change)
    south = of_site(summary, "south")
    assert (south["epsilon_spent"], south["status"]) == (0.0, "refused")
    assert spent(folder, "south") == 0


def test_a_schedule_is_charged_phase_by_phase(tmp_path: Path) -> None:
    phases = [
        {"steps": 3, "max_grad_norm": 1.0, "noise_multiplier": 3.0, "sample_rate": 0.5},
        {"steps": 1, "max_grad_norm": 0.5, "noise_multiplier": 2.0, "sample_rate": 0.25},
    ]
    run(tmp_path / "run", mechanism={"frames_per_unit": 2, "schedule": {"phases": phases}})
    events = ledger(tmp_path / "run", "north").events("north-cohort")
    assert [(event.steps, event.noise_multiplier, event.sample_rate) for event in events] == [
        (2, 3.0, 0.5),
        (1, 3.0, 0.5),
        (1, 2.0, 0.25),
    ]


def test_mechanism_none_is_infinite_and_says_so(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", mechanism=mechanism("none"), rounds=1)
    assert summary["not_private"].startswith("mechanism none")
    assert summary["sites"][0]["epsilon_spent"] is None
    assert math.isinf(spent(tmp_path / "run", "north"))


def test_a_seeded_run_repeats_itself_and_is_stamped(tmp_path: Path) -> None:
    first = run(tmp_path / "a", seed=7, rounds=1)
    second = run(tmp_path / "b", seed=7, rounds=1)
    other = run(tmp_path / "c", seed=8, rounds=1)
    read = [(tmp_path / name / "model.safetensors").read_bytes()[-4096:] for name in "abc"]
    assert first["not_private"].startswith("seeded simulation")
    assert first["score_final"] == second["score_final"]
    assert read[0] == read[1]
    assert read[0] != read[2]
    assert other["status"] == "completed"


def test_a_sites_journal_keeps_what_the_server_never_hears(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def change(site: dict[str, Any]) -> None:
        site["cohort"]["data"] = {
            "kind": "lsp", "path": str(tmp_path / "patient-jane-doe"), "split": "private",
            "patients": {"pattern": "(p)"},
        }  # fmt: skip

    summary, path = run_with_south(folder, plan(rounds=1), change)
    order = SiteJournal(load_site(path).state / "journal.sqlite").orders()[-1]
    assert order.status == "failed"
    assert "patient-jane-doe" in order.detail
    everything = json.dumps(summary).encode() + b"".join(file.read_bytes() for file in folder.glob("*.sqlite*"))
    assert b"patient-jane-doe" not in everything
    assert spent(folder, "south") == 0


_CHILD = """
import sys
from pathlib import Path
from wardpose.shared.config import load_federation
from wardpose.simulation.run import simulate
simulate(load_federation(Path(sys.argv[1])), Path(sys.argv[2]), resume=True, report=False)
"""


@pytest.mark.slow
@pytest.mark.guard
def test_killed_at_any_moment_the_ledger_never_goes_down_and_the_run_finishes(tmp_path: Path) -> None:
    path, folder = tmp_path / "plan.yaml", tmp_path / "run"
    chosen = {"sample_rate": 0.5, "frames_per_unit": 2}  # sigma: calibrated to what is left
    path.write_text(yaml.safe_dump(plan(rounds=3, mechanism=chosen)))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    totals = {"north": 0.0, "south": 0.0}

    def check() -> None:
        for name in totals:
            site = folder / "sites" / name / "site.yaml"
            if site.exists() and load_site(site).ledger.exists():
                book = ledger(folder, name)
                book.verify()
                now = book.epsilon(f"{name}-cohort", delta=1e-3)
                assert now >= totals[name]
                totals[name] = now

    for delay in (1.0, 4.0, 5.0, 6.0, 7.0):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(path), str(folder)], env=environment, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        check()
    subprocess.run([sys.executable, "-c", _CHILD, str(path), str(folder)], env=environment, check=True)
    check()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("completed", 3)
    for site in summary["sites"]:
        assert site["epsilon_spent"] >= totals[site["name"]] - 1e-9
        assert site["epsilon_spent"] <= 6.0
