"""The comparison of shared, own and central noise runs, and its picture can be seen."""

from pathlib import Path

from support.federations import tiny_federation

from wardpose.shared.config import changed
from wardpose.simulation.experiments.secure_accuracy import draw, measure


def test_every_variant_is_trained_at_the_same_noise_and_drawn(tmp_path: Path) -> None:
    ward = {"kind": "ward", "hospital": "north", "patients": 4, "frames_per_patient": 1, "seed": 1}
    new = {"sites": [{"name": "north", "data": ward}], "data": {"test": [{**ward, "seed": 2}]}}
    plan = changed(tiny_federation(("north",)), new)
    result = measure(plan, sites=(3,), seeds=(1,))
    assert [(row["variant"], row["sites"]) for row in result["rows"]] == [
        ("central", 1),
        ("secure, nobody missing", 3),
        ("secure", 3),
        ("local", 3),
    ]
    assert all(0 <= row["score"] <= 1 for row in result["rows"])
    draw(result, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000
