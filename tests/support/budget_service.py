"""A Budget service on a loopback port with real certificates, and what asks it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from support.ledgers import BUDGET, COURSE, EVENT

from wardpose.server.budget_service.process import Server
from wardpose.server.budget_service.settings import ServiceSettings, build
from wardpose.server.provision.certificates import (
    ClientRole,
    create_authority,
    create_client_certificate,
    create_server_certificate,
)
from wardpose.shared.budget_wire import budget_pb2_grpc
from wardpose.shared.known_server import FILE, KnownServer
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.remote_ledger import RemoteLedger, connect
from wardpose.shared.signing import Signer, create_key_pair, load_public_key, load_signer

CLIENTS: dict[str, ClientRole] = {"north": "site", "south": "site", "inspector": "auditor"}


def charge(path: Path, site: str, rounds: int, *, first: int = 1) -> None:
    """Charge a site in the coordinator's ledger, as `GlobalBudget.reserve` does."""
    ledger = Ledger(path)
    for number in range(first, first + rounds):
        ledger.commit(ledger.reserve(site, [EVENT], run_id="run", round=number, budget=BUDGET, course=COURSE))


@dataclass
class Coordinator:
    """One coordinator's files, and the service that is started on them.

    Attributes:
        folder: of everything.
        address: of the service that runs, empty while none does.
        server: that runs.

    """

    folder: Path
    address: str = ""
    server: Server | None = None

    @property
    def directory(self) -> Path:
        return self.folder / "run"

    @property
    def ledger(self) -> Path:
        return self.directory / "ledger.sqlite"

    @property
    def authority(self) -> Path:
        return self.folder / "authority"

    def settings(self, **changes: Any) -> ServiceSettings:
        return ServiceSettings(
            **{
                "listen": "127.0.0.1:0",
                "directory": self.directory,
                "ledger": self.ledger,
                "certificate": self.folder / "server.crt",
                "key": self.folder / "server.key",
                "authority": self.authority / "ca.crt",
                "site_keys": self.folder / "keys",
                "signing_key": self.folder / "coordinator.key",
                "overlap": 2,
                **changes,
            }
        )

    @contextmanager
    def serving(self, **changes: Any) -> Iterator["Coordinator"]:
        server = Server(build(self.settings(**changes)), "127.0.0.1:0", self.settings().tls(), refresh_seconds=0.2)
        server.start()
        self.server, self.address = server, f"127.0.0.1:{server.port}"
        try:
            yield self
        finally:
            server.stop()
            self.server, self.address = None, ""

    def files(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    @contextmanager
    def channel(
        self, name: str, *, files: tuple[Path, Path] | None = None, authority: Path | None = None
    ) -> Iterator[grpc.Channel]:
        certificate, key = files or self.files(name)
        authority = authority or self.authority / "ca.crt"
        with connect(self.address, authority=authority, certificate=certificate, key=key) as channel:
            yield channel

    @contextmanager
    def stub(self, name: str, **changes: Any) -> Iterator[Any]:
        """What calls the service with no check of what it answers, as an adversary's client would."""
        with self.channel(name, **changes) as channel:
            yield budget_pb2_grpc.BudgetServiceStub(channel)  # type: ignore[no-untyped-call]

    @contextmanager
    def remote(self, name: str) -> Iterator[RemoteLedger]:
        with self.channel(name) as channel:
            yield RemoteLedger(channel, self.known(name), server_key=load_public_key(self.folder / "coordinator.pub"))

    def known(self, name: str) -> KnownServer:
        return KnownServer(self.folder / f"state-{name}" / FILE)

    def node_key(self, name: str) -> Signer:
        return load_signer(self.folder / f"{name}-node.key")


def create_coordinator(folder: Path) -> Coordinator:
    """Make keys and certificates of a coordinator, two sites and an auditor; no ledger yet."""
    made = Coordinator(folder)
    create_authority(made.authority, name="test", days=2)
    create_server_certificate(made.authority, folder, hosts=["127.0.0.1", "localhost"], days=1)
    create_key_pair(folder / "coordinator.key", folder / "coordinator.pub")
    for name, role in CLIENTS.items():
        create_client_certificate(made.authority, folder, name=name, role=role, days=1)
        if role == "site":
            create_key_pair(folder / f"{name}-node.key", folder / "keys" / f"{name}.pub")
    return made
