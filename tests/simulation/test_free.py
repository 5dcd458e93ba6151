"""The experiment on free things leaves out one at a time, goes on where it was stopped, and is shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.federations import tiny_federation
from typer.testing import CliRunner

from wardpose.shared.config import FederationConfig, changed
from wardpose.shared.data.looks import Looks
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.pose.pretrain import PretrainConfig
from wardpose.simulation.cli import app
from wardpose.simulation.experiments import free
from wardpose.simulation.experiments.page import write_page
from wardpose.simulation.experiments.records import read_results

SMALL = free.Setting(without=("rotation", "weights"), epochs=1, blanket=0.2)
BASE = PretrainConfig(strategy="head", batch_size=4, learning_rate=1e-3)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationConfig:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    ward = {"kind": "ward", "hospital": "north", "patients": 4, "frames_per_patient": 1}
    data = {name: [{**ward, "seed": seed}] for name, seed in (("public", 2), ("validation", 3), ("test", 4))}
    model = {"input_size": [64, 32], "weights": "random"}
    return changed(tiny_federation(("north",)), {"data": data, "model": model, "pretrain": BASE.model_dump()})


@pytest.mark.parametrize("name", ["rotation", "scale", "flip", "half_body", "colour", "occlusion", "blanket"])
def test_one_thing_is_left_out_and_nothing_else(name: str) -> None:
    whole = SMALL.recipe(BASE, free.EVERYTHING, 3)
    less = SMALL.recipe(BASE, name, 3)
    (part,) = (key for key in ("augmentation", "looks") if getattr(less, key) != getattr(whole, key))
    before, after = (getattr(recipe, part).model_dump() for recipe in (whole, less))
    assert {key for key in before if before[key] != after[key]} == {name}
    assert before[name] > after[name] == 0
    assert whole.model_copy(update={part: getattr(less, part)}) == less
    assert whole.seed == 3


def test_geometry_length_and_what_is_not_known() -> None:
    plain = SMALL.recipe(BASE, "geometry", 0)
    assert plain.augmentation.rotation == plain.augmentation.scale == plain.augmentation.flip == 0
    assert plain.looks == SMALL.recipe(BASE, free.EVERYTHING, 0).looks != Looks()
    assert [replace(SMALL, epochs=epochs).recipe(BASE, "length", 0).epochs for epochs in (1, 4)] == [1, 2]
    with pytest.raises(ConfigError, match=r'without "luck" is unknown \(allowed: everything, rotation'):
        SMALL.recipe(BASE, "luck", 0)


def test_it_goes_on_where_it_was_stopped_and_is_shown(tmp_path: Path, plan: FederationConfig) -> None:
    out, told = tmp_path / "free.json", []
    free.run(plan, SMALL, out, only=["rotation"], say=told.append)
    assert [line.split(",")[0] for line in told] == ["everything", "without rotation"]
    first, told = read_results(out), []
    free.run(plan, SMALL, out, say=told.append)
    content = read_results(out)
    assert content["runs"][:2] == first["runs"]
    assert [line.split(",")[0] for line in told] == ["without weights"]
    assert [run["steps"] for run in content["runs"]] == [1, 1, 1]
    rows = free.rows_of(content)
    assert rows[0]["phase"] == "everything"
    for row in rows[1:]:
        (run,) = (run for run in content["runs"] if f"without {run['key']['without']}" == row["phase"])
        assert (row["validation"], row["test"]) == (run["validation"]["score"], run["test"]["score"])
        assert row["gives"] == pytest.approx(rows[0]["validation"] - row["validation"])
    with pytest.raises(DataError, match="another setting"):
        free.run(plan, replace(SMALL, epochs=2), out)
    write_page(tmp_path / "free.html", "free", content, about=free.__doc__, rows_of=free.rows_of, draw=free.draw)
    assert "without rotation" in (tmp_path / "free.html").read_text()
    shown = CliRunner().invoke(app, ["experiment", "report", "free", "--results", str(out), "--json"])
    assert json.loads(shown.stdout)["rows"] == rows


def test_a_plan_without_public_people_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.public: missing"):
        free.run(tiny_federation(("north",)), SMALL, tmp_path / "free.json")
