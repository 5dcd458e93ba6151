"""What a run outlives: restarts, late answers and orders, a SuperLink in trouble, a hospital that joins."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import RunNotRunningException
from support.federations import charged_steps, rows_of, tiny_federation
from support.orders import make_order
from support.sealing import sealed, write_keys

from wardpose.client.app import app as client_app
from wardpose.client.contact import Contact, OutdatedOrderError
from wardpose.server.app import _same_plan, run_federation
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.exchange import exchange
from wardpose.server.journal import LastRound, RunJournal
from wardpose.server.rounds import Coordinator, deadline
from wardpose.server.summary import summarise
from wardpose.shared.config import FederationConfig, ServerConfig
from wardpose.shared.errors import ConfigError
from wardpose.shared.messages import PREFLIGHT, TRAIN
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.wire import pack
from wardpose.simulation.grid import Fault, InProcessGrid
from wardpose.simulation.layout import prepare_sites

SITES = ("north", "south")
SECURE = {
    "server": {"aggregation": "secure"},
    "training": {"steps": 1, "optimizer": {"name": "sgd", "momentum": 0}},
}
PATIENT = {"deadline_seconds": 120, "wait_seconds": 1}


def federate(folder: Path, config: FederationConfig, *, resume: bool = False, **changes: Any) -> dict[str, Any]:
    with InProcessGrid(client_app, prepare_sites(config, folder), **changes) as grid:
        run_federation(grid, config, folder, resume=resume)
    return summarise(folder)


# A hospital that joins.


def test_a_site_joins_a_stopped_run_and_pays_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunJournal.round

    def killed(self: RunJournal, row: Any, sites: Any) -> None:
        write(self, row, sites)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunJournal, "round", killed)
        with pytest.raises(KeyboardInterrupt):
            federate(tmp_path, tiny_federation(SITES, server=PATIENT))
    course = Checkpoint.load(tmp_path / "checkpoint.safetensors").course
    summary = federate(tmp_path, tiny_federation((*SITES, "east"), server=PATIENT), resume=True)
    assert Checkpoint.load(tmp_path / "checkpoint.safetensors").course == course  # sites have accepted this one
    assert [site["rounds_released"] for site in summary["sites"]] == [2, 2, 1]
    assert [charged_steps(tmp_path, name) for name in (*SITES, "east")] == [(2, 2), (2, 2), (1, 1)]
    spent = {site["name"]: site["epsilon_spent"] for site in summary["sites"]}
    assert 0 < spent["east"] < spent["north"] == spent["south"]
    federation = summary["epsilon_federation"]
    assert federation["overlap_sites"] == 3
    assert spent["south"] == federation["disjoint"] < federation["overlap"]


@pytest.mark.parametrize("at_resume", ["crash", "refuse"])
def test_a_try_that_was_lost_is_shown_of_a_site_that_took_no_part_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_resume: Any
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    config = tiny_federation(SITES, rounds=2, server={**PATIENT, "minimum_sites": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "close", killed)
        with pytest.raises(KeyboardInterrupt):
            federate(tmp_path, config)
    federate(tmp_path, config, resume=True, faults=[Fault(site="south", round=0, kind=at_resume)])
    rows = rows_of(tmp_path)
    assert rows[1, "south"].status == "absent"
    for site in SITES:
        shown = sum(row.steps for row in rows.values() if row.site == site)
        assert shown == charged_steps(tmp_path, site)[0] > 0, site


class LateGrid(InProcessGrid):
    """One node comes online after the first round was ordered."""

    late = "south"
    ordered = False

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Leave it out until then."""
        return [node for node in super().get_nodes() if self.ordered or node.name != self.late]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See whether a round is ordered."""
        sent = list(messages)
        self.ordered = self.ordered or any(message.metadata.message_type == TRAIN for message in sent)
        return super().push_messages(sent)


def test_a_site_of_the_plan_joins_between_two_rounds(tmp_path: Path) -> None:
    config = tiny_federation(SITES, server={"deadline_seconds": 120, "wait_seconds": 0.1})
    with LateGrid(client_app, prepare_sites(config, tmp_path)) as grid:
        run_federation(grid, config, tmp_path, resume=False)
    assert {number: row.status for (number, site), row in rows_of(tmp_path).items() if site == "south"} == {
        0: "ready",
        1: "absent",
        2: "released",
    }
    assert charged_steps(tmp_path, "south") == (1, 1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"sites": [{"name": "north"}]}),
        ({}, {"sites": [{"name": "north", "weight": 2.0}, {"name": "south"}, {"name": "east"}]}),
        (
            {**SECURE, "sites": [{"name": name} for name in "abcd"]},
            {**SECURE, "sites": [{"name": name} for name in "abcde"]},
        ),
    ],
    ids=["leaves", "weighs more", "secure"],
)
def test_no_other_change_of_the_sites_is_taken_over(before: dict[str, Any], after: dict[str, Any]) -> None:
    plain = {"sites": [{"name": "north"}, {"name": "south"}]}
    old = FederationConfig.model_validate(plain | before)
    new = FederationConfig.model_validate(plain | after)
    with pytest.raises(ConfigError, match="started with another sites"):
        _same_plan(new, old.model_dump_json(), Path("checkpoint.safetensors"))


# Orders that were overtaken.


def asks(contact: Contact, folder: Path, *, round_number: int, issued: float, kind: str = TRAIN) -> None:
    content = sealed(folder, pack(make_order(round_number=round_number)), kind, issued=issued)
    signer = write_keys(folder)[0]
    ledger = Ledger(folder / "ledger.sqlite", signer=signer)
    heard = contact.opened(content, site="north", kind=kind, ledger=ledger, signer=signer)
    contact.asks(heard, run="r", round_number=round_number)


def test_an_order_of_a_round_that_is_over_is_not_carried_out(tmp_path: Path) -> None:
    contact = Contact(tmp_path / "contact.sqlite", write_keys(tmp_path)[1].public)
    asks(contact, tmp_path, round_number=1, issued=100)
    asks(contact, tmp_path, round_number=2, issued=300, kind=PREFLIGHT)
    with pytest.raises(OutdatedOrderError, match="round 1 of run r is over: the coordinator has asked about round 2"):
        asks(contact, tmp_path, round_number=1, issued=200)
    asks(contact, tmp_path, round_number=2, issued=250)  # the very round, by a message that took longer
    asks(contact, tmp_path, round_number=1, issued=400)  # the coordinator went back to a checkpoint of before
    asks(contact, tmp_path, round_number=3, issued=500)
    with pytest.raises(OutdatedOrderError):  # another process, after a restart
        asks(Contact(contact.path, contact.coordinator), tmp_path, round_number=2, issued=450)


# A SuperLink in trouble.


class TroubledGrid(InProcessGrid):
    """The SuperLink answers 500 to the first questions of each kind."""

    pulls = nodes = pushes = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fail three times."""
        self.pulls += 1
        if self.pulls <= 3:
            raise _error(500)
        return super().pull_messages(message_ids)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Fail twice."""
        self.nodes += 1
        if self.nodes <= 2:
            raise _error(500)
        return super().get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Lose the orders of the first round."""
        sent = list(messages)
        if sent[0].metadata.message_type == TRAIN:
            self.pushes += 1
            if self.pushes == 1:
                raise _error(500)
        return super().push_messages(sent)


def _error(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://superlink/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


def test_a_superlink_in_trouble_costs_a_round_at_most_and_that_is_given_back(tmp_path: Path) -> None:
    config = tiny_federation(SITES, server=PATIENT)
    paths = prepare_sites(config, tmp_path)
    with TroubledGrid(client_app, paths) as grid:
        run_federation(grid, config, tmp_path, resume=False)
    statuses = {key: row.status for key, row in rows_of(tmp_path).items()}
    assert [statuses[1, site] for site in SITES] == ["late", "late"]
    assert [statuses[2, site] for site in SITES] == ["released", "released"]
    assert [charged_steps(tmp_path, site) for site in SITES] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("error", [_error(403), RunNotRunningException()], ids=["forbidden", "the run was stopped"])
def test_what_is_no_trouble_of_the_superlink_ends_the_run_and_no_site_is_blamed(
    tmp_path: Path, error: Exception
) -> None:
    class Stopped(InProcessGrid):
        """Somebody has stopped the run."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise error

    with Stopped(client_app, prepare_sites(tiny_federation(SITES), tmp_path)) as grid:
        message = Message(pack(make_order()), grid_node(grid), PREFLIGHT, group_id="1", ttl=60)
        with pytest.raises(type(error)):
            exchange(grid, [message], seconds=5)


def grid_node(grid: InProcessGrid) -> int:
    return next(iter(grid.get_node_ids()))


# Deadlines and ledgers.


def test_a_deadline_follows_what_rounds_took_within_the_plans_bounds() -> None:
    server = ServerConfig(deadline_seconds=1000, minimum_deadline_seconds=60)

    def after(*seconds: float, late: int = 0, released: int = 3) -> float:
        return deadline(server, [LastRound(seconds=each, late=late, released=released) for each in seconds])

    assert after() == 1000
    assert after(50, 100, 20) == 400
    assert after(1, 2) == 60
    assert after(900) == 1000
    assert after(50, late=1) == 1000  # what was too short must not stay so
    assert after(50, released=0) == 1000
    assert deadline(ServerConfig(deadline_seconds=5), [LastRound(seconds=1, late=0, released=1)]) == 5


def test_the_journal_knows_who_was_late(tmp_path: Path) -> None:
    impatient = {"deadline_seconds": 1, "wait_seconds": 1}
    faults = [Fault(site="south", round=2, kind="straggle")]
    summary = federate(tmp_path, tiny_federation(SITES, rounds=2, server=impatient), faults=faults)
    newest, before = RunJournal(tmp_path / "journal.sqlite").last_rounds(summary["run"], 5)
    assert ((newest.late, newest.released), (before.late, before.released)) == ((1, 1), (0, 2))
    south = summary["sites"][1]
    assert south["rounds_unanswered"] == [2]  # it did train: the charge stays, and the site's ledger has it too
    assert south["epsilon_at_site"] == pytest.approx(south["epsilon_spent"])
    assert charged_steps(tmp_path, "south") == (2, 2)


def test_a_last_round_that_a_site_never_began_is_given_back_at_the_end(tmp_path: Path) -> None:
    faults = [Fault(site="south", round=2, kind="crash")]
    summary = federate(tmp_path, tiny_federation(SITES, server=PATIENT), faults=faults)
    assert charged_steps(tmp_path, "south") == (1, 1)
    assert summary["sites"][1]["rounds_unanswered"] == []
    assert rows_of(tmp_path)[2, "south"].status == "failed"
