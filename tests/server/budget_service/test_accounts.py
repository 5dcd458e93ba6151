"""The service over a coordinator's own files: its ledger, its key, and accounts that follow the keys of sites."""

from pathlib import Path

import grpc
import pytest
from support.budget_service import Coordinator, charge, create_coordinator
from support.ledgers import BUDGET, COURSE, EVENT

from wardpose.server.budget_service.settings import build
from wardpose.server.coordinator import coordinator_accounts, load_coordinator
from wardpose.server.home import COORDINATOR
from wardpose.server.ledger import ServerLedger
from wardpose.server.provision.certificates import create_client_certificate
from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.remote_ledger import RemoteError, RemoteLedger
from wardpose.shared.signing import SignatureError, load_public_key


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """One whose coordinator.yaml says where its ledger is."""
    (tmp_path / "coordinator.yaml").write_text("state: run\nwitness: witness.sqlite\n")
    monkeypatch.setenv(COORDINATOR, str(tmp_path / "coordinator.yaml"))
    made = create_coordinator(tmp_path)
    accounts = coordinator_accounts(load_coordinator())
    ledger = accounts.ledger()
    ledger.bind("north", load_public_key(tmp_path / "keys" / "north.pub"))
    for number in (1, 2):
        ledger.commit(ledger.reserve("north", [EVENT], run_id="run", round=number, budget=BUDGET, course=COURSE))
    assert accounts.ledger_path == made.ledger
    return made


def test_the_coordinators_ledger_key_and_accounts_are_found_by_themselves(coordinator: Coordinator) -> None:
    """Nothing is said but where to listen and how to ask for certificates."""
    own = {"directory": None, "ledger": None, "site_keys": None, "signing_key": None}
    site = Ledger(coordinator.folder / "site.sqlite")
    site.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET, course=COURSE)
    with coordinator.serving(**own), coordinator.channel("north") as channel:
        key = load_public_key(coordinator.directory / "coordinator.pub")
        remote = RemoteLedger(channel, coordinator.known("north"), server_key=key)
        answer, head = remote.account()
        assert head.sequence == ServerLedger(coordinator.ledger).head()[0]
        assert answer.sites[0].rows == 5  # the key's among them
        remote.submit(site, "north", coordinator.node_key("north"))
        with pytest.raises(RemoteError, match="PERMISSION_DENIED"):
            remote.submit(site, "north", coordinator.node_key("south"))
    with coordinator.serving(**own), coordinator.remote("south") as remote, pytest.raises(SignatureError):
        remote.account()  # signed by the coordinator's key, not by the one that this caller knows


def test_a_site_under_another_name_sees_the_account_that_its_key_has(coordinator: Coordinator) -> None:
    key = load_public_key(coordinator.folder / "keys" / "north.pub")
    assert ServerLedger(coordinator.ledger).bind("norden", key) == "north"
    create_client_certificate(coordinator.authority, coordinator.folder, name="norden", role="site", days=1)
    with coordinator.serving(), coordinator.stub("norden") as stub:
        (account,) = stub.GetAccount(wire.GetAccountRequest(), timeout=20).sites
        call = stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=1), timeout=20)
        shown = sum(bool(row.body) for part in call for row in part.rows)
    assert (account.site, account.rows, shown) == ("norden", 6, 6)
    assert account.epsilon == ServerLedger(coordinator.ledger).epsilon("north", 1e-5)


def test_a_name_that_is_bound_to_nothing_sees_nothing(coordinator: Coordinator) -> None:
    with coordinator.serving(site_keys=None), coordinator.stub("south") as stub:
        (account,) = stub.GetAccount(wire.GetAccountRequest(), timeout=20).sites
        call = stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=1), timeout=20)
        assert not any(row.body or row.kind for part in call for row in part.rows)
        assert (account.rows, account.epsilon) == (0, 0.0)
        with pytest.raises(grpc.RpcError) as error:
            stub.GetAccount(wire.GetAccountRequest(site="north"), timeout=20)
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_rows_that_the_coordinator_signed_are_shown_like_others(coordinator: Coordinator) -> None:
    charge(coordinator.ledger, "south", 1)
    assert build(coordinator.settings()).view.snapshot().sequence == ServerLedger(coordinator.ledger).head()[0]
