"""The coordinator's ledger: accounts follow keys, and only a site's own word takes a charge back."""

import base64
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.ledgers import COURSE, DELTA, EVENT, UNLIMITED, cost

from wardpose.server.budget import GlobalBudget
from wardpose.server.heads import Heads
from wardpose.server.ledger import ServerLedger
from wardpose.server.witness import LedgerWitness
from wardpose.shared.errors import BudgetExceeded, LedgerError, WardposeError
from wardpose.shared.ledger_state import ledger_state
from wardpose.shared.ledger_views import cohort_views
from wardpose.shared.privacy import chain
from wardpose.shared.privacy.entries import CHECKPOINT, EXPIRE, RESERVE, entry_hash
from wardpose.shared.privacy.expiry import NothingReleased, verify_expiries
from wardpose.shared.privacy.ledger import Budget, Ledger, Reservation
from wardpose.shared.signing import SignatureError, Signer


@pytest.fixture(scope="module")
def north() -> Signer:
    return Signer(ec.generate_private_key(ec.SECP384R1()))


@pytest.fixture(scope="module")
def other() -> Signer:
    return Signer(ec.generate_private_key(ec.SECP384R1()))


@pytest.fixture
def ledger(tmp_path: Path) -> ServerLedger:
    return ServerLedger(tmp_path / "ledger.sqlite")


def reserve(ledger: ServerLedger, number: int = 1, *, site: str = "north", run: str = "run") -> Reservation:
    return ledger.reserve(site, [EVENT], run_id=run, round=number, budget=UNLIMITED, course=COURSE)


def steps(ledger: Ledger, account: str = "north") -> int:
    return sum(event.steps for charge in ledger.charges(account) for event in charge.total)


def word(ledger: ServerLedger, reservation: Reservation) -> NothingReleased:
    return NothingReleased(
        ledger=ledger.identity(),
        reservation=reservation.hash,
        site="north",
        run=reservation.run_id,
        round=reservation.round,
    )


def expire(ledger: ServerLedger, said: NothingReleased, signer: Signer, **asked: Any) -> None:
    asked = {"site": said.site, "run": said.run, "round_number": said.round} | asked
    ledger.expire(said.text(), said.sign(signer), signer.public, **asked)


def test_a_key_under_another_name_has_the_account_that_it_had(ledger: ServerLedger, north: Signer) -> None:
    reserve(ledger)
    assert ledger.bind("north", north.public) == "north"
    count = ledger.head()[0]
    assert ledger.bind("north", north.public) == "north"
    assert ledger.head()[0] == count  # once is enough
    assert ledger.account_of("st-mary", north.public) == "north"
    assert ledger.bind("st-mary", north.public) == "north"
    assert ledger.account_of("st-mary") == "north"  # and so it stays
    budget = GlobalBudget(ledger, delta=DELTA, overlap=1)
    assert budget.epsilon("st-mary") == budget.epsilon("north") > 0
    assert budget.reserve("st-mary", [EVENT], course=COURSE, round_number=2, epsilon=99.0)
    assert steps(ledger) == 2 * EVENT.steps
    assert budget.steps("st-mary", "run") == budget.steps("north", "run") == 2 * EVENT.steps
    assert budget.federation(["st-mary", "north"])[1] == budget.epsilon("north")


def test_another_key_under_a_name_is_believed_only_when_people_say_so(
    ledger: ServerLedger, north: Signer, other: Signer
) -> None:
    reserve(ledger)
    ledger.bind("north", north.public)
    for name in ("north", "north"):
        with pytest.raises(LedgerError, match="with another key than its account is bound to"):
            ledger.bind(name, other.public)
    assert ledger.bind("north", other.public, why="key lost, says Dr Grey") == "north"
    assert ledger.key_of("north") == other.public.text
    with pytest.raises(LedgerError, match="another key"):  # the lost key may be in anybody's hands
        ledger.bind("north", north.public)
    with pytest.raises(LedgerError, match="another key"):
        ledger.bind("elsewhere", north.public)
    assert steps(ledger) == EVENT.steps


def test_a_name_and_a_key_of_two_accounts_are_nobodys(ledger: ServerLedger, north: Signer, other: Signer) -> None:
    ledger.bind("north", north.public)
    ledger.bind("south", other.public)
    with pytest.raises(LedgerError, match="has an account of its own"):
        ledger.bind("south", north.public)
    with pytest.raises(LedgerError, match="has the account 'north' already"):
        ledger.bind("south", north.public, why="they merged")
    with pytest.raises(LedgerError, match="has no account 'nobody'"):
        ledger.bind("west", Signer(ec.generate_private_key(ec.SECP384R1())).public, why="x", account="nobody")


def test_a_hospital_with_a_new_name_and_a_new_key_keeps_its_account_by_peoples_word(
    ledger: ServerLedger, north: Signer, other: Signer
) -> None:
    reserve(ledger)
    ledger.bind("north", north.public)
    assert ledger.bind("st-mary", other.public, why="moved house", account="north") == "north"
    assert ledger.account_of("st-mary", other.public) == "north"
    assert ledger.account_of("north", other.public) == "north"


def test_a_new_name_is_held_against_the_old_ones_head(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads.sqlite")
    heads.remember("north", 9, "a" * 64)
    heads.follow("st-mary", "north")
    heads.follow("st-mary", "north")
    heads.follow("south", "south")
    assert (heads.last("st-mary"), heads.last("south")) == ((9, "a" * 64), None)


def test_what_another_process_took_back_is_given_to_one_that_knew_the_full_account(
    ledger: ServerLedger, north: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It warms up with the sum that it last saw; what that sum refuses is not refused."""
    monkeypatch.setattr(chain, "_SPACING", 1)  # every sum is kept
    budget = Budget(epsilon=cost(EVENT, EVENT), delta=DELTA)
    (_, second) = (
        ledger.reserve("north", [EVENT], run_id="run", round=n, budget=budget, course=COURSE) for n in (1, 2)
    )
    with pytest.raises(BudgetExceeded):
        ledger.reserve("north", [EVENT], run_id="run", round=3, budget=budget, course=COURSE)
    elsewhere = ServerLedger(ledger.path)
    expire(elsewhere, word(elsewhere, second), north)
    assert ledger.reserve("north", [EVENT], run_id="run", round=3, budget=budget, course=COURSE)
    with pytest.raises(BudgetExceeded):
        elsewhere.reserve("north", [EVENT], run_id="run", round=4, budget=budget, course=COURSE)


def test_what_is_open_follows_commits_backups_and_other_processes(
    ledger: ServerLedger, north: Signer, tmp_path: Path
) -> None:
    """One object that is asked at every step says what a new one, which reads everything, says."""

    def agreed() -> list[int]:
        opened = ServerLedger(ledger.path)
        for site, run in (("north", "run"), ("south", "run"), ("north", "another")):
            assert list(ledger.reservations(site, run)) == list(opened.reservations(site, run))
        known, new = ledger.open_reservations("north"), opened.open_reservations("north")
        assert known == new
        return [said.round for said in known]

    assert agreed() == []
    made = [reserve(ledger, number) for number in (1, 2, 3)]
    reserve(ledger, 9, site="south")
    reserve(ServerLedger(ledger.path), 1, run="another")
    assert agreed() == [1, 2, 3, 1]
    ServerLedger(ledger.path).commit(made[1])
    assert agreed() == [1, 3, 1]
    backup = shutil.copyfile(ledger.path, tmp_path / "backup.sqlite")
    reserve(ServerLedger(ledger.path), 4)
    ledger.commit(made[0])
    assert agreed() == [3, 1, 4]
    expire(ServerLedger(ledger.path), word(ledger, made[2]), north)
    assert agreed() == [1, 4]
    shutil.copyfile(backup, ledger.path)  # and other rows are written in the places of those that are gone
    assert agreed() == [1, 3, 1]
    for number in (5, 6, 7):
        reserve(ServerLedger(ledger.path), number)
    assert agreed() == [1, 3, 1, 5, 6, 7]
    assert [said.round for said in ledger.open_reservations("north", after=made[0].sequence)] == [3, 1, 5, 6, 7]


def test_a_reservation_goes_by_the_sites_word_alone(ledger: ServerLedger, north: Signer) -> None:
    first, second = reserve(ledger), reserve(ledger, 2)
    assert [found.reservation for found in ledger.open_reservations("north")] == [first.hash, second.hash]
    expire(ledger, word(ledger, second), north)
    assert steps(ledger) == EVENT.steps
    assert [entry.sequence for entry in ledger.reservations("north", "run")] == [first.sequence]
    assert ledger.open_reservations("north") == [word(ledger, first)]
    assert verify_expiries(ledger.entries(), north.public) == 1
    assert ledger_state(ledger.path, {("run", 1)}) == ("ok", "")
    (view,) = cohort_views(ledger, ledger.entries())
    assert view.studies[0].rounds == 1
    assert view.spent == pytest.approx(ledger.epsilon("north", DELTA))
    with pytest.raises(LedgerError, match="was taken back"):
        ledger.commit(second)


WRONG: dict[str, dict[str, Any]] = {
    "another ledger": {"ledger": "f" * 32},
    "another entry": {"reservation": "0" * 64},
    "another round": {"round": 2},
    "another run": {"run": "r9"},
    "another site": {"site": "south"},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_word_for_something_else_takes_nothing_back(case: str, ledger: ServerLedger, north: Signer) -> None:
    reservation = reserve(ledger)
    reserve(ledger, site="south")
    said = replace(word(ledger, reservation), **WRONG[case])
    before = ledger.head()
    with pytest.raises(LedgerError):
        expire(ledger, said, north)
    with pytest.raises(LedgerError):
        expire(ledger, said, north, site="north", run="run", round_number=1)
    assert ledger.head() == before


def test_a_word_is_good_once_and_for_one_try(ledger: ServerLedger, north: Signer) -> None:
    first, again = reserve(ledger), reserve(ledger)  # the same round, tried again
    expire(ledger, word(ledger, first), north)
    with pytest.raises(LedgerError, match="was taken back before"):
        expire(ledger, word(ledger, first), north)
    assert steps(ledger) == EVENT.steps
    assert ledger.open_reservations("north") == [word(ledger, again)]
    third = reserve(ledger)
    assert third.hash not in (first.hash, again.hash)
    assert steps(ledger) == 2 * EVENT.steps


def test_forged_words_take_nothing_back(ledger: ServerLedger, north: Signer, other: Signer) -> None:
    reservation = reserve(ledger)
    said = word(ledger, reservation)
    place = {"site": "north", "run": "run", "round_number": 1}
    before = ledger.head()
    for text, signature in (
        (said.text(), said.sign(other)),
        (said.text(), north.sign("order", said.text().encode())),  # signed, for another purpose
        (said.text() + " ", said.sign(north)),
        (said.text(), "no base64"),
        (said.text(), base64.b64encode(b"x" * 100).decode()),
    ):
        with pytest.raises(SignatureError):
            ledger.expire(text, signature, north.public, **place)
    for text in ("[]", "{}", '{"statement":"nothing released"}', json.dumps(json.loads(said.text()), indent=1)):
        signature = north.sign("nothing released", text.encode())
        with pytest.raises(LedgerError):
            ledger.expire(text, signature, north.public, **place)
    ledger.bind("north", north.public)
    with pytest.raises(LedgerError, match="is bound to another key"):
        expire(ledger, said, other)
    assert steps(ledger) == EVENT.steps
    assert ledger.head()[0] == before[0] + 1  # the key's


def test_what_an_answer_came_to_is_not_taken_back(ledger: ServerLedger, north: Signer) -> None:
    budget = GlobalBudget(ledger, delta=DELTA, overlap=1)
    assert budget.reserve("north", [EVENT], course=COURSE, round_number=1, epsilon=99.0)
    (said,) = ledger.open_reservations("north")
    budget.answered("north", "run", 1)
    assert ledger.open_reservations("north") == []
    with pytest.raises(LedgerError, match="stays charged"):
        expire(ledger, said, north)
    assert steps(ledger) == EVENT.steps


def test_a_site_that_answers_after_its_word_pays_again(ledger: ServerLedger, north: Signer) -> None:
    budget = GlobalBudget(ledger, delta=DELTA, overlap=1)
    assert budget.reserve("north", [EVENT], course=COURSE, round_number=1, epsilon=99.0)
    (said,) = ledger.open_reservations("north")
    expire(ledger, said, north)
    assert steps(ledger) == 0
    budget.answered("north", "run", 1)
    assert steps(ledger) == EVENT.steps
    assert ledger.open_reservations("north") == []


def test_a_ledger_that_knows_patients_takes_nothing_back(ledger: ServerLedger, north: Signer) -> None:
    reservation = reserve(ledger)
    ledger.declare("north", identity="x", reservation=reservation, patients={"ann": ""}, budget=UNLIMITED)
    later = reserve(ledger, 2)
    with pytest.raises(LedgerError, match="knows patients"):
        expire(ledger, word(ledger, later), north)
    assert steps(ledger) == 2 * EVENT.steps


def rewrite(path: Path, kind: str, change: dict[str, Any]) -> None:
    """Change an entry, and every hash after it, so that the chain holds."""
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER IF EXISTS entries_stay")
    previous = "0" * 64
    for sequence, found, text in connection.execute("SELECT sequence, kind, body FROM entries").fetchall():
        body = json.dumps(json.loads(text) | (change if found == kind else {}), sort_keys=True, separators=(",", ":"))
        digest = entry_hash(sequence, found, body, previous)
        connection.execute(
            "UPDATE entries SET body = ?, previous = ?, hash = ? WHERE sequence = ?", (body, previous, digest, sequence)
        )
        previous = digest
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "change",
    [{"reservation": 2}, {"round": 7}, {"signature": "AAAA"}, {"hash": "0" * 64}, {"events": [EVENT.to_json()] * 2}],
)
def test_an_entry_that_says_more_than_the_word_is_found(
    change: dict[str, Any], ledger: ServerLedger, north: Signer, tmp_path: Path
) -> None:
    reserve(ledger, 5)
    expire(ledger, word(ledger, reserve(ledger)), north)
    copy = Path(shutil.copy(ledger.path, tmp_path / "copy.sqlite"))
    rewrite(copy, EXPIRE, change)
    with pytest.raises(WardposeError):
        verify_expiries(Ledger(copy).entries())


def test_a_word_by_a_stranger_is_found_with_the_sites_key(ledger: ServerLedger, north: Signer, other: Signer) -> None:
    expire(ledger, word(ledger, reserve(ledger)), other)  # who wrote this was the server itself
    assert verify_expiries(ledger.entries()) == 1
    with pytest.raises(LedgerError, match="not by the site's"):
        verify_expiries(ledger.entries(), north.public)


def test_sums_and_checkpoints_know_what_was_taken_back(
    tmp_path: Path, north: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "_SPACING", 8)
    witness, path = LedgerWitness(tmp_path / "witness.sqlite"), tmp_path / "ledger.sqlite"
    witness.begin()
    charged = 0
    for number in range(1, 9):
        ledger = ServerLedger(path, witness=witness)
        reservation = reserve(ledger, number)
        if number % 2:
            expire(ledger, word(ledger, reservation), north)
        else:
            ledger.commit(reservation)
            charged += 1
        ledger.bind("north", north.public)
    kinds = [entry.kind for entry in ServerLedger(path).entries()]
    assert kinds.count(CHECKPOINT) >= 2
    assert kinds.count(RESERVE) == 8
    for opened in (ServerLedger(path, witness=witness), ServerLedger(path)):
        assert steps(opened) == charged * EVENT.steps
        assert len(opened.expired()) == 4
        assert opened.key_of("north") == north.public.text


def test_a_charge_while_somebody_looks_is_no_rollback(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    class Busy(LedgerWitness):
        """A coordinator charges just before its exporter asks the witness."""

        def head(self) -> tuple[int, str] | None:
            reserve(ServerLedger(path, witness=LedgerWitness(self.path)))
            return super().head()

    witness = Busy(tmp_path / "witness.sqlite")
    witness.begin()
    assert ledger_state(path, set(), witness=witness) == ("ok", "")
    assert ledger_state(path, set(), witness=witness) == ("ok", "")
    witness.path.write_bytes(b"not a witness" * 99)
    assert ledger_state(path, set(), witness=LedgerWitness(witness.path))[0] == "broken"


def test_an_import_leaves_out_what_was_taken_back_and_keeps_keys(
    tmp_path: Path, ledger: ServerLedger, north: Signer
) -> None:
    old = ServerLedger(tmp_path / "old.sqlite")
    reserve(old)
    expire(old, word(old, reserve(old, 2)), north)
    old.bind("north", north.public)
    assert ledger.import_from(old) == 1
    assert steps(ledger) == EVENT.steps
    assert ledger.account_of("st-mary", north.public) == "north"
