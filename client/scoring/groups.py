"""Groups of records by any column of a side file: ward, camera, lying or sitting or standing.

The file is CSV. Its first column that is called `record`, `picture`, `file` or `patient` says what a row is about;
every other column names groups. Without a file the records' own groups are taken.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from wardpose.shared.data.records import PoseRecord
from wardpose.shared.data.tables import read_table
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import strip

KEYS = ("record", "picture", "file", "patient")


def groups_of(records: Sequence[PoseRecord], path: Path | None, columns: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return, for each column, the group of every record; empty where it has none.

    Args:
        records: of the data set.
        path: the side file.
        columns: wanted; all of the file when empty.

    Raises:
        DataError: the file is missing or malformed, lacks a column, says two things of one record, or fits no record.

    """
    if path is None:
        if columns:
            raise DataError(f"--by {columns[0]}: there is no side file (allowed: with --groups)")
        own = [record.group for record in records]
        return {"group": own} if any(own) else {}
    table = read_table(path)
    key = next((column for column in table.columns if column in KEYS), None)
    if key is None:
        raise DataError(f"{path}: columns {list(table.columns)} (allowed: one of {', '.join(KEYS)}, and groups)")
    wanted = [column.strip().lower() for column in columns] or [name for name in table.columns if name not in KEYS]
    missing = [column for column in wanted if column not in table.columns]
    if missing or not wanted:
        raise DataError(
            f"{path}: has no column {missing[0] if missing else 'of groups'} (it has {list(table.columns)})"
        )
    said: dict[str, dict[str, str]] = {}
    for row in table.rows:
        name = row.cells[key].replace("\\", "/")
        cells = {column: row.cells[column] for column in wanted}
        if said.setdefault(name, cells) != cells:
            raise DataError(f'{path}: row {row.line}: {key} "{name}" is in two groups (allowed: one row each)')
    rows = [_row(record, key, said) for record in records]
    if not any(rows):
        raise DataError(
            f"{path}: names none of the {len(records)} records by {key} (first of them: {_names(records[0], key)})"
        )
    return {column: [row.get(column, "") for row in rows] for column in wanted}


def _row(record: PoseRecord, key: str, said: dict[str, dict[str, str]]) -> dict[str, str]:
    return next((said[name] for name in _names(record, key) if name in said), {})


def _names(record: PoseRecord, key: str) -> list[str]:
    if key == "record":
        return [record.record_id]
    if key == "patient":
        return [record.patient_id, strip(record.patient_id)]
    # A record's picture is its file's name and size; in a video, and the frame's number.
    parts = re.fullmatch(r"(.*?):\d+(?::(\d+))?", record.picture)
    name, number = (record.picture, None) if parts is None else parts.groups()
    path = PurePosixPath(name)
    if number is not None:
        return [f"{name}#{number}", f"{path.name}#{number}", f"{path.stem}#{number}", number]
    return [name, path.name, str(path.with_suffix("")) if path.name else "", path.stem]
