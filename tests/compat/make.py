"""Write every durable format once, and read it back: `docs/evolution.md` says what must stay readable.

    python tests/compat/make.py tests/compat/files/VERSION    # once for each release, with the release's own code

`write` makes the files; `read` says what today's code takes out of them, in plain values. Both are called here, and the
values are kept beside the files as `facts.json`; the tests call `read` alone. Files of a release are never made anew.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wardpose.client.journal import SiteJournal
from wardpose.client.recovery.keyholders import Credential, NewPerson
from wardpose.client.recovery.vault import Vault, create_vault
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.heads import Heads
from wardpose.server.journal import RoundRow, RunJournal, SiteRow
from wardpose.shared.anonymize import certificate, keyed_code
from wardpose.shared.anonymize.generators import BITS
from wardpose.shared.anonymize.weights_file import bundled, read_info
from wardpose.shared.config import FederationConfig, SiteEntry, load_federation
from wardpose.shared.data.source import WardSource
from wardpose.shared.files import sha256_file
from wardpose.shared.messages import RoundOrder, SiteRelease, SiteStatus
from wardpose.shared.pose.model import ModelConfig
from wardpose.shared.pose.weights import read_config
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.membership import patient_keys
from wardpose.shared.site_config import CohortConfig, SiteConfig, load_site
from wardpose.shared.training.settings import LocalTraining
from wardpose.shared.yaml_config import to_yaml

DELTA = 1e-5
EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=20, max_grad_norm=1.0)
EVENTS = (
    EVENT,
    *(replace(EVENT, mechanism=name) for name in ("projected", "feature", "feature-projective")),
    replace(EVENT, noise="discrete-gaussian"),
    replace(EVENT, adjacency="replace-one"),
    replace(EVENT, unit="frame"),
    replace(EVENT, unit="record", seeded=True),
    replace(EVENT, tier="strict", sample_rate=0.05),
    replace(EVENT, mechanism="mean-height", sample_rate=1.0, steps=1),
    replace(EVENT, mechanism="none", noise_multiplier=0.0),
    replace(EVENT, mechanism="public-only", noise_multiplier=0.0),
)
COURSE = Course(
    run="compat-1",
    federation="study",
    mechanism=Mechanism(sample_rate=0.1, noise_multiplier=2.0, tiers={"strict": 0.05}),
    steps=5,
    last_round=4,
)
ADA = "correct horse battery"


def write(folder: Path) -> None:
    """Make every durable file in a new folder."""
    folder.mkdir(parents=True)
    (folder / "events.json").write_text(json.dumps([event.to_json() for event in EVENTS], indent=1) + "\n")
    _write_site(folder)
    _write_server(folder)
    _write_wire(folder)
    _write_configurations(folder)
    _write_anonymised(folder)
    for rest in (*folder.glob("*.sqlite-shm"), *folder.glob("*.sqlite-wal")):
        assert rest.name.endswith("-shm") or rest.stat().st_size == 0
        rest.unlink()


def _write_site(folder: Path) -> None:
    journal = SiteJournal(folder / "site-journal.sqlite")
    ledger = Ledger(folder / "ledger.sqlite", clock=lambda: 1_700_000_000.0, witness=journal)
    budget = Budget(epsilon=8.0, delta=DELTA, by_tier={"strict": 2.0}, unit="patient")
    for number in (1, 2):
        order = journal.received(run="compat-1", round_number=number, federation="study", mechanism="dp-sgd")
        reservation = ledger.reserve(
            "ward-7", COURSE.events(number), run_id="compat-1", round=number, budget=budget, course=COURSE
        )
        patients = {"ada": "", "ben": "strict"} if number == 1 else {"ada": "", "ben": "strict", "cem": ""}
        ledger.declare("ward-7", identity="a" * 64, units=50, reservation=reservation, patients=patients, budget=budget)
        if number == 1:  # the second was cut off after its charge
            ledger.commit(reservation)
            journal.finished(order, "released", bytes_up=1234)
    frames = Budget(epsilon=8.0, delta=DELTA, unit="frame")
    ledger.reserve("ward-8", [replace(EVENT, unit="frame")], run_id="other", round=1, budget=frames)


def _write_server(folder: Path) -> None:
    journal = RunJournal(folder / "run-journal.sqlite")
    journal.start(
        run="compat-1",
        federation="study",
        mechanism="dp-sgd",
        unit="patient",
        delta=DELTA,
        overlap=1,
        rounds=4,
        config={"name": "study"},
        score_name="pck@0.2",
    )
    site = SiteRow(run="compat-1", round=1, site="north", status="released", bytes_up=1234, steps=5, epsilon_spent=0.5)
    row = RoundRow(
        run="compat-1",
        round=1,
        started=1_700_000_000.0,
        seconds=2.5,
        score=0.25,
        bytes_down=99,
        bytes_up=1234,
        epsilon_disjoint=0.5,
        epsilon_overlap=0.75,
    )
    journal.round(row, [site, replace(site, site="south", status="rejected", reason="norm", detail="too long")])
    journal.score("compat-1", "initial", {"score": 0.1})
    heads = Heads(folder / "heads.sqlite")
    heads.remember("north", 3, "b" * 64)
    heads.accept_another("north", "disk broke")
    heads.remember("north", 2, "c" * 64)
    state = Checkpoint(run="compat-1", round=1, weights={"head.bias": np.arange(3, dtype=np.float32)})
    state.aggregator = {"m": np.ones(3, np.float32)}
    state.course, state.dropped = COURSE.model_dump_json(), {"south": "its update is too long"}
    state.save(folder / "checkpoint.safetensors")


def _write_wire(folder: Path) -> None:
    order = RoundOrder(
        course=COURSE,
        round=2,
        model=ModelConfig(weights="random"),
        training=LocalTraining(steps=5),
        weights_hash="1" * 64,
        code_hash="2" * 64,
    )
    head = {
        "site": "north", "key": "ecdsa-sha2-nistp384 AAAA", "nonce": "4" * 64, "order": "5" * 64, "code_hash": "2" * 64,
        "secure": True, "ledger_sequence": 7, "ledger_head": "3" * 64, "server_ledger": (9, "6" * 64),
        "epsilon_spent": 0.5, "epsilon_budget": 8.0, "delta": DELTA,
    }  # fmt: skip
    release = SiteRelease(
        run="compat-1",
        round=2,
        mechanism=COURSE.mechanism,
        steps=5,
        weights_hash="1" * 64,
        arrays="7" * 64,
        paid=(7, "3" * 64),
        **head,
    )
    status = SiteStatus(declared_units={"": 50}, **head)
    for body in (order, release, status):
        (folder / f"{type(body).__name__}.json").write_text(body.model_dump_json(indent=1) + "\n")


def _write_configurations(folder: Path) -> None:
    plan = FederationConfig(mechanism=COURSE.mechanism, sites=(SiteEntry(name="north"),), training=LocalTraining())
    cohort = CohortConfig(
        name="ward-7",
        data=WardSource(kind="ward", hospital="general", patients=3, frames_per_patient=2),
        declared_patients=50,
    )
    (folder / "federation.yaml").write_text(to_yaml(plan))
    (folder / "site.yaml").write_text(to_yaml(SiteConfig(site="north", cohort=cohort)))


def _write_anonymised(folder: Path) -> None:
    signed = certificate.sign(
        certificate.Certificate(
            view_name="blur(8)",
            view_identity="d" * 64,
            created="2026-11-30T12:00:00+00:00",
            measures={"linkage_rank1": 0.01, "face_match": None},
            rows=[{"method": "blur(8)", "linkage_rank1": 0.01}],
            setting={"seed": 0},
        ),
        bytes(range(32)),
    )
    certificate.write(signed, folder / "certificate.json")
    person = NewPerson(name="ada", passphrase=ADA)
    vault = create_vault(folder / "vault", [person], weights_path=bundled("recoverable"))
    (folder / "vault" / "recovery.sealed").unlink()  # three quarters of a megabyte that the tests do not need
    symbols = np.stack([np.full((12, 16), 2**bits - 1, np.uint8) for bits in BITS])
    hidden = keyed_code.conceal(np.full((48, 64, 3), 128, np.uint8), symbols, vault.public_key)
    Image.fromarray(hidden).save(folder / "hidden.png")
    vault.seal_original(sha256_file(folder / "hidden.png"), "original.txt", b"what was there")


def read(folder: Path) -> dict[str, Any]:
    """Return what today's code reads, in plain values; `folder` is a copy, the vault's log grows."""
    ledger, site = Ledger(folder / "ledger.sqlite"), SiteJournal(folder / "site-journal.sqlite")
    run, heads = RunJournal(folder / "run-journal.sqlite"), Heads(folder / "heads.sqlite")
    state = Checkpoint.load(folder / "checkpoint.safetensors")
    facts = {
        "events": _read_events(folder / "events.json"),
        "ledger": {name: _read_cohort(ledger, name) for name in ledger.cohorts()},
        "ledger head": ledger.head(),
        "ledger's first order": ledger.first_order(),
        "patients": ledger.patients(delta=DELTA),
        "patients' keys": patient_keys(str(ledger.entries()[0].body["ledger"]), ("ada", "ben", "cem")),
        "site journal": [replace(row, received=0, finished=None) for row in site.orders()],
        "witness": site.head(),
        "runs": [{**row, "started": 0} for row in run.runs()],
        "rounds": run.rounds("compat-1"),
        "sites": run.sites("compat-1"),
        "head of north": heads.last("north"),
        "checkpoint": {**vars(state), "weights": _plain(state.weights), "aggregator": _plain(state.aggregator)},
        "course": Course.model_validate_json(state.course).identity,
        "wire": [
            kind.model_validate_json((folder / f"{kind.__name__}.json").read_text()).model_dump(mode="json")
            for kind in (RoundOrder, SiteRelease, SiteStatus)
        ],
        "federation.yaml": load_federation(folder / "federation.yaml").model_dump(mode="json"),
        "site.yaml": {**load_site(folder / "site.yaml").model_dump(mode="json"), **_PLACES},
        "certificate": vars(certificate.read(folder / "certificate.json")),
        "vault": _read_vault(folder),
        "weights": _read_bundled(),
    }
    return dict(json.loads(json.dumps(facts, default=asdict)))


_PLACES = dict.fromkeys(("ledger", "state", "node_key", "coordinator_key"), "")


def _read_events(path: Path) -> list[list[Any]]:
    events = [Event.from_json(value) for value in json.loads(path.read_text())]
    return [
        [event.mechanism, *(accounting.epsilon([event], delta=DELTA, accountant=by) for by in ("pld", "rdp"))]
        for event in events
    ]


def _read_cohort(ledger: Ledger, name: str) -> dict[str, Any]:
    return {
        "account": ledger.account(name, DELTA),
        "by tier": ledger.epsilon_by_tier(name, DELTA),
        "charges": ledger.charges(name),
        "events": ledger.events(name),
    }


def _read_vault(folder: Path) -> dict[str, Any]:
    opened = Vault(folder / "vault").unlock([Credential(name="ada", passphrase=ADA)], why="compat")
    name, content = opened.original(folder / "hidden.png")
    key = opened.authorise("hidden.png")
    symbols = keyed_code.reveal(np.asarray(Image.open(folder / "hidden.png")), key)
    return {
        "original": [name, content.decode()],
        "symbols": [sorted(set(plane.ravel().tolist())) for plane in symbols],
        "log": [[entry.action, entry.who, entry.why] for entry in opened.entries()],
    }


def _read_bundled() -> dict[str, Any]:
    """Read the weights that come with the package: the oldest files of their formats."""
    package = Path(__file__).parents[2] / "shared"
    pose = read_config(package / "pose" / "pretrained" / "ward_tinyvit5m.safetensors")
    assert pose is not None
    infos = [read_info(bundled(kind)) for kind in ("public-view", "recoverable")]
    return {
        "pose": pose.model_dump(mode="json", exclude={"weights"}),
        "anonymiser": [[info.kind, info.config, info.data, info.sha256] for info in infos],
    }


def _plain(arrays: dict[str, Any]) -> dict[str, list[float]]:
    return {name: array.tolist() for name, array in arrays.items()}


if __name__ == "__main__":
    made = Path(sys.argv[1])
    write(made)
    with tempfile.TemporaryDirectory() as scratch:
        values = read(Path(shutil.copytree(made, Path(scratch) / "copy")))
    (made / "facts.json").write_text(json.dumps(values, indent=1) + "\n")
