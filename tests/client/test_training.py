import json
from pathlib import Path

import pytest

from wardpose.client.training import declared_units, patient_tiers, site_seed
from wardpose.shared.config import CohortConfig
from wardpose.shared.errors import DataError


def cohort(tmp_path: Path, tiers: object | None = None) -> CohortConfig:
    content: dict[str, object] = {
        "name": "c",
        "declared_patients": 100,
        "data": {"kind": "ward", "hospital": "north", "patients": 10, "frames_per_patient": 1},
    }
    if tiers is not None:
        path = tmp_path / "tiers.json"
        path.write_text(tiers if isinstance(tiers, str) else json.dumps(tiers))
        content |= {"tiers": path, "declared_tiers": {"strict": 30}}
    return CohortConfig.model_validate(content)


def test_a_cohort_without_tiers_declares_one_number(tmp_path: Path) -> None:
    assert declared_units(cohort(tmp_path)) == 100
    assert patient_tiers(cohort(tmp_path)) is None


def test_declared_tiers_leave_the_rest_to_the_plain_tier(tmp_path: Path) -> None:
    tiered = cohort(tmp_path, {"p1": "strict"})
    assert declared_units(tiered) == {"": 70, "strict": 30}
    assert patient_tiers(tiered) == {"p1": "strict"}


@pytest.mark.parametrize("tiers", ["{", ["p1"], {"p1": "open"}])
def test_a_wrong_tier_file_is_named(tmp_path: Path, tiers: object) -> None:
    with pytest.raises(DataError, match=r"tiers\.json"):
        patient_tiers(cohort(tmp_path, tiers))


def test_a_simulated_site_has_another_seed_in_every_round() -> None:
    seeds = {site_seed(seed, site, number) for seed in (1, 2) for site in "ab" for number in (1, 2)}
    assert len(seeds) == 8
