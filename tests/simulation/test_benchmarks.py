"""The benchmark of a step runs all of its cases, and its peers differentiate the same network."""

import copy
import json
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from support.federations import tiny_federation
from typer.testing import CliRunner

from wardpose.shared.errors import ConfigError
from wardpose.simulation import benchmarks
from wardpose.simulation.auditing.verdict import METHODS
from wardpose.simulation.benchmarks.audits import measure_audits
from wardpose.simulation.benchmarks.patched import patched
from wardpose.simulation.benchmarks.poisoning import measure_poisoning
from wardpose.simulation.benchmarks.step import Setting, measure_step, random_model
from wardpose.simulation.cli import app

SMALL = Setting(strategy="head", batch=2, rows=2, size=(64, 32), rank=2, frames=8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_case_is_measured_beside_plain_sgd(precision: str) -> None:
    result = measure_step(replace(SMALL, precision=precision), repetitions=1, memory=False)
    rows = {row["name"]: row for row in result["rows"]}
    mechanisms = ("dp-sgd", "projected", "feature", "feature-projective")
    assert {"sgd", "sgd, cached", *mechanisms, *(f"{name}, cached" for name in mechanisms)} < set(rows)
    assert {"opacus hooks", "opacus functorch", "opacus ghost"} < set(rows)
    assert rows["sgd"]["time_ratio"] == 1
    assert all(row["seconds"] > 0 and row["time_ratio"] > 0 for row in rows.values())
    assert rows["feature"]["views"] == 3


@pytest.mark.parametrize("strategy", ["last-stage", "full"])
def test_the_network_that_peers_can_differentiate_is_the_same_function(strategy: str) -> None:
    model = random_model(SMALL).double()
    x = torch.randn(2, 3, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    changed = patched(copy.deepcopy(model), strategy)  # type: ignore[arg-type]
    for logits, reference in zip(changed(x), expected, strict=True):
        torch.testing.assert_close(logits, reference, rtol=1e-10, atol=1e-12)


def test_a_poisoning_site_is_scored_with_and_without_what_stands_against_it() -> None:
    ward = {"kind": "ward", "hospital": "north", "patients": 2, "frames_per_patient": 1, "seed": 9}
    plan = tiny_federation(("north", "south", "east"), rounds=1, data={"test": [ward]})
    result = measure_poisoning(plan, rules=("fedmedian",))
    assert [set(row) for row in result["rows"]] == [{"name", "before", "honest", "bare", "clipped", "guarded"}]
    assert all(0 <= score <= 1 for name, score in result["rows"][0].items() if name != "name")
    assert (result["setting"]["sites"], result["setting"]["factor"]) == (3, -10.0)


def test_audits_are_measured_with_the_noise_and_with_half_of_it() -> None:
    (row,) = measure_audits(canaries=1600, seed=2, mechanisms=["dp-sgd"])["rows"]
    assert row["intact"] < row["claimed"] < row["halved"]
    for kind in ("intact", "halved"):
        assert row[kind] == max(row[f"{kind}, {method}"] for method in METHODS)


def test_recorded_audits_hold_what_they_aim_at() -> None:
    recorded = json.loads((files(benchmarks) / "results" / "audits.json").read_text())
    rows = {row["name"]: row for row in recorded["rows"]}
    assert set(rows) == {"dp-sgd", "projected", "feature", "feature-projective"}
    assert rows["dp-sgd"]["intact"] >= 0.7 * rows["dp-sgd"]["claimed"]
    assert all(row["intact"] < row["claimed"] < row["halved"] for row in rows.values())


def test_unknown_names_are_refused() -> None:
    for option in ("--strategy", "--precision"):
        outcome = CliRunner().invoke(app, ["benchmark", "step", option, "half"])
        assert isinstance(outcome.exception, ConfigError)
        assert f'{option} "half" is unknown' in str(outcome.exception)


def test_secure_aggregation_is_measured_beside_plain_and_adds_up_exactly() -> None:
    arguments = ["benchmark", "secure-aggregation", "--sites", "4", "--parameters", "1000", "--json"]
    result = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert [(row["sites"], row["parameters"], row["dropouts"], row["missing"]) for row in result["rows"]] == [
        (4, 1000, 0.0, 0), (4, 1000, 0.2, 1)
    ]  # fmt: skip
    assert all(row["exact"] and row["time_ratio"] > 0 and row["bytes_ratio"] > 1 for row in result["rows"])


@pytest.mark.parametrize("wrong", [("--sites", "2"), ("--dropouts", "0.5"), ("--parameters", "many")])
def test_sizes_that_cannot_be_measured_are_refused(wrong: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["benchmark", "secure-aggregation", *wrong])
    assert isinstance(result.exception, ConfigError)
    assert "allowed" in str(result.exception)
