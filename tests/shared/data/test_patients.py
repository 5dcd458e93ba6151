from pathlib import Path

import pytest
from pydantic import ValidationError

from wardpose.shared.data.patients import Owners, PatientLookup, PatientRule
from wardpose.shared.errors import DataError


def lookup(path: Path, text: str) -> PatientLookup:
    path.write_text(text)
    return PatientLookup(PatientRule(file=path))


def test_without_a_rule_every_record_is_its_own_patient() -> None:
    assert not PatientLookup(None).known
    assert PatientLookup(None).owners("r1", "x.png") == Owners("r1")


def test_a_csv_file(tmp_path: Path) -> None:
    table = lookup(tmp_path / "p.csv", "record,patient,also\nr1,ada,\nx.png,bob,nurse;guard\n")
    assert table.owners("r1", "other.png") == Owners("ada")
    assert table.owners("r2", "folder/x.png") == Owners("bob", ("nurse", "guard"))
    with pytest.raises(DataError, match=r'p\.csv: no patient for record "r3"'):
        table.owners("r3", "y.png")


def test_a_json_file(tmp_path: Path) -> None:
    table = lookup(tmp_path / "p.json", '{"r1": "ada", "r2": ["bob", "nurse"]}')
    assert table.owners("r1", "x.png") == Owners("ada")
    assert table.owners("r2", "x.png") == Owners("bob", ("nurse",))


def test_a_pattern() -> None:
    named = PatientLookup(PatientRule(pattern=r"cam\d_(?P<patient>[a-z]+)"))
    assert named.owners("r", "a/cam3_ada_07.png") == Owners("ada")
    assert PatientLookup(PatientRule(pattern=r"^(\d+)_")).owners("r", "12_x.png") == Owners("12")
    with pytest.raises(DataError, match="finds no patient"):
        named.owners("r", "elsewhere.png")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "record,patient\nr1,a\nr1,b\n", "listed twice"),
        ("p.csv", "record,patient\nr1,\n", "empty patient"),
        ("p.csv", "record,name\nr1,a\n", "allowed: record, patient"),
        ("p.csv", "", "allowed: record, patient"),
        ("p.csv", "record,patient\n", "lists no record"),
        ("p.json", '{"r1": "a", "r1": "b"}', "listed twice"),
        ("p.json", '{"r1": 5}', "has 5"),
        ("p.json", '{"r1": []}', "empty patient"),
        ("p.json", '{"r1": {"a": "b"}}', "r1"),
        ("p.json", '["r1"]', "holds a list"),
        ("p.json", "{", "malformed JSON"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        lookup(tmp_path / name, text)
    assert name in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        PatientLookup(PatientRule(file=tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    "rule", [{}, {"file": "a", "pattern": "(b)"}, {"pattern": "("}, {"pattern": "b"}, {"other": "x"}]
)
def test_bad_rules(rule: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        PatientRule.model_validate(rule)
