"""A coordinator and its sites, seen from the coordinator, over real rounds of the apps that hospitals run."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from prometheus_client import CollectorRegistry
from support.federations import charged_steps, rows_of, tiny_federation

from wardpose.client.check import check_site
from wardpose.client.contact import Contact as SiteContact
from wardpose.client.contact import Conversation
from wardpose.client.contact import open_alarms as site_alarms
from wardpose.client.exporter import SiteExporter
from wardpose.server.contact import Contact, open_alarms
from wardpose.server.exporter import ServerExporter
from wardpose.server.facts import Places
from wardpose.server.folder import coordinator_key
from wardpose.server.heads import Heads
from wardpose.server.ledger import ServerLedger
from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.expiry import verify_expiries
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.refusals import Refusal
from wardpose.shared.seals import seal
from wardpose.shared.signing import SignatureError, create_key_pair, load_public_key
from wardpose.shared.site_config import SiteConfig, load_site
from wardpose.simulation.grid import Fault, FaultKind, Replacement
from wardpose.simulation.run import simulate

SITES = ("north", "south")


def run(folder: Path, *faults: Fault, resume: bool = False, **changes: object) -> None:
    simulate(tiny_federation(SITES, **changes), folder, faults=faults, resume=resume, report=False)


def site_of(folder: Path, name: str) -> SiteConfig:
    return load_site(folder / "sites" / name / "site.yaml")


def kept_by_site(folder: Path, name: str) -> SiteContact:
    return SiteContact(site_of(folder, name).state / "contact.sqlite", load_public_key(folder / "coordinator.pub"))


def kept_by_server(folder: Path) -> Contact:
    signer = coordinator_key(folder)
    ledger = ServerLedger(folder / "ledger.sqlite", signer=signer)
    return Contact(folder / "contact.sqlite", signer, ledger, Heads(folder / "heads.sqlite"))


def metric(exporter: ServerExporter | SiteExporter, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(exporter.collector())
    return registry.get_sample_value(name, labels)


def restore(path: Path, backup: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    shutil.copy(backup, path)


def test_each_round_ends_with_a_receipt_that_both_keep(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, Fault(site="south", round=2, kind="crash-after-training"))
    server = kept_by_server(folder)
    for name, outcomes in (("north", ["released", "released"]), ("south", ["released", "failed"])):
        site = kept_by_site(folder, name)
        mine, theirs = server.receipts(name), site.receipts()
        key = load_public_key(folder / "coordinator.pub")
        said = [signed.opened(key) for signed in mine]
        assert [(each.round, each.outcome) for each in said] == [(1, outcomes[0]), (2, outcomes[1])]
        assert [each.release is not None for each in said] == [outcome == "released" for outcome in outcomes]
        for each in said:
            assert server.ledger.contains(each.ledger)
        assert theirs == mine  # whoever was late is asked once more at the end of the run
        assert server.undelivered(name) == []
    run(folder, resume=True, rounds=3)
    assert kept_by_site(folder, "south").receipts() == kept_by_server(folder).receipts("south")
    assert kept_by_server(folder).undelivered("south") == []


def test_every_row_of_both_ledgers_is_signed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, rounds=1)
    for path, key in (
        (folder / "ledger.sqlite", folder / "coordinator.pub"),
        (site_of(folder, "north").ledger, folder / "sites" / "north" / "node.pub"),
    ):
        signed, others = Ledger(path).check_signatures(load_public_key(key))
        assert (signed > 2, others) == (True, 0)


def test_a_coordinators_ledger_that_went_back_is_found_by_its_sites(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, rounds=1)
    ledger, backup = folder / "ledger.sqlite", tmp_path / "backup.sqlite"
    shutil.copy(ledger, backup)
    run(folder, resume=True, rounds=2)
    after = {name: charged_steps(folder, name)[1] for name in SITES}
    restore(ledger, backup)
    with pytest.raises(LedgerError, match="rolled back: it lacks round 2"):  # of the summary, after the run
        run(folder, resume=True, rounds=3)
    assert {row.code for (number, _), row in rows_of(folder).items() if number == 0} == {Refusal.APART}
    assert {name: charged_steps(folder, name)[1] for name in SITES} == after  # nothing was charged or sent
    assert [alarm.site for alarm in open_alarms(folder / "contact.sqlite")] == list(SITES)
    for name in SITES:
        (alarm,) = site_alarms(site_of(folder, name).state / "contact.sqlite")
        assert "coordinator's ledger went back" in alarm.what
        assert metric(ServerExporter(Places(directory=folder)), "wardpose_ledgers_apart", site=name) == 1.0
        site_exporter = SiteExporter(folder / "sites" / name / "site.yaml")
        assert metric(site_exporter, "wardpose_site_ledgers_apart") == 1


def test_a_coordinators_ledger_that_was_forked_is_found_by_the_coordinator(tmp_path: Path) -> None:
    """An old backup that grew again: as long as the one that was lost, and another."""
    folder = tmp_path / "run"
    run(folder, rounds=1)
    ledger, backup = folder / "ledger.sqlite", tmp_path / "backup.sqlite"
    shutil.copy(ledger, backup)
    run(folder, resume=True, rounds=2)
    restore(ledger, backup)
    fork = Ledger(ledger, signer=coordinator_key(folder))
    for number in range(12):
        fork.declare(f"another-{number}", identity=f"{number}")
    with pytest.raises(LedgerError, match="rolled back: it lacks round 2"):
        run(folder, resume=True, rounds=3)
    rows = {site: row for (number, site), row in rows_of(folder).items() if number == 0}
    assert {(row.status, row.reason) for row in rows.values()} == {("rejected", "ledger")}
    assert "of this coordinator's ledger, which is not in it" in rows["north"].detail
    assert [alarm.site for alarm in open_alarms(folder / "contact.sqlite")] == list(SITES)


def other_key(folder: Path) -> Replacement:
    """Whoever sits on the SuperLink, and answers for a site."""

    def send(_: Message, answer: Message) -> Message:
        stranger = create_key_pair(folder / "stranger.key", folder / "stranger.pub")
        body = str(answer.content.config_records["body"]["json"])
        signature = stranger.sign("SiteStatus", body.encode())
        answer.content["body"] = ConfigRecord({"json": body, "signature": signature})
        return answer

    return send


def test_nobody_answers_for_a_site(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, Fault(site="south", round=0, kind="replace", replace=other_key(tmp_path)), rounds=1)
    assert (rows_of(folder)[0, "south"].status, rows_of(folder)[0, "south"].reason) == ("rejected", "signature")
    assert charged_steps(folder, "south") == (0, 0)


def test_a_site_without_its_key_takes_no_part_and_its_check_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, rounds=1)
    path = folder / "sites" / "south" / "node.key"
    path.rename(path.with_suffix(".gone"))
    (folder / "sites" / "south" / "site.yaml").touch()  # this process keeps what it opened for an unchanged file
    run(folder, resume=True, rounds=2)
    assert rows_of(folder)[0, "south"].code == Refusal.SITE
    assert rows_of(folder)[2, "north"].status == "released"
    found = [each.text for each in check_site(folder / "sites" / "south" / "site.yaml") if each.name == "keys"]
    assert any(f"{path}: cannot be read" in text for text in found)


@pytest.mark.parametrize(
    ("kind", "taken_back"), [("crash", True), ("crash-after-training", False), ("straggle", False)]
)
def test_a_charge_is_taken_back_by_the_sites_signed_word_alone(
    tmp_path: Path, kind: FaultKind, taken_back: bool
) -> None:
    """An order that never arrived costs nothing in the end; one that was carried out costs, whatever became of it."""
    folder = tmp_path / "run"
    server = {"deadline_seconds": 5, "wait_seconds": 1}
    run(folder, Fault(site="south", round=1, kind=kind), rounds=3, server=server)
    assert charged_steps(folder, "south") == ((2, 2) if taken_back else (3, 3))
    ledger = Ledger(folder / "ledger.sqlite")
    key = load_public_key(folder / "sites" / "south" / "node.pub")
    assert verify_expiries(ledger.entries(), key, "south") == int(taken_back)


def test_an_order_that_was_signed_away_is_never_carried_out(tmp_path: Path) -> None:
    """It lies somewhere on the way, and comes after the site signed that nothing was released for it."""
    folder = tmp_path / "run"
    run(folder, Fault(site="south", round=1, kind="crash"), rounds=2)
    contact = kept_by_site(folder, "south")
    with sqlite3.connect(contact.path) as connection:
        ((void,),) = connection.execute("SELECT reservation FROM charges WHERE state = 'void'").fetchall()
    conversation = Conversation(
        seal=seal(RecordDict(), coordinator_key(folder), site="south", kind="train", ledger=(0, "0" * 64), charge=void)[
            1
        ],
        signer=coordinator_key(folder),
        server_ledger=contact.remembered(),
    )
    with pytest.raises(SignatureError, match="has signed that nothing was released"):
        contact.begin(conversation)
