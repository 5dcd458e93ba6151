"""CSV as spreadsheets write it: any encoding, byte-order mark and separator, decimal commas, blanks and empty rows.

Text is UTF-8 (with or without a mark), UTF-16 with a mark, or else Windows-1252, the encoding of Excel's plain CSV in
western countries. The separator is the comma, semicolon, tab or bar that cuts the header into the most columns.
Columns are told by name, whatever their case; cells lose the blanks around them; rows without a value are passed over.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import strip

_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: of the file, from 1, the header counted; where a cell has several lines, its last.
        cells: by the column's name in lower case; every column is there.

    """

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Attributes:
        columns: in order, in lower case.
        rows: in order.
        decimal_comma: whether a comma in a number can only be the decimal one.

    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decimal_comma: bool


def read_table(path: Path) -> Table:
    """Read a CSV file.

    Raises:
        DataError: missing, unreadable, no text, or a row that does not fit the header; names file and row.

    """
    text = read_text(path)
    separator, text, before = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: tuple[str, ...] | None = None
    lines = len(text.splitlines())
    rows = []
    try:
        for cells in reader:
            cells = [strip(cell) for cell in cells]
            line = reader.line_num + before
            if not any(cells):
                continue
            if columns is None:
                columns = _columns(path, cells)
                continue
            if any(cells[len(columns) :]) or any(cell for name, cell in zip(columns, cells, strict=False) if not name):
                raise DataError(f"{path}: row {line} has more cells than the header (allowed: {len(columns)})")
            if len(cells) < len(columns) and reader.line_num == lines and not text.endswith(("\n", "\r")):
                raise DataError(f"{path}: row {line} ends in the middle (allowed: a whole file)")
            values = dict(zip(columns, cells + [""] * len(columns), strict=False))
            values.pop("", None)
            rows.append(Row(line, values))
    except csv.Error as error:
        raise DataError(f"{path}: row {reader.line_num + before}: malformed CSV: {error}") from error
    named = tuple(name for name in columns or () if name)
    return Table(named, tuple(rows), decimal_comma=separator != ",")


def read_text(path: Path) -> str:
    """Read a text file of any of the encodings above.

    Raises:
        DataError: missing, unreadable, or no text.

    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing (allowed: an existing text file)") from error
    except OSError as error:
        raise DataError(f"{path}: file cannot be read: {error.strerror}") from error
    return decode_text(path, content)


def decode_text(path: Path, content: bytes) -> str:
    """Decode the content of a text file; errors as `read_text`."""
    if content.startswith(_WORKBOOKS):
        raise DataError(f"{path}: is a workbook or archive, no text (allowed: saved as CSV)")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise DataError(f"{path}: file cannot be read: {error.reason} in its {encoding} text") from error
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(f"{path}: file cannot be read: it is neither UTF-8 nor Windows-1252 text") from error
    if "\0" in text:
        raise DataError(f"{path}: file cannot be read: it holds binary data (allowed: text)")
    return text


def number(text: str, *, decimal_comma: bool = False) -> int | float | None:
    """Read a cell's number; `None` where it is none."""
    if decimal_comma and "," in text and "." not in text:
        text = text.replace(",", ".", 1)
    for kind in (int, float):
        try:
            return kind(text) if "_" not in text else None
        except ValueError:
            continue
    return None


def _separator(text: str) -> tuple[str, str, int]:
    """Find the separator, in Excel's own first line or in the header; give the text after that line, and its lines."""
    first, _, rest = text.partition("\n")
    stated = first.strip().strip('"').lower()
    if stated.startswith("sep=") and len(stated) <= 5:
        return (first.strip().strip('"')[4:] or "\t"), rest, 1
    header = next((line for line in text.splitlines() if strip(line)), "")
    found = {mark: _cells(header, mark) for mark in ",;\t|"}
    return max(found, key=lambda mark: found[mark]), text, 0


def _cells(header: str, separator: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=separator), []))
    except csv.Error:
        return 0


def _columns(path: Path, cells: list[str]) -> tuple[str, ...]:
    columns = tuple(cell.casefold() for cell in cells)
    named = [name for name in columns if name]
    for name in named:
        if named.count(name) > 1:
            raise DataError(f'{path}: column "{name}" appears twice (allowed: once)')
    return columns
