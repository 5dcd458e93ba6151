"""Evaluations as a hospital answers them: refused before anything is charged, or charged before anything is read."""

import json
import math
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from support.sealing import conversation, sealed, write_keys

from wardpose.client import app as client
from wardpose.client import evaluation as site_evaluation
from wardpose.client import release as door
from wardpose.client.contact import Contact
from wardpose.client.journal import SiteJournal
from wardpose.client.policy import knobs
from wardpose.client.site import open_cohort_data, open_site
from wardpose.shared.errors import LedgerError, WireError
from wardpose.shared.messages import (
    EVALUATE,
    PREFLIGHT_EVALUATION,
    EvaluationOrder,
    EvaluationRelease,
    SiteAnswer,
    SiteStatus,
)
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.privacy.accounting import epsilon
from wardpose.shared.privacy.clipping import GRID
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import Evaluation
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.refusals import Refusal
from wardpose.shared.seals import Head
from wardpose.shared.version import code_hash
from wardpose.shared.wire import SCORES, check_signed, hash_arrays, pack, pair_arrays, unpack

MODEL = ModelConfig(weights="random", input_size=(32, 32))
NAN, INF = float("nan"), float("inf")

Json = dict[str, Any]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights() -> Arrays:
    return pair_arrays({name: value.numpy() for name, value in build_model(MODEL, seed=1).state_dict().items()})


def write(folder: Path, **policy: Any) -> Path:
    content = {
        "site": "north",
        "cohort": {
            "name": "north-ward",
            "declared_patients": 67,
            "data": {"kind": "ward", "hospital": "north", "patients": 3, "frames_per_patient": 2, "seed": 0},
        },
        "policy": {"mechanisms": ["dp-sgd", "evaluation"], "epsilon": 8.0, "delta": 1e-3} | policy,
        "answer_seconds": 0.0,
    }
    (folder / "site.yaml").write_text(yaml.safe_dump(content))
    write_keys(folder)
    return folder / "site.yaml"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write(tmp_path)


def course(times: int = 2, sigma: float = 3.0, run: str = "r") -> Course:
    return Course(
        run=run, federation="study", mechanism=Mechanism(noise_multiplier=2.0, sample_rate=0.2), steps=1, last_round=3,
        evaluation=Evaluation(noise_multiplier=sigma, times=times, frames=2),
    )  # fmt: skip


def order(arrays: Arrays, number: int = 1, **declared: Any) -> EvaluationOrder:
    return EvaluationOrder(
        course=course(**declared), number=number, model=MODEL, weights_hash=hash_arrays(arrays), code_hash=code_hash()
    )


def send(site: Path, text: str, arrays: Arrays | None, kind: str = EVALUATE) -> Message:
    """Hand a message to the hospital's ClientApp as Flower would, sealed by its coordinator, its course accepted."""
    records: dict[str, Any] = {"body": ConfigRecord({"json": text})}
    if arrays is not None:
        records["arrays"] = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    with suppress(WireError):
        _, coordinator = write_keys(site.parent)
        contact = Contact(site.parent / "state" / "contact.sqlite", coordinator.public)
        contact.accept(unpack(RecordDict(records), EvaluationOrder)[0].course)
    return deliver(site, sealed(site.parent, RecordDict(records), kind), kind)


def deliver(site: Path, content: RecordDict, kind: str) -> Message:
    """Hand a message to the hospital's ClientApp as Flower would."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, 1, kind, group_id="evaluation-1")
    message.metadata.__dict__["_message_id"] = "1"
    node = {"site-config": str(site)}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    return client.app(message, context)


def ask(site: Path, arrays: Arrays, number: int = 1, **declared: Any) -> Message:
    return send(site, order(arrays, number, **declared).model_dump_json(), arrays)


def charges(site: Path) -> int:
    path = site.parent / "ledger.sqlite"
    return 0 if not path.exists() else sum(entry.kind == "reserve" for entry in Ledger(path).entries())


def statuses(site: Path) -> list[str]:
    return [row.status for row in SiteJournal(site.parent / "state" / "journal.sqlite").orders()]


def test_scores_leave_charged_and_noised_with_nothing_of_the_cohort(site: Path, weights: Arrays) -> None:
    answer = ask(site, weights)
    assert not answer.has_error(), answer.error
    release, arrays = unpack(answer.content, EvaluationRelease)
    scores = arrays[SCORES]
    assert (scores.shape, str(scores.dtype)) == ((30,), "float64")
    assert float(np.linalg.norm(scores)) > 3.0  # noise of sigma 3 in 30 components; three patients weigh 3 at most
    ledger = Ledger(site.parent / "ledger.sqlite")
    (event,) = ledger.events("north-ward")
    assert (event.mechanism, event.sample_rate, event.noise_multiplier, event.steps) == ("evaluation", 1.0, 3.0, 1)
    assert (release.ledger_sequence, release.ledger_head) == ledger.head()
    assert release.secure
    assert release.epsilon_spent == pytest.approx(ledger.epsilon("north-ward", delta=1e-3))
    check_signed(answer.content, EvaluationRelease, write_keys(site.parent)[0].public)
    assert set(release.model_dump()) - set(SiteAnswer.model_fields) == {
        "run",
        "number",
        "weights_hash",
        "arrays",
        "paid",
    }
    assert (release.arrays, release.paid.sequence) == (hash_arrays(arrays), 2)
    assert statuses(site) == ["released"]
    assert [kind for kind in (entry.kind for entry in ledger.entries()) if kind in ("reserve", "cohort", "commit")] == [
        "reserve", "cohort", "commit",
    ]  # fmt: skip


def put(*path: str, value: Any) -> Callable[[Json], None]:
    def change(body: Json) -> None:
        part = body
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value

    return change


DECLARED = ("course", "evaluation")
HOSTILE: dict[str, tuple[Callable[[Json], None], Refusal]] = {
    "no noise": (put(*DECLARED, "noise_multiplier", value=0.0), Refusal.ORDER),
    "negative noise": (put(*DECLARED, "noise_multiplier", value=-3.0), Refusal.ORDER),
    "noise that is no number": (put(*DECLARED, "noise_multiplier", value=NAN), Refusal.ORDER),
    "infinite noise": (put(*DECLARED, "noise_multiplier", value=INF), Refusal.ORDER),
    "noise that is hardly any": (put(*DECLARED, "noise_multiplier", value=0.1), Refusal.POLICY),
    "a billion evaluations": (put(*DECLARED, "times", value=10**9), Refusal.ORDER),
    "many evaluations": (put(*DECLARED, "times", value=500), Refusal.POLICY),
    "none at all": (put(*DECLARED, "times", value=0), Refusal.ORDER),
    "a course without any": (put(*DECLARED, value=None), Refusal.ORDER),
    "number nought": (put("number", value=0), Refusal.ORDER),
    "a number without end": (put("number", value=10**12), Refusal.ORDER),
    "frames without end": (put(*DECLARED, "frames", value=200), Refusal.POLICY),
    "another metric": (put(*DECLARED, "metric", value="everything"), Refusal.ORDER),
    "a loss without bound": (put(*DECLARED, "loss_clip", value=INF), Refusal.ORDER),
    "a loss that is no number": (put(*DECLARED, "loss_clip", value=NAN), Refusal.ORDER),
    "a clip norm of its own": (put(*DECLARED, "max_grad_norm", value=1e9), Refusal.ORDER),
    "two networks, of which one came": (put("pair", value=True), Refusal.ORDER),
    "a mechanism that gives no privacy": (put("course", "mechanism", value={"name": "none"}), Refusal.POLICY),
    "another unit": (
        put("course", "mechanism", value={"unit": "record", "noise_multiplier": 2.0, "sample_rate": 0.2}),
        Refusal.POLICY,
    ),
    "a network that is too large": (put("model", "input_size", value=[512, 512]), Refusal.POLICY),
    "another network": (put("model", "skeleton", value="coco17"), Refusal.ORDER),
    "weights from a file": (put("model", "weights", value="/etc/passwd"), Refusal.ORDER),
    "other code": (put("code_hash", value="0" * 64), Refusal.CODE),
    "another protocol": (put("protocol", value=99), Refusal.ORDER),
    "other weights": (put("weights_hash", value="1" * 64), Refusal.ORDER),
}
OF_WEIGHTS = ("other weights", "two networks, of which one came", "another network")
"""What a preflight, which carries none, is not refused for."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_order_is_refused_before_anything_is_charged(name: str, site: Path, weights: Arrays) -> None:
    change, code = HOSTILE[name]
    body: Json = json.loads(order(weights).model_dump_json())
    change(body)
    for kind in (EVALUATE, PREFLIGHT_EVALUATION):
        answer = send(site, json.dumps(body), weights, kind)
        if kind == PREFLIGHT_EVALUATION and name in (
            "other weights",
            "two networks, of which one came",
            "another network",
        ):
            continue  # a preflight carries no weights that could be other ones
        assert answer.has_error()
        assert (answer.error.code, answer.error.reason) == (int(code), code.sentence)
    assert charges(site) == 0


def test_the_first_answer_tells_a_head_that_no_other_ledger_has(site: Path, weights: Arrays) -> None:
    answer = send(site, order(weights).model_dump_json(), None, PREFLIGHT_EVALUATION)
    status, _ = unpack(answer.content, SiteStatus)
    assert (status.ledger_sequence, status.ledger_head) == Ledger(site.parent / "ledger.sqlite").head()
    assert (status.ledger_sequence, charges(site)) == (1, 0)


@pytest.mark.parametrize("bad", [NAN, INF, 1e30])
def test_hostile_weights_are_refused_before_anything_is_charged(bad: float, site: Path, weights: Arrays) -> None:
    name = next(name for name in weights if "head" in name)
    arrays = weights | {name: np.full_like(weights[name], bad)}
    assert ask(site, arrays).error.code in (Refusal.ORDER, Refusal.POLICY)
    strange = {**weights, "third/x": np.zeros(1, np.float32)}
    assert ask(site, strange).error.code == Refusal.ORDER
    assert charges(site) == 0
    assert set(statuses(site)) == {"refused"}


def test_a_site_that_does_not_allow_it_neither_evaluates_nor_trains_in_such_a_course(
    tmp_path: Path, weights: Arrays
) -> None:
    site = write(tmp_path, mechanisms=["dp-sgd"])
    assert ask(site, weights).error.code == Refusal.POLICY
    assert charges(site) == 0
    detail = SiteJournal(tmp_path / "state" / "journal.sqlite").orders()[0].detail
    assert detail == "mechanism 'evaluation' is not allowed by site policy (policy.mechanisms = ['dp-sgd'])"


def test_an_evaluation_is_answered_once(site: Path, weights: Arrays) -> None:
    assert not ask(site, weights, 1).has_error()
    assert ask(site, weights, 1).error.code == Refusal.POLICY  # the very same order
    other = {name: value + np.float32(0) for name, value in weights.items()}
    assert ask(site, other, 1).error.code == Refusal.POLICY
    assert charges(site) == 1
    assert not ask(site, weights, 7).has_error()
    assert ask(site, weights, 8).error.code == Refusal.POLICY  # the course declares two
    assert charges(site) == 2
    assert statuses(site) == ["released", "refused", "refused", "released", "refused"]


def test_a_spent_budget_is_refused_with_nothing_charged_and_nothing_released(tmp_path: Path, weights: Arrays) -> None:
    declared = course(times=1)
    alone = epsilon(declared.set_aside(), delta=COURSE_SHARE * 1e-3)
    site = write(tmp_path, epsilon=0.99 * alone)
    assert ask(site, weights, times=1).error.code == Refusal.BUDGET
    assert charges(site) == 0
    site = write(tmp_path, epsilon=1.01 * alone)
    os.utime(site, ns=(1, 1))  # another file, whatever the clock's resolution
    assert not ask(site, weights, times=1).has_error()
    assert ask(site, weights, run="another").error.code == Refusal.BUDGET  # a new run is no new budget
    assert charges(site) == 1


def test_a_kill_between_reservation_and_release_is_charged(
    site: Path, weights: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(site_evaluation, "noised_scores", killed)
    child = os.fork()
    if child == 0:
        ask(site, weights)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    ledger = Ledger(site.parent / "ledger.sqlite")
    assert sum(event.steps for event in ledger.events("north-ward")) == 1
    assert all(entry.kind != "commit" for entry in ledger.entries())
    assert ask(site, weights, 1).error.code == Refusal.POLICY  # it may have been answered: never again
    assert not ask(site, weights, 2).has_error()
    assert charges(site) == 2


def test_answers_leave_at_declared_times(site: Path, weights: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = iter(float(second) for second in range(100))  # the door's own clock: a second from call to call
    site.write_text(site.read_text().replace("answer_seconds: 0.0", "answer_seconds: 600.0"))
    os.utime(site, ns=(2, 2))
    monkeypatch.setattr(door, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: next(clock)))
    assert not ask(site, weights, 1).has_error()
    assert ask(site, weights, 1).has_error()
    assert slept == [598.0, 598.0]


def test_the_policy_table_shows_the_knobs(site: Path) -> None:
    rows = {row.knob: row for row in knobs(open_site(site).config)}
    assert rows["evaluation.noise_multiplier"].bound == "at least policy.minimum_evaluation_noise = 1.0"
    assert rows["evaluation.times"].bound == "at most policy.maximum_evaluations = 10"
    assert rows["evaluation"].turned_by == "nobody"
    assert "evaluation" in rows["policy.mechanisms"].bound


def test_a_patient_who_has_nothing_left_is_left_out(
    site: Path, weights: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who paid elsewhere under this ledger takes no part, and is not charged."""
    asked: list[frozenset[str]] = []
    declare = Ledger.declare

    def poorer(self: Ledger, *arguments: Any, **options: Any) -> frozenset[str]:
        asked.append(declare(self, *arguments, **options))
        return frozenset(list(options["patients"])[:2])

    monkeypatch.setattr(Ledger, "declare", poorer)
    measured: list[int] = []
    original = site_evaluation.noised_scores

    def watched(models: Any, data: Any, units: Any, *arguments: Any, **options: Any) -> Any:
        measured.append(len(units))
        return original(models, data, units, *arguments, **options)

    monkeypatch.setattr(site_evaluation, "noised_scores", watched)
    assert not ask(site, weights).has_error()
    assert (asked, measured) == ([frozenset()], [1])
    assert math.isfinite(Ledger(site.parent / "ledger.sqlite").epsilon("north-ward", delta=1e-3))


@pytest.mark.parametrize("kind", ["tiers", "exact and replaced", "frames", "public views alone"])
def test_every_kind_of_unit_tier_and_noise_is_charged_as_what_it_is(tmp_path: Path, weights: Arrays, kind: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "tiers": {"tiers": {"strict": 0.05}},
        "exact and replaced": {"exact_noise": True, "adjacency": "replace-one"},
        "frames": {"unit": "frame"},
        "public views alone": {"name": "public-only", "noise_multiplier": 0.0},
    }
    site = write(tmp_path, unit="frame" if kind == "frames" else "patient", epsilon=50.0,
                 mechanisms=["dp-sgd", "public-only", "evaluation"])  # fmt: skip
    if kind == "tiers":
        content = yaml.safe_load(site.read_text())
        patient = open_cohort_data(site, "lsp14").record(0).patient_id
        (tmp_path / "tiers.json").write_text(json.dumps({patient: "strict"}))
        content["cohort"] |= {"tiers": "tiers.json", "declared_tiers": {"strict": 1}}
        content["policy"]["tiers"] = {"strict": 20.0}
        site.write_text(yaml.safe_dump(content))
        os.utime(site, ns=(3, 3))
    mechanism = Mechanism.model_validate({"noise_multiplier": 2.0, "sample_rate": 0.2} | changes[kind])
    asked = order(weights).model_copy(update={"course": course().model_copy(update={"mechanism": mechanism})})
    answer = send(site, asked.model_dump_json(), weights)
    assert not answer.has_error(), answer.error
    (event,) = Ledger(tmp_path / "ledger.sqlite").events("north-ward")
    assert (event.mechanism, event.tier, event.unit) == ("evaluation", "", mechanism.unit)
    assert event.adjacency == mechanism.adjacency
    assert event.noise == ("discrete-gaussian" if kind.startswith("exact") else "gaussian")
    _, arrays = unpack(answer.content, EvaluationRelease)
    on_grid = arrays[SCORES] * GRID
    assert bool((on_grid == np.round(on_grid)).all()) == kind.startswith("exact")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("not committed", LedgerError),
        ("another evaluation", LedgerError),
        ("another form", WireError),
        ("not finite", WireError),
        ("too short a type", WireError),
    ],
)
def test_the_door_lets_out_only_what_was_paid_for_and_ordered(
    site: Path, weights: Arrays, wrong: str, error: type[Exception]
) -> None:
    asked, config = order(weights), open_site(site).config
    ledger = Ledger(site.parent / "ledger.sqlite")
    budget = Budget(epsilon=8.0, delta=1e-3)
    paid = 2 if wrong == "another evaluation" else 1
    reservation = ledger.reserve(
        "north-ward", asked.events(), run_id="r", round=paid, budget=budget, course=asked.course
    )
    if wrong != "not committed":
        ledger.commit(reservation)
    scores = np.zeros(asked.layout.size)
    if wrong == "another form":
        scores = scores[:-1]
    elif wrong == "not finite":
        scores[3] = NAN
    elif wrong == "too short a type":
        scores = scores.astype(np.float32)
    with pytest.raises(error):
        door.build_scores(
            site=config,
            order=asked,
            scores=scores,
            secure=True,
            ledger=ledger,
            reservation=reservation,
            conversation=conversation(site.parent, pack(asked), EVALUATE),
        )


SEALS: dict[str, tuple[dict[str, Any], Refusal]] = {
    "a course that was never accepted": ({}, Refusal.SEAL),
    "for anybody": ({"site": "*"}, Refusal.SEAL),
    "that no charge pays for": ({"charge": None}, Refusal.SEAL),
    "of a ledger that does not hold what the site has seen": ({"ledger": Head(8, "8" * 64)}, Refusal.OUTDATED),
    "of a ledger that went back": ({"ledger": Head(2, "2" * 64)}, Refusal.APART),
}


@pytest.mark.parametrize("name", SEALS)
def test_an_order_that_was_not_signed_for_this_site_now_is_not_carried_out(
    site: Path, weights: Arrays, name: str
) -> None:
    changes, code = SEALS[name]
    seen, asked = Head(5, "5" * 64), order(weights)
    told = {"ledger": seen, "confirmed": None if "ledger" in changes else seen} | changes
    contact = Contact(site.parent / "state" / "contact.sqlite", write_keys(site.parent)[1].public)
    deliver(site, sealed(site.parent, pack(asked), PREFLIGHT_EVALUATION, ledger=seen), PREFLIGHT_EVALUATION)
    if "never" in name:
        asked = order(weights, run="never-asked")
    else:
        contact.accept(asked.course)
    answer = deliver(site, sealed(site.parent, pack(asked, weights), EVALUATE, **told), EVALUATE)
    assert (answer.error.code, answer.error.reason) == (code, code.sentence)
    assert charges(site) == 0
