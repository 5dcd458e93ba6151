"""Whole federations of few numbers: nothing else changes, and nothing else is sent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.federations import charged_steps, tiny_federation

from wardpose.server.initial import INITIAL
from wardpose.shared.pose.weights import load_model
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site
from wardpose.simulation.run import simulate

PUBLIC = {"kind": "ward", "hospital": "north", "patients": 3, "frames_per_patient": 1, "seed": 7}
FC = "backbone.stages.3.blocks.1.mlp.fc1"


@pytest.mark.parametrize(
    ("strategy", "moved", "numbers"),
    [
        ("maps", {"head.maps.weight", "head.maps.bias"}, 14 * 321),
        ({"rank": 2, "layers": [FC], "also": ["head.maps.bias"]}, {f"{FC}.weight", "head.maps.bias"}, 2 * 1280 + 14),
    ],
)
def test_only_what_trains_moves_and_is_sent(tmp_path: Path, strategy: Any, moved: set[str], numbers: int) -> None:
    training = {"steps": 1, "strategy": strategy, "optimizer": {"name": "sgd", "learning_rate": 0.3}}
    plan = tiny_federation(("a", "b"), training=training, rounds=1)
    summary = simulate(plan, tmp_path / "run", report=False)
    assert summary["status"] == "completed"
    assert [site["rounds_released"] for site in summary["sites"]] == [1, 1]
    before, after = (load_model(tmp_path / "run" / name).state_dict() for name in (INITIAL, "model.safetensors"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == moved
    assert 2 * 4 * numbers <= summary["bytes_up"] < 2 * 4 * numbers + 20_000
    for name in moved & {f"{FC}.weight"}:
        change = (after[name] - before[name]).double()
        values = torch.linalg.svdvals(change)
        assert float(values[2]) < 1e-4 * float(values[1])


def test_a_round_of_a_closed_form_is_paid_for_as_it_says(tmp_path: Path) -> None:
    """Both ledgers hold its events; the sites read public people, and nothing but the last layer moves."""
    mechanism = {"name": "label-ridge", "sample_rate": 1.0, "noise_multiplier": 3.0, "frames_per_unit": 1}
    plan = tiny_federation(
        ("a", "b"),
        training={"steps": 1, "strategy": "maps", "optimizer": {"name": "sgd", "learning_rate": 1.0}},
        mechanism=mechanism,
        data={"public": [PUBLIC]},
        rounds=1,
    )
    summary = simulate(plan, tmp_path / "run", report=False)
    assert summary["status"] == "completed"
    assert [site["rounds_released"] for site in summary["sites"]] == [1, 1]
    before, after = (load_model(tmp_path / "run" / name).state_dict() for name in (INITIAL, "model.safetensors"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.maps.weight", "head.maps.bias"}
    for name in ("a", "b"):
        assert charged_steps(tmp_path / "run", name) == (1, 1)
        own = Ledger(load_site(tmp_path / "run" / "sites" / name / "site.yaml").ledger)
        (event,) = own.events(f"{name}-cohort")
        (expected,) = plan.mechanism.events(1)
        assert (event.mechanism, event.sample_rate, event.noise_multiplier, event.max_grad_norm, event.steps) == (
            expected.mechanism,
            expected.sample_rate,
            expected.noise_multiplier,
            expected.max_grad_norm,
            expected.steps,
        )
