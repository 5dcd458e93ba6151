"""A site and its coordinator, seen from the site: what is carried out, what is remembered, what raises the alarm."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from support.orders import make_order
from support.sealing import NOTHING, sealed, write_keys

from wardpose.client.contact import Contact, Conversation, LedgersApartError, facts_hash, open_alarms
from wardpose.shared.errors import WireError
from wardpose.shared.messages import PREFLIGHT, TRAIN
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.seals import SEAL, Head, Receipt, SignedReceipt, open_seal, sign_receipt
from wardpose.shared.signing import SignatureError, create_key_pair
from wardpose.shared.wire import pack

ORDER = make_order()
CONTENT = pack(ORDER)
OTHER = "ab" * 32


@pytest.fixture
def contact(tmp_path: Path) -> Contact:
    return Contact(tmp_path / "state" / "contact.sqlite", write_keys(tmp_path)[1].public)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    book = Ledger(tmp_path / "ledger.sqlite", signer=write_keys(tmp_path)[0])
    book.declare("ward", identity="x")
    return book


def hear(contact: Contact, ledger: Ledger, content: RecordDict, kind: str = PREFLIGHT) -> Conversation:
    signer = write_keys(ledger.path.parent)[0]
    return contact.opened(content, site="north", kind=kind, ledger=ledger, signer=signer)


def said(book: Ledger, kind: str = PREFLIGHT, **changes: Any) -> RecordDict:
    return sealed(book.path.parent, CONTENT, kind, **changes)


def test_what_the_coordinator_signed_for_this_site_is_believed_once(contact: Contact, ledger: Ledger) -> None:
    content = said(ledger, TRAIN)
    assert hear(contact, ledger, content, TRAIN).seal.order
    with pytest.raises(SignatureError, match="came before"):
        hear(contact, ledger, content, TRAIN)
    with pytest.raises(SignatureError, match="came before"):  # by another process, after a restart
        hear(Contact(contact.path, contact.coordinator), ledger, content, TRAIN)


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        (TRAIN, {"site": "south"}, "another site: south"),
        (TRAIN, {"site": "*"}, "another site"),  # only questions may be for anybody
        (PREFLIGHT, {}, "another kind of message"),
    ],
)
def test_a_seal_for_something_else_is_none(
    contact: Contact, ledger: Ledger, kind: str, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(SignatureError, match=text):
        hear(contact, ledger, said(ledger, kind, **changes), TRAIN)


def test_a_question_may_be_for_anybody(contact: Contact, ledger: Ledger) -> None:
    assert hear(contact, ledger, said(ledger, PREFLIGHT, site="*")).seal.site == "*"


def changed_body(content: RecordDict) -> None:
    content["body"] = ConfigRecord({"json": pack(make_order(round_number=2)).config_records["body"]["json"]})


def changed_seal(content: RecordDict) -> None:
    seal = dict(content.config_records[SEAL])
    content[SEAL] = ConfigRecord(seal | {"json": str(seal["json"]).replace('"north"', '"nord"')})


def no_seal(content: RecordDict) -> None:
    del content[SEAL]


def empty_seal(content: RecordDict) -> None:
    content[SEAL] = ConfigRecord({})


def seal_of_bytes(content: RecordDict) -> None:
    content[SEAL] = ConfigRecord({"json": b"{}", "signature": 3})


def endless_seal(content: RecordDict) -> None:
    content[SEAL] = ConfigRecord({"json": "[" * 100_000, "signature": "AAAA"})


@pytest.mark.parametrize("change", [changed_body, changed_seal, no_seal, empty_seal, seal_of_bytes, endless_seal])
def test_what_was_changed_on_the_way_is_not_believed(contact: Contact, ledger: Ledger, change: Any) -> None:
    content = said(ledger, TRAIN)
    change(content)
    with pytest.raises(SignatureError):
        hear(contact, ledger, content, TRAIN)
    assert contact.remembered() == NOTHING


def test_another_coordinators_order_is_not_carried_out(contact: Contact, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(SignatureError):
        hear(contact, ledger, sealed(tmp_path / "other", CONTENT, TRAIN), TRAIN)


def test_a_signed_text_that_is_no_seal_is_a_malformed_message(tmp_path: Path) -> None:
    _, coordinator = write_keys(tmp_path)
    for text in ("{}", "[" * 10_000, "null", '{"site": "north"}'):
        record = ConfigRecord({"json": text, "signature": coordinator.sign("order", text.encode())})
        with pytest.raises(WireError):
            open_seal(RecordDict({SEAL: record}), coordinator.public, site="north", kind=TRAIN)


def test_the_coordinators_ledger_may_grow_and_never_change(contact: Contact, ledger: Ledger) -> None:
    five, eight = Head(5, "5" * 64), Head(8, "8" * 64)
    hear(contact, ledger, said(ledger, ledger=five))
    hear(contact, ledger, said(ledger, ledger=eight))  # it does not confirm the fifth: the fifth stays remembered
    assert contact.remembered() == five
    hear(contact, ledger, said(ledger, ledger=eight, confirmed=five))
    assert contact.remembered() == eight
    for wrong, text in (
        (five, "went back from 8 to 5"),
        (NOTHING, "went back from 8 to 0"),
        (Head(8, OTHER), "entry 8 of the coordinator's ledger is not the one seen before"),
    ):
        with pytest.raises(LedgersApartError, match=text):
            hear(contact, ledger, said(ledger, ledger=wrong, confirmed=eight))
        assert any(text in alarm.what for alarm in open_alarms(contact.path))
        assert contact.remembered() == eight
    hear(contact, ledger, said(ledger, ledger=eight, confirmed=eight))  # the newest backup was restored
    assert open_alarms(contact.path) == []


def test_a_training_order_waits_until_what_was_seen_is_confirmed(contact: Contact, ledger: Ledger) -> None:
    five, eight = Head(5, "5" * 64), Head(8, "8" * 64)
    hear(contact, ledger, said(ledger, ledger=five))
    forked = hear(contact, ledger, said(ledger, TRAIN, ledger=eight), TRAIN)
    with pytest.raises(SignatureError, match="does not confirm entry 5"):
        contact.refuse_unconfirmed(forked)
    contact.refuse_unconfirmed(hear(contact, ledger, said(ledger, TRAIN, ledger=eight, confirmed=five), TRAIN))


def test_an_older_message_that_comes_later_is_no_rollback(
    contact: Contact, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wardpose.shared import seals

    monkeypatch.setattr(seals.time, "time", lambda: 1000.0)
    older = said(ledger, ledger=Head(5, "5" * 64))
    monkeypatch.setattr(seals.time, "time", lambda: 2000.0)
    hear(contact, ledger, said(ledger, ledger=Head(8, "8" * 64)))
    monkeypatch.undo()
    assert hear(contact, ledger, older).server_ledger == (8, "8" * 64)


def test_a_ledger_that_the_coordinator_knows_better_is_refused(contact: Contact, ledger: Ledger) -> None:
    hear(contact, ledger, said(ledger, site_ledger=Head(*ledger.head())))
    for lost in (Head(99, OTHER), Head(1, OTHER)):
        with pytest.raises(LedgersApartError, match=f"has seen entry {lost.sequence} of this ledger"):
            hear(contact, ledger, said(ledger, site_ledger=lost))
    assert len(open_alarms(contact.path)) == 2


def receipt(**changes: Any) -> Receipt:
    facts = {
        "site": "north", "run": "r", "round": 1, "order": OTHER, "release": None, "outcome": "late",
        "ledger": Head(3, OTHER), "issued": 1.0,
    }  # fmt: skip
    return Receipt.model_validate(facts | changes)


def given(ledger: Ledger, *receipts: Receipt) -> tuple[SignedReceipt, ...]:
    return tuple(sign_receipt(each, write_keys(ledger.path.parent)[1]) for each in receipts)


def test_receipts_are_kept_and_can_be_shown(contact: Contact, ledger: Ledger) -> None:
    released = facts_hash(CONTENT)
    contact.sent(released, order=OTHER, run="r", round_number=2)
    receipts = given(ledger, receipt(), receipt(round=2, release=released, outcome="released"))
    for _ in range(2):  # until it is acknowledged it comes again
        hear(contact, ledger, said(ledger, receipts=receipts))
    assert [kept.opened(contact.coordinator).round for kept in contact.receipts()] == [1, 2]
    assert open_alarms(contact.path) == []


def test_receipts_that_contradict_what_the_site_knows_raise_the_alarm(
    contact: Contact, ledger: Ledger, tmp_path: Path
) -> None:
    contact.sent(OTHER, order="cd" * 32, run="r", round_number=1)
    stranger = create_key_pair(tmp_path / "s.key", tmp_path / "s.pub")
    for wrong, text in (
        (given(ledger, receipt(site="south")), "of site south"),
        (given(ledger, receipt(release="12" * 32, outcome="released")), "never sent"),
        (given(ledger, receipt(release=OTHER, outcome="released")), "never sent"),  # it answered another order
        ((sign_receipt(receipt(), stranger),), "not the coordinator's"),
    ):
        with pytest.raises(LedgersApartError, match=text):
            hear(contact, ledger, said(ledger, receipts=wrong))
    assert contact.receipts() == []
    assert len(open_alarms(contact.path)) == 3  # the same text once


def test_only_an_accepted_course_is_carried_out(contact: Contact) -> None:
    with pytest.raises(SignatureError, match="was not accepted in a preflight"):
        contact.refuse_unknown(ORDER.course)
    contact.accept(ORDER.course)
    contact.refuse_unknown(ORDER.course)
    with pytest.raises(SignatureError, match="was not accepted"):
        contact.refuse_unknown(make_order(last_round=11).course)


def test_another_ledger_is_accepted_by_hand(contact: Contact, ledger: Ledger) -> None:
    hear(contact, ledger, said(ledger, ledger=Head(8, OTHER)))
    with pytest.raises(LedgersApartError):
        hear(contact, ledger, said(ledger, ledger=Head(1, OTHER)))
    contact.accept_another("the coordinator's disk broke; they wrote on 3 May")
    hear(contact, ledger, said(ledger, ledger=Head(1, OTHER)))
    assert contact.remembered() == (1, OTHER)
    assert open_alarms(contact.path) == []
