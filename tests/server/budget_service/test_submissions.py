"""Heads that sites state of their own ledgers: what does not continue what was seen is refused and stays known."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.budget_service import Coordinator, charge, create_coordinator
from support.ledgers import BUDGET, COURSE, EVENT
from typer.testing import CliRunner

from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.exporter import ServerExporter
from wardpose.server.facts import Places
from wardpose.server.folder import coordinator_key
from wardpose.server.heads import Heads
from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.errors import LedgerError
from wardpose.shared.head_statements import SITE_HEAD, SiteHead
from wardpose.shared.privacy.entries import NOTHING
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.remote_ledger import RemoteError
from wardpose.shared.signing import Signer
from wardpose.simulation.cli import app

A, B = "a" * 64, "b" * 64


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    made = create_coordinator(tmp_path)
    charge(made.ledger, "north", 1)
    with made.serving():
        yield made


def rounds(path: Path, *numbers: int) -> Ledger:
    """A site's own ledger, charged for some rounds more."""
    ledger = Ledger(path)
    for number in numbers:
        ledger.commit(ledger.reserve("ward", [EVENT], run_id="run", round=number, budget=BUDGET, course=COURSE))
    return ledger


def submit(coordinator: Coordinator, ledger: Ledger, site: str = "north") -> None:
    with coordinator.remote(site) as remote:
        head = remote.submit(ledger, site, coordinator.node_key(site))
    assert head.sequence == Ledger(coordinator.ledger).head()[0]


def statement(signer: Signer, *, sign: dict[str, Any] | None = None, **fields: Any) -> wire.SubmitHeadRequest:
    """A signed statement; with `sign`, what was signed differs from what is sent."""
    stated = {"sequence": 3, "hash": A, "seen_sequence": 0, "seen_hash": NOTHING, "time": int(time.time()), **fields}
    head = SiteHead(**{"site": "north", **stated, **(sign or {})})
    return wire.SubmitHeadRequest(**stated, signature=signer.sign(SITE_HEAD, head.content()))


def refusal(coordinator: Coordinator, request: wire.SubmitHeadRequest, name: str = "north") -> grpc.StatusCode:
    with coordinator.stub(name) as stub, pytest.raises(grpc.RpcError) as error:
        stub.SubmitHead(request, timeout=10)
    assert "allowed" in (error.value.details() or "") or error.value.code() != grpc.StatusCode.INVALID_ARGUMENT
    return error.value.code()


def alarms(coordinator: Coordinator, asker: str, site: str) -> list[str]:
    with coordinator.stub(asker) as stub:
        answer = stub.GetAccount(wire.GetAccountRequest(), timeout=10)
    return [alarm.what for account in answer.sites if account.site == site for alarm in account.alarms]


def test_a_ledger_that_grows_is_accepted(coordinator: Coordinator, tmp_path: Path) -> None:
    path = tmp_path / "site.sqlite"
    for number in range(3):
        submit(coordinator, rounds(path, number))
    submit(coordinator, rounds(path))
    with coordinator.stub("north") as stub:
        (account,) = stub.GetAccount(wire.GetAccountRequest(), timeout=10).sites
    assert (account.seen_sequence, account.seen_hash) == Ledger(path).head()
    assert not account.alarms


def test_a_backup_that_was_put_back_is_found_even_after_it_grew_past_what_was_seen(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    path, backup = tmp_path / "site.sqlite", tmp_path / "backup.sqlite"
    rounds(path, 1)
    shutil.copy(path, backup)
    submit(coordinator, rounds(path, 2))
    for numbers, what in (((), "went back from 5 to 3"), ((3,), "entry 5"), ((4, 5), "entry 5")):
        with pytest.raises(LedgerError, match=what):
            submit(coordinator, rounds(backup, *numbers))
    assert len(alarms(coordinator, "north", "north")) == 2
    submit(coordinator, rounds(path, 3))


def test_an_alarm_is_seen_by_the_site_and_by_auditors_and_by_nobody_else(coordinator: Coordinator) -> None:
    charge(coordinator.ledger, "south", 1)
    with coordinator.stub("north") as stub:
        stub.SubmitHead(statement(coordinator.node_key("north")), timeout=10)
    wrong = statement(coordinator.node_key("north"), hash=B, seen_sequence=3, seen_hash=B)
    for _ in range(3):
        assert refusal(coordinator, wrong) == grpc.StatusCode.FAILED_PRECONDITION
    for asker in ("north", "inspector"):
        assert alarms(coordinator, asker, "north") == ["entry 3 of its ledger is not the one that was seen before"]
    with coordinator.stub("south") as stub:
        assert "ledger is not" not in str(stub.GetAccount(wire.GetAccountRequest(), timeout=10))
    (alarm,) = Alarms(coordinator.directory / ALARMS).of()
    assert (alarm.site, alarm.times) == ("north", 3)
    (metric,) = ServerExporter(Places(directory=coordinator.directory)).alarms()
    assert [(sample.labels, sample.value) for sample in metric.samples] == [({"site": "north"}, 1)]


def test_a_site_cannot_fill_the_disk_with_alarms(tmp_path: Path) -> None:
    found = Alarms(tmp_path / "a.sqlite")
    for number in range(130):
        found.raise_("north", f"went back to {number}", number)
    found.raise_("north", "went back to 5", 900)
    found.raise_("south", "went back", 7)
    assert (len(found.of("north")), len(found.of("south")), len(found.of())) == (100, 1, 101)
    assert next(alarm for alarm in found.of("north") if alarm.what.endswith(" 5")).last == 900


def test_only_the_sites_own_key_speaks_for_it(coordinator: Coordinator) -> None:
    mine, other = coordinator.node_key("north"), coordinator.node_key("south")
    assert refusal(coordinator, statement(other)) == grpc.StatusCode.PERMISSION_DENIED
    assert refusal(coordinator, statement(mine, sign={"sequence": 4})) == grpc.StatusCode.PERMISSION_DENIED
    assert refusal(coordinator, statement(mine, sign={"site": "south"})) == grpc.StatusCode.PERMISSION_DENIED
    for name in ("south", "inspector"):  # another caller with what the site signed
        assert refusal(coordinator, statement(mine), name) == grpc.StatusCode.PERMISSION_DENIED
    unsigned = statement(mine)
    unsigned.signature = ""
    assert refusal(coordinator, unsigned) == grpc.StatusCode.PERMISSION_DENIED
    unsigned.signature = "\u00e9" * 5000
    assert refusal(coordinator, unsigned) == grpc.StatusCode.PERMISSION_DENIED
    (coordinator.folder / "keys" / "north.pub").unlink()
    assert refusal(coordinator, statement(mine)) == grpc.StatusCode.NOT_FOUND
    assert not alarms(coordinator, "north", "north")


def test_an_old_statement_that_is_sent_again_is_no_rollback(coordinator: Coordinator) -> None:
    signer = coordinator.node_key("north")
    old = statement(signer, time=int(time.time()) - 301)
    assert refusal(coordinator, old) == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(coordinator, statement(signer, time=int(time.time()) + 400)) == grpc.StatusCode.INVALID_ARGUMENT
    assert not alarms(coordinator, "north", "north")


@pytest.mark.parametrize(
    "fields",
    [
        {"sequence": 0, "hash": A},
        {"hash": NOTHING},
        {"hash": "A" * 64},
        {"hash": "a" * 63},
        {"hash": ""},
        {"hash": "\u0663" * 64},
        {"sequence": (1 << 64) - 1},
        {"seen_sequence": 2},
        {"seen_hash": A},
    ],
)
def test_a_head_that_no_ledger_can_have_is_a_wrong_argument(coordinator: Coordinator, fields: dict[str, Any]) -> None:
    stated: dict[str, Any] = {"sequence": 3, "hash": A, "seen_hash": NOTHING, "time": int(time.time()), **fields}
    assert refusal(coordinator, wire.SubmitHeadRequest(**stated)) == grpc.StatusCode.INVALID_ARGUMENT


def test_heads_of_releases_count_too_and_are_left_as_they_are(coordinator: Coordinator) -> None:
    """A release must show that the ledger grew since the last one: a head stated in between must not stand there."""
    heads = Heads(coordinator.directory / "heads.sqlite")
    heads.remember("north", 5, B)
    signer = coordinator.node_key("north")
    back = statement(signer, sequence=4)
    assert refusal(coordinator, back) == grpc.StatusCode.FAILED_PRECONDITION
    unasked = statement(signer, sequence=6)
    assert refusal(coordinator, unasked) == grpc.StatusCode.ABORTED
    with coordinator.stub("north") as stub:
        stub.SubmitHead(statement(signer, sequence=6, seen_sequence=5, seen_hash=B), timeout=10)
    assert heads.last("north") == (5, B)
    heads.check("north", 6, A, grown=True)


def test_staff_can_accept_another_ledger(coordinator: Coordinator, tmp_path: Path) -> None:
    submit(coordinator, rounds(tmp_path / "old.sqlite", 1, 2))
    new = rounds(tmp_path / "new.sqlite", 1)
    with pytest.raises(LedgerError):
        submit(coordinator, new)
    Ledger(coordinator.ledger).renewed(coordinator_key(coordinator.directory), "of a time before signatures")
    arguments = ["server", "accept-ledger", "north", "--directory", str(coordinator.directory), "--why", "disk broke"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "5 entries" in result.output
    submit(coordinator, new)
    assert not alarms(coordinator, "north", "north")
    with pytest.raises(LedgerError):
        submit(coordinator, rounds(tmp_path / "old.sqlite", 3))


def test_a_coordinator_without_keys_of_sites_takes_no_heads(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    ledger = rounds(tmp_path / "site.sqlite", 1)
    with coordinator.serving(site_keys=None), pytest.raises(RemoteError, match="no node key of site 'north'"):
        submit(coordinator, ledger)
