import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from wardpose.shared.data.patients import Owners, PatientLookup, PatientRule
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import PatientError


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
    "rule", [{}, {"file": "a", "pattern": "(b)"}, {"pattern": "("}, {"pattern": "b"}, {"other": "x"}, {"ids": "lower"}]
)
def test_bad_rules(rule: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        PatientRule.model_validate(rule)


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("\ufeffrecord;patient\r\nx.png; ada \r\n", "ada"),
        ("Record\tPatient\nx.png\tada\n", "ada"),
        ("record,patient,,\n x.png ,ada,,\n,,,\n", "ada"),
        ('"record","patient"\n"x.png","17.0"\n', "17"),
        ("record,patient\nfolder\\x.png,1.7E+01\n", "17"),
        ("record,patient\nx,ada\n", "ada"),
    ],
)
def test_spreadsheet_habits(tmp_path: Path, text: str, owner: str) -> None:
    assert lookup(tmp_path / "p.csv", text).owners("9", "folder/x.png") == Owners(owner)


@pytest.mark.parametrize("key", ["0001", "1", "1.0", "0001.png", "cam1/0001", "cam1\\0001.png"])
def test_a_frame_of_digits_is_found_whatever_became_of_its_zeros(tmp_path: Path, key: str) -> None:
    table = lookup(tmp_path / "p.csv", f"record,patient\n{key},ada\n")
    assert table.owners("a:0", "cam1/0001.png") == Owners("ada")
    assert table.unused() == []


def test_a_record_id_that_a_spreadsheet_rounded_is_named_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'p\.csv: row 3: record "9.00101E\+11"'):
        lookup(tmp_path / "p.csv", "record,patient\n1,ada\n9.00101E+11,bob\n")


def test_a_bare_name_may_fit_one_frame_only(tmp_path: Path) -> None:
    table = lookup(tmp_path / "p.csv", "record,patient\n0001.png,ada\n")
    assert table.owners("1", "bed1/0001.png") == table.owners("2", "bed1/0001.png") == Owners("ada")
    with pytest.raises(PatientError, match=r'row 2 fits frames "bed1/0001.png" and "bed2/0001.png"'):
        table.owners("3", "bed2/0001.png")
    table = lookup(tmp_path / "p.csv", "record,patient\nbed1/0001.png,ada\nbed2/0001.png,bob\n")
    assert table.owners("3", "bed2/0001.png") == Owners("bob")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("x.png,ada\nx,bob", 'row 3 "x" and row 2 "x.png" both mean frame "x.png"'),
        ("x,ada\n7,bob\ny.png,eve", 'row 2 "x" and row 3 "7" both mean frame "x.png"'),
        ("x.png,ada\n7,bob\n8,ada", 'row 2 "x.png" and row 3 "7" both mean frame "x.png"'),
    ],
)
def test_two_rows_of_one_frame_must_agree(tmp_path: Path, rows: str, words: str) -> None:
    table = lookup(tmp_path / "p.csv", f"record,patient\n{rows}\n")
    table.owners("7", "x.png")
    with pytest.raises(PatientError) as caught:
        table.unused()
    assert words in str(caught.value)
    assert "different patients" in str(caught.value)


def test_two_rows_of_one_frame_may_say_the_same_or_mean_others(tmp_path: Path) -> None:
    table = lookup(tmp_path / "p.csv", "record,patient\nx.png,ada\nx,ada\nbed1/y.png,ada\ny.png,bob\n")
    table.owners("7", "x.png")
    table.owners("8", "bed1/y.png")
    assert table.unused() == ['row 3 "x"', 'row 5 "y.png"']
    table = lookup(tmp_path / "p.csv", "record,patient\nx.png,ada\n7,ada\n8,bob\n")
    assert [table.owners(record, "x.png").patient_id for record in ("7", "8")] == ["ada", "bob"]
    assert table.unused() == ['row 2 "x.png"']


def test_a_number_is_a_record_or_a_frame_and_never_both(tmp_path: Path) -> None:
    table = lookup(tmp_path / "p.csv", "record,patient\n1,ada\n2,bob\n")
    assert table.owners("1", "0002.png") == Owners("ada")
    with pytest.raises(PatientError, match=r'row 2 fits frames "0001\.png" and "0002\.png"'):
        table.owners("7", "0001.png")
    assert table.doubtful() == ['row 2 "1", not row 3 for frame "0002.png"']


def test_rows_that_no_record_asked_for_are_told(tmp_path: Path) -> None:
    table = lookup(tmp_path / "p.csv", "record,patient\n1,ada\ntypo.png,bob\n")
    table.owners("1", "x.png")
    assert table.unused() == ['row 3 "typo.png"']


@pytest.mark.parametrize("name", ["p.csv", "p.json"])
def test_one_person_under_two_spellings(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ids = ["P017", "P017 ", "p017", " P017", "Q"]
    if name.endswith("csv"):
        path.write_text("record,patient\n" + "".join(f"{i},{text}\n" for i, text in enumerate(ids)))
        where = "row 2 and row 4"
    else:
        path.write_text(json.dumps({str(i): [text, ids[0]] for i, text in enumerate(ids)}))
        where = "entry 1 and entry 3"
    with pytest.raises(PatientError, match=rf"{name}: {where}: patients 'P017' and 'p017'"):
        PatientLookup(PatientRule(file=path))
    folded = PatientLookup(PatientRule(file=path, ids="fold"))
    assert [folded.owners(str(i), "x").patient_id for i in range(5)] == ["P017"] * 4 + ["Q"]
    assert all("P017" not in folded.owners(str(i), "x").also_patients for i in range(4))
    exact = PatientLookup(PatientRule(file=path, ids="exact"))
    assert [exact.owners(str(i), "x").patient_id for i in range(5)] == ["P017", "P017", "p017", "P017", "Q"]


def test_a_person_among_the_others_counts_too(tmp_path: Path) -> None:
    with pytest.raises(PatientError, match="row 2 and row 3: patients 'Nurse' and 'nurse'"):
        lookup(tmp_path / "p.csv", "record,patient,also\n1,ada,Nurse\n2,bob,x; nurse\n")


def test_patients_of_a_pattern_or_of_labels_are_settled_among_all_records() -> None:
    found = [("1", Owners("P017")), ("2", Owners("p017 ", ("Q", "q")))]
    with pytest.raises(PatientError, match="record 1 and record 2: patients 'P017' and 'p017'"):
        PatientLookup(None).settle(found)
    folded = PatientLookup(PatientRule(ids="fold"))
    assert not folded.known
    assert folded.settle(found) == [Owners("P017"), Owners("P017", ("Q",))]
    assert PatientLookup(PatientRule(ids="exact")).settle(found)[1] == Owners("p017", ("Q", "q"))
