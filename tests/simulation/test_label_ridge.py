"""The experiment on the closed form runs, composes what it spends, and the documentation says what it found."""

import json
from pathlib import Path

import pytest
from support.federations import tiny_federation
from typer.testing import CliRunner

from wardpose.shared.config import changed
from wardpose.shared.privacy.accounting import epsilon
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.simulation.cli import app
from wardpose.simulation.experiments import label_ridge
from wardpose.simulation.experiments.bench import Setting
from wardpose.simulation.experiments.page import markdown
from wardpose.simulation.experiments.records import COMMITTED, read_results

BASE = Setting(
    sites=(1,),
    epsilons=(8.0,),
    delta=1e-3,
    seeds=(1,),
    rounds=1,
    steps=1,
    none_rounds=1,
    learning_rates=(0.1,),
    anchors=(0.0,),
    view=("mosaic", 8),
)
SMALL = label_ridge.Setting(base=BASE, people=2, rounds=2, clip_norms=(1.0,), learning_rates=(1.0,), dampings=(0.1,))


def test_a_release_and_steps_together_cost_what_is_allowed() -> None:
    first = Mechanism(name="label-ridge", sample_rate=1.0, noise_multiplier=label_ridge.noise_of(1.0, 1e-3)).events(1)
    sigma = label_ridge.noise_of(2.0, 1e-3, first, rate=0.25, steps=6)
    further = Mechanism(sample_rate=0.25, noise_multiplier=sigma).events(6)
    together = epsilon([*first, *further], delta=COURSE_SHARE * 1e-3)
    assert epsilon(first, delta=COURSE_SHARE * 1e-3) <= 1.0
    assert 1.98 < together <= 2.0


def test_as_two_courses_they_cost_about_a_quarter_more() -> None:
    first = Mechanism(name="label-ridge", sample_rate=1.0, noise_multiplier=label_ridge.noise_of(0.4, 1e-4)).events(1)
    sigma = label_ridge.noise_of(0.8, 1e-4, first, rate=0.25, steps=6)
    further = Mechanism(sample_rate=0.25, noise_multiplier=sigma).events(6)
    filtered = epsilon([*first, *further], delta=(1 - COURSE_SHARE) * 1e-4, accountant="rdp")
    assert 1.2 < filtered / 0.8 < 1.3


@pytest.mark.slow
def test_it_runs_every_mechanism_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    ward = {"kind": "ward", "hospital": "north", "patients": 6, "frames_per_patient": 1, "seed": 1}
    public = {name: [{**ward, "seed": seed}] for name, seed in (("public", 2), ("validation", 3), ("test", 4))}
    plan = changed(
        tiny_federation(("north",)),
        {
            "sites": [{"name": "north", "data": ward}],
            "data": public,
            "model": {"input_size": [64, 32], "weights": "random"},
        },
    )
    out, told = tmp_path / "out.json", []
    label_ridge.run(plan, SMALL, out, only=["label-ridge"], say=told.append)
    label_ridge.run(plan, SMALL, out, say=told.append)
    names = [line.split(",")[0] for line in told if ", seed" in line]
    assert names == ["none", "label-ridge", "dp-sgd", *(name for name in SMALL.mechanisms if " " in name)]
    content = read_results(out)
    rows = label_ridge.rows_of(content)
    assert {row["mechanism"] for row in rows} == set(SMALL.mechanisms)
    both = next(run for run in content["runs"] if run["key"]["mechanism"] == "label-ridge + dp-sgd")
    once = next(run for run in content["runs"] if run["key"]["mechanism"] == "label-ridge")
    several = next(run for run in content["runs"] if run["key"]["mechanism"] == "label-ridge (rounds)")
    assert several["noise_multiplier"][0] > once["noise_multiplier"][0]
    assert len(both["noise_multiplier"]) == 2
    assert both["noise_multiplier"][0] > once["noise_multiplier"][0] > 0
    shown = CliRunner().invoke(app, ["experiment", "report", "label-ridge", "--results", str(out), "--json"])
    assert json.loads(shown.stdout)["rows"] == rows


def test_the_documentation_says_what_the_results_say() -> None:
    content = read_results(COMMITTED / "label-ridge.json")
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    assert markdown(label_ridge.rows_of(content)) in page
