"""What the calls answer, refuse and bear: arguments, limits, deadlines, damaged files, many rows."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.budget_service import Coordinator, charge, create_coordinator
from support.ledgers import DELTA, write_history

from wardpose.server.budget_service.process import SERVICE, Server, check_address
from wardpose.server.budget_service.service import BudgetService
from wardpose.server.budget_service.settings import build
from wardpose.server.journal import RunJournal
from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.budget_wire import budget_pb2_grpc
from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.entries import NOTHING
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.merkle import EMPTY_ROOT, Frontier, leaf_hash, verify_consistency, verify_inclusion


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    made = create_coordinator(tmp_path_factory.mktemp("small"))
    charge(made.ledger, "north", 3)
    charge(made.ledger, "south", 2)
    with made.serving():
        yield made


def rows_of(stub: Any, first: int, limit: int = 0) -> list[Any]:
    call = stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=first, limit=limit), timeout=30)
    return [row for part in call for row in part.rows]


def test_every_entry_is_proven_from_what_every_site_is_shown(small: Coordinator) -> None:
    """Computed here from the service's answers alone."""
    with small.stub("south") as stub:
        hashes = [row.hash for row in rows_of(stub, 1)]
        frontier, roots = Frontier(), [EMPTY_ROOT]
        for digest in hashes:
            frontier.append(bytes.fromhex(digest))
            roots.append(frontier.root())
        for sequence, digest in enumerate(hashes, start=1):
            answer = stub.VerifyInclusion(wire.VerifyInclusionRequest(sequence=sequence), timeout=10)
            assert (answer.hash, answer.head.root) == (digest, roots[-1])
            leaf = leaf_hash(bytes.fromhex(digest))
            verify_inclusion(leaf, sequence - 1, answer.head.sequence, answer.path, answer.head.root)
        for old, size in itertools.combinations_with_replacement(range(len(hashes) + 1), 2):
            request = wire.VerifyConsistencyRequest(sequence=old, size=size)
            path = stub.VerifyConsistency(request, timeout=10).path
            if size:
                verify_consistency(old, roots[old], size, roots[size], path)


def test_a_part_of_the_ledger_can_be_asked_for(small: Coordinator) -> None:
    with small.stub("inspector") as stub:
        everything = rows_of(stub, 1)
        size = len(everything)
        assert rows_of(stub, 4) == everything[3:]
        assert rows_of(stub, 4, 2) == everything[3:5]
        assert rows_of(stub, size, 100) == everything[-1:]
        assert rows_of(stub, size + 1) == []


@pytest.mark.parametrize(
    ("name", "request_", "value", "allowed"),
    [
        ("StreamEntries", wire.StreamEntriesRequest(), "0", "1 to 12"),
        ("StreamEntries", wire.StreamEntriesRequest(from_sequence=13), "13", "1 to 12"),
        ("VerifyInclusion", wire.VerifyInclusionRequest(), "0", "1 to 11"),
        ("VerifyInclusion", wire.VerifyInclusionRequest(sequence=(1 << 64) - 1), str((1 << 64) - 1), "1 to 11"),
        ("VerifyConsistency", wire.VerifyConsistencyRequest(sequence=12), "12", "0 to 11"),
        ("VerifyConsistency", wire.VerifyConsistencyRequest(sequence=5, size=4), "5", "0 to 4"),
        ("VerifyConsistency", wire.VerifyConsistencyRequest(sequence=5, size=12), "12", "0 to 11"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_allowed(
    small: Coordinator, name: str, request_: Any, value: str, allowed: str
) -> None:
    with small.stub("north") as stub, pytest.raises(grpc.RpcError) as error:
        list(getattr(stub, name)(request_, timeout=10)) if name == "StreamEntries" else getattr(stub, name)(
            request_, timeout=10
        )
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"is {value} (allowed: {allowed})" in (error.value.details() or "")


def test_requests_that_are_too_large_are_refused(small: Coordinator) -> None:
    with small.stub("north") as stub:
        for request, metadata in ((wire.GetAccountRequest(site="x" * 100_000), []), (None, [("x", "y" * 100_000)])):
            with pytest.raises(grpc.RpcError) as error:
                stub.GetAccount(request or wire.GetAccountRequest(), metadata=metadata, timeout=10)
            assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        stub.GetAccount(wire.GetAccountRequest(), timeout=10)


def test_before_the_first_charge_there_is_nothing_and_that_is_said(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    with coordinator.serving(), coordinator.remote("north") as remote:
        answer, head = remote.account()
        assert (head.sequence, head.hash, head.root) == (0, NOTHING, EMPTY_ROOT)
        assert [(found.site, found.rows, found.epsilon) for found in answer.sites] == [("north", 0, 0.0)]
        assert not remote.entries(lambda row: None).sequence
        with coordinator.stub("north") as stub, pytest.raises(grpc.RpcError) as error:
            stub.VerifyInclusion(wire.VerifyInclusionRequest(sequence=1), timeout=10)
        assert "none yet" in (error.value.details() or "")
        assert not coordinator.ledger.exists()
        charge(coordinator.ledger, "north", 1)
        assert remote.account()[1].sequence == 3


def test_asking_writes_nothing_to_the_ledger(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    charge(coordinator.ledger, "north", 2)
    before = hashlib.sha256(coordinator.ledger.read_bytes()).hexdigest()
    coordinator.ledger.chmod(0o400)
    with coordinator.serving(), coordinator.remote("north") as remote:
        remote.account()
        remote.entries(lambda row: None)
        remote.verify(2)
    assert hashlib.sha256(coordinator.ledger.read_bytes()).hexdigest() == before


def test_figures_are_stated_at_what_the_latest_run_has(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    charge(coordinator.ledger, "north", 2)
    settings = coordinator.settings(delta=1e-3)
    assert (settings.terms().delta, settings.terms().overlap) == (1e-3, 2)
    RunJournal(coordinator.directory / "journal.sqlite").start(
        run="run", federation="study", mechanism="dp-sgd", unit="patient", delta=1e-6, overlap=3, rounds=4,
        config="{}", score_name="pckh",
    )  # fmt: skip
    with coordinator.serving(), coordinator.stub("north") as stub:
        answer = stub.GetAccount(wire.GetAccountRequest(), timeout=20)
    assert (answer.sites[0].delta, answer.federation.overlap_sites) == (1e-6, 3)
    assert answer.sites[0].epsilon == Ledger(coordinator.ledger).epsilon("north", 1e-6, unit="patient")


@pytest.mark.parametrize("damage", [b"no database at all " * 500, b""])
def test_a_damaged_ledger_is_said_to_be_so_without_a_path_or_a_traceback(tmp_path: Path, damage: bytes) -> None:
    coordinator = create_coordinator(tmp_path)
    coordinator.directory.mkdir()
    coordinator.ledger.write_bytes(damage)
    with coordinator.serving(), coordinator.channel("north") as channel, coordinator.stub("north") as stub:
        for call in (
            lambda: stub.GetAccount(wire.GetAccountRequest(), timeout=10),
            lambda: list(stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=1), timeout=10)),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert error.value.code() in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE)
            details = error.value.details() or ""
            assert "its staff find the reason" in details
            assert not any(word in details for word in (str(tmp_path), "Traceback", "sqlite", "Error"))
        asked = health_pb2.HealthCheckRequest(service=SERVICE)
        state = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=10).status
        assert state == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_defect_shows_no_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    coordinator = create_coordinator(tmp_path)
    service = build(coordinator.settings())

    def broken() -> Any:
        raise ZeroDivisionError("a secret")

    service.view.terms = broken  # type: ignore[method-assign]
    with started(coordinator, service), coordinator.stub("north") as stub, pytest.raises(grpc.RpcError) as error:
        stub.GetAccount(wire.GetAccountRequest(), timeout=10)
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert error.value.details() == "the service failed; its log says why"
    assert "a secret" in caplog.text


class started:  # noqa: N801 (reads as a verb where it is used)
    """A service that was put together by the test, running."""

    def __init__(self, coordinator: Coordinator, service: BudgetService) -> None:
        self.coordinator = coordinator
        self.server = Server(service, "127.0.0.1:0", coordinator.settings().tls())

    def __enter__(self) -> None:
        self.server.start()
        self.coordinator.address = f"127.0.0.1:{self.server.port}"

    def __exit__(self, *_: object) -> None:
        self.server.stop()


def test_streams_are_limited_and_a_deadline_or_a_cancelled_call_frees_its_place(tmp_path: Path) -> None:
    """A reader that does not read holds a thread: only so many are let in, and none for longer than it asked for."""
    coordinator = create_coordinator(tmp_path)
    write_history(coordinator.ledger, 4000, ["north"])
    honest = build(coordinator.settings())
    service = BudgetService(honest.view, honest.submissions, signer=None, streams=1)
    request = wire.StreamEntriesRequest(from_sequence=1)
    with started(coordinator, service), coordinator.stub("north") as stub, coordinator.stub("north") as other:
        held = stub.StreamEntries(request, timeout=60)
        next(held)
        with pytest.raises(grpc.RpcError) as error:
            next(other.StreamEntries(request, timeout=60))
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        other.GetAccount(wire.GetAccountRequest(), timeout=30)  # other calls go on
        held.cancel()
        freed(other)
        late = stub.StreamEntries(request, timeout=0.3)
        next(late)
        threading.Event().wait(0.5)
        with pytest.raises(grpc.RpcError) as error:
            list(late)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        freed(other)


def freed(stub: Any) -> None:
    """Read a whole stream, as soon as there is a place for one."""
    for _ in range(200):
        try:
            rows = len(rows_of(stub, 1))
        except grpc.RpcError:
            threading.Event().wait(0.05)
            continue
        assert rows == 4000
        return
    pytest.fail("the place was never freed")


@pytest.mark.slow
@pytest.mark.guard
def test_a_hundred_thousand_rows_are_streamed_in_little_memory(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    write_history(coordinator.ledger, 100_000, ["north", "south"])
    with coordinator.serving(), coordinator.remote("north") as remote:
        remote.head()  # the tree is built
        counted = dict.fromkeys((True, False), 0)

        def count(row: Any) -> None:
            counted[row.entry is None] += 1

        before = peak_bytes(reset=True)
        head = remote.entries(count)
        grown = peak_bytes() - before
    assert head.sequence == sum(counted.values()) >= 100_000
    assert counted[False] >= 49_000
    size = coordinator.ledger.stat().st_size
    assert grown < 16e6 < size / 3, (grown, size)


def peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory that this process has held; with `reset`, what it holds now, counting anew from here."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9443", "[::]:9443", "localhost:9443", "10.1.2.3:1", "fed.example.org:9443"]
)
def test_nobody_is_served_unasked_off_loopback(listen: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        check_address(listen, insecure=True)
    check_address(listen, insecure=False)
    check_address("127.0.0.1:0", insecure=True)
    check_address("[::1]:0", insecure=True)


def test_without_tls_everybody_on_loopback_reads_all_and_states_nothing(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    charge(coordinator.ledger, "north", 1)
    charge(coordinator.ledger, "south", 1)
    settings = coordinator.settings(insecure=True, certificate=None, key=None, authority=None)
    server = Server(build(settings), settings.listen, settings.tls())
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = budget_pb2_grpc.BudgetServiceStub(channel)  # type: ignore[no-untyped-call]
            answer = stub.GetAccount(wire.GetAccountRequest(), timeout=20)
            assert [account.site for account in answer.sites] == ["north", "south"]
            with pytest.raises(grpc.RpcError) as error:
                stub.SubmitHead(wire.SubmitHeadRequest(), timeout=10)
    finally:
        server.stop()
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("listen", ["9443", ":9443", "host:", "host:70000", "host:-1", "host:x", "host:\u0663"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="allowed: host:port"):
        check_address(listen, insecure=False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"certificate": None}, "--certificate, --key, --ca"),
        ({"insecure": True}, "--certificate, --key, --ca"),
        ({"delta": 0.0}, "--delta"),
        ({"delta": float("nan")}, "--delta"),
        ({"unit": "ward"}, "--unit"),
        ({"accept_another": " "}, "--accept-another"),
        ({"listen": "0.0.0.0:1", "insecure": True, "certificate": None, "key": None, "authority": None}, "--insecure"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Coordinator(tmp_path).settings(**changes)


def test_wrong_files_are_named_before_anything_listens(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    (tmp_path / "empty.crt").write_text("nothing")
    for changes in ({"certificate": tmp_path / "none.crt"}, {"authority": tmp_path / "empty.crt"},
                    {"key": coordinator.files("north")[1]}):  # fmt: skip
        settings = coordinator.settings(**changes)
        with pytest.raises(ConfigError, match=r"none\.crt|empty\.crt|fits its certificate"):
            Server(build(settings), settings.listen, settings.tls())
    for changes in ({"site_keys": tmp_path / "nowhere"}, {"signing_key": tmp_path / "none.key"}):
        with pytest.raises(ConfigError, match=r"nowhere|none\.key"):
            build(coordinator.settings(**changes))
    with coordinator.serving(), pytest.raises(ConfigError, match="cannot be listened on"):
        Server(build(coordinator.settings()), coordinator.address, coordinator.settings().tls())


def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    coordinator = create_coordinator(tmp_path)
    charge(coordinator.ledger, "north", 1)
    code = "from wardpose.simulation.cli import main; main()"
    command = [sys.executable, "-c", code, "server", "budget-service", "--ledger", coordinator.ledger,
               "--listen", "127.0.0.1:0", "--certificate", tmp_path / "server.crt", "--key", tmp_path / "server.key",
               "--ca", coordinator.authority / "ca.crt", "--site-keys", tmp_path / "keys"]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        port = line.split("127.0.0.1:")[1].split(",")[0]
        coordinator.address = f"localhost:{port}"
        with coordinator.stub("north") as stub:
            answer = stub.GetAccount(wire.GetAccountRequest(), timeout=30)
        assert (answer.sites[0].rows, answer.sites[0].delta) == (2, DELTA)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
