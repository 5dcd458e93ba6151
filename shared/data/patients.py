"""Whose record is it? Patient ids come from a side file or a rule; without either every record is its own patient."""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from wardpose.shared.errors import DataError


class PatientRule(BaseModel):
    """Where a source's patient ids come from: exactly one of the two.

    Attributes:
        file: CSV with columns `record`, `patient` and optionally `also` (further patients in the frame, separated by
            `;`), or JSON `{record: patient}` or `{record: [patient, also ...]}`. `record` is a record id or the
            frame's file name, with or without folder.
        pattern: regular expression searched in the frame's file name (or, in a video, in the record id); its group
            `patient`, or else its first group, is the patient.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = None
    pattern: str | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.file is None) == (self.pattern is None):
            raise ValueError("patients needs exactly one of file and pattern")
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


class PatientLookup:
    """A rule, ready to be asked; `None` makes every record its own patient."""

    def __init__(self, rule: PatientRule | None) -> None:
        self._rule = rule
        self._table = {} if rule is None or rule.file is None else _read_table(rule.file)
        self._pattern = re.compile(rule.pattern) if rule is not None and rule.pattern is not None else None

    @property
    def known(self) -> bool:
        """Whether patients are known at all."""
        return self._rule is not None

    def owners(self, record_id: str, frame_name: str) -> Owners:
        """Find a record's patients.

        Raises:
            DataError: the side file does not list the record, or the pattern does not match.

        """
        if self._rule is None:
            return Owners(record_id)
        if self._pattern is not None:
            match = self._pattern.search(frame_name)
            patient = match and (match["patient"] if "patient" in self._pattern.groupindex else match[1])
            if not patient:
                raise DataError(f'patients.pattern "{self._pattern.pattern}" finds no patient in "{frame_name}"')
            return Owners(patient)
        for key in (record_id, frame_name, Path(frame_name).name):
            if key in self._table:
                return self._table[key]
        raise DataError(f'{self._rule.file}: no patient for record "{record_id}" (frame "{frame_name}")')


def _read_table(path: Path) -> dict[str, Owners]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: patients file cannot be read: {error}") from error
    rows = _json_rows(path, text) if path.suffix.lower() == ".json" else _csv_rows(path, text)
    table: dict[str, Owners] = {}
    for record, patients in rows:
        if record in table:
            raise DataError(f'{path}: record "{record}" is listed twice (allowed: once)')
        if not patients or not all(patients):
            raise DataError(f'{path}: record "{record}" has an empty patient (allowed: a non-empty text)')
        table[record] = Owners(patients[0], tuple(patients[1:]))
    if not table:
        raise DataError(f"{path}: patients file lists no record (allowed: at least one)")
    return table


def _csv_rows(path: Path, text: str) -> list[tuple[str, list[str]]]:
    reader = csv.DictReader(text.splitlines())
    columns = set(reader.fieldnames or ())
    if not {"record", "patient"} <= columns or columns - {"record", "patient", "also"}:
        raise DataError(f"{path}: columns are {sorted(columns)} (allowed: record, patient, and optionally also)")
    return [
        (row["record"] or "", [row["patient"] or "", *filter(None, (row.get("also") or "").split(";"))])
        for row in reader
    ]


def _json_rows(path: Path, text: str) -> list[tuple[str, list[str]]]:
    try:
        # Pairs, not a dict: a record that is listed twice must be seen.
        content = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: malformed JSON: {error}") from error
    if not isinstance(content, _Pairs):
        raise DataError(f"{path}: holds a {type(content).__name__} (allowed: an object of record: patient)")
    rows = []
    for record, value in content:
        patients = [value] if isinstance(value, str) else value
        if not isinstance(patients, list) or not all(isinstance(patient, str) for patient in patients):
            raise DataError(f'{path}: record "{record}" has {value!r} (allowed: a patient or [patient, also ...])')
        rows.append((record, patients))
    return rows


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs."""
