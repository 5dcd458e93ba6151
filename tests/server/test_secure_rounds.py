"""Rounds under secure aggregation through the apps that hospitals run: who is in the sum, who pays, what fails."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from pydantic import ValidationError
from scipy import stats
from support.federations import charged_steps, rows_of, tiny_federation
from support.sealing import sealed
from typer.testing import CliRunner

from wardpose.client.app import answer_order
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.initial import INITIAL
from wardpose.server.scoring import arrays_of
from wardpose.shared.config import FederationConfig
from wardpose.shared.ledger_views import cohort_views
from wardpose.shared.messages import SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK, TRAIN, RoundOrder
from wardpose.shared.pose.weights import load_model
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site
from wardpose.shared.wire import MASKED, pack, unpack
from wardpose.simulation.cli import app
from wardpose.simulation.grid import Fault, FaultKind
from wardpose.simulation.layout import prepare_sites
from wardpose.simulation.run import simulate

SITES = ("east", "north", "south", "west")
IMPATIENT = {"deadline_seconds": 1, "wait_seconds": 1}


def plan(**changes: Any) -> FederationConfig:
    server = {"deadline_seconds": 120, "wait_seconds": 1} | changes.pop("server", {})
    base: dict[str, Any] = {"rounds": 1, "server": {"aggregation": "secure", **server}}
    return tiny_federation(SITES, **(base | changes))


def run(folder: Path, faults: Sequence[Fault] = (), **changes: Any) -> dict[str, Any]:
    return simulate(plan(**changes), folder, faults=faults, report=False)


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return Checkpoint.load(folder / "checkpoint.safetensors").weights


def moved(folder: Path, before: dict[str, np.ndarray[Any, Any]]) -> bool:
    return any((weights(folder)[name] != value).any() for name, value in before.items())


def initial(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of the run's first round; the seeds are the same in every run here."""
    return arrays_of(load_model(folder / INITIAL))


def fault(kind: FaultKind, message: str, site: str = "south", number: int = 1) -> Fault:
    return Fault(site=site, round=number, kind=kind, message="" if message == TRAIN else message)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, rounds=2)
    return folder


def test_all_sites_release_are_charged_and_the_weights_follow_their_sum(whole: Path) -> None:
    rows = rows_of(whole)
    assert [rows[number, site].status for number in (1, 2) for site in SITES] == ["released"] * 8
    assert {charged_steps(whole, site) for site in SITES} == {(2, 2)}
    (event,) = {event for site in SITES for event in Ledger(whole / "ledger.sqlite").events(site)}
    assert (event.noise, event.shares, event.noise_multiplier) == ("distributed-discrete-gaussian", 3, 3.0)
    own = load_site(whole / "sites" / "north" / "site.yaml")
    assert set(Ledger(own.ledger).events("north-cohort")) == {event}


@pytest.mark.slow
@pytest.mark.guard
def test_the_same_seeds_give_the_same_weights_whatever_the_masks_are(tmp_path: Path, whole: Path) -> None:
    run(tmp_path / "again", rounds=2)
    assert not moved(tmp_path / "again", weights(whole))
    assert moved(whole, initial(whole))


@pytest.mark.slow
@pytest.mark.guard
def test_the_same_seeds_and_the_same_site_missing_give_the_same_noise(tmp_path: Path) -> None:
    """Also of the noise that three survivors keep and four would not."""
    for name in ("one", "other"):
        run(tmp_path / name, [fault("straggle", TRAIN)], server=IMPATIENT)
    assert not moved(tmp_path / "one", weights(tmp_path / "other"))


def test_both_epsilons_are_shown_where_they_differ(whole: Path) -> None:
    own = load_site(whole / "sites" / "north" / "site.yaml")
    ledger = Ledger(own.ledger)
    (view,) = cohort_views(ledger, list(ledger.entries()))
    assert view.local is not None
    assert view.spent is not None
    assert view.local > 1.4 * view.spent
    shown = CliRunner().invoke(app, ["ledger", "show", str(own.ledger)]).stdout
    assert "noise was shared out over sites" in " ".join(shown.split())


def test_nothing_secret_is_left_at_a_site_and_what_is_left_is_its_owners_alone(whole: Path) -> None:
    for site in SITES:
        folder = load_site(whole / "sites" / site / "site.yaml").state / "secure"
        kept = [path for path in folder.iterdir() if path.name != ".lock"]
        assert len(kept) == 2
        assert all(path.suffix == ".closed" and path.stat().st_size == 0 for path in kept)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def kept_out(stages: Sequence[str]) -> list[Any]:
    """Every stage; the ones that another test of the same kind stands for are slow."""
    slow = (pytest.mark.slow, pytest.mark.guard)
    return [pytest.param(stage, marks=() if stage == TRAIN else slow) for stage in stages]


STAGES = (SECURE_KEYS, SECURE_SHARES, TRAIN, SECURE_SURVIVORS, SECURE_UNMASK)


@pytest.mark.parametrize("message", kept_out(STAGES))
def test_one_of_four_sites_may_stay_silent_at_any_message(tmp_path: Path, whole: Path, message: str) -> None:
    folder = tmp_path / "run"
    run(folder, [fault("straggle", message)], server=IMPATIENT)
    status = "late" if STAGES.index(message) < 3 else "released"
    rows = rows_of(folder)
    assert {site: rows[1, site].status for site in SITES} == {**dict.fromkeys(SITES, "released"), "south": status}
    charged = int(STAGES.index(message) >= 2)
    assert charged_steps(folder, "south") == (charged, charged)
    assert moved(folder, initial(whole))


@pytest.mark.parametrize("message", kept_out(STAGES))
def test_with_one_site_fewer_than_declared_the_round_fails_and_what_was_ordered_is_charged(
    tmp_path: Path, whole: Path, message: str
) -> None:
    folder, silent = tmp_path / "run", ("south", "west")
    run(folder, [fault("straggle", message, site) for site in silent], server=IMPATIENT)
    assert Checkpoint.load(folder / "checkpoint.safetensors").round == 1
    assert not moved(folder, initial(whole))
    charged = int(STAGES.index(message) >= 2)
    assert {charged_steps(folder, site) for site in SITES} == {(charged, charged)}


def test_below_the_declared_number_nobody_is_ordered_at_all(tmp_path: Path) -> None:
    faults = [Fault(site=site, round=0, kind="crash") for site in ("south", "west")]
    summary = run(tmp_path / "run", faults)
    assert (summary["status"], summary["rounds"]) == ("stopped", 0)
    assert charged_steps(tmp_path / "run", "north") == (0, 0)


def test_a_site_whose_policy_does_not_accept_distributed_noise_refuses_before_anything_is_charged(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    path = prepare_sites(plan(), folder)["south"]
    path.write_text(path.read_text().replace("distributed_noise: true", "distributed_noise: false"))
    run(folder)
    rows = rows_of(folder)
    assert rows[0, "south"].status == "refused"
    assert [rows[1, site].status for site in ("east", "north", "west")] == ["released"] * 3
    assert charged_steps(folder, "south") == (0, 0)


def test_a_site_masks_one_vector_of_a_session_and_none_without_a_session(tmp_path: Path) -> None:
    """Two vectors under the same masks would tell their difference, one without masks has a share of the noise only."""
    folder, answers, sent = tmp_path / "run", [], []

    def ask_more(message: Message, answer: Message) -> Message:
        order, arrays = unpack(message.content, RoundOrder)
        sent.append(answer.content.array_records["arrays"])
        for secure in (order.secure, None):
            body = pack(order.model_copy(update={"secure": secure}), arrays)
            content = sealed(folder, body, TRAIN, site="south", ledger=Ledger(folder / "ledger.sqlite").head())
            asked = Message(content, message.metadata.dst_node_id, TRAIN)
            asked.metadata.__dict__["_message_id"] = "again"
            answers.append(answer_order(asked, lambda: folder / "sites" / "south" / "site.yaml"))
        return answer

    run(folder, [Fault(site="south", round=1, kind="replace", replace=ask_more)])
    assert [answer.has_error() for answer in answers] == [True, True]
    assert charged_steps(folder, "south") == (1, 1)
    (arrays,) = sent
    assert list(arrays) == [MASKED]
    vector = arrays[MASKED].numpy()
    assert (vector.dtype, vector.shape[1]) == (np.uint8, 4)
    assert stats.chisquare(np.bincount(vector.ravel(), minlength=256)).pvalue > 1e-6


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"training": {"steps": 2, "optimizer": {"name": "sgd"}}}, "training.steps is 2"),
        ({"training": {"steps": 1}}, 'training.optimizer is "adam"'),
        ({"mechanism": "feature"}, 'allowed: "dp-sgd"'),
        ({"server": {"aggregation": {"name": "krum", "secure": {}}}}, 'name is "krum"'),
        ({"server": {"aggregation": {"secure": {"minimum_survivors": 2}}}}, "allowed with 4 sites, 1 of them"),
        ({"server": {"aggregation": {"secure": {"minimum_survivors": 5}}}}, "3 to 4"),
        (
            {"mechanism": {"distributed": {"sites": 4, "minimum_survivors": 3}}},
            "is decided by server.aggregation.secure",
        ),
        ({"sites": [{"name": "a"}, {"name": "b", "weight": 2}]}, "one weight for all"),
    ],
)
def test_plans_that_shares_of_noise_cannot_protect_are_refused(changes: dict[str, Any], match: str) -> None:
    base = plan().model_dump()
    FederationConfig.model_validate(base)
    with pytest.raises(ValidationError, match=match):
        FederationConfig.model_validate(base | changes)


def test_secure_alone_stands_for_the_defaults() -> None:
    for count, survivors in ((4, 3), (10, 8), (50, 40), (3, 3)):
        names = [f"s{number}" for number in range(count)]
        noise = tiny_federation(names, server={"aggregation": "secure"}).ordered_mechanism.distributed
        assert noise is not None
        assert (noise.minimum_survivors, noise.colluding, noise.bits) == (survivors, 1, 32)
