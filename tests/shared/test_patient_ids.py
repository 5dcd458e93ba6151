"""One person under two spellings is one privacy unit, or an error."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardpose.shared.patient_ids import Mention, PatientError, clean, fold, same_patients


def mentions(*texts: str) -> list[Mention]:
    return [Mention(clean(text), f"row {number}") for number, text in enumerate(texts, start=2)]


BLANKS = ["P017 ", " P017", "P017\u00a0", "\u3000P017", "\ufeffP017", "P017\u200b", "P017\t", "\u202aP017\u202c"]


@pytest.mark.parametrize("text", BLANKS)
def test_blanks_around_an_id_mean_nothing(text: str) -> None:
    assert clean(text) == clean(text, "exact") == "P017"
    assert same_patients(mentions("P017", text), None) == {"P017": "P017"}


SPELLINGS = [
    ("P017", "p017"),
    ("P017", "P 017"),
    ("P-017", "P\u2013017"),  # the dash that word processors make
    ("P-017", "P\u2011017"),
    ("P017", "\uff30\uff10\uff11\uff17"),  # full width
    ("P017", "\u0420017"),  # a Cyrillic letter
    ("P017", "P\u0660\u0661\u0667"),  # Arabic-Indic digits
    ("Müller", unicodedata.normalize("NFD", "Müller")),
    ("Strasse", "Straße"),
    ("0001", "1"),
    ("P017", "P\u00ad017"),
    ("P017", "P0\u00a017"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_ids_that_differ_only_in_how_they_are_written_are_refused_or_settled(one: str, other: str) -> None:
    with pytest.raises(
        PatientError, match=r"row 2 and row 4: patients .* differ only in how they are written"
    ) as caught:
        same_patients(mentions(one, "another", other), None)
    assert "\n" not in str(caught.value)
    assert "patients.ids: fold" in str(caught.value)
    assert same_patients(mentions(one, other), "fold") == {clean(one): clean(one), clean(other): clean(one)}
    assert same_patients(mentions(one, other), "exact") == {clean(one): clean(one), clean(other): clean(other)}


@pytest.mark.parametrize(
    ("one", "other"), [("P017", "P018"), ("P017", "P17"), ("a-b", "ab"), ("17", "17a"), ("1", "10")]
)
def test_different_ids_stay_different(one: str, other: str) -> None:
    assert same_patients(mentions(one, other), None) == {one: one, other: other}


@pytest.mark.parametrize("text", ["17", "17.0", "17,00", "1.7E+01", "1.70e+01"])
def test_what_a_spreadsheet_made_of_a_number_is_undone(text: str) -> None:
    assert clean(text) == "17"
    assert clean(text, "exact") == text


@pytest.mark.parametrize("text", ['="0017"', "'0017", ' ="0017 "'])
def test_what_keeps_a_spreadsheet_from_its_doing_is_no_part_of_an_id(text: str) -> None:
    assert clean(text) == "0017"
    with pytest.raises(PatientError, match="differ only in how they are written"):
        same_patients(mentions(text, "17"), None)


@pytest.mark.parametrize("text", ["3E5", "12e4", "17.5", "1.7.0", "E+01", "4711", "O'Neill", "'abc'"])
def test_other_ids_are_left_alone(text: str) -> None:
    assert clean(text) == text
    assert same_patients(mentions(text), None) == {text: text}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.23E+15", "a number that a spreadsheet has rounded"),
        ("9E+11", "rounded"),
        ("12. Mrz", "a date"),
        ("3-Dec", "a date"),
        ("Mar-01", "a date"),
        ("01.03.2024", "a date"),
        ("2024-03-01 00:00:00", "a date"),
        ("#N/A", "an error"),
        ("#REF!", "an error"),
        ("#NAME?", "an error"),
        ("########", "an error"),
        ("=A1", "a formula"),
        ("nan", "a word for nothing"),
        ("NULL", "a word for nothing"),
        ("n/a", "a word for nothing"),
    ],
)
def test_what_is_a_spreadsheet_s_doing_is_no_patient(text: str, reason: str) -> None:
    for ids in (None, "fold"):
        with pytest.raises(PatientError, match=rf"row 3: patient .*{reason}"):
            same_patients(mentions("P1", text), ids)  # type: ignore[arg-type]
    assert text in same_patients(mentions("P1", text), "exact")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_texts_are_settled_or_refused_and_never_split(texts: list[str]) -> None:
    found = [Mention(clean(text), f"row {number}") for number, text in enumerate(texts) if clean(text)]
    try:
        names = same_patients(found, "fold")
    except PatientError:
        return
    assert len(set(names.values())) == len({fold(mention.text) for mention in found})
    assert all(clean(text) == text for text in names)
