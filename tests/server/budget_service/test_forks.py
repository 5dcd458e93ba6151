"""A coordinator that rolls back, rewrites, or shows different histories is found, by whoever was shown one before."""

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.budget_service import Coordinator, charge, create_coordinator
from support.ledgers import write_history

from wardpose.server.budget_service.process import Server
from wardpose.server.budget_service.service import BudgetService
from wardpose.server.budget_service.settings import SHOWN, build
from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.errors import DamagedError, LedgerError
from wardpose.shared.head_statements import SERVER_HEAD, ServerHead
from wardpose.shared.known_server import KnownServer
from wardpose.shared.privacy.entries import entry_hash
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.remote_ledger import RemoteError, RemoteRow
from wardpose.shared.signing import SignatureError, create_key_pair, load_public_key


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    made = create_coordinator(tmp_path)
    charge(made.ledger, "north", 2)
    return made


def ask(coordinator: Coordinator, name: str = "north") -> ServerHead:
    with coordinator.serving(), coordinator.remote(name) as remote:
        return remote.account()[1]


def swap(coordinator: Coordinator, ledger: Path) -> None:
    """Put another ledger in place of the coordinator's, and let the service forget what it showed."""
    for file in coordinator.directory.glob("ledger.sqlite*"):
        file.unlink()
    shutil.copy(ledger, coordinator.ledger)
    for file in coordinator.directory.glob(f"{SHOWN}*"):
        file.unlink()


def copied(coordinator: Coordinator, name: str) -> Path:
    path = coordinator.folder / name
    shutil.copy(coordinator.ledger, path)
    return path


def test_a_ledger_that_grows_is_believed_at_every_contact(coordinator: Coordinator) -> None:
    sizes = []
    with coordinator.serving():
        for number in range(3):
            with coordinator.remote("north") as remote:
                sizes.append(remote.account()[1].sequence)
                assert remote.head().sequence == sizes[-1]
            charge(coordinator.ledger, "south", 1, first=number + 1)
    assert sizes == [5, 7, 9]
    last = coordinator.known("north").last()
    assert last is not None
    assert (last.sequence, coordinator.known("north").alarms()) == (9, [])


def test_a_ledger_that_went_back_is_found_until_staff_say_why(coordinator: Coordinator) -> None:
    backup = copied(coordinator, "backup.sqlite")
    charge(coordinator.ledger, "north", 1, first=3)
    assert ask(coordinator).sequence == 7
    swap(coordinator, backup)
    for _ in range(2):
        with pytest.raises(LedgerError, match="went back from 7 to 5"):
            ask(coordinator)
    known = coordinator.known("north")
    assert [alarm.what for alarm in known.alarms()] == ["went back from 7 to 5 entries"]
    known.accept_another("the disk broke, says the coordinator's data officer")
    assert ask(coordinator).sequence == 5
    charge(coordinator.ledger, "north", 1, first=3)
    assert ask(coordinator).sequence == 7


def test_a_contradiction_is_not_forgotten_when_the_right_ledger_is_shown_again(coordinator: Coordinator) -> None:
    backup = copied(coordinator, "backup.sqlite")
    charge(coordinator.ledger, "north", 1, first=3)
    right = copied(coordinator, "right.sqlite")
    ask(coordinator)
    swap(coordinator, backup)
    with pytest.raises(LedgerError):
        ask(coordinator)
    swap(coordinator, right)
    assert ask(coordinator).sequence == 7
    assert [alarm.what for alarm in coordinator.known("north").alarms()] == ["went back from 7 to 5 entries"]


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_fork_is_found_whatever_its_length(coordinator: Coordinator, rounds: int) -> None:
    backup = copied(coordinator, "backup.sqlite")
    charge(coordinator.ledger, "north", 1, first=3)
    ask(coordinator)
    charge(backup, "north", rounds, first=3)
    swap(coordinator, backup)
    with pytest.raises(LedgerError, match="is another one of 7 entries" if rounds == 1 else "do not begin with the 7"):
        ask(coordinator)
    assert coordinator.known("north").alarms()
    assert ask(coordinator, "south").sequence == 5 + 2 * rounds  # who saw nothing before cannot tell


def test_two_signed_heads_of_one_length_prove_that_two_histories_were_shown(coordinator: Coordinator) -> None:
    backup = copied(coordinator, "backup.sqlite")
    charge(coordinator.ledger, "north", 1, first=3)
    ask(coordinator, "north")
    charge(backup, "north", 1, first=3)
    swap(coordinator, backup)
    ask(coordinator, "south")
    heads = [coordinator.known(name).last() for name in ("north", "south")]
    key = load_public_key(coordinator.folder / "coordinator.pub")
    for head in heads:
        assert head is not None
        stated = ServerHead(sequence=head.sequence, hash=head.hash, root=bytes.fromhex(head.root), time=head.time)
        key.verify(SERVER_HEAD, stated.content(), head.signature)
    assert len({head.sequence for head in heads if head}) == 1
    assert len({head.root for head in heads if head}) == 2


def test_a_service_does_not_show_or_sign_what_contradicts_what_it_showed(coordinator: Coordinator) -> None:
    backup = copied(coordinator, "backup.sqlite")
    charge(coordinator.ledger, "north", 1, first=3)
    ask(coordinator)
    charge(backup, "north", 2, first=3)
    shown = (coordinator.directory / SHOWN).read_bytes()
    swap(coordinator, backup)
    (coordinator.directory / SHOWN).write_bytes(shown)
    with coordinator.serving(), coordinator.stub("south") as stub:
        with pytest.raises(grpc.RpcError) as error:
            stub.GetAccount(wire.GetAccountRequest(), timeout=10)
        assert error.value.code() == grpc.StatusCode.DATA_LOSS
        assert str(coordinator.folder) not in (error.value.details() or "")
    with coordinator.serving(accept_another="restored after a broken disk"), coordinator.remote("south") as remote:
        assert remote.account()[1].sequence == 9
    assert not coordinator.known("north").alarms()


def test_a_ledger_that_is_swapped_under_a_running_service_is_not_shown(coordinator: Coordinator) -> None:
    backup = copied(coordinator, "backup.sqlite")
    charge(coordinator.ledger, "north", 1, first=3)
    with coordinator.serving(), coordinator.stub("south") as stub:
        stub.GetAccount(wire.GetAccountRequest(), timeout=10)
        for path in (backup, None):
            for file in coordinator.directory.glob("ledger.sqlite*"):
                file.unlink()
            if path is not None:
                shutil.copy(path, coordinator.ledger)
            with pytest.raises(grpc.RpcError) as error:
                stub.GetAccount(wire.GetAccountRequest(), timeout=10)
            assert error.value.code() == grpc.StatusCode.DATA_LOSS


@pytest.mark.parametrize("with_its_hash", [False, True])
def test_a_row_that_is_rewritten_under_a_running_service_is_not_shown(tmp_path: Path, with_its_hash: bool) -> None:
    """In a ledger so long that no more than its new entries are read at each call."""
    coordinator = create_coordinator(tmp_path)
    write_history(coordinator.ledger, 600, ["north"])
    with coordinator.serving(), coordinator.stub("north") as stub:
        stub.GetAccount(wire.GetAccountRequest(), timeout=10)
        connection = sqlite3.connect(coordinator.ledger)
        kind, body, previous = connection.execute(
            "SELECT kind, body, previous FROM entries WHERE sequence = 3"
        ).fetchone()
        body = body.replace('"steps":5', '"steps":1')
        connection.execute("DROP TRIGGER entries_stay")
        connection.execute("UPDATE entries SET body = ? WHERE sequence = 3", (body,))
        if with_its_hash:
            digest = entry_hash(3, kind, body, previous)
            connection.execute("UPDATE entries SET hash = ? WHERE sequence = 3", (digest,))
        connection.commit()
        connection.close()
        with pytest.raises(grpc.RpcError) as error:
            list(stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=1), timeout=10))
        assert error.value.code() == grpc.StatusCode.DATA_LOSS
        with pytest.raises(grpc.RpcError) as error:
            stub.VerifyInclusion(wire.VerifyInclusionRequest(sequence=3), timeout=10)
        assert error.value.code() == grpc.StatusCode.DATA_LOSS
        stub.VerifyInclusion(wire.VerifyInclusionRequest(sequence=599), timeout=10)
    with coordinator.serving(), coordinator.stub("north") as stub, pytest.raises(grpc.RpcError) as error:
        stub.GetAccount(wire.GetAccountRequest(), timeout=10)
    assert error.value.code() == grpc.StatusCode.DATA_LOSS


def test_a_head_that_the_coordinator_did_not_sign_is_not_believed(coordinator: Coordinator) -> None:
    create_key_pair(coordinator.folder / "other.key", coordinator.folder / "other.pub")
    for key in (coordinator.folder / "other.key", None):
        with (
            coordinator.serving(signing_key=key),
            coordinator.remote("north") as remote,
            pytest.raises(SignatureError),
        ):
            remote.account()
    assert coordinator.known("north").last() is None


def test_a_record_that_cannot_be_read_is_no_first_contact(coordinator: Coordinator) -> None:
    ask(coordinator)
    path = coordinator.known("north").path
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    for extra in ("-wal", "-shm"):
        path.with_name(path.name + extra).unlink(missing_ok=True)
    with pytest.raises(DamagedError):
        ask(coordinator)


class Liar(BudgetService):
    """A service whose answers are bent on the way out."""

    bend: Any = None

    def StreamEntries(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        yield from self.bend(super().StreamEntries(request, context), request, context)


def lying(coordinator: Coordinator, bend: Any) -> BudgetService:
    honest = build(coordinator.settings())
    liar = Liar(honest.view, honest.submissions, signer=honest._signer)
    liar.bend = bend
    return liar


def read(coordinator: Coordinator, bend: Any) -> list[RemoteRow]:
    server = Server(lying(coordinator, bend), "127.0.0.1:0", coordinator.settings().tls())
    coordinator.address = f"127.0.0.1:{server.port}"
    server.start()
    rows: list[RemoteRow] = []
    try:
        with coordinator.remote("north") as remote:
            head = remote.entries(rows.append)
        assert head.sequence == len(rows)
    finally:
        server.stop()
    return rows


def whole(parts: Iterator[Any], _request: Any, _context: Any) -> Iterator[Any]:
    return parts


def without_last_row(parts: Iterator[Any], _request: Any, _context: Any) -> Iterator[Any]:
    for part in parts:
        if part.rows:
            del part.rows[-1]
        yield part


def without_head(parts: Iterator[Any], _request: Any, _context: Any) -> Iterator[Any]:
    next(parts)
    return parts


def with_rows_without_end(parts: Iterator[Any], _request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
    yield next(parts)
    (part,) = parts
    while context.is_active():
        yield part


def _changed(**change: Any) -> Any:
    def bend(parts: Iterator[Any], _request: Any, _context: Any) -> Iterator[Any]:
        for part in parts:
            for row in list(part.rows)[2:3]:
                for name, value in change.items():
                    setattr(row, name, value(getattr(row, name)))
            yield part

    return bend


def swapped_rows(parts: Iterator[Any], _request: Any, _context: Any) -> Iterator[Any]:
    for part in parts:
        if part.rows:
            first, second = wire.EntryRow(), wire.EntryRow()
            first.CopyFrom(part.rows[3])
            second.CopyFrom(part.rows[4])
            part.rows[3].CopyFrom(second)
            part.rows[4].CopyFrom(first)
        yield part


@pytest.mark.parametrize(
    "bend",
    [
        without_last_row,
        without_head,
        with_rows_without_end,
        swapped_rows,
        _changed(body=lambda body: body.replace('"steps":5', '"steps":1') + " "),
        _changed(body=lambda body: "[" * 100_000),
        _changed(kind=lambda kind: "cohort"),
        _changed(hash=lambda digest: "0" * 64),
        _changed(hash=lambda digest: digest.upper()),
        _changed(hash=lambda digest: ""),
        _changed(kind=lambda kind: "", body=lambda body: "", hash=lambda digest: "ab" * 32),
    ],
    ids=lambda bend: getattr(bend, "__name__", ""),
)
def test_rows_that_were_bent_or_cut_off_are_found(coordinator: Coordinator, bend: Any) -> None:
    with pytest.raises((LedgerError, RemoteError)):
        read(coordinator, bend)


@pytest.mark.parametrize("place", [0, 5, 6, 8])
def test_a_row_of_somebody_else_that_was_bent_is_found_by_the_root(coordinator: Coordinator, place: int) -> None:
    """No row of the reader's own follows that could show it."""
    charge(coordinator.ledger, "south", 2)

    def bend(parts: Iterator[Any], _request: Any, _context: Any) -> Iterator[Any]:
        for part in parts:
            if part.rows:
                part.rows[place].hash = "ab" * 32
            yield part

    with pytest.raises(LedgerError, match="root that it states" if place else "does not continue the chain"):
        read(coordinator, bend)
    assert len(read(coordinator, whole)) == 9


def test_a_stream_that_breaks_off_is_taken_up_where_it_ended(coordinator: Coordinator) -> None:
    asked = []

    def breaking(parts: Iterator[Any], request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        asked.append(request.from_sequence)
        yield next(parts)
        for part in parts:
            if len(asked) < 3:
                del part.rows[2:]
                yield part
                context.abort(grpc.StatusCode.UNAVAILABLE, "the line went down")
            yield part

    charge(coordinator.ledger, "south", 2)
    rows = read(coordinator, breaking)
    assert asked == [1, 3, 5]
    assert [row.hash for row in rows] == [entry.hash for entry in Ledger(coordinator.ledger).entries()]
    assert [row.sequence for row in rows if row.entry] == [2, 3, 4, 5]


def test_many_read_while_others_write(coordinator: Coordinator) -> None:
    """Each reader gets whole, proven ledgers, each longer than the one before."""
    stop, failures = threading.Event(), list[BaseException]()

    def write(site: str) -> None:
        number = 10
        while not stop.is_set():
            charge(coordinator.ledger, site, 1, first=number)
            number += 1

    def reading(name: str) -> None:
        try:
            with coordinator.remote(name) as remote:
                for _ in range(4):
                    rows: list[RemoteRow] = []
                    head = remote.entries(rows.append)
                    assert (len(rows), rows[-1].hash) == (head.sequence, head.hash)
                    remote.verify(1 + head.sequence // 2)
        except BaseException as error:
            failures.append(error)

    with coordinator.serving():
        writers = [threading.Thread(target=write, args=(site,)) for site in ("north", "south")]
        readers = [threading.Thread(target=reading, args=(name,)) for name in ("north", "south", "inspector")]
        for thread in (*writers, *readers):
            thread.start()
        for thread in readers:
            thread.join()
        stop.set()
        for thread in writers:
            thread.join()
    assert not failures
    heads = [coordinator.known(name).last() for name in ("north", "south", "inspector")]
    assert all(head is not None and head.sequence > 5 for head in heads)
    Ledger(coordinator.ledger).verify()


def test_two_heads_of_one_length_that_two_processes_were_shown(tmp_path: Path) -> None:
    """Both were asked after the same last head; only one can be right."""
    heads = [ServerHead(sequence=3, hash="a" * 64, root=root * 32, time=1) for root in (b"a", b"b")]
    for head in heads[:1] * 2:
        KnownServer(tmp_path / "h.sqlite").remember(head, "")
    with pytest.raises(LedgerError, match="two different ledgers of 3 entries"):
        KnownServer(tmp_path / "h.sqlite").remember(heads[1], "")
