"""A run that is scored on its sites' patients, through the apps that hospitals run: what it says, costs and keeps."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from support.federations import charged_steps, tiny_federation

from wardpose.client.app import app as client_app
from wardpose.server import app as server_app
from wardpose.server.admission import Admission, Rejected
from wardpose.server.coordinator import folder_accounts
from wardpose.server.course import declare
from wardpose.server.evaluation import Evaluator
from wardpose.server.heads import Heads
from wardpose.server.journal import EvaluationRow, Reason, RunJournal
from wardpose.server.ledger import ServerLedger
from wardpose.server.rounds import Coordinator
from wardpose.server.scoring import Scorer, arrays_of
from wardpose.server.uplink import UplinkDecoder
from wardpose.shared.config import FederationConfig, changed
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.messages import EvaluationOrder, EvaluationRelease
from wardpose.shared.pose.evaluation import evaluate
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model
from wardpose.shared.pose.weights import load_model, read_metadata, save_model
from wardpose.shared.privacy.accounting import epsilon
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.signing import Signer, ensure_key_pair
from wardpose.shared.site_config import load_site
from wardpose.shared.wire import SCORES, hash_arrays, unpack
from wardpose.simulation.grid import Fault, InProcessGrid
from wardpose.simulation.layout import prepare_sites
from wardpose.simulation.run import simulate

SITES = ("north", "south")
LOUD = {"noise_multiplier": 3.0}
CLEAR = {"noise_multiplier": 0.02}


def plan(evaluation: dict[str, Any], **changes: Any) -> FederationConfig:
    server = {"deadline_seconds": 60, "wait_seconds": 1, "evaluation": evaluation}
    base = {"seed": None, "privacy": {"epsilon": 1e9, "delta": 1e-3}, "server": server}
    return tiny_federation(SITES, **(base | changes))


def evaluations(folder: Path) -> list[EvaluationRow]:
    journal = RunJournal(folder / "journal.sqlite")
    return journal.evaluations(journal.runs()[-1]["run"])


def events(folder: Path, site: str) -> list[list[tuple[str, int]]]:
    """What both sides charged a site, the server first."""
    own = Ledger(load_site(folder / "sites" / site / "site.yaml").ledger).events(f"{site}-cohort")
    server = Ledger(folder / "ledger.sqlite").events(site)
    return [sorted((event.mechanism, event.steps) for event in side) for side in (server, own)]


def test_a_federation_without_public_data_is_scored_on_its_patients(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = simulate(plan(CLEAR | {"every": 1}), folder, report=True)
    assert [(row.number, row.round, row.last) for row in evaluations(folder)] == [(1, 1, False), (2, 2, True)]
    source = load_site(folder / "sites" / "north" / "site.yaml").cohort.data  # both sites have the same people
    model = load_model(folder / "model.safetensors")
    truth = evaluate(model, open_source(source, skeleton=model.skeleton)).pck_box_02
    found = summary["evaluation"]
    assert summary["score_on"] == "patients"
    assert summary["score_final"] == found["score"]["value"] == pytest.approx(truth, abs=4 * found["score"]["error"])
    assert found["score"]["error"] < 0.05
    assert found["units"]["value"] == pytest.approx(4.0, abs=4 * found["units"]["error"])
    assert [row["score"] for row in summary["history"]] == pytest.approx(
        [row.scores["models"][0]["score"]["value"] for row in evaluations(folder)]  # type: ignore[index]
    )
    for site in SITES:
        server, own = events(folder, site)
        assert server == own == [("dp-sgd", 1)] * 2 + [("evaluation", 1)] * 2
        assert next(row for row in summary["sites"] if row["name"] == site)["steps"] == 2  # of training
    paid = [event for event in Ledger(folder / "ledger.sqlite").events("north") if event.mechanism == "evaluation"]
    assert found["epsilon_alone"] == pytest.approx(epsilon(paid, delta=1e-3))
    assert "Evaluation on patients" in (folder / "report.html").read_text()
    assert found["chosen"] is None


@pytest.mark.parametrize(
    "kind", [pytest.param("crash-after-training", marks=[pytest.mark.slow, pytest.mark.guard]), "straggle"]
)
def test_an_answer_that_is_lost_stays_lost_and_charged(tmp_path: Path, kind: Any) -> None:
    folder = tmp_path / "run"
    server = {"deadline_seconds": 1, "wait_seconds": 1, "evaluation": LOUD}
    config = plan(LOUD, rounds=1, server=server)
    simulate(config, folder, faults=[Fault(site="south", round=1, kind=kind, evaluation=True)], report=False)
    (row,) = evaluations(folder)
    assert row.sites == {"north": "released", "south": "late" if kind == "straggle" else "failed"}
    for site in SITES:
        assert events(folder, site) == [[("dp-sgd", 1), ("evaluation", 1)]] * 2
    simulate(config, folder, resume=True, report=False)  # a run that is over is not measured, nor charged, again
    assert evaluations(folder) == [row]
    assert charged_steps(folder, "south") == (2, 2)


def test_a_kill_before_the_last_evaluation_is_made_up_for_with_what_was_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is spent to the last bit: a site would refuse another round, and still has its evaluation."""
    folder = tmp_path / "run"
    mechanism = {"sample_rate": 0.5, "frames_per_unit": 1}
    config = plan({"epsilon": 1.0}, rounds=1, mechanism=mechanism, privacy={"epsilon": 4.0, "delta": 1e-3})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "after_last", killed)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, folder, report=False)
    assert evaluations(folder) == []
    summary = simulate(config, folder, resume=True, report=False)
    (row,) = evaluations(folder)
    assert row.sites == dict.fromkeys(SITES, "released")
    for site in summary["sites"]:
        assert 3.9 < site["epsilon_spent"] <= 4.0
    assert summary["evaluation"]["epsilon_alone"] == pytest.approx(0.95, abs=0.06)  # at all of delta, not at its share


@dataclass
class Opened:
    """A federation about to be evaluated, without a round."""

    coordinator: Coordinator
    model: PoseModel


def opened(config: FederationConfig, folder: Path, grid: InProcessGrid) -> Opened:
    """The coordinator of a run, as `run_federation` sets it up."""
    model = server_app.initial_model(config, folder, reuse=False)
    state = server_app.starting_state(config, folder, RunJournal(folder / "journal.sqlite"), model, resume=False)
    accounts = folder_accounts(folder)
    course = declare(config, accounts.ledger(), run=state.run)
    scorer = Scorer(config, model)
    return Opened(
        Coordinator(grid, config, folder, state=state, course=course, scorer=scorer, accounts=accounts), model
    )


def test_the_private_model_is_kept_only_where_it_clearly_won(tmp_path: Path) -> None:
    sites = [
        {"name": name, "data": {"kind": "ward", "hospital": name, "patients": 3, "frames_per_patient": 1, "seed": 1}}
        for name in SITES
    ]
    model = {"input_size": [128, 96], "last_stride": 16, "weights": "bundled"}
    evaluation = {"noise_multiplier": 0.1, "compare": "public-only", "every": 1}
    config = changed(plan(evaluation, rounds=3, model=model), {"sites": sites})
    with InProcessGrid(client_app, prepare_sites(config, tmp_path)) as grid:
        run = opened(config, tmp_path, grid)
        good = arrays_of(run.model)
        useless = arrays_of(build_model(config.model.model_copy(update={"weights": "random"}), seed=3))
        won, lost = (
            run.coordinator.evaluator.after_last(number, private, start)
            for number, (private, start) in enumerate([(good, useless), (useless, good)], start=1)
        )
    assert won is not None
    assert lost is not None
    assert (won.chosen, lost.chosen) == ("private", "public-only")
    for row, sign in ((won, 1), (lost, -1)):
        assert row.scores is not None
        assert sign * row.scores["difference"]["value"] > 2 * row.scores["difference"]["error"]


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    ("weights", "rate", "chosen"), [("headless", 0.003, "private"), ("bundled", 0.5, "public-only")]
)
def test_a_run_keeps_the_model_that_training_earned(tmp_path: Path, weights: str, rate: float, chosen: str) -> None:
    """From a network without a head, a few steps win; from the bundled one, steps that are far too long lose."""
    shape = {"input_size": [128, 96], "last_stride": 16}
    start = build_model(ModelConfig.model_validate(shape))
    fresh = build_model(start.config.model_copy(update={"weights": "random"}), seed=0)
    start.head.load_state_dict(fresh.head.state_dict())
    save_model(start, tmp_path / "headless.safetensors", {"role": "test"})
    sites = [
        {"name": name, "data": {"kind": "ward", "hospital": name, "patients": 12, "frames_per_patient": 1, "seed": 1}}
        for name in SITES
    ]
    base = plan(
        {"noise_multiplier": 0.5, "compare": "public-only"},
        rounds=1,
        model=shape | {"weights": "bundled" if weights == "bundled" else str(tmp_path / "headless.safetensors")},
        mechanism={"sample_rate": 1.0, "frames_per_unit": 1, "noise_multiplier": 0.02, "max_grad_norm": 5.0},
        training={"strategy": "head", "steps": 20, "optimizer": {"name": "adam", "learning_rate": rate}},
    )
    config = changed(base, {"sites": sites})
    summary = simulate(config, tmp_path / "run", report=False)
    other = {"private": "public-only", "public-only": "private"}[chosen]
    assert summary["evaluation"]["chosen"] == chosen
    for name, candidate in (("model", chosen), (f"model-{other}", other)):
        metadata = read_metadata(tmp_path / "run" / f"{name}.safetensors")
        assert (metadata["candidate"], metadata["run"]) == (candidate, summary["run"])
    kept = load_model(tmp_path / "run" / f"model{'' if chosen == 'public-only' else '-public-only'}.safetensors")
    first = load_model(tmp_path / "run" / "initial.safetensors")
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in kept.state_dict().items())


@dataclass
class Exchange:
    """An honest evaluation of one site, as the server saw it."""

    config: FederationConfig
    coordinator: Coordinator
    order: EvaluationOrder
    answer: Message
    how: dict[str, Any]
    signer: Signer


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    folder = tmp_path_factory.mktemp("honest")
    config = plan(LOUD)
    seen: dict[str, tuple[Any, dict[str, Any]]] = {}
    with InProcessGrid(client_app, prepare_sites(config, folder)) as grid:
        run = opened(config, folder, grid)
        believed = run.coordinator.admission.scores

        def keep(answer: Any, **how: Any) -> Any:
            seen[how["site"]] = (answer, how)
            return believed(answer, **how)

        run.coordinator.admission.scores = keep  # type: ignore[method-assign]
        run.coordinator.evaluator.after_last(1, run.coordinator.state.weights, run.coordinator.state.weights)
    answer, how = seen["north"]
    keys = folder / "sites" / "north"
    signer = ensure_key_pair(keys / "node.key", keys / "node.pub")
    return Exchange(config, run.coordinator, how["order"], answer, how, signer)


def body(**changes: Any) -> Callable[[dict[str, Any], np.ndarray], None]:
    return lambda facts, scores: facts.update(changes)


def scores(value: float) -> Callable[[dict[str, Any], np.ndarray], None]:
    return lambda facts, numbers: numbers.__setitem__(3, value)


WRONG: dict[str, tuple[Callable[[dict[str, Any], np.ndarray], None], Reason]] = {
    "no number": (scores(float("nan")), Reason.FINITE),
    "infinite": (scores(float("inf")), Reason.FINITE),
    "longer than any cohort": (scores(1e4), Reason.NORM),
    "of another site": (body(site="south"), Reason.ORDER),
    "of another run": (body(run="x"), Reason.ORDER),
    "of another evaluation": (body(number=2), Reason.ORDER),
    "of other weights": (body(weights_hash="0" * 64), Reason.ORDER),
    "from other code": (body(code_hash="0" * 64), Reason.ORDER),
    "with more in it": (body(loss=0.1), Reason.PAYLOAD),
    "from a ledger that went back": (body(ledger_sequence=1), Reason.LEDGER),
    "for another message": (body(nonce="0" * 64), Reason.ORDER),
    "under another key": (body(key="nobody's"), Reason.SIGNATURE),
    "at no delta": (body(delta=1e-300), Reason.FACTS),
}


def admission(honest: Exchange, folder: Path) -> Admission:
    """One that remembers of the site what was before the evaluation."""
    heads = Heads(folder / "heads.sqlite")
    heads.remember("north", 1, "a" * 64)
    course, model = honest.order.course, honest.coordinator.scorer.model
    uplink = UplinkDecoder(honest.config, course.mechanism, model, folder)
    return Admission(honest.config, course.mechanism, model, uplink, heads, honest.coordinator.contact)


def changed_answer(honest: Exchange, change: Callable[[dict[str, Any], np.ndarray], None]) -> Message:
    release, arrays = unpack(honest.answer.content, EvaluationRelease)
    facts, numbers = json.loads(release.model_dump_json()), arrays[SCORES].copy()
    change(facts, numbers)
    facts["arrays"] = hash_arrays({SCORES: numbers})
    return signed(honest, facts, numbers)


def signed(honest: Exchange, facts: dict[str, Any], numbers: np.ndarray) -> Message:
    """What a site that lies would send, under its own key."""
    text = json.dumps(facts)
    answer = copy.copy(honest.answer)
    body = {"json": text, "signature": honest.signer.sign("EvaluationRelease", text.encode())}
    answer.content = RecordDict({"body": ConfigRecord(dict(body)), "arrays": ArrayRecord({SCORES: Array(numbers)})})
    return answer


def test_an_honest_release_is_believed(honest: Exchange, tmp_path: Path) -> None:
    release, numbers = admission(honest, tmp_path).scores(
        changed_answer(honest, lambda facts, numbers: None), **honest.how
    )
    assert (release.number, numbers.shape) == (1, (30,))


@pytest.mark.parametrize("name", WRONG)
def test_a_release_that_cannot_be_honest_is_rejected(honest: Exchange, tmp_path: Path, name: str) -> None:
    change, reason = WRONG[name]
    with pytest.raises(Rejected) as caught:
        admission(honest, tmp_path).scores(changed_answer(honest, change), **honest.how)
    assert caught.value.reason is reason


def test_scores_of_another_form_are_rejected(honest: Exchange, tmp_path: Path) -> None:
    for numbers in (np.zeros(31), np.zeros(30, np.float32), np.zeros((30, 1))):
        answer = changed_answer(honest, lambda facts, kept: None)
        answer.content["arrays"] = ArrayRecord({SCORES: Array(numbers)})
        with pytest.raises(Rejected) as caught:
            admission(honest, tmp_path).scores(answer, **honest.how)
        assert caught.value.reason is Reason.ARRAYS


def test_training_gets_what_evaluations_leave(tmp_path: Path) -> None:
    mechanism = {"sample_rate": 0.5, "frames_per_unit": 1}
    config = plan({"epsilon": 2.0, "every": 2}, rounds=6, mechanism=mechanism, privacy={"epsilon": 6.0, "delta": 1e-3})
    course = declare(config, ServerLedger(tmp_path / "ledger.sqlite"), run="r")
    assert course.evaluation is not None
    assert course.evaluation.times == 3  # after rounds 2 and 4, and after the last
    aside = epsilon(course.set_aside(), delta=COURSE_SHARE * 1e-3)
    whole = epsilon(course.whole(), delta=COURSE_SHARE * 1e-3)
    assert 1.99 < aside <= 2.0
    assert 5.95 < whole <= 6.0
    plain = changed(config, {"server": {"deadline_seconds": 60}})
    alone = declare(plain, ServerLedger(tmp_path / "other.sqlite"), run="r")
    assert course.mechanism.noise_multiplier > alone.mechanism.noise_multiplier
    assert declare(config, ServerLedger(tmp_path / "ledger.sqlite"), run="r", before=course.model_dump_json()) == course


WRONG_PLANS: Sequence[tuple[dict[str, Any], str]] = (
    ({}, "exactly one of them"),
    ({"epsilon": 1.0, "noise_multiplier": 1.0}, "exactly one of them"),
    ({"epsilon": 4.0}, "below privacy.epsilon"),
    ({"noise_multiplier": 0.0}, "noise_multiplier"),
    ({"noise_multiplier": float("nan")}, "noise_multiplier"),
    ({"epsilon": 1.0, "every": 0}, "every"),
    ({"epsilon": 1.0, "every": "sometimes"}, "every"),
    ({"epsilon": 1.0, "compare": "yesterday"}, "compare"),
    ({"epsilon": 1.0, "standard_errors": -1}, "standard_errors"),
)


@pytest.mark.parametrize(("evaluation", "message"), WRONG_PLANS)
def test_a_plan_that_means_nothing_is_refused(evaluation: dict[str, Any], message: str) -> None:
    sound = plan(LOUD, privacy={"epsilon": 4.0, "delta": 1e-3})
    with pytest.raises(ConfigError, match=message):
        changed(sound, {"server": {"evaluation": evaluation}})


def test_evaluations_that_spend_everything_alone_are_refused(tmp_path: Path) -> None:
    config = plan({"noise_multiplier": 0.5}, privacy={"epsilon": 4.0, "delta": 1e-3})
    with pytest.raises(ConfigError, match=r"server\.evaluation\.noise_multiplier = 0\.5: 1 evaluations cost epsilon"):
        declare(config, ServerLedger(tmp_path / "ledger.sqlite"), run="r")
