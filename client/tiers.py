"""Of which consent tier is each patient? Strict people must not be taken for others because of how an id is written."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from wardpose.shared.data.fields import read_json
from wardpose.shared.data.source import WardSource
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import Ids, clean, fold
from wardpose.shared.site_config import CohortConfig


def declared_units(cohort: CohortConfig) -> int | dict[str, int]:
    """Return the declared number of patients, by tier where the cohort has tiers (the plain tier is "")."""
    if not cohort.declared_tiers:
        return cohort.declared_patients
    plain = cohort.declared_patients - sum(cohort.declared_tiers.values())
    return {"": plain, **cohort.declared_tiers}


def patient_tiers(cohort: CohortConfig, patients: Iterable[str]) -> dict[str, str] | None:
    """Map patients to their tiers, without those of no tier; `None` for a cohort without tiers.

    Ids of the file are read by the rule that those of the records are (`cohort.data.patients.ids`).

    Args:
        cohort: whose `tiers` are read.
        patients: everybody in the cohort's records.

    Raises:
        DataError: the file is missing or not a JSON mapping of texts, names a tier that is not declared, or a patient
            twice; or an id is a patient's but for how it is written, and nobody says whether that patient is meant.

    """
    if cohort.tiers is None:
        return None
    known = dict.fromkeys(patients)
    return {name: tier for name, tier in _read(cohort.tiers, cohort, known).items() if name in known}


def tiers_of_nobody(cohort: CohortConfig, patients: Iterable[str]) -> list[str]:
    """Ids of the tier file that are nobody's: people who have left, or slips of the pen.

    Raises:
        DataError: as `patient_tiers`.

    """
    if cohort.tiers is None:
        return []
    known = dict.fromkeys(patients)
    return [name for name in _read(cohort.tiers, cohort, known) if name not in known]


def _read(path: Path, cohort: CohortConfig, known: Mapping[str, object]) -> dict[str, str]:
    """Map every id of a tier file to its tier, under a patient's own spelling where one is meant."""
    ids = _ids(cohort)
    spelt = {} if ids == "exact" else {fold(patient): patient for patient in known}
    found: dict[str, str] = {}
    for written, tier in _rows(path, cohort.declared_tiers):
        name = clean(written, ids)
        if name not in known and (meant := spelt.get(fold(name))) is not None:
            if ids is None:
                raise DataError(
                    f"{path}: patient {name!a} differs from patient {meant!a} of the records only in how it is written "
                    "(allowed: one spelling; or patients.ids: fold for one patient, exact for several)"
                )
            name = meant
        if found.setdefault(name, tier) != tier:
            raise DataError(f"{path}: patient {name!a} is of tiers {found[name]} and {tier} (allowed: one)")
    return found


def _rows(path: Path, declared: Iterable[str]) -> list[tuple[str, str]]:
    content = read_json(path)
    allowed = f"allowed: a mapping of patient ids to declared tiers ({', '.join(sorted(declared))})"
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no mapping ({allowed})")
    for patient, tier in content.items():
        if not isinstance(tier, str) or tier not in declared:
            raise DataError(f"{path}: patient {patient!a} is of tier {tier!r} ({allowed})")
    return list(content.items())


def _ids(cohort: CohortConfig) -> Ids | None:
    if isinstance(cohort.data, WardSource) or cohort.data.patients is None:
        return None
    return cohort.data.patients.ids
