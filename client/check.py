"""The preflight of a hospital's engineer: would this site take part, and if not, what is to be done.

Everything stays on the screen of whoever calls it; nothing is sent, and nothing written. Counts of records and patients
are shown because the caller may see them: they never reach the server.
"""

import contextlib
import ctypes
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from wardpose.client.apart import open_alarms
from wardpose.client.findings import Finding, finding
from wardpose.client.journal import SiteJournal
from wardpose.client.site import Site, open_site
from wardpose.client.tiers import patient_tiers, tiers_of_nobody
from wardpose.client.training import everybody
from wardpose.shared.anonymize.public_view import open_public_view
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.source import names_patients, open_source
from wardpose.shared.errors import LedgerError, WardposeError
from wardpose.shared.ledger_state import LedgerState, ledger_state
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.noise import secure_streams, self_test
from wardpose.shared.site_config import SiteConfig
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.training.cohort import index_units
from wardpose.shared.version import code_hash, version

_CROP_BYTES = 256 * 192 * 3  # one cached view of one record
_SPARE_BYTES = 1 << 30
_CLOCK_SECONDS = 300  # what Flower's node authentication tolerates
_TIME_ERROR = 5  # return value of adjtimex(2) when the clock is not synchronised
_DRIVER = Path("/proc/driver/nvidia/version")
_FRAMES_READ = 5
_TRIES = 5


def check_site(path: Path, *, skeleton: str = "lsp14") -> list[Finding]:
    """Check a site as a round would use it, without reading more than a few frames.

    Args:
        path: the site.yaml.
        skeleton: joints that the federation trains.

    Raises:
        ConfigError: the site.yaml itself is missing or wrong; nothing else can be checked then.

    """
    site = open_site(path)
    findings = [_ok("configuration", f'site "{site.config.site}", {path}'), _code()]
    checks: dict[str, Callable[[Site], Iterator[Finding]]] = {
        "keys": _keys,
        "policy": _policy,
        "ledger": _ledger,
        "device": _device,
        "noise": _noise,
        "public view": _public_view,
        "peers": _peers,
        "clock": _clock,
    }
    for name, check in checks.items():
        findings += _guarded(name, check, site)
    findings += _guarded("data", lambda opened: _data(opened, skeleton), site)
    return findings


def _guarded(name: str, check: Callable[[Site], Iterator[Finding]], site: Site) -> list[Finding]:
    """Turn what a check raises into a failure, and keep what it found before."""
    findings: list[Finding] = []
    try:
        findings.extend(check(site))
    except Exception as error:  # a check that fails is a finding, whatever it failed over
        known = isinstance(error, WardposeError | OSError | RuntimeError)
        findings.append(_failure(name, str(error) if known else f"{type(error).__name__}: {error}"))
    return findings


def _code() -> Finding:
    return _ok("code", f"version {version()}, policy.code_hash {code_hash()}")


def _ok(name: str, text: str) -> Finding:
    return finding(name, "ok", text)


def _warning(name: str, text: str) -> Finding:
    return finding(name, "warning", text)


def _failure(name: str, text: str) -> Finding:
    return finding(name, "failure", text)


def _peers(site: Site) -> Iterator[Finding]:
    """See that a site that accepts distributed noise has a key of its own and knows those of enough others."""
    if not site.config.policy.distributed_noise:
        return
    others = sorted(set(site.node_keys) - {site.config.site})
    if len(others) <= site.config.policy.colluding_sites:
        yield _failure(
            "peers",
            f"keys of {len(others)} other sites, policy.colluding_sites = {site.config.policy.colluding_sites} "
            "(allowed: more peers; their noise protects this site's patients)",
        )
        return
    prints = ", ".join(f"{name} {site.node_keys[name].fingerprint[:16]}" for name in others)
    yield _ok("peers", f"may add up with {prints}; compare these with the sites themselves")


def _policy(site: Site) -> Iterator[Finding]:
    policy, patients = site.config.policy, site.config.cohort.declared_patients
    allowed = ", ".join(policy.mechanisms)
    yield _ok(
        "policy", f"mechanisms {allowed}; unit {policy.unit}; epsilon {policy.epsilon:g} at delta {policy.delta:g}"
    )
    if policy.delta > 1 / patients:
        limit = f"1 / declared_patients = {1 / patients:.2g}"
        yield _warning(
            "policy", f"policy.delta = {policy.delta:g} is above {limit}: a guarantee with such a delta says little"
        )
    if patients < policy.minimum_declared_patients:
        minimum = f"policy.minimum_declared_patients = {policy.minimum_declared_patients}"
        yield _failure(
            "policy", f"cohort.declared_patients = {patients} is below {minimum}: every order will be refused"
        )
    if policy.unit == "patient" and not names_patients(site.config.cohort.data):
        yield _failure(
            "policy",
            "policy.unit = patient, but cohort.data names no patients, so nobody can tell them apart: every order will "
            "be refused (name them with cohort.data.patients, or say policy.unit: record, or frame for whole pictures)",
        )
    if "none" in policy.mechanisms:
        yield _warning("policy", "policy.mechanisms allows none: updates without any privacy may leave")
    if site.config.simulation_seed is not None:
        yield _warning(
            "policy", "simulation_seed is set: noise can be repeated by whoever knows it, so there is no privacy"
        )


def _keys(site: Site) -> Iterator[Finding]:
    yield _ok("keys", f"{site.config.node_key}: signs as {site.signer.public.fingerprint[:16]}")
    coordinator = site.contact.coordinator
    yield _ok("keys", f"{site.config.coordinator_key}: orders of {coordinator.fingerprint[:16]} are carried out")
    if site.contact.path.exists():
        with copy_of(site.contact.path) as path:
            for alarm in open_alarms(path):
                yield _failure("keys", f"{alarm.what}; no order is carried out until both ledgers agree")


def _ledger(site: Site) -> Iterator[Finding]:
    config, policy = site.config, site.config.policy
    folder = _existing(config.ledger.parent)
    if not os.access(folder, os.W_OK):
        yield _failure("ledger", f"{folder}: not writable by this user; orders will be refused")
    spent = 0.0
    whole = not names_patients(config.cohort.data)
    with copy_of(site.journal.path) as path:
        journal = SiteJournal(path)
        known, paid = (journal.head(), journal.paid()) if path.exists() else (None, set())
    if config.ledger.exists():
        with copy_of(config.ledger) as copy:
            ledger = Ledger(copy, readonly=True, signer=site.signer)
            ledger.verify(known)
            _refuse(ledger_state(copy, paid))
            sequence, head = ledger.head()
            yield _ok("ledger", f"{config.ledger}: {sequence} entries, chain unbroken, head {head[:12]}")
            newest = max((int(entry.body["time"]) for entry in ledger.entries()), default=0)
            if newest > time.time() + _CLOCK_SECONDS:
                yield _failure("clock", "the ledger's last entry lies in the future: set the clock")
            account = ledger.account(
                config.cohort.name, policy.delta, adjacency=policy.adjacency, whole_ledger=whole, unit=policy.unit
            )
            spent = account.epsilon
            if ledger.seeded(config.cohort.name):
                yield _warning("ledger", "NOT PRIVATE: charges were made with noise from a seed")
    elif known is not None:
        raise LedgerError(
            f"{config.ledger}: is gone, but {known[0]} entries were seen before; what they charged stays charged "
            "(restore the newest backup)"
        )
    else:
        _refuse(ledger_state(config.ledger, paid))
        yield _ok("ledger", f"{config.ledger}: none yet; the first order makes it")
    text = (
        f'cohort "{config.cohort.name}": epsilon {spent:.4f} of {policy.epsilon:g} is spent at delta {policy.delta:g}'
    )
    if spent >= policy.epsilon:
        yield _failure("budget", f"{text}: nothing is left, every private order will be refused")
    else:
        yield (_warning if spent > 0.9 * policy.epsilon else _ok)("budget", text)


def _refuse(state: tuple[LedgerState, str]) -> None:
    _, problem = state
    if problem:
        raise LedgerError(problem)


@contextlib.contextmanager
def copy_of(path: Path) -> Iterator[Path]:
    """Copy a ledger and its log for as long as it is read: SQLite makes files beside whatever it opens.

    Raises:
        LedgerError: it is being written to all the time; or what the caller raises, of the ledger itself.

    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        parts = [path.with_name(path.name + ending) for ending in ("", "-wal")]
        for _ in range(_TRIES):
            before = [_state(part) for part in parts]
            for part in parts:
                target = copy.with_name(part.name)
                target.unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(part, target)
            if [_state(part) for part in parts] == before:
                break
        else:
            raise LedgerError(f"{path}: is being written to; try again")
        try:
            yield copy
        except LedgerError as error:
            raise LedgerError(str(error).replace(str(copy), str(path))) from error


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _device(site: Site) -> Iterator[Finding]:
    if site.config.device == "cuda" and not torch.cuda.is_available():
        yield _failure("device", f"device = cuda, but {_no_gpu()} (allowed: auto, which takes the processor)")
        return
    device = site.device()
    torch.ones(1, device=device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        yield _ok(
            "device",
            f"{torch.cuda.get_device_name(device)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, driver {_driver()}, "
            f"CUDA {torch.version.cuda}",
        )
        return
    yield _ok("device", f"{device}, {torch.get_num_threads()} threads; {_no_gpu()}")


def _no_gpu() -> str:
    """Say why there is no GPU: none, no driver, or a torch without CUDA."""
    built = "this torch is built without CUDA" if torch.version.cuda is None else f"torch for CUDA {torch.version.cuda}"
    driver = _driver()
    return f"no GPU can be used ({built}, {f'driver {driver}' if driver else 'no NVIDIA driver'})"


def _driver() -> str:
    """Return the version of NVIDIA's kernel driver; empty where there is none."""
    with contextlib.suppress(OSError):
        words = _DRIVER.read_text(errors="replace").splitlines()[0].split()
        return next((word for word in words if word[:1].isdigit() and "." in word), "of unknown version")
    return ""


def _noise(site: Site) -> Iterator[Finding]:
    self_test(secure_streams())
    yield _ok("noise", "the secure generator passes its self-test")


def _public_view(site: Site) -> Iterator[Finding]:
    config = site.config
    wanted = sorted({"feature", "feature-projective", "public-only"} & set(config.policy.mechanisms))
    if config.public_view is None:
        if wanted:
            yield _failure("public view", f"none is declared, but policy.mechanisms allows {', '.join(wanted)}")
        else:
            yield _ok("public view", "none, and none is needed")
        return
    view = open_public_view(config.public_view, config.policy.certificate)
    yield _ok("public view", f"{view.name}, identity {view.identity()[:12]}")


def _clock(site: Site) -> Iterator[Finding]:
    """Ask the kernel whether its clock is synchronised: Flower refuses nodes that are more than five minutes off."""
    if not sys.platform.startswith("linux"):
        yield _warning("clock", f"cannot be asked on {sys.platform}; keep it synchronised")
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.adjtimex(ctypes.create_string_buffer(512)) == _TIME_ERROR:  # struct timex is smaller; modes 0 only reads
        yield _warning(
            "clock", "the kernel's clock is not synchronised (NTP): beyond 5 minutes off, the server refuses this node"
        )
    else:
        yield _ok("clock", "synchronised")


def _data(site: Site, skeleton: str) -> Iterator[Finding]:
    config = site.config
    dataset = open_source(config.cohort.data, skeleton=get_skeleton(skeleton))
    records = [dataset.record(index) for index in range(len(dataset))]
    patients = len({record.patient_id for record in records})
    labelled = np.mean([(record.visibility > 0).sum() for record in records])
    yield _ok("data", f"{dataset.name}: {len(records)} records of {patients} patients, {labelled:.1f} joints a record")
    for note in dataset.notes:
        yield _warning("data", note)
    yield from _owners(site, dataset)
    yield from _tiers(site, dataset)
    declared = config.cohort.declared_patients
    if not declared / 2 <= patients <= 2 * declared:
        yield _warning(
            "data", f"cohort.declared_patients = {declared}, but there are {patients}: noise will not suit the cohort"
        )
    for index in np.linspace(0, len(records) - 1, num=min(_FRAMES_READ, len(records)), dtype=int):
        dataset.frame(int(index))
    yield _ok("data", f"{min(_FRAMES_READ, len(records))} frames decoded (all of them: wardpose data check)")
    yield _disk(config, dataset)


def _owners(site: Site, dataset: PoseDataset) -> Iterator[Finding]:
    """Say what becomes of pictures that show several people."""
    cohort, unit = site.config.cohort, site.config.policy.unit
    units = index_units(dataset, unit=unit, multi_owner=cohort.multi_owner)
    pictures: dict[str, set[str]] = {}
    for record in (dataset.record(index) for index in range(len(dataset))):
        shown = pictures.setdefault(record.picture or record.record_id, set())
        shown.update((record.patient_id, *record.also_patients))
    several = sum(len(shown) > 1 for shown in pictures.values())
    if several and unit == "patient":
        yield _warning(
            "owners",
            f"{several} of {len(pictures)} pictures show several people; cohort.multi_owner = {cohort.multi_owner} "
            f"leaves {units.dropped} of {len(dataset)} records out and makes {len(units)} units of the rest",
        )
    else:
        yield _ok("owners", f"{len(units)} units of {len(dataset)} records, {several} pictures show several people")


def _tiers(site: Site, dataset: PoseDataset) -> Iterator[Finding]:
    """Say whom the tier file means: a patient whose id is mistyped there would be of no tier."""
    cohort, patients = site.config.cohort, everybody(dataset)
    tiers = patient_tiers(cohort, patients)
    if tiers is None:
        return
    counts = Counter(tiers.values())
    tally = ", ".join(f"{counts[tier]} {tier}" for tier in sorted(cohort.declared_tiers))
    text = f"of {len(patients)} patients: {tally}, {len(patients) - len(tiers)} of no tier"
    nobody = tiers_of_nobody(cohort, patients)
    if nobody:
        text += f"; {len(nobody)} ids of {cohort.tiers} are in no record"
    yield finding("tiers", "warning" if nobody else "ok", text, nobody)


def _disk(config: SiteConfig, dataset: PoseDataset) -> Finding:
    folder = _existing(config.state)
    free = shutil.disk_usage(folder).free
    needed = _SPARE_BYTES + len(dataset) * _CROP_BYTES
    text = f"{folder}: {free / 1e9:.1f} GB free, about {math.ceil(needed / 1e8) / 10} GB needed for caches and ledger"
    return _ok("disk", text) if free > needed else _failure("disk", text)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
