"""The card says what was charged, and never less."""

import math
import re
from typing import Any

import pytest

from wardpose.server.card import epsilon_sentence, model_card
from wardpose.shared.config import FederationConfig


def summary(**changes: Any) -> dict[str, Any]:
    base = {
        "run": "small-1", "federation": "small", "status": "completed", "rounds": 2, "rounds_planned": 2,
        "mechanism": "dp-sgd", "unit": "patient", "delta": 1e-5, "not_private": None, "score_name": "pck@0.2",
        "score_initial": 0.1, "score_final": 0.2, "versions": {"wardpose": "0.1.0"},
        "epsilon_federation": {"disjoint": 3.14159, "overlap": 4.001, "overlap_sites": 2},
        "sites": [
            {"name": "north | *east*", "epsilon_spent": 3.1, "epsilon_budget": 8.0, "steps": 4, "rounds_released": 2,
             "status": "released"},
            {"name": "south", "epsilon_spent": 0.0, "epsilon_budget": None, "steps": 0, "rounds_released": 0,
             "status": "absent"},
        ],
    }  # fmt: skip
    return base | changes


def plan() -> FederationConfig:
    ward = {"kind": "ward", "hospital": "north", "patients": 3, "frames_per_patient": 1}
    sites = [{"name": name, "data": ward} for name in ("north", "south")]
    lsp = {"kind": "lsp", "path": "/secret/place/lspet", "split": "public"}
    return FederationConfig.model_validate(
        {"name": "small", "sites": sites, "data": {"public": [lsp], "test": [ward]}, "privacy": {"epsilon": 8.0}}
    )


def test_an_epsilon_is_rounded_up_and_both_are_said() -> None:
    sentence = epsilon_sentence(summary())
    assert "epsilon 3.15; 4.01 for whoever is at 2 sites" in sentence
    assert "1e-05" in sentence
    for value in (0.001, 1.0, 2.999999, 7.105):
        said = epsilon_sentence(summary(epsilon_federation={"disjoint": value, "overlap": value, "overlap_sites": 1}))
        stated = float(re.search(r"epsilon ([\d.]+);", said).group(1))
        assert value <= stated + 1e-9
        assert stated < value + 0.02


@pytest.mark.parametrize(
    "changes",
    [
        {"not_private": "mechanism none: updates are neither clipped nor noised"},
        {"epsilon_federation": {"disjoint": None, "overlap": None, "overlap_sites": 2}},
        {"epsilon_federation": {"disjoint": 1.0, "overlap": None, "overlap_sites": 2}},
    ],
)
def test_what_is_not_private_says_so(changes: dict[str, Any]) -> None:
    assert epsilon_sentence(summary(**changes)).startswith("NOT PRIVATE")
    assert "**NOT PRIVATE" in model_card(summary(**changes), plan(), None)


def test_the_card_has_its_parts_and_no_path() -> None:
    scores = {
        "score": 0.2, "interval": [0.15, 0.26], "records": 40, "patients": 20, "by_group": {"lying": 0.3},
        "per_joint": {"left_wrist": math.nan},
    }  # fmt: skip
    card = model_card(summary(), plan(), scores)
    for heading in ("What it is", "Data", "Privacy", "Scores", "What it is not for"):
        assert f"\n## {heading}\n" in card
    assert "**0.200** (95 % of drawings of these people: 0.150 to 0.260)" in card
    assert "/secret" not in card
    assert "lspet" in card
    row = next(line for line in card.splitlines() if "north" in line and "|" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 7  # a name cannot open a column
    assert "Not measured" in model_card(summary(), plan(), None)
