"""What a Budget service and its callers remembered is read by today's code, and a ledger's root is what it was."""

import shutil
from pathlib import Path

from wardpose.server.budget_service.alarms import Alarm, Alarms
from wardpose.server.budget_service.submissions import Submissions
from wardpose.shared.known_server import FILE, KnownAlarm, KnownHead, KnownServer
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.merkle import Frontier

FILES = Path(__file__).parent / "files"


def test_what_was_remembered_is_read(tmp_path: Path) -> None:
    folder = shutil.copytree(FILES / "budget-service-1", tmp_path / "copy")
    assert Submissions(folder, released=None, key_of=lambda site: None).last("north") == (3, "a" * 64)
    assert Alarms(folder / "ledger-alarms.sqlite").of() == [
        Alarm(site="north", what="its ledger went back from 3 to 2 entries", first=7, last=7, times=1)
    ]
    known = KnownServer(folder / FILE)
    assert known.last() == KnownHead(
        sequence=5, hash="b" * 64, root=bytes(range(32)).hex(), time=9, signature="signature"
    )
    assert known.alarms() == [KnownAlarm(what="went back from 5 to 3 entries", first=8, last=8)]


def test_the_root_of_a_ledger_stays_what_was_signed_of_it(tmp_path: Path) -> None:
    shutil.copy(FILES / "0.1.0" / "ledger.sqlite", tmp_path / "ledger.sqlite")
    frontier = Frontier()
    for entry in Ledger.open_readonly(tmp_path / "ledger.sqlite").entries():
        frontier.append(bytes.fromhex(entry.hash))
    assert frontier.root().hex() == "7c8960543243968fae7972b4dc81730875698a8b1d2616a6de4f8610e7229697"
