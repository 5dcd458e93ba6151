"""Several runs of one coordinator talk to one site at once; and a site that began another ledger."""

import time
from pathlib import Path

import pytest
from flwr.app import RecordDict
from support.orders import make_order
from support.sealing import write_keys

from wardpose.client.contact import Contact as SiteContact
from wardpose.client.contact import Conversation
from wardpose.server.contact import Contact, open_alarms
from wardpose.server.heads import Heads
from wardpose.server.ledger import ServerLedger
from wardpose.shared.errors import LedgerError
from wardpose.shared.messages import PREFLIGHT, TRAIN, SiteAnswer
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.expiry import NothingReleased
from wardpose.shared.privacy.ledger import Budget, Ledger, Reservation
from wardpose.shared.seals import OrderSeal, Word
from wardpose.shared.signing import SignatureError, create_key_pair
from wardpose.shared.wire import pack

EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=1, max_grad_norm=1.0)
CONTENT = pack(make_order())


class Place:
    """A coordinator and a site in one folder."""

    def __init__(self, folder: Path) -> None:
        self.site_key, self.key = write_keys(folder)
        self.ledger = ServerLedger(folder / "server.sqlite", signer=self.key)
        self.heads = Heads(folder / "heads.sqlite")
        self.site = SiteContact(folder / "site-contact.sqlite", self.key.public)
        self.book = Ledger(folder / "site.sqlite", signer=self.site_key)
        self.book.begin()
        self.folder = folder

    def run(self, name: str) -> Contact:
        return Contact(self.folder / "contact.sqlite", self.key, self.ledger, self.heads, run=name)

    def charge(self, run: str, number: int = 1) -> Reservation:
        budget = Budget(epsilon=99.0, delta=1e-5, unit="patient")
        return self.ledger.reserve("north", [EVENT], run_id=run, round=number, budget=budget)

    def ask(self, run: str) -> tuple[RecordDict, OrderSeal]:
        return self.run(run).sealed(CONTENT, site="north", kind=PREFLIGHT)

    def order(self, run: str, charge: str) -> RecordDict:
        return self.run(run).sealed(CONTENT, site="north", kind=TRAIN, charge=charge)[0]

    def hear(self, content: RecordDict, kind: str = PREFLIGHT) -> Conversation:
        return self.site.opened(content, site="north", kind=kind, ledger=self.book, signer=self.site_key)

    def answer(self, said: Conversation, *words: Word) -> SiteAnswer:
        sequence, head = self.book.head()
        return SiteAnswer(
            site="north", key=self.site_key.public.text, nonce=said.seal.nonce, order=said.seal.order,
            code_hash="0" * 64, secure=True, ledger_sequence=sequence, ledger_head=head,
            server_ledger=said.server_ledger, words=(*said.words, *words), epsilon_spent=0, epsilon_budget=1,
            delta=1e-5,
        )  # fmt: skip

    def tell(self, run: str, answer: SiteAnswer) -> None:
        self.run(run).hears(answer, self.site_key.public)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_round_of_one_run_locks_the_site_out_of_no_other(place: Place) -> None:
    """While the site trains for one, nobody has heard yet which entry it knows; and answers come in any order."""
    for run in ("a", "b"):
        place.tell(run, place.answer(place.hear(place.ask(run)[0])))
    mine = place.hear(place.order("a", place.charge("a").hash), TRAIN)
    place.site.refuse_unconfirmed(mine)
    for number in range(1, 4):
        theirs = place.hear(place.order("b", place.charge("b", number).hash), TRAIN)
        place.site.refuse_unconfirmed(theirs)
        place.tell("b", place.answer(theirs))
    place.tell("a", place.answer(mine))  # the first order's answer comes last, and tells of an old entry
    for run in ("b", "a"):
        place.site.refuse_unconfirmed(place.hear(place.order(run, place.charge(run, 9).hash), TRAIN))
    assert open_alarms(place.folder / "contact.sqlite") == []


def test_what_was_stated_and_is_gone_is_not_confirmed(place: Place, tmp_path: Path) -> None:
    place.tell("a", place.answer(place.hear(place.ask("a")[0])))
    place.hear(place.order("a", place.charge("a").hash), TRAIN)
    place.ledger.path.unlink()
    for number in range(12):
        place.ledger.declare(f"another-{number}", identity=f"{number}")
    with pytest.raises(SignatureError, match="does not confirm"):
        place.site.refuse_unconfirmed(place.hear(place.order("a", "12" * 32), TRAIN))


def test_nobody_asks_about_an_order_of_another_run_that_may_be_on_its_way(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.charge("a")
    assert [charge.run for charge in place.ask("a")[1].unanswered] == ["a"]
    assert place.ask("b")[1].unanswered == ()
    later = time.time() + 2 * 86400
    monkeypatch.setattr("wardpose.server.contact.time.time", lambda: later)
    assert [charge.run for charge in place.ask("b")[1].unanswered] == ["a"]


def word(place: Place, reservation: Reservation) -> Word:
    said = NothingReleased(
        ledger=place.ledger.identity(), reservation=reservation.hash, site="north", run=reservation.run_id,
        round=reservation.round,
    )  # fmt: skip
    return Word(text=said.text(), signature=said.sign(place.site_key))


def test_a_new_ledger_takes_nothing_back_that_the_old_one_may_have_paid(place: Place) -> None:
    """A site whose ledger was lost knows of no round: what was charged before stays charged."""
    lost = place.charge("a")
    place.heads.accept_another("north", "the disk broke", charged=place.ledger.head()[0])
    content, seal = place.ask("a")
    assert seal.unanswered == ()
    place.tell("a", place.answer(place.hear(content), word(place, lost)))
    assert place.ledger.expired() == ()
    later = place.charge("a", 2)
    place.tell("a", place.answer(place.hear(place.ask("a")[0])))
    assert place.ledger.expired() == (later.sequence,)


def test_a_new_ledger_of_nobody_knows_when_takes_nothing_back(place: Place) -> None:
    place.heads.accept_another("north", "accepted by an earlier version")
    place.charge("a")
    assert place.ask("a")[1].unanswered == ()


def test_what_was_imported_is_not_taken_back(place: Place, tmp_path: Path) -> None:
    """The folder that it comes from may have seen the site's ledger lost; its list of that is not imported."""
    old = ServerLedger(tmp_path / "old.sqlite", signer=place.key)
    budget = Budget(epsilon=99.0, delta=1e-5, unit="patient")
    old.reserve("north", [EVENT], run_id="a", round=1, budget=budget)
    assert place.ledger.import_from(old) == 1
    assert place.ask("a")[1].unanswered == ()


def test_another_name_of_the_account_takes_nothing_back_either(place: Place) -> None:
    place.ledger.bind("north", place.site_key.public)
    place.ledger.bind("nord", place.site_key.public)
    place.charge("a")
    place.heads.accept_another("north", "the disk broke", charged=place.ledger.head()[0])
    assert place.run("a").sealed(CONTENT, site="nord", kind=PREFLIGHT)[1].unanswered == ()


def test_the_superlink_names_no_other_key_for_an_account(place: Place, tmp_path: Path) -> None:
    """Whoever sits on it says with which key a node is registered."""
    stranger = create_key_pair(tmp_path / "s.key", tmp_path / "s.pub").public
    place.ledger.bind("north", place.site_key.public)
    with pytest.raises(SignatureError, match="not the registered one"):
        place.run("a").check_key("north", stranger.text, stranger)
    assert place.run("a").check_key("north", place.site_key.public.text, place.site_key.public)


def test_an_answer_is_held_against_the_head_that_the_site_was_told(place: Place) -> None:
    """Another run heard of newer entries meanwhile; that is no ledger that went back."""
    for number in (3, 9):
        place.heads.remember("north", number, str(number) * 64)
    place.heads.check("north", 5, "5" * 64, grown=True, asked=(3, "3" * 64))
    for sequence, digest, grown in ((9, "8" * 64, False), (3, "3" * 64, True), (2, "2" * 64, False)):
        with pytest.raises(LedgerError):
            place.heads.check("north", sequence, digest, grown=grown, asked=(3, "3" * 64))
    with pytest.raises(LedgerError, match="went back"):
        place.heads.check("north", 5, "5" * 64, grown=True)


def test_the_head_of_a_seal_is_as_old_as_its_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A charge and an order of another run fall between the reading of the head and the sealing."""
    place.tell("a", place.answer(place.hear(place.ask("a")[0])))
    told = Heads.last

    def slow(heads: Heads, site: str) -> tuple[int, str] | None:
        monkeypatch.undo()
        place.charge("b")
        place.hear(place.ask("b")[0])
        return told(heads, site)

    monkeypatch.setattr(Heads, "last", slow)
    place.hear(place.ask("a")[0])
