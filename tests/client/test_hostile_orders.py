"""Orders as an adversary would write them, against the real ClientApp: refused before anything is charged or read.

Every case is a change of one good order. A refusal is a number and a fixed sentence; nothing of the site is in it.
"""

import json
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from support.orders import make_order
from support.sealing import sealed, write_keys

from wardpose.client import app as client
from wardpose.client.contact import Contact
from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import WireError
from wardpose.shared.messages import PREFLIGHT, TRAIN, RoundOrder, SiteRelease
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.refusals import Refusal
from wardpose.shared.seals import Head
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.wire import hash_arrays, unpack

MODEL = ModelConfig(weights="random", input_size=(64, 32))
NAN, INF = float("nan"), float("inf")

Json = dict[str, Any]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return {name: value.numpy() for name, value in build_model(MODEL, seed=1).state_dict().items()}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A hospital with the policy that a new site starts from, but for its small cohort."""
    content = {
        "site": "north",
        "cohort": {
            "name": "north-ward",
            "declared_patients": 60,
            "data": {"kind": "ward", "hospital": "north", "patients": 3, "frames_per_patient": 1, "seed": 0},
        },
        "policy": {
            "mechanisms": ["dp-sgd", "projected", "label-ridge"],
            "epsilon": 8.0,
            "delta": 1e-3,
            "minimum_noise_multiplier": 0.5,
        },
        "answer_seconds": 0.0,
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
    write_keys(tmp_path)
    return tmp_path / "site.yaml"


def good(weights: Arrays) -> Json:
    order = make_order(
        Mechanism(noise_multiplier=2.0, sample_rate=0.2),
        training=LocalTraining(steps=1, optimizer=OptimizerConfig(name="sgd", learning_rate=0.1)),
        last_round=3,
        model=MODEL,
        weights_hash=hash_arrays(weights),
    )
    body: Json = json.loads(order.model_dump_json())
    return body


def send(site: Path, text: str | None, arrays: Arrays | None) -> Message:
    """Hand an order to the hospital's ClientApp as Flower would, sealed by its coordinator, its course accepted."""
    records: dict[str, Any] = {} if text is None else {"body": ConfigRecord({"json": text})}
    if arrays is not None:
        records["arrays"] = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    with suppress(WireError):
        _, coordinator = write_keys(site.parent)
        contact = Contact(site.parent / "state" / "contact.sqlite", coordinator.public)
        contact.accept(unpack(RecordDict(records), RoundOrder)[0].course)
    return deliver(site, sealed(site.parent, RecordDict(records), TRAIN))


def deliver(site: Path, content: RecordDict, kind: str = TRAIN) -> Message:
    """Hand a message to the hospital's ClientApp as Flower would."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, 1, kind, group_id="1")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"site-config": str(site)},
        state=RecordDict(),
        run_config={"site-config": "/x"},
    )
    return client.app(message, context)


def untouched(site: Path) -> bool:
    """Nothing is charged; where there is a ledger at all, it is empty."""
    path = site.parent / "ledger.sqlite"
    return not path.exists() or all(entry.kind == "genesis" for entry in Ledger(path).entries())


def put(*path: str | int, value: Any) -> Callable[[Json], Json]:
    """Change one place of the order."""

    def change(body: Json) -> Json:
        part: Any = body
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        return body

    return change


def many(*changes: Callable[[Json], Json]) -> Callable[[Json], Json]:
    def change(body: Json) -> Json:
        for one in changes:
            body = one(body)
        return body

    return change


COURSE, MECHANISM, TRAINING, OPTIMIZER = ("course",), ("course", "mechanism"), ("training",), ("training", "optimizer")
PHASE = {"steps": 3, "max_grad_norm": 1.0, "noise_multiplier": 1e-9, "sample_rate": 0.2}

ORDERS: dict[str, tuple[Callable[[Json], Json], Refusal]] = {
    "clipping switched off": (put(*MECHANISM, "max_grad_norm", value=1e-40), Refusal.ORDER),
    "a clip norm at the edge": (put(*MECHANISM, "max_grad_norm", value=1e-9), Refusal.POLICY),
    "a huge clip norm": (put(*MECHANISM, "max_grad_norm", value=1e11), Refusal.POLICY),
    "an infinite clip norm": (put(*MECHANISM, "max_grad_norm", value=INF), Refusal.ORDER),
    "no noise": (put(*MECHANISM, "noise_multiplier", value=0.0), Refusal.POLICY),
    "noise that is no number": (put(*MECHANISM, "noise_multiplier", value=NAN), Refusal.ORDER),
    "negative noise": (put(*MECHANISM, "noise_multiplier", value=-1.0), Refusal.ORDER),
    "little noise": (put(*MECHANISM, "noise_multiplier", value=0.1), Refusal.POLICY),
    "everybody every time": (put(*MECHANISM, "sample_rate", value=1.0), Refusal.POLICY),
    "nobody": (put(*MECHANISM, "sample_rate", value=0.0), Refusal.ORDER),
    "a rate below all": (put(*MECHANISM, "sample_rate", value=1e-300), Refusal.ORDER),
    "frames for patients": (
        many(put(*MECHANISM, "unit", value="frame"), put(*MECHANISM, "frames_per_unit", value=1)), Refusal.POLICY),
    "records for patients": (
        many(put(*MECHANISM, "unit", value="record"), put(*MECHANISM, "frames_per_unit", value=1)), Refusal.POLICY),
    "bags without end": (put(*MECHANISM, "frames_per_unit", value=256), Refusal.POLICY),
    "no privacy at all": (put(*COURSE, "mechanism", value={"name": "none"}), Refusal.POLICY),
    "an unknown mechanism": (put(*MECHANISM, "name", value="trust-me"), Refusal.ORDER),
    "consent tiers of its own": (put(*MECHANISM, "tiers", value={"open": 0.9}), Refusal.POLICY),
    "a tier with markup": (put(*MECHANISM, "tiers", value={"[/x]": 0.1}), Refusal.ORDER),
    "a schedule that ends in silence": (
        put(*MECHANISM, "schedule", value={"phases": [PHASE]}), Refusal.POLICY),
    "a schedule that is too short": (
        many(put(*MECHANISM, "schedule", value={"phases": [PHASE | {"steps": 1}]})), Refusal.ORDER),
    "a residual without noise": (
        many(put(*MECHANISM, "name", value="projected"),
             put(*MECHANISM, "projection", "residual", value={"max_grad_norm": 1.0, "noise_multiplier": 0.0})),
        Refusal.ORDER),
    "a basis without public data": (put(*MECHANISM, "name", value="projected"), Refusal.POLICY),
    "a closed form without public people": (
        many(put(*MECHANISM, "name", value="label-ridge"), put(*TRAINING, "strategy", value="maps")), Refusal.POLICY),
    "a closed form of everything": (
        many(put(*MECHANISM, "name", value="label-ridge"), put(*TRAINING, "strategy", value="full")), Refusal.ORDER),
    "a closed form without damping": (
        many(put(*MECHANISM, "name", value="label-ridge"), put(*TRAINING, "strategy", value="maps"),
             put(*MECHANISM, "ridge", value={"damping": 0.0})), Refusal.ORDER),
    "a closed form of frames said to be views": (
        many(put(*MECHANISM, "name", value="label-ridge"), put(*TRAINING, "strategy", value="maps"),
             put(*MECHANISM, "ridge", value={"inputs": "public-views", "source": "public-views"})), Refusal.ORDER),
    "steps without end": (
        many(put(*COURSE, "steps", value=10**6), put(*TRAINING, "steps", value=10**6)), Refusal.POLICY),
    "no steps": (many(put(*COURSE, "steps", value=0), put(*TRAINING, "steps", value=0)), Refusal.ORDER),
    "more steps than the course says": (put(*TRAINING, "steps", value=50), Refusal.ORDER),
    "a round after the last": (put("round", value=4), Refusal.ORDER),
    "a round before the first": (put("round", value=0), Refusal.ORDER),
    "a course without end": (put(*COURSE, "last_round", value=10**6), Refusal.POLICY),
    "a number of another size": (put(*COURSE, "last_round", value=10**400), Refusal.ORDER),
    "an empty run": (put(*COURSE, "run", value=""), Refusal.ORDER),
    "a run of twenty megabytes": (put(*COURSE, "run", value="x" * 20_000_000), Refusal.ORDER),
    "a run with markup": (put(*COURSE, "run", value="[/x]"), Refusal.ORDER),
    "a run with a path": (put(*COURSE, "run", value="../../etc/passwd"), Refusal.ORDER),
    "a run with an escape": (put(*COURSE, "run", value="\x1b[31mred"), Refusal.ORDER),
    "a federation with a line break": (put(*COURSE, "federation", value="a\nb"), Refusal.ORDER),
    "another protocol": (put("protocol", value=99), Refusal.ORDER),
    "micro-batches of nothing": (put(*TRAINING, "micro_batch", value=0), Refusal.ORDER),
    "micro-batches without end": (put(*TRAINING, "micro_batch", value=10**9), Refusal.ORDER),
    "a thousand million views": (put(*TRAINING, "augmented_views", value=10**9), Refusal.ORDER),
    "two thousand views": (put(*TRAINING, "augmented_views", value=2000), Refusal.ORDER),
    "sixty views": (put(*TRAINING, "augmented_views", value=60), Refusal.POLICY),
    "parameters that there are not": (put(*TRAINING, "strategy", value=["maps", "trunk.*"]), Refusal.ORDER),
    "patterns without end": (put(*TRAINING, "strategy", value=["*a"] * 10**4), Refusal.ORDER),
    "a pattern that never ends": (put(*TRAINING, "strategy", value=["*a" * 10**4]), Refusal.ORDER),
    "a zoom below nothing": (put(*TRAINING, "augmentation", "scale", value=1.5), Refusal.ORDER),
    "a learning rate of 1e300": (put(*OPTIMIZER, "learning_rate", value=1e300), Refusal.ORDER),
    "a learning rate of a thousand": (put(*OPTIMIZER, "learning_rate", value=1e3), Refusal.POLICY),
    "decay of two": (put(*OPTIMIZER, "betas", value=[2.0, 2.0]), Refusal.ORDER),
    "decay below nothing": (put(*OPTIMIZER, "weight_decay", value=-1.0), Refusal.ORDER),
    "much decay": (put(*OPTIMIZER, "weight_decay", value=900.0), Refusal.POLICY),
    "an optimiser of its own": (put(*OPTIMIZER, "name", value="eval('1')"), Refusal.ORDER),
    "a crop of a wall": (put("model", "input_size", value=[1024, 1024]), Refusal.POLICY),
    "a crop that is no crop": (put("model", "input_size", value=[10**9, 32]), Refusal.ORDER),
    "weights from a file of the site": (put("model", "weights", value="/etc/passwd"), Refusal.ORDER),
    "an unknown key": (put("read_this", value="/etc/passwd"), Refusal.ORDER),
    "other code": (put("code_hash", value="0" * 64), Refusal.CODE),
    "a hash that is none": (put("weights_hash", value="nothing"), Refusal.ORDER),
}  # fmt: skip


def refused(site: Path, reply: Message, code: Refusal) -> None:
    assert reply.has_error()
    assert reply.error.code == code
    assert reply.error.reason == code.sentence  # never the text of an exception
    assert untouched(site)


@pytest.mark.parametrize("name", ORDERS)
def test_a_hostile_order_is_refused_before_anything_is_charged(site: Path, weights: Arrays, name: str) -> None:
    change, code = ORDERS[name]
    body = change(good(weights))
    refused(site, send(site, json.dumps(body), weights), code)
    assert not (site.parent / "state" / "cache").exists()


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def typed(dtype: type) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {"head.x.bias": arrays["head.x.bias"].astype(dtype)}


def filled(value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        hostile = arrays["head.x.weight"].copy()
        hostile.flat[3] = value
        return arrays | {"head.x.weight": hostile}

    return change


WEIGHTS: dict[str, tuple[Callable[[Arrays], Arrays], Refusal]] = {
    "missing": (without("head.x.weight"), Refusal.ORDER),
    "extra": (lambda arrays: arrays | {"head.z": np.zeros(3, np.float32)}, Refusal.ORDER),
    "none": (lambda arrays: {}, Refusal.ORDER),
    "another shape": (lambda arrays: arrays | {"head.x.bias": np.zeros(7, np.float32)}, Refusal.ORDER),
    "a scalar": (lambda arrays: arrays | {"head.x.bias": np.array(1.0, np.float32)}, Refusal.ORDER),
    "double precision": (typed(np.float64), Refusal.ORDER),
    "half precision": (typed(np.float16), Refusal.ORDER),
    "integers": (typed(np.int32), Refusal.ORDER),
    "text": (lambda arrays: arrays | {"head.x.bias": np.array(["a", "b"])}, Refusal.ORDER),
    "not a number": (filled(NAN), Refusal.ORDER),
    "infinite": (filled(INF), Refusal.ORDER),
    "huge": (filled(1e30), Refusal.POLICY),
    "a name without end": (lambda arrays: arrays | {"x" * 100_000: np.zeros(1, np.float32)}, Refusal.ORDER),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_refused_before_anything_is_charged(site: Path, weights: Arrays, name: str) -> None:
    change, code = WEIGHTS[name]
    arrays = change(weights)
    body = good(weights) | {"weights_hash": hash_arrays(arrays)}
    refused(site, send(site, json.dumps(body), arrays), code)


def test_weights_that_the_order_does_not_name_are_refused(site: Path, weights: Arrays) -> None:
    refused(site, send(site, json.dumps(good(weights)), filled(0.5)(weights)), Refusal.ORDER)


BODIES = {
    "no body": None,
    "no JSON": "{",
    "a list": "[]",
    "nothing": "",
    "deep": "[" * 100_000,
    "null": "null",
    "constants": '{"round": NaN}',
    "surrogates": '{"course": "\\ud800"}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_order_is_refused(site: Path, weights: Arrays, name: str) -> None:
    refused(site, send(site, BODIES[name], weights), Refusal.ORDER)


def test_the_good_order_is_carried_out_and_paid_for(site: Path, weights: Arrays) -> None:
    """What all the cases above are changes of."""
    reply = send(site, json.dumps(good(weights)), weights)
    assert not reply.has_error()
    release, arrays = unpack(reply.content, SiteRelease)
    ledger = Ledger(site.parent / "ledger.sqlite")
    assert (release.ledger_sequence, release.ledger_head) == ledger.head()
    assert 0 < release.epsilon_spent == ledger.epsilon("north-ward", 1e-3)
    assert all(np.isfinite(value).all() for value in arrays.values())


@pytest.mark.parametrize("loss", ["deleted", "emptied", "old backup", "old backup, and its head forgotten"])
def test_a_lost_ledger_is_no_fresh_budget(site: Path, weights: Arrays, loss: str) -> None:
    ledger, backup = site.parent / "ledger.sqlite", site.parent / "backup.sqlite"
    assert not send(site, json.dumps(good(weights)), weights).has_error()
    backup.write_bytes(ledger.read_bytes())
    assert not send(site, json.dumps(good(weights) | {"round": 2}), weights).has_error()
    ledger.unlink()
    if loss == "emptied":
        ledger.touch()
    elif loss.startswith("old backup"):
        ledger.write_bytes(backup.read_bytes())
    if "forgotten" in loss:
        connection = sqlite3.connect(site.parent / "state" / "journal.sqlite")
        connection.execute("DELETE FROM ledger_head")
        connection.commit()
        connection.close()
    reply = send(site, json.dumps(good(weights) | {"round": 3}), weights)
    assert (reply.error.code, reply.error.reason) == (Refusal.SITE, Refusal.SITE.sentence)
    order = SiteJournal(site.parent / "state" / "journal.sqlite").orders()[-1]
    assert "restore the newest" in order.detail


def test_patients_who_moved_to_another_cohort_bring_what_they_paid(site: Path, weights: Arrays) -> None:
    """A new cohort name over the same patients: those whose own account is empty take no part, and are not charged."""
    content = yaml.safe_load(site.read_text())
    content["policy"]["epsilon"] = 1.0
    site.write_text(yaml.safe_dump(content))
    body = good(weights)
    assert not send(site, json.dumps(body), weights).has_error()
    ledger = Ledger(site.parent / "ledger.sqlite")
    ((count, before),) = ledger.patients(delta=1e-3)
    assert count == 3
    content["cohort"]["name"] = "a-new-ward"
    content["cohort"]["data"] |= {"patients": 5}  # two of them were never seen
    site.write_text(yaml.safe_dump(content))
    body["course"] |= {"run": "another", "mechanism": body["course"]["mechanism"] | {"noise_multiplier": 1.2}}
    assert not send(site, json.dumps(body), weights).has_error()
    spent = ledger.patients(delta=1e-3)
    assert sum(count for count, _ in spent) == 5
    assert all(total <= 1.0 for _, total in spent)
    old = [total for count, total in spent if count == 3]
    assert old == [before]  # they sat out: charged once
    assert ledger.epsilon("a-new-ward", 1e-3) > before


def content_of(body: Json, arrays: Arrays) -> RecordDict:
    records: Any = {
        "body": ConfigRecord({"json": json.dumps(body)}),
        "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
    }
    return RecordDict(records)


def accept(site: Path, body: Json) -> Contact:
    contact = Contact(site.parent / "state" / "contact.sqlite", write_keys(site.parent)[1].public)
    contact.accept(RoundOrder.model_validate(body).course)
    return contact


SEALS: dict[str, tuple[dict[str, Any], Refusal]] = {
    "a course that was never accepted": ({"accepted": False}, Refusal.SEAL),
    "no seal": ({"sealed": False}, Refusal.SEAL),
    "another site's": ({"site": "south"}, Refusal.SEAL),
    "for anybody": ({"site": "*"}, Refusal.SEAL),
    "of a question": ({"kind": "query.preflight"}, Refusal.SEAL),
    "that no charge pays for": ({"charge": None}, Refusal.SEAL),
    "of a ledger that does not hold what the site has seen": ({"ledger": Head(8, "8" * 64)}, Refusal.OUTDATED),
    "of a ledger that went back": ({"ledger": Head(2, "2" * 64)}, Refusal.APART),
    "that knows another ledger of the site": ({"site_ledger": Head(3, "3" * 64)}, Refusal.APART),
}


@pytest.mark.parametrize("name", SEALS)
def test_an_order_that_was_not_signed_for_this_site_now_is_not_carried_out(
    site: Path, weights: Arrays, name: str
) -> None:
    changes, code = SEALS[name]
    seen = Head(5, "5" * 64)
    deliver(site, sealed(site.parent, content_of(good(weights), weights), PREFLIGHT, ledger=seen), PREFLIGHT)
    body = good(weights)
    if changes.get("accepted", True):
        accept(site, body)
    else:
        body["course"]["run"] = "never-asked"
    content = content_of(body, weights)
    if changes.get("sealed", True):
        told = {"ledger": seen, "confirmed": seen} | {
            key: value for key, value in changes.items() if key not in ("accepted", "sealed", "kind")
        }
        if name.startswith("of a ledger that does not hold"):
            told["confirmed"] = None
        content = sealed(site.parent, content, changes.get("kind", TRAIN), **told)
    refused(site, deliver(site, content), code)


def test_an_order_is_carried_out_once_whoever_repeats_it(site: Path, weights: Arrays) -> None:
    accept(site, good(weights))
    content = sealed(site.parent, content_of(good(weights), weights), TRAIN)
    assert not deliver(site, content).has_error()
    charged = Ledger(site.parent / "ledger.sqlite").head()
    assert deliver(site, content).error.code == Refusal.SEAL
    assert Ledger(site.parent / "ledger.sqlite").head() == charged
