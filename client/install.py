"""A hospital's archive and its data become a site: `wardpose site install`.

The archive is checked and placed by `shared/kits`; here the site.yaml is filled in from what the data is, before
anything is written. It comes into the home together with everything else, or not at all, and one that is there stays.
"""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from wardpose.client.check import check_site
from wardpose.client.findings import Finding, finding
from wardpose.client.found_data import as_yaml, find_data, find_owners
from wardpose.client.home import FILE, KitSettings
from wardpose.client.template import FilledIn, filled_in
from wardpose.shared.data.dataset import ListDataset, listed
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.source import DataSource, names_patients, open_source
from wardpose.shared.errors import ConfigError, DataError, one_line
from wardpose.shared.files import PRIVATE
from wardpose.shared.kits.archive import KitFile
from wardpose.shared.kits.machine import USER, Installed
from wardpose.shared.kits.machine import install as install_kit
from wardpose.shared.kits.placing import HOMES
from wardpose.shared.kits.seal import Kit
from wardpose.shared.privacy.accounting import UNITS
from wardpose.shared.skeleton import get_skeleton

SITE_FILE, PLAN = "site.yaml", "federation.yaml"
_DELTA = 1e-5
_ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user")))  # from units, by ProtectHome=


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A hospital's data, looked at.

    Attributes:
        what: kind, for people.
        source: as site.yaml names it, patients included.
        records: that can be used.
        patients: whom they belong to; records, where nobody says.
        named: whether patients are named.
        notes: of the reader.

    """

    what: str
    source: DataSource
    records: int
    patients: int
    named: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SiteInstalled:
    """What was done.

    Attributes:
        installed: home and units.
        cohort: the data; `None` where they were not asked for.
        declared: patients, as the new site.yaml says; 0 likewise.
        differs: keys of a site.yaml that was there and stayed, in which a new one would differ; with both values.
        findings: of the checks.

    """

    installed: Installed
    cohort: Cohort | None
    declared: int
    differs: tuple[str, ...]
    findings: tuple[Finding, ...]


def install_site(
    kit: Kit,
    data: Path | None,
    *,
    home: Path | None,
    patients: Path | None = None,
    unit: str | None = None,
    declared: int | None = None,
    skip_bad: bool = False,
    skeleton: str = "lsp14",
) -> SiteInstalled:
    """Install an archive for data that lie somewhere, and check what came of it.

    Args:
        kit: as it was opened and checked.
        data: what the hospital has; `None` keeps the site.yaml of a home that has one.
        home: below which everything goes; for the whole machine, as root, when absent.
        patients: side file that says whose the records are; one that lies beside the labels when absent.
        unit: of the policy; must be said where nobody says whose the records are.
        declared: patients, a public number; rounded from what is there when absent.
        skip_bad: leave bad records out, here and in every round.
        skeleton: joints that the federation trains.

    Raises:
        ConfigError: the data are not recognised, or say too little; nothing was written.
        DataError: they cannot be read, likewise.
        KitError: the archive may not come here, likewise.
        StorageError: it cannot be written.

    """
    if data is None:
        return _brought_up_to_date(kit, home, skeleton)
    cohort = look_at(data, patients=patients, skip_bad=skip_bad, skeleton=skeleton)
    unit = _unit(cohort, unit, data)
    if declared is not None and declared < 1:
        raise ConfigError(f"--declared-patients {declared} (allowed: 1 or more)")
    declared = declared or round_number(cohort.patients)
    text = _site_yaml(kit, cohort, data, unit=unit, declared=declared)
    files = {**kit.files, SITE_FILE: KitFile(content=text.encode(), mode=PRIVATE)}
    done = install_kit(replace(kit, files=files), home=home)
    folder = done.placed.home
    fresh = folder / f"{SITE_FILE}.new"
    differs = tuple(_differences(folder / SITE_FILE, text)) if SITE_FILE in done.placed.kept else ()
    fresh.unlink(missing_ok=True)
    findings = (
        *_checked(folder / SITE_FILE, skeleton),
        *_reachable(cohort.source, whole_machine=home is None),
    )
    return SiteInstalled(installed=done, cohort=cohort, declared=declared, differs=differs, findings=findings)


def _brought_up_to_date(kit: Kit, home: Path | None, skeleton: str) -> SiteInstalled:
    site = (Path(HOMES["site"]) if home is None else home.expanduser()) / SITE_FILE
    if not site.is_file():
        raise ConfigError(f"--data: is needed for a new home (allowed: what the hospital has; {site} is not there)")
    done = install_kit(kit, home=home)
    findings = _checked(done.placed.home / SITE_FILE, skeleton)
    return SiteInstalled(installed=done, cohort=None, declared=0, differs=(), findings=tuple(findings))


def _checked(site: Path, skeleton: str) -> list[Finding]:
    """Check the site; a site.yaml that stayed as somebody had it may be wrong itself."""
    try:
        return check_site(site, skeleton=skeleton)
    except ConfigError as error:
        return [finding("configuration", "failure", str(error))]


def look_at(data: Path, *, patients: Path | None = None, skip_bad: bool = False, skeleton: str = "lsp14") -> Cohort:
    """Recognise data and read its records; pictures are not decoded.

    Args:
        data: what the hospital has.
        patients: side file; one that lies beside when absent.
        skip_bad: leave bad records out, here and in every round.
        skeleton: joints that will be trained.

    Raises:
        ConfigError: they are not recognised.
        DataError: they cannot be read.

    """
    found = find_data(data)
    if patients is not None:
        if not patients.is_file():
            raise ConfigError(f"--patients {patients}: is no file")
        rule: PatientRule | None = PatientRule(file=patients.expanduser().absolute(), ids="fold")
    else:
        rule = find_owners(found, data.expanduser().absolute())
    plain = found.source.model_copy(update={"on_bad_record": "skip" if skip_bad else "error", "patients": rule})
    source, dataset = _opened(plain, skeleton)
    records = [dataset.record(index) for index in range(len(dataset))]
    return Cohort(
        what=found.what,
        source=source,
        records=len(records),
        patients=len({record.patient_id for record in records}),
        named=dataset.patients_named,
        notes=tuple(dataset.notes),
    )


def _opened(source: DataSource, skeleton: str) -> tuple[DataSource, ListDataset]:
    """Open a source; where its labels name patients themselves, the source says so from now on.

    Raises:
        DataError: a record is bad.

    """
    try:
        dataset = listed(open_source(source, skeleton=get_skeleton(skeleton)))
    except DataError as error:
        raise DataError(f"{error}; --skip-bad-records leaves them out; wardpose data check lists all") from error
    if not dataset.patients_named or names_patients(source):
        return source, dataset
    return _opened(source.model_copy(update={"patients": PatientRule(ids="fold")}), skeleton)


def _unit(cohort: Cohort, asked: str | None, data: Path) -> str:
    if asked is not None and asked not in UNITS:
        raise ConfigError(f"--unit {asked!r} (allowed: {', '.join(UNITS)})")
    if cohort.named:
        return asked or "patient"
    if asked in (None, "patient"):
        raise ConfigError(
            f"--data {data}: nobody says whose the {cohort.records} records are, so no patient can be protected as "
            "one (allowed: --patients FILE, a CSV with columns record and patient; or --unit record, if every one is "
            "somebody else, or --unit frame, if every picture is)"
        )
    return asked


def round_number(patients: int) -> int:
    """Return a round public number near a count: 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten, a quarter off at most.

    Raises:
        ConfigError: nobody is there.

    """
    if patients < 1:
        raise ConfigError("the data hold no patient")
    scale = 10 ** (len(str(patients)) - 1)
    return max(1, int(min((abs(step * scale - patients), step * scale) for step in _ROUND)[1]))


def _site_yaml(kit: Kit, cohort: Cohort, data: Path, *, unit: str, declared: int) -> str:
    settings = KitSettings.model_validate(yaml.safe_load(kit.files[FILE].content))
    folder = _NAME.sub("-", data.expanduser().resolve().name).strip("-.") or "ward"
    remarks = [f"{cohort.what}, found by wardpose site install; declared_patients was rounded from what is there:"]
    if not cohort.named:
        remarks.append(f"nobody says whose the records are, so every {unit} counts as somebody else")
    return filled_in(
        FilledIn(
            site=settings.site,
            cohort=f"{settings.site}-{folder}"[:63],
            declared=declared,
            data=as_yaml(cohort.source),
            remarks=[*remarks[:1], "it is public; another one near it is as good", *remarks[1:]],
            unit=unit,
            delta=_delta(kit, declared),
            peers=sorted(
                name.removeprefix("peers/").removesuffix(".pub") for name in kit.files if name.startswith("peers/")
            ),
        )
    )


def _delta(kit: Kit, declared: int) -> float:
    """Return the plan's delta, at which coordinator and sites must count alike, where it is below 1 / patients."""
    usual = min(_DELTA, 10.0 ** -(len(str(declared)) + 1))
    plan = kit.files.get(PLAN)
    content = None if plan is None else yaml.safe_load(plan.content)
    privacy = content.get("privacy") if isinstance(content, Mapping) else None
    said = privacy.get("delta") if isinstance(privacy, Mapping) else None
    try:
        asked = float(said) if isinstance(said, float | int | str) else usual  # YAML takes 1e-3 for a text
    except ValueError:
        return usual
    return asked if 0 < asked < 1 / declared else usual


def _differences(there: Path, fresh: str) -> Iterator[str]:
    """Yield the keys in which a site.yaml that stays is another than the one that would have been written."""
    try:
        old = _flat(yaml.safe_load(there.read_bytes()))
    except (yaml.YAMLError, ValueError):  # the check says what is wrong with it
        return
    new = _flat(yaml.safe_load(fresh))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield one_line(f"{key}: is {old.get(key, 'absent')}, would be {new.get(key, 'absent')}", 300)


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            key: each
            for name, part in value.items()
            for key, each in _flat(part, f"{at}.{name}" if at else str(name)).items()
        }
    return {at: value}


def _reachable(source: DataSource, *, whole_machine: bool) -> Iterator[Finding]:
    """See that the user of the units may read the data, and that units see them at all."""
    if not whole_machine:
        return
    paths = [value for _, value in source if isinstance(value, Path)]
    for path in paths:
        if any(path.resolve().is_relative_to(hidden) for hidden in _HIDDEN):
            yield finding(
                "data",
                "failure",
                f"{path}: units do not see what is below {', '.join(map(str, _HIDDEN))} (ProtectHome=): "
                "move the data to /srv, say",
            )
        elif not _may_read(path):
            yield finding(
                "data",
                "failure",
                f"{path}: the user {USER} may not read it: setfacl -R -m u:{USER}:rX {path}, "
                "and x on the folders above it",
            )


def _may_read(path: Path) -> bool:
    if os.geteuid() != 0:
        return os.access(path, os.R_OK)
    user = pwd.getpwnam(USER)
    done = subprocess.run(["test", "-r", str(path)], user=user.pw_uid, group=user.pw_gid, extra_groups=[], check=False)  # noqa: S603, S607 (coreutils, as that user)
    return done.returncode == 0


def enable(units: tuple[str, ...]) -> bool:
    """Let systemd start units when the machine starts; tells whether there is a systemd that did."""
    if not units or shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return False
    return subprocess.run(["systemctl", "enable", *units], check=False, capture_output=True).returncode == 0  # noqa: S603, S607 (root's own)
