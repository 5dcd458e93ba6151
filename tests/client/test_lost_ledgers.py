"""A site's ledger or journal, deleted, emptied, cut, put back or changed by a bit: told, and never taken for new."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from support.ledgers import EVENT, UNLIMITED
from support.sites import DAMAGES, damage, write_site

from wardpose.client.check import check_site
from wardpose.client.journal import SiteJournal
from wardpose.client.site import open_site
from wardpose.client.spent import refuse_lost
from wardpose.shared.errors import WardposeError
from wardpose.shared.privacy.ledger import Ledger

DELTA = 1e-3


def used(folder: Path) -> Path:
    """A site.yaml whose site released three rounds; the folder's ledger, and `state/journal.sqlite`."""
    path = write_site(folder, epsilon=1e6)
    site = open_site(path)
    ledger = site.ledger()
    for number in (1, 2, 3):
        order = site.journal.received(run="r", round_number=number, federation="f", mechanism="dp-sgd")
        ledger.commit(ledger.reserve("ward-7", [EVENT], run_id="r", round=number, budget=UNLIMITED))
        site.journal.finished(order, "released")
    return path


@pytest.mark.parametrize("witness", ["known", "of an earlier version", "lost"])
@pytest.mark.parametrize("how", DAMAGES)
def test_no_command_takes_a_lost_ledger_for_a_new_one(tmp_path: Path, how: str, witness: str) -> None:
    path = used(tmp_path)
    site = open_site(path)
    journal = site.journal.path
    if witness == "of an earlier version":
        with sqlite3.connect(journal) as connection:
            connection.execute("DROP TABLE ledger_head")
    elif witness == "lost" and how in ("missing", "rolled-back"):
        pytest.skip("without either file nobody at the site can know")
    elif witness == "lost":
        shutil.rmtree(journal.parent)
    damage(tmp_path / "ledger.sqlite", how)
    if witness == "known":
        (found,) = [finding for finding in check_site(path) if finding.status == "failure" and finding.name == "ledger"]
        assert str(tmp_path / "ledger.sqlite") in found.text
    with pytest.raises(WardposeError, match=str(tmp_path / "ledger.sqlite")):
        site.ledger()
    with pytest.raises(WardposeError, match=str(tmp_path / "ledger.sqlite")):
        refuse_lost(site.config)


def flipped(path: Path, seed: int) -> bytes:
    """The file's bytes with one bit of it changed."""
    content = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def never_less(path: Path, use: Callable[[], float], spent: float, *, flips: int = 200) -> None:
    """Flip a bit of a file again and again: each time it is an error of ours, or what was spent is still known."""
    content = path.read_bytes()
    for seed in range(flips):
        for rest in path.parent.glob(f"{path.name}-*"):
            rest.unlink()
        path.write_bytes(content)
        path.write_bytes(flipped(path, seed))
        try:
            known = use()
        except WardposeError:
            continue
        assert known >= spent, f"bit flip {seed} makes it forget"


def test_a_flipped_bit_of_a_ledger_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    site = open_site(used(tmp_path))
    spent = site.ledger().epsilon("ward-7", DELTA)
    never_less(tmp_path / "ledger.sqlite", lambda: site.ledger().epsilon("ward-7", DELTA), spent)


def test_a_flipped_bit_of_a_journal_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    site = open_site(used(tmp_path))
    spent = site.ledger().epsilon("ward-7", DELTA)

    def use() -> float:
        site.journal.finished(
            site.journal.received(run="r", round_number=9, federation="f", mechanism="dp-sgd"), "refused"
        )
        assert len(site.journal.orders()) >= 3
        site.journal.paid()
        refuse_lost(site.config)
        return site.ledger().epsilon("ward-7", DELTA)

    never_less(site.journal.path, use, spent, flips=60)


def test_a_new_order_ends_those_that_died(tmp_path: Path) -> None:
    journal = SiteJournal(tmp_path / "journal.sqlite")
    for number in (1, 2):
        journal.received(run="r", round_number=number, federation="f", mechanism="dp-sgd")
    first, second = journal.orders()
    assert (first.status, second.status) == ("failed", "training")
    assert "ended before it answered" in first.detail
    journal.finished(1, "released", bytes_up=3)  # it was slow, and not dead
    assert [order.status for order in journal.orders()] == ["released", "training"]


def test_a_journal_that_is_being_made_is_none_yet(tmp_path: Path) -> None:
    """The name appears with the file whole: readers need not repair it."""
    journal = SiteJournal(tmp_path / "journal.sqlite")
    (tmp_path / f".journal.sqlite.{'ab' * 8}").write_bytes(b"half of one, of a process that was killed")
    (tmp_path / ".journal.sqlite.backup-of-monday").touch()
    assert journal.orders() == []
    journal.received(run="r", round_number=1, federation="f", mechanism="dp-sgd")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".journal.sqlite.backup-of-monday", "journal.sqlite"]


def test_a_ledger_with_two_names_keeps_its_own(tmp_path: Path) -> None:
    """A process that is killed between giving a ledger its name and taking the other away leaves both."""
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.reserve("ward", [EVENT], run_id="r", round=1, budget=UNLIMITED)
    other = tmp_path / f".ledger.sqlite.{'0f' * 8}"
    other.hardlink_to(path)
    ledger.reserve("ward", [EVENT], run_id="r", round=2, budget=UNLIMITED)
    assert not other.exists()
    assert len(Ledger(path).entries()) == 3
