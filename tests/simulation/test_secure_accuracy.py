"""The comparison of shared, own and central noise runs, goes on where it ended, and its picture can be seen."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.federations import tiny_federation

from wardpose.shared.config import FederationConfig, changed
from wardpose.simulation.experiments.secure_accuracy import (
    RESULTS,
    draw,
    measure,
    table,
)


def plan(**changes: Any) -> FederationConfig:
    ward = {"kind": "ward", "hospital": "north", "patients": 4, "frames_per_patient": 1, "seed": 1}
    new = {"sites": [{"name": "north", "data": ward}], "data": {"test": [{**ward, "seed": 2}]}}
    return changed(tiny_federation(("north",)), new | changes)


def test_every_variant_is_trained_at_the_same_noise_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    path = tmp_path / "scores.json"
    result = measure(plan(), sites=(3,), seeds=(1,), epsilons=(2.0,), path=path)
    assert [(row["variant"], row["sites"]) for row in result["rows"]] == [
        ("no noise", 1),
        ("central", 1),
        ("secure", 3),
        ("secure, none colluding", 3),
        ("local", 3),
    ]
    assert all(0 <= row["score"] <= 1 for row in result["rows"])
    assert len({row["noise_multiplier"] for row in result["rows"][1:]}) == 1
    draw(result, path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 1000
    again = measure(plan(), sites=(3,), seeds=(1,), epsilons=(2.0,), path=path)
    assert again["rows"] == result["rows"]


def test_the_table_says_what_is_within_the_spread_and_what_is_not() -> None:
    scores = {("central", 1): (0.6, 0.62, 0.61), ("secure", 4): (0.6, 0.6, 0.61), ("local", 4): (0.5, 0.52, 0.51)}
    rows = [
        {"variant": variant, "sites": sites, "epsilon": 0.8, "seed": seed, "score": score}
        for (variant, sites), values in scores.items()
        for seed, score in enumerate(values)
    ]
    assert [(row["variant"], row["mean"], row["within"]) for row in table({"rows": rows})] == [
        ("central", 0.61, True),
        ("secure", 0.6033, True),
        ("local", 0.51, False),
    ]


def test_the_documented_table_is_that_of_the_committed_result() -> None:
    result = json.loads(RESULTS.read_text())
    assert result["table"] == table(result)
    assert RESULTS.with_suffix(".png").stat().st_size > 10_000
    page = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text()
    for row in result["table"]:
        cells = (f"{row['epsilon']:g}", row["variant"], str(row["sites"]), f"{row['mean']:.4f} ± {row['spread']:.4f}")
        line = f"| {' | '.join(cells)} | {'yes' if row['within'] else 'no'} |"
        assert line in page
    assert len({(row["variant"], row["sites"]) for row in result["table"]}) >= 5
