"""Labels of a video or a folder of frames, from JSON or CSV; `video` says what is in them.

A CSV may come from a spreadsheet (see `tables`). In a folder a frame is a file name, so that `0001` is the file 0001;
in a video it is a number.
"""

from pathlib import Path
from typing import Any

from wardpose.shared.data.fields import field, read_json, short
from wardpose.shared.data.tables import Row, Table, number, read_table
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.patient_ids import plain_number
from wardpose.shared.skeleton import SKELETONS, Skeleton, get_skeleton

_BOX_COLUMNS = ("box_x", "box_y", "box_width", "box_height")
_OPTIONAL_COLUMNS = ("person", "patient", "also", "head_size", "group", *_BOX_COLUMNS)


def read_labels(labels: Path, layout: str | None, *, numbered: bool) -> tuple[list[Any], Skeleton]:
    """Read the entries of a file and the layout of their joints.

    Args:
        labels: JSON, or CSV where the name ends in `.csv`, `.tsv` or `.txt`.
        layout: name of the labels' skeleton; JSON may name its own, CSV can be told by its columns.
        numbered: whether frames are numbers.

    Raises:
        DataError: the file is missing or malformed, or joints fit no layout.

    """
    if labels.suffix.lower() in (".csv", ".tsv", ".txt"):
        return _csv_entries(labels, layout, numbered=numbered)
    return _json_entries(labels, layout)


class _CsvEntry(dict[str, Any]):
    """An entry that knows its row in the file."""

    row: int


def label_of(position: int, entry: Any) -> str:
    """Name an entry as its user finds it: by the row of a CSV, else by its place from 0."""
    place = f"row {entry.row}" if isinstance(entry, _CsvEntry) else f"#{position}"
    return f"{place} (frame {entry.get('frame', '?') if isinstance(entry, dict) else '?'})"


def _json_entries(labels: Path, layout: str | None) -> tuple[list[Any], Skeleton]:
    content = read_json(labels)
    try:
        entries: list[Any] = field(content, "records", list)
        name = content.get("skeleton", layout)
        if layout is not None and name != layout:
            raise DataError(f'skeleton is "{name}" (allowed: "{layout}", the layout of the source)')
        return entries, _layout(name)
    except DataError as error:
        raise DataError(f"{labels}: {error}") from error


def _csv_entries(labels: Path, layout: str | None, *, numbered: bool) -> tuple[list[Any], Skeleton]:
    table = read_table(labels)
    given = set(table.columns) - {"frame", *_OPTIONAL_COLUMNS}
    fitting = [
        skeleton
        for skeleton in ([_layout(layout)] if layout else SKELETONS.values())
        if given == {f"{joint}_{part}" for joint in skeleton.joints for part in "xyv"}
    ]
    if "frame" not in table.columns or not fitting:
        raise DataError(
            f"{labels}: columns {short(list(table.columns))} do not fit (allowed: frame, {', '.join(_OPTIONAL_COLUMNS)}"
            f" and <joint>_x, <joint>_y, <joint>_v of each joint of {layout or ' or '.join(SKELETONS)})"
        )
    return [_csv_entry(row, fitting[0], table, numbered=numbered) for row in table.rows], fitting[0]


def _csv_entry(row: Row, skeleton: Skeleton, table: Table, *, numbered: bool) -> dict[str, Any]:
    def cell(column: str) -> Any:
        text = row.cells[column]
        value = number(plain_number(text), decimal_comma=table.decimal_comma)
        return text if value is None else value

    def joint(name: str) -> list[Any]:
        values = [cell(f"{name}_{part}") for part in "xyv"]
        return [0, 0, 0] if values == ["", "", ""] else values  # a joint that is half there is an error

    entry = _CsvEntry(
        frame=cell("frame") if numbered else row.cells["frame"],
        joints=[joint(name) for name in skeleton.joints],
    )
    entry.row = row.line
    given = {column: row.cells[column] for column in table.columns if row.cells[column]}
    for column in ("person", "patient", "group"):
        if column in given:
            entry[column] = given[column]
    if "also" in given:
        entry["also"] = [other for other in given["also"].split(";") if other.strip()]
    if "head_size" in given:
        entry["head_size"] = cell("head_size")
    if any(column in given for column in _BOX_COLUMNS):
        entry["box"] = [cell(column) if column in given else "" for column in _BOX_COLUMNS]
    return entry


def _layout(name: Any) -> Skeleton:
    if name is None:
        raise DataError(f"skeleton is missing (allowed: {', '.join(sorted(SKELETONS))})")
    try:
        return get_skeleton(str(name))
    except ConfigError as error:
        raise DataError(str(error)) from error
