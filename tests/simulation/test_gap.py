"""The gap experiment runs, goes on where it was stopped, and its table says what its runs say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.federations import tiny_federation
from typer.testing import CliRunner

from wardpose.shared.config import FederationConfig, changed
from wardpose.shared.errors import DataError
from wardpose.shared.pose.evaluation import evaluate
from wardpose.shared.pose.model import build_model
from wardpose.simulation.cli import app
from wardpose.simulation.experiments import gap
from wardpose.simulation.experiments.bench import Bench, Setting
from wardpose.simulation.experiments.cohorts import score_rows
from wardpose.simulation.experiments.page import markdown, write_page
from wardpose.simulation.experiments.records import COMMITTED, read_results

SMALL = Setting(
    sites=(1, 2),
    epsilons=(8.0,),
    delta=1e-3,
    mechanisms=("dp-sgd", "feature-projective"),
    seeds=(1,),
    rounds=1,
    steps=1,
    none_rounds=2,
    none_rates=(0.1, 0.3),
    last_stage_epochs=1,
    candidates=("head",),
    clip_norms=(1.0,),
    learning_rates=(0.1,),
    anchors=(0.3,),
    view=("mosaic", 8),
    impute=True,
)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationConfig:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    ward = {"kind": "ward", "hospital": "north", "patients": 6, "frames_per_patient": 1, "seed": 1}
    public = {name: [{**ward, "seed": seed}] for name, seed in (("public", 2), ("validation", 3), ("test", 4))}
    return changed(
        tiny_federation(("north",)),
        {
            "sites": [{"name": "north", "data": ward}],
            "data": public,
            "model": {"input_size": [64, 32], "weights": "random"},
        },
    )


def test_it_goes_on_where_it_was_stopped_and_is_shown(tmp_path: Path, plan: FederationConfig) -> None:
    out, told = tmp_path / "gap.json", []
    gap.run(plan, SMALL, out, only=["dp-sgd"], say=told.append)
    assert [line.split()[0] for line in told] == [
        *("epsilon", "maps:", "epsilon", "head:", "free:", "epsilon", "none:", "none,", "dp-sgd,", "dp-sgd,", "last"),
    ]
    first, told = read_results(out), []
    gap.run(plan, SMALL, out, say=told.append)
    content = read_results(out)
    assert content["runs"][:3] == first["runs"]
    assert [line.split()[0] for line in told] == ["feature-projective,"] * 2
    rows = gap.rows_of(content)
    assert [(row["sites"], row["mechanism"]) for row in rows] == [
        (sites, mechanism) for mechanism in SMALL.mechanisms for sites in SMALL.sites
    ]
    assert {row["free"] for row in rows} == {content["free"]["score"]}
    assert {row["last_stage"] for row in rows} == {content["last_stage"]["score"]}
    assert set(content["strategies"]) == {"maps", "head"}
    assert content["last_stage"]["recipe"]["strategy"] == "last-stage"
    assert all(run["noise_multiplier"] > 0 for run in content["runs"] if run["key"]["epsilon"])
    with pytest.raises(DataError, match="another setting"):
        gap.run(plan, replace(SMALL, rounds=2), out)
    write_page(tmp_path / "gap.html", "gap", content)
    assert "feature-projective" in (tmp_path / "gap.html").read_text()
    shown = CliRunner().invoke(app, ["experiment", "report", "gap", "--results", str(out), "--json"])
    assert json.loads(shown.stdout)["rows"] == rows


def test_the_share_is_of_means_over_seeds() -> None:
    def run(score: float, mechanism: str, epsilon: float | None, seed: int) -> dict[str, object]:
        return {"key": {"sites": 1, "epsilon": epsilon, "mechanism": mechanism, "seed": seed}, "score": score}

    runs = [
        *(run(score, "none", None, seed) for seed, score in enumerate((0.6, 0.8))),
        *(run(score, "dp-sgd", 0.8, seed) for seed, score in enumerate((0.5, 0.7))),
    ]
    (row,) = gap.rows_of({"runs": runs, "free": {"score": 0.5}})
    assert row["share"] == pytest.approx(0.5)
    assert (row["spread"], row["seeds"], row["none"]) == (pytest.approx(0.2), 2, pytest.approx(0.7))
    (row,) = gap.rows_of({"runs": runs, "free": {"score": 0.9}})
    assert row["share"] is None


def test_features_are_scored_as_pictures_are(plan: FederationConfig) -> None:
    bench = Bench(plan, SMALL, None)
    expected = evaluate(build_model(plan.model), bench._open["test"])
    found = score_rows(bench._engine, bench.weights, bench._test, bench._open["test"])
    assert found.pck_box_02 == expected.pck_box_02
    assert found.by_group == expected.by_group
    assert np.isfinite(found.pck_box_02)


def test_what_comes_with_the_package_holds_what_it_says() -> None:
    shown = CliRunner().invoke(app, ["experiment", "report", "gap", "--json"])
    rows = json.loads(shown.stdout)["rows"]
    keys = {"sites", "epsilon", "aggregation", "mechanism", "free", "none", "private", "share", "seeds"}
    assert rows
    assert all(keys <= set(row) for row in rows)


def test_the_documentation_says_what_the_results_say() -> None:
    content = read_results(COMMITTED / "gap.json")
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    assert markdown(gap.rows_of(content)) in page
    assert f"{content['free']['score']:.3f}" in page
    assert content["facts"]["hardware"]["processor"] in page
