"""Who wrote a ledger's rows: nobody without the key can write one, or a whole history."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.signing import Signer, create_key_pair

EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=2.0, steps=3, max_grad_norm=1.0)
BUDGET = Budget(epsilon=50.0, delta=1e-5, unit="patient")


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return create_key_pair(tmp_path / "node.key", tmp_path / "node.pub")


@pytest.fixture
def other(tmp_path: Path) -> Signer:
    return create_key_pair(tmp_path / "other.key", tmp_path / "other.pub")


def charge(ledger: Ledger, rounds: int) -> None:
    for number in range(rounds):
        ledger.commit(ledger.reserve("ward", [EVENT], run_id="r", round=number + 1, budget=BUDGET))


def test_every_row_is_signed_from_the_first(tmp_path: Path, signer: Signer) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", signer=signer)
    charge(ledger, 3)
    assert ledger.check_signatures(signer.public) == (7, 0)
    with sqlite3.connect(tmp_path / "l.sqlite") as connection:
        for sequence, digest, signature in connection.execute(
            "SELECT sequence, hash, signature FROM entries JOIN signatures USING (sequence)"
        ):
            signer.public.verify("ledger row", digest.encode(), signature)
            assert sequence


@pytest.mark.parametrize("rounds", [1, 150])  # below and above what a process remembers of a chain
def test_rows_of_another_hand_are_refused(tmp_path: Path, signer: Signer, other: Signer, rounds: int) -> None:
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, signer=signer)
    charge(ledger, rounds)
    charge(ledger, 1)
    Ledger(path).declare("ward", identity="x")  # a valid chain, and no signature
    for again in (ledger, None):
        with pytest.raises(LedgerError, match="is not signed"):
            (again or Ledger(path, signer=signer)).head()
    with pytest.raises(LedgerError, match="is not signed"):
        ledger.check_signatures(signer.public)
    forged = tmp_path / "forged.sqlite"
    charge(Ledger(forged, signer=other), 1)
    shutil.copy(forged, path)
    with pytest.raises(LedgerError, match=f"is signed by the key {other.public.fingerprint[:16]}"):
        Ledger(path, signer=signer)


def test_a_name_beside_a_foreign_signature_is_not_believed(tmp_path: Path, signer: Signer, other: Signer) -> None:
    path = tmp_path / "l.sqlite"
    charge(Ledger(path, signer=other), 1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE signatures SET key = ?", (signer.public.fingerprint,))
    with pytest.raises(LedgerError, match="has a false signature"):
        Ledger(path, signer=signer)


def test_a_signature_of_another_row_is_not_believed(tmp_path: Path, signer: Signer) -> None:
    path = tmp_path / "l.sqlite"
    charge(Ledger(path, signer=signer), 2)
    with sqlite3.connect(path) as connection:
        (first,) = connection.execute("SELECT signature FROM signatures WHERE sequence = 2").fetchone()
        connection.execute("UPDATE signatures SET signature = ? WHERE sequence = 5", (first,))
    with pytest.raises(LedgerError, match="entry 5 has a false signature"):
        Ledger(path, signer=signer)


def test_a_row_in_the_middle_whose_signature_was_changed_is_found_by_the_full_check(
    tmp_path: Path, signer: Signer
) -> None:
    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, signer=signer)
    charge(ledger, 2)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE signatures SET signature = 'AAAA' WHERE sequence = 3")
    ledger.head()  # the last row's hash covers it
    with pytest.raises(LedgerError, match="entry 3 has a false signature"):
        ledger.check_signatures(signer.public)


def test_a_new_key_begins_by_hand_and_gives_nothing_back(tmp_path: Path, signer: Signer, other: Signer) -> None:
    path = tmp_path / "l.sqlite"
    charge(Ledger(path), 2)  # of a time before signatures
    before = Ledger(path).epsilon("ward", 1e-5)
    with pytest.raises(LedgerError, match="renew-key"):
        Ledger(path, signer=signer)
    for key in (signer, other):
        entry = Ledger(path).renewed(key, "the old one was stolen, says the data officer")
        assert entry.body["key"] == key.public.text
        charge(Ledger(path, signer=key), 1)
    with pytest.raises(LedgerError, match="by this key already"):
        Ledger(path).renewed(other, "again")
    with pytest.raises(LedgerError, match="renew-key"):
        Ledger(path, signer=signer)
    assert Ledger(path, signer=other).check_signatures(other.public) == (3, 8)
    assert Ledger(path).epsilon("ward", 1e-5) > before
    Ledger(path).verify()


def test_nothing_is_left_of_a_transaction_that_cannot_be_signed(tmp_path: Path, signer: Signer) -> None:
    class Broken(Signer):
        def sign(self, purpose: str, content: bytes) -> str:
            raise OSError("the key store is gone")

    path = tmp_path / "l.sqlite"
    ledger = Ledger(path, signer=signer)
    charge(ledger, 1)
    broken = Ledger(path, signer=Broken(signer.key))
    with pytest.raises(LedgerError, match="key store is gone"):
        charge(broken, 1)
    assert Ledger(path, signer=signer).head() == ledger.head()


def test_heads_that_were_seen_are_recognised(tmp_path: Path, signer: Signer) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", signer=signer)
    nothing = (0, "0" * 64)
    assert ledger.contains(nothing)
    charge(ledger, 1)
    seen = ledger.head()
    charge(ledger, 1)
    assert ledger.contains(seen)
    assert ledger.contains(nothing)
    for wrong in ((seen[0], "0" * 64), (seen[0] + 1, seen[1]), (99, seen[1]), (99, "0" * 64), (0, seen[1])):
        assert not ledger.contains(wrong)
