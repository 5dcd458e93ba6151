"""CSV files as spreadsheets write them."""

from pathlib import Path

import pytest

from wardpose.shared.data.tables import number, read_table
from wardpose.shared.errors import DataError

PLAIN = 'Record,patient\nbed 1.png,Müller\n\nb.png,"x, y"\n'
WANTED = [{"record": "bed 1.png", "patient": "Müller"}, {"record": "b.png", "patient": "x, y"}]


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_every_encoding_of_a_spreadsheet(tmp_path: Path, encoding: str) -> None:
    content = PLAIN.encode(encoding)
    content = b"\xff\xfe" + content if encoding == "utf-16-le" else content
    table = read_table(write(tmp_path, content))
    assert table.columns == ("record", "patient")
    assert [row.cells for row in table.rows] == WANTED
    assert [row.line for row in table.rows] == [2, 4]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_every_separator_and_line_end(tmp_path: Path, separator: str, ending: str) -> None:
    text = ending.join(separator.join(cells) for cells in (["record", "patient"], ["a.png", '"p;,\t|1"'], ["", ""]))
    table = read_table(write(tmp_path, text))
    assert [row.cells for row in table.rows] == [{"record": "a.png", "patient": "p;,\t|1"}]
    assert table.decimal_comma == (separator != ",")


def test_excel_s_own_first_line_blanks_and_trailing_separators(tmp_path: Path) -> None:
    table = read_table(
        write(tmp_path, "sep=;\r\n record ; PATIENT\u00a0;;\r\n\ufeffa.png ;\u00a0p1 ;;\r\n;;;\r\nb.png;p2\r\n")
    )
    assert table.columns == ("record", "patient")
    assert [(row.line, row.cells) for row in table.rows] == [
        (3, {"record": "a.png", "patient": "p1"}),
        (5, {"record": "b.png", "patient": "p2"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("record,patient\na,b\nc,d,e\n", "row 3 has more cells than the header"),
        ("record,patient,\na,b,c\n", "row 2 has more cells"),
        ("record,record\na,b\n", 'column "record" appears twice'),
        ('record,patient\na,"b\nc,d\n', "row 3: malformed CSV"),
        ('record,patient\na,"b"c\n', "row 2: malformed CSV"),
        (b"PK\x03\x04" + bytes(30), "is a workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(30), "is a workbook"),
        (b"record,patient\na,\x81\n", "neither UTF-8 nor Windows-1252"),
        (b"\xff\xfer\0e", "utf-16"),
        (b"record,patient\0\n", "binary data"),
    ],
)
def test_what_is_no_table_is_named_with_its_row(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"t\.csv: .*{message}") as caught:
        read_table(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: file is missing"):
        read_table(tmp_path / "nowhere.csv")


def test_numbers_of_cells() -> None:
    assert number("12") == 12
    assert number("12.5") == 12.5
    assert number("12,5", decimal_comma=True) == 12.5
    assert number("1.234,5", decimal_comma=True) is None  # which of the two is the decimal one?
    assert number("12,5") is None
    assert number("1_000") is None
    assert number("") is None
