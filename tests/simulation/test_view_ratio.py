"""The distance between a view's gradient and the frame's: measured right, resumed, and shown as it was measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.engine import head_engine, make_rows
from support.federations import tiny_federation
from typer.testing import CliRunner

from wardpose.shared.config import FederationConfig, changed
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.vectors import flatten
from wardpose.simulation.cli import app
from wardpose.simulation.experiments import view_ratio
from wardpose.simulation.experiments.page import markdown
from wardpose.simulation.experiments.records import COMMITTED, read_results

SMALL = view_ratio.Setting(views=(("blur", 4), ("mosaic", 8)), private=4, public=2)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationConfig:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    ward = {"kind": "ward", "hospital": "north", "patients": 6, "frames_per_patient": 1, "seed": 1}
    return changed(
        tiny_federation(("north",)),
        {
            "sites": [{"name": "north", "data": ward}],
            "data": {"public": [{**ward, "seed": 2}]},
            "model": {"input_size": [64, 32], "weights": "random"},
        },
    )


def test_it_goes_on_where_it_was_stopped_and_is_shown(tmp_path: Path, plan: FederationConfig) -> None:
    out, told = tmp_path / "view-ratio.json", list[str]()
    view_ratio.run(plan, SMALL, out, only=["mosaic(8)"], say=told.append)
    assert [line.split(":")[0] for line in told] == ["mosaic(8), imputed False", "mosaic(8), imputed True"]
    first = read_results(out)
    view_ratio.run(plan, SMALL, out, say=told.append)
    content = read_results(out)
    assert content["runs"][:2] == first["runs"]
    assert len(told) == len(content["runs"]) == 4
    rows = view_ratio.rows_of(content)
    assert [(row["view"], row["strategy"]) for row in rows] == [
        (view, strategy) for view in ("mosaic(8)", "blur(4)") for strategy in ("head", "maps")
    ]
    for row in rows:
        assert row["private ratio"] != row["private ratio, imputed"]
        assert all(0 < value < 100 for name, value in row.items() if "ratio" in name)
    page = tmp_path / "page.html"
    asked = ["experiment", "report", "view-ratio", "--results", str(out), "--page", str(page), "--json"]
    shown = CliRunner().invoke(app, asked)
    assert json.loads(shown.stdout)["rows"] == rows
    assert "mosaic(8)" in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 1000


def test_the_distance_is_that_of_a_loop() -> None:
    engine, (crops, _) = head_engine(), make_rows(5, 1)
    ids = np.arange(5)[:, None]
    rows = replace(crops, inputs=load_bags(engine, crops, ids).inputs[:, 0].numpy())
    noise = np.random.default_rng(2).standard_normal(rows.inputs.shape).astype(np.float32)
    shown = replace(rows, inputs=rows.inputs + 0.5 * noise)
    assert view_ratio._distance(engine, rows, rows) == {"ratio": 0.0, "cosine": 1.0}
    pairs = []
    for row in range(5):
        one = [
            engine.summed(engine.parameters(), load_bags(engine, some, ids[row : row + 1])) for some in (rows, shown)
        ]
        pairs.append([flatten(gradient).double() for gradient in one])
    apart = sum(float((g - s).square().sum()) for g, s in pairs)
    whole = sum(float(g.square().sum()) for g, _ in pairs)
    first, second = (sum(pair[side] for pair in pairs) for side in (0, 1))
    found = view_ratio._distance(engine, rows, shown)
    assert found["ratio"] == pytest.approx((apart / whole) ** 0.5, abs=1e-4)
    assert found["cosine"] == pytest.approx(float(first @ second / first.norm() / second.norm()), abs=1e-4)


def test_the_documentation_says_what_the_results_say() -> None:
    content = read_results(COMMITTED / "view-ratio.json")
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    assert markdown(view_ratio.rows_of(content)) in page
