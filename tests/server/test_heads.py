"""A site's ledger may grow, and never shrink or change, whichever run asks."""

from pathlib import Path

import pytest

from wardpose.server.heads import Heads
from wardpose.shared.errors import LedgerError

A, B = "a" * 64, "b" * 64


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    made = Heads(tmp_path / "new" / "heads.sqlite")
    for sequence, digest in ((3, A), (7, B)):
        made.check("north", sequence, digest, grown=True)
        made.remember("north", sequence, digest)
    return made


def test_a_longer_ledger_and_the_same_one_are_believed(heads: Heads) -> None:
    heads.check("north", 8, A, grown=True)
    heads.check("north", 7, B, grown=False)
    heads.check("south", 0, "0" * 64, grown=False)
    assert (heads.last("north"), heads.last("south")) == ((7, B), None)


@pytest.mark.parametrize(
    ("sequence", "digest", "grown", "message"),
    [
        (6, A, False, "went back from 7 to 6"),
        (0, "0" * 64, False, "went back from 7 to 0"),
        (3, A, True, "went back"),
        (7, A, False, "entry 7 of its ledger is not the one"),
        (7, B, True, "still has 7 entries"),
    ],
)
def test_another_ledger_is_found_out(heads: Heads, sequence: int, digest: str, grown: bool, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        Heads(heads.path).check("north", sequence, digest, grown=grown)


def test_asking_makes_no_file(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads.sqlite")
    heads.check("north", 1, A, grown=True)
    assert not heads.path.exists()


def test_a_lost_ledger_begins_anew_where_staff_say_so(heads: Heads) -> None:
    heads.accept_another("north", "the disk broke")
    heads.check("north", 1, A, grown=True)
    heads.remember("north", 1, A)
    with pytest.raises(LedgerError):
        heads.check("north", 1, B, grown=False)
    heads.check("south", 1, B, grown=False)
    assert heads.last("north") == (1, A)
