"""Whole federations of few numbers: nothing else changes, and nothing else is sent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.federations import tiny_federation

from wardpose.server.initial import INITIAL
from wardpose.shared.pose.weights import load_model
from wardpose.simulation.run import simulate

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
