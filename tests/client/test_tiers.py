"""A patient who asked for more protection has it however the id is written in the file of tiers."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardpose.client.check import check_site
from wardpose.client.tiers import declared_units, patient_tiers, tiers_of_nobody
from wardpose.shared.errors import DataError
from wardpose.shared.site_config import CohortConfig

PATIENTS = ("p1", "p2", "P-007", "12")


def cohort(folder: Path, tiers: object | None = None, ids: str | None = None) -> CohortConfig:
    patients = {"pattern": "(.*)_", **({"ids": ids} if ids else {})}
    content: dict[str, Any] = {
        "name": "c",
        "declared_patients": 100,
        "data": {"kind": "coco", "annotations": "a.json", "images": ".", "patients": patients},
    }
    if tiers is not None:
        path = folder / "tiers.json"
        path.write_text(tiers if isinstance(tiers, str) else json.dumps(tiers))
        content |= {"tiers": path, "declared_tiers": {"strict": 30, "research": 5}}
    return CohortConfig.model_validate(content)


def test_a_cohort_without_tiers_declares_one_number(tmp_path: Path) -> None:
    plain = cohort(tmp_path)
    assert declared_units(plain) == 100
    assert patient_tiers(plain, PATIENTS) is None
    assert tiers_of_nobody(plain, PATIENTS) == []


def test_declared_tiers_leave_the_rest_to_the_plain_tier(tmp_path: Path) -> None:
    tiered = cohort(tmp_path, {"p1": "strict", "12": "research"})
    assert declared_units(tiered) == {"": 65, "strict": 30, "research": 5}
    assert patient_tiers(tiered, PATIENTS) == {"p1": "strict", "12": "research"}


@pytest.mark.parametrize(
    ("tiers", "named"),
    [
        ("{", "malformed"),
        (["p1"], "is no mapping"),
        ("null", "is no mapping"),
        ({"p1": "open"}, "patient 'p1' is of tier 'open'"),
        ({"p1": ""}, "patient 'p1' is of tier ''"),
        ({"p1": None}, "patient 'p1' is of tier None"),
        ({"p1": ["strict"]}, "patient 'p1' is of tier"),
        ({"p1": {"tier": "strict"}}, "patient 'p1' is of tier"),
        ('{"p1": "strict", "p1": "research"}', "appears twice"),
        ({"p1": "strict", " p1": "research"}, "patient 'p1' is of tiers strict and research"),
    ],
)
def test_a_wrong_tier_file_is_named(tmp_path: Path, tiers: object, named: str) -> None:
    with pytest.raises(DataError, match=named) as error:
        patient_tiers(cohort(tmp_path, tiers), PATIENTS)
    assert str(tmp_path / "tiers.json") in str(error.value)


@pytest.mark.parametrize("written", ["p1 ", "\ufeffp1", "12.0", "1.2E+01"])
def test_blanks_and_what_a_spreadsheet_does_change_nobody(tmp_path: Path, written: str) -> None:
    assert list((patient_tiers(cohort(tmp_path, {written: "strict"}), PATIENTS) or {}).values()) == ["strict"]


@pytest.mark.parametrize(
    ("written", "meant"), [("P1", "p1"), ("p-007", "P-007"), ("P\u2013007", "P-007"), ("012", "12")]
)
def test_another_spelling_is_refused_until_the_site_says_what_it_means(
    tmp_path: Path, written: str, meant: str
) -> None:
    tiers = {written: "strict"}
    with pytest.raises(DataError, match="only in how it is written"):
        patient_tiers(cohort(tmp_path, tiers), PATIENTS)
    assert patient_tiers(cohort(tmp_path, tiers, "fold"), PATIENTS) == {meant: "strict"}
    assert patient_tiers(cohort(tmp_path, tiers, "exact"), PATIENTS) == {}
    assert tiers_of_nobody(cohort(tmp_path, tiers, "exact"), PATIENTS) == [written]


def test_two_spellings_of_one_patient_must_agree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of tiers strict and research"):
        patient_tiers(cohort(tmp_path, {"p1": "strict", "P1": "research"}, "fold"), PATIENTS)


def test_the_check_of_a_site_names_who_is_nobody(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    tiers = tmp_path / "tiers.json"
    content = {
        "site": "north",
        "cohort": {
            "name": "ward-7",
            "declared_patients": 24,
            "declared_tiers": {"strict": 4},
            "tiers": "tiers.json",
            "data": {"kind": "ward", "hospital": "north", "patients": 24, "frames_per_patient": 1, "seed": 1},
        },
        "policy": {"epsilon": 4.0, "delta": 1e-3},
    }
    path.write_text(yaml.safe_dump(content))
    for named, status, words in [
        ({"north-1-0003": "strict"}, "ok", ("1 strict", "23 of no tier")),
        ({"north-1-0003": "strict", "north-1-9999": "strict"}, "warning", ("1 strict", "1 ids of")),
        ({"north-1-0003": "open"}, "failure", ("tier 'open'",)),
    ]:
        tiers.write_text(json.dumps(named))
        (found,) = [
            finding for finding in check_site(path) if finding.name in ("tiers", "data") and "tier" in finding.text
        ]
        assert found.status == status
        assert all(word in found.text for word in words), found.text
        assert list(found.examples) == (["north-1-9999"] if status == "warning" else [])
