"""What a site kept of its coordinator was lost, or put back from an old backup: nothing is carried out again."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from support.orders import make_order
from support.sealing import conversation, sealed, write_keys

from wardpose.client.contact import Contact, LedgersApartError, OutdatedOrderError, open_alarms
from wardpose.client.journal import SiteJournal
from wardpose.shared import seals
from wardpose.shared.messages import PREFLIGHT, TRAIN
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.seals import Charge, Head, Receipt, sign_receipt
from wardpose.shared.signing import SignatureError
from wardpose.shared.wire import pack

CONTENT = pack(make_order())
HASH = "ab" * 32
EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=1, max_grad_norm=1.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    book = Ledger(tmp_path / "ledger.sqlite", signer=write_keys(tmp_path)[0])
    book.begin()
    return book


def made(folder: Path) -> Contact:
    return Contact(folder / "contact.sqlite", write_keys(folder)[1].public, SiteJournal(folder / "journal.sqlite"))


def hear(folder: Path, book: Ledger, kind: str = PREFLIGHT, **changes: Any) -> Any:
    content = sealed(folder, CONTENT, kind, **changes)
    return lambda: made(folder).opened(content, site="north", kind=kind, ledger=book, signer=write_keys(folder)[0])


def lose(folder: Path) -> None:
    for file in folder.glob("contact.sqlite*"):
        file.unlink()


@pytest.mark.parametrize("backup", [False, True])
def test_no_order_is_repeated_to_a_site_that_lost_what_it_heard(tmp_path: Path, ledger: Ledger, backup: bool) -> None:
    hear(tmp_path, ledger)()
    shutil.copy(tmp_path / "contact.sqlite", tmp_path / "old.sqlite")
    order = hear(tmp_path, ledger, TRAIN)
    made(tmp_path).begin(order())
    lose(tmp_path)
    if backup:
        shutil.copy(tmp_path / "old.sqlite", tmp_path / "contact.sqlite")
    for _ in range(3):  # messages that are refused fill nothing up again
        with pytest.raises(LedgersApartError, match="messages, but 2 were believed before"):
            order()
    assert len(open_alarms(tmp_path / "contact.sqlite")) == 1
    made(tmp_path).accept_another("the disk broke on 3 May, says the data officer")
    assert open_alarms(tmp_path / "contact.sqlite") == []
    with pytest.raises(OutdatedOrderError, match="before accept-coordinator-ledger"):
        made(tmp_path).begin(order())
    made(tmp_path).begin(hear(tmp_path, ledger, TRAIN)())


def test_a_charge_that_was_signed_away_stays_so_when_the_list_is_lost(tmp_path: Path, ledger: Ledger) -> None:
    order = hear(tmp_path, ledger, TRAIN, charge=HASH)  # it waits somewhere on the way
    asked = Charge(ledger="0" * 32, reservation=HASH, run="r", round=1)
    assert len(hear(tmp_path, ledger, unanswered=(asked,))().words) == 1
    lose(tmp_path)
    with pytest.raises(LedgersApartError):
        made(tmp_path).begin(order())
    made(tmp_path).accept_another("restored")
    with pytest.raises(OutdatedOrderError):
        made(tmp_path).begin(order())


@pytest.mark.parametrize("days", [-2, 2])
def test_an_old_order_is_not_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """A whole site was put back from a backup, and somebody repeats what was said since."""
    then = time.time() + days * 86400
    with monkeypatch.context() as patch:
        patch.setattr(seals.time, "time", lambda: then)
        old = conversation(tmp_path, CONTENT)
    old = type(old)(seal=old.seal.model_copy(update={"charge": HASH}), signer=old.signer, server_ledger=Head(0, HASH))
    with pytest.raises(OutdatedOrderError, match="are both clocks right"):
        made(tmp_path).begin(old)


def test_receipts_of_what_the_lost_list_held_lock_nobody_out(tmp_path: Path, ledger: Ledger) -> None:
    """Releases that were paid for are believed to have been sent, once staff say that the list was lost."""
    budget = Budget(epsilon=9.0, delta=1e-5, unit="patient")
    ledger.commit(ledger.reserve("ward", [EVENT], run_id="r", round=1, budget=budget))
    facts: dict[str, Any] = {"site": "north", "run": "r", "order": HASH, "release": HASH, "outcome": "released"}
    paid, other = (
        sign_receipt(Receipt(**facts, round=number, ledger=Head(3, HASH), issued=time.time()), write_keys(tmp_path)[1])
        for number in (1, 2)
    )
    with pytest.raises(LedgersApartError, match="never sent"):
        hear(tmp_path, ledger, receipts=(paid,))()
    made(tmp_path).accept_another("restored")
    hear(tmp_path, ledger, receipts=(paid,))()
    with pytest.raises(LedgersApartError, match="round 2, that this site never sent"):
        hear(tmp_path, ledger, receipts=(other,))()


def test_a_head_that_another_run_told_of_meanwhile_is_confirmed(tmp_path: Path, ledger: Ledger) -> None:
    """Two runs talk to one site; the answer to one is not there yet when the other one's order is signed."""
    five, six, eight = (Head(number, str(number) * 64) for number in (5, 6, 8))
    hear(tmp_path, ledger, ledger=five)()
    hear(tmp_path, ledger, ledger=six, confirmed=five)()
    contact = made(tmp_path)
    with pytest.raises(OutdatedOrderError, match="does not confirm entry 6"):
        contact.refuse_unconfirmed(hear(tmp_path, ledger, TRAIN, ledger=eight, confirmed=five)())
    told = hear(tmp_path, ledger, TRAIN, ledger=eight, confirmed=five, stated=(five, six))()
    contact.refuse_unconfirmed(told)
    assert contact.remembered() == eight
    assert issubclass(OutdatedOrderError, SignatureError)


def test_a_ledger_that_was_lost_before_its_first_charge_is_missed(tmp_path: Path, ledger: Ledger) -> None:
    """A site without a file has a head that every empty place has; the answer to the first question makes one."""
    told = Head(*ledger.head())
    assert told.sequence == 1
    ledger.path.unlink()
    with pytest.raises(LedgersApartError, match="has seen entry 1 of this ledger"):
        hear(tmp_path, Ledger(ledger.path, signer=write_keys(tmp_path)[0]), site_ledger=told)()
