"""Whose record is it? Patient ids come from a side file, a rule or the labels; else every record is its own patient."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from wardpose.shared.data.tables import read_table, read_text
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import (
    Ids,
    Mention,
    PatientError,
    clean,
    is_rounded,
    plain_number,
    same_patients,
    strip,
)


class PatientRule(BaseModel):
    """Where a source's patient ids come from: a file, a pattern, or (with `ids` alone) the labels.

    Attributes:
        file: CSV with columns `record`, `patient` and optionally `also` (further patients in the frame, separated by
            `;`), or JSON `{record: patient}` or `{record: [patient, also ...]}`. `record` is a record id or the
            frame's file name, with or without folder and ending; a number may have lost its leading zeros.
        pattern: regular expression searched in the frame's file name (or, in a video, in the record id); its group
            `patient`, or else its first group, is the patient.
        ids: what is meant by ids that differ only in how they are written; see `patient_ids`. Without it they are
            refused.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = None
    pattern: str | None = None
    ids: Ids | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.file is not None and self.pattern is not None:
            raise ValueError("patients has both file and pattern (allowed: one)")
        if self.file is None and self.pattern is None and self.ids is None:
            raise ValueError("patients needs file, pattern, or ids alone")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f'pattern "{self.pattern}" is not a regular expression: {error}') from error
            if groups == 0:
                raise ValueError(f'pattern "{self.pattern}" has no group (allowed: one that captures the patient)')
        return self


@dataclass(frozen=True)
class Owners:
    """The patients of one record.

    Attributes:
        patient_id: whose record it is.
        also_patients: who else can be seen.

    """

    patient_id: str
    also_patients: tuple[str, ...] = ()


@dataclass
class _Row:
    """A row of the side file, and for which frames it was used."""

    where: str
    owners: Owners
    frames: set[str] = field(default_factory=set)


class PatientLookup:
    """A rule, ready to be asked; `None` makes every record its own patient.

    Attributes:
        file: the side file, where there is one.

    """

    def __init__(self, rule: PatientRule | None) -> None:
        self.file = None if rule is None else rule.file
        self._pattern = re.compile(rule.pattern) if rule is not None and rule.pattern is not None else None
        self._ids = None if rule is None else rule.ids
        self._table = {} if self.file is None else _read_side_file(self.file, self._ids)
        self._loose = _loose_keys(self._table)
        self._served: dict[PurePosixPath, dict[str, str]] = {}  # frame -> patient -> key of a row
        self._doubtful: list[str] = []

    @property
    def known(self) -> bool:
        """Whether there is a file or a pattern."""
        return self.file is not None or self._pattern is not None

    def owners(self, record_id: str, frame_name: str) -> Owners:
        """Find a record's patients.

        Raises:
            DataError: the side file does not list the record, or the pattern does not match.
            PatientError: a row of the side file fits frames of several folders.

        """
        if self._pattern is not None:
            match = self._pattern.search(frame_name)
            patient = match and (match["patient"] if "patient" in self._pattern.groupindex else match[1])
            if not patient or not strip(patient):
                raise DataError(f'patients.pattern "{self._pattern.pattern}" finds no patient in "{frame_name}"')
            return Owners(clean(patient, self._ids))
        if self.file is None:
            return Owners(record_id)
        frame = PurePosixPath(frame_name.replace("\\", "/"))
        key = self._key(record_id, frame)
        if key is None:
            raise DataError(f'{self.file}: no patient for record "{record_id}" (frame "{frame_name}")')
        row = self._table[key]
        # A bare name or number does not say which folder, ending or record is meant: it may fit one frame only.
        row.frames.add(str(frame))
        if len(row.frames) > 1:
            one, other = sorted(row.frames)[:2]
            raise PatientError(f'{self.file}: {row.where} fits frames "{one}" and "{other}" (allowed: whole names)')
        self._served.setdefault(frame, {})[row.owners.patient_id] = key
        if key == record_id and (frame_key := self._loose.get(_loose(frame.stem))) not in (None, key):
            self._doubtful.append(f'{row.where} "{key}", not {self._table[frame_key].where} for frame "{frame}"')
        return row.owners

    def settle(self, found: Sequence[tuple[str, Owners]]) -> list[Owners]:
        """Bring all records' patients (each with its record's name) to one spelling, as the rule says.

        Raises:
            PatientError: ids differ only in how they are written, and the rule does not say what is meant.

        """
        named = [
            Owners(clean(owners.patient_id, self._ids), _cleaned(owners.also_patients, self._ids))
            for _, owners in found
        ]
        mentions = [
            Mention(patient, f"record {record}")
            for (record, _), owners in zip(found, named, strict=True)
            for patient in (owners.patient_id, *owners.also_patients)
        ]
        names = same_patients(mentions, self._ids)
        return [_under(names, owners) for owners in named]

    def unused(self) -> list[str]:
        """Rows of the side file that no record asked for, as `row 4 "x.png"`.

        Raises:
            PatientError: such a row means a frame for which another row was used, and names another patient.

        """
        unused = {key: row for key, row in self._table.items() if not row.frames}
        for frame, served in self._served.items():
            names = [str(frame), str(frame.with_suffix(""))]
            if str(frame.parent) not in {str(PurePosixPath(key).parent) for key in served.values()}:
                names += [frame.name, frame.stem]
            for key in names:
                if key in unused and unused[key].owners.patient_id not in served:
                    other = next(iter(served.values()))
                    raise PatientError(
                        f'{self.file}: {unused[key].where} "{key}" and {self._table[other].where} "{other}" both mean '
                        f'frame "{frame}", but name different patients (allowed: one of the two)'
                    )
        return [f'{row.where} "{key}"' for key, row in unused.items()]

    def doubtful(self) -> list[str]:
        """Rows that were taken for record ids although they could be numbers of frames, as `row 2 "1", not ...`."""
        return self._doubtful

    def _key(self, record_id: str, frame: PurePosixPath) -> str | None:
        """Find the row that says most about a record, by its key."""
        without = str(frame.with_suffix("")) if frame.suffix else ""
        for key in (record_id, str(frame), frame.name, without, frame.stem):
            if key in self._table:
                return key
        return next((self._loose[key] for key in (_loose(record_id), _loose(frame.stem)) if key in self._loose), None)


def _under(names: dict[str, str], owners: Owners) -> Owners:
    patient = names[owners.patient_id]
    also = dict.fromkeys(names[other] for other in owners.also_patients)
    return Owners(patient, tuple(other for other in also if other != patient))


def _cleaned(patients: Sequence[str], ids: Ids | None) -> tuple[str, ...]:
    return tuple(filter(None, (clean(patient, ids) for patient in patients)))


def _loose(key: str) -> str:
    """Digits of a whole number without leading zeros, as a spreadsheet would keep it; empty for anything else."""
    digits = plain_number(key)
    return (digits.lstrip("0") or "0") if digits.isascii() and digits.isdigit() else ""


def _loose_keys(table: dict[str, _Row]) -> dict[str, str]:
    loose: dict[str, list[str]] = {}
    for key in table:
        if number := _loose(key):
            loose.setdefault(number, []).append(key)
    return {number: keys[0] for number, keys in loose.items() if len(keys) == 1}


def _read_side_file(path: Path, ids: Ids | None) -> dict[str, _Row]:
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    table: dict[str, _Row] = {}
    mentions = []
    for where, record, patients in rows:
        key = strip(record).replace("\\", "/").removeprefix("./")
        if not key or is_rounded(key):
            raise DataError(f'{path}: {where}: record "{key}" is no record id or file name (allowed: its full text)')
        owners = [clean(patient, ids) for patient in patients]
        if not owners or not all(owners):
            raise DataError(f'{path}: {where}: record "{key}" has an empty patient (allowed: a non-empty text)')
        if key in table:
            raise DataError(f'{path}: {table[key].where} and {where}: record "{key}" is listed twice (allowed: once)')
        table[key] = _Row(where, Owners(owners[0], tuple(owners[1:])))
        mentions += [Mention(owner, where) for owner in owners]
    if not table:
        raise DataError(f"{path}: patients file lists no record (allowed: at least one)")
    try:
        names = same_patients(mentions, ids)
    except PatientError as error:
        raise PatientError(f"{path}: {error}") from error
    for row in table.values():
        row.owners = _under(names, row.owners)
    return table


def _csv_rows(path: Path) -> list[tuple[str, str, list[str]]]:
    table = read_table(path)
    columns = set(table.columns)
    if not {"record", "patient"} <= columns or columns - {"record", "patient", "also"}:
        raise DataError(f"{path}: columns are {sorted(columns)} (allowed: record, patient, and optionally also)")
    return [
        (
            f"row {row.line}",
            row.cells["record"],
            [row.cells["patient"], *filter(strip, row.cells.get("also", "").split(";"))],
        )
        for row in table.rows
    ]


def _json_rows(path: Path) -> list[tuple[str, str, list[str]]]:
    try:
        # Pairs, not a dict: a record that is listed twice must be seen.
        content = json.loads(read_text(path), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON: {error}") from error
    if not isinstance(content, _Pairs):
        raise DataError(f"{path}: holds a {type(content).__name__} (allowed: an object of record: patient)")
    rows = []
    for position, (record, value) in enumerate(content, start=1):
        patients = [value] if isinstance(value, str) else value
        if not isinstance(patients, list) or not all(isinstance(patient, str) for patient in patients):
            raise DataError(f'{path}: record "{record}" has {value!r} (allowed: a patient or [patient, also ...])')
        rows.append((f"entry {position}", record, patients))
    return rows


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs."""
