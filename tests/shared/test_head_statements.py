"""What is signed of a head is these bytes and no others: an auditor checks them in ten years, without our code."""

import pytest

from wardpose.shared.errors import LedgerError
from wardpose.shared.head_statements import ServerHead, SiteHead
from wardpose.shared.privacy.entries import NOTHING

A = "a" * 64


def test_the_text_of_a_head_never_changes() -> None:
    server = ServerHead(sequence=3, hash=A, root=bytes(range(32)), time=1_700_000_000)
    root = "".join(f"{number:02x}" for number in range(32))
    assert server.content() == f'{{"hash":"{A}","root":"{root}","sequence":3,"time":1700000000}}'.encode()
    site = SiteHead(site="north", sequence=3, hash=A, seen_sequence=0, seen_hash=NOTHING, time=7)
    assert site.content() == (
        f'{{"hash":"{A}","seen_hash":"{NOTHING}","seen_sequence":0,"sequence":3,"site":"north","time":7}}'.encode()
    )


def test_two_different_heads_are_never_the_same_text() -> None:
    """A name may hold anything that could end a text and begin another."""
    texts = set()
    for site in ("north", 'north","time":8,"x":"', "n\u00f6rth", "n\\u00f6rth", ""):
        for sequence, digest in ((0, NOTHING), (1, A), (2, A)):
            for time in (7, 8):
                head = SiteHead(
                    site=site, sequence=sequence, hash=digest, seen_sequence=0, seen_hash=NOTHING, time=time
                )
                texts.add(head.content())
    assert len(texts) == 5 * 3 * 2


@pytest.mark.parametrize("root", [b"", b"x" * 31, b"x" * 33])
def test_a_root_has_its_length(root: bytes) -> None:
    with pytest.raises(LedgerError, match="allowed: 32"):
        ServerHead(sequence=3, hash=A, root=root, time=1)


@pytest.mark.parametrize(("sequence", "digest"), [(-1, A), (1 << 63, A), (1, NOTHING), (0, A), (1, A.upper()), (1, "")])
def test_a_head_that_no_ledger_has_is_refused(sequence: int, digest: str) -> None:
    with pytest.raises(LedgerError, match="allowed"):
        ServerHead(sequence=sequence, hash=digest, root=bytes(32), time=1)
