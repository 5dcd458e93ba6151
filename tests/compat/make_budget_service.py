"""Write what a Budget service and its callers remember, once: `python tests/compat/make_budget_service.py FOLDER`."""

import sys
from pathlib import Path

from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.budget_service.submissions import STATED, Submissions
from wardpose.shared.head_statements import SITE_HEAD, ServerHead, SiteHead
from wardpose.shared.known_server import FILE, KnownServer
from wardpose.shared.privacy.entries import NOTHING
from wardpose.shared.signing import create_key_pair

A, B = "a" * 64, "b" * 64


def write(folder: Path) -> None:
    """Make the files; no private key stays."""
    folder.mkdir()
    signer = create_key_pair(folder / "key", folder / "key.pub")
    submissions = Submissions(folder, released=None, key_of=lambda site: signer.public, clock=lambda: 100.0)
    head = SiteHead(site="north", sequence=3, hash=A, seen_sequence=0, seen_hash=NOTHING, time=100)
    submissions.submit(head, signer.sign(SITE_HEAD, head.content()))
    Alarms(folder / ALARMS).raise_("north", "its ledger went back from 3 to 2 entries", 7)
    known = KnownServer(folder / FILE, clock=lambda: 8.0)
    for sequence, digest in ((3, A), (5, B)):
        known.remember(ServerHead(sequence=sequence, hash=digest, root=bytes(range(32)), time=9), "signature")
    known.raise_alarm("went back from 5 to 3 entries")
    for half in ("key", "key.pub"):
        (folder / half).unlink()
    assert (folder / STATED).is_file()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
