"""The coordinator's accounts: the one ledger of all its federations, and what lies beside it.

Whoever submits a run chooses its plan, its name and its folder; nothing of that reaches coordinator.yaml
(`coordinator_config`) or what it names. The file is found by the environment of the coordinator's processes
(`WARDPOSE_COORDINATOR`), else in Wardpose's home; without one, the state lies in the home, and only the sites' own
limits and the plan's hold.

Sites that are simulated begin anew in every run, so their server's ledger lies in the run's own folder.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.proto.node_pb2 import NodeInfo

from wardpose.server.contact import Contact
from wardpose.server.coordinator_config import CoordinatorConfig
from wardpose.server.folder import coordinator_key, shared_use
from wardpose.server.heads import Heads
from wardpose.server.home import COORDINATOR
from wardpose.server.ledger import ServerLedger
from wardpose.server.spent import LedgerPlace, refuse_lost
from wardpose.server.witness import LedgerWitness
from wardpose.shared.config import wardpose_home
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.signing import Signer, read_public_key
from wardpose.shared.yaml_config import load_yaml

_NAME = "coordinator.yaml"


def load_coordinator(path: Path | None = None) -> CoordinatorConfig:
    """Read the coordinator's configuration; defaults, all in Wardpose's home, where there is none.

    Args:
        path: the file; the environment's when absent.

    Raises:
        ConfigError: the file is wrong, or the one that is named is missing.

    """
    named = os.environ.get(COORDINATOR) if path is None else str(path)
    path = Path(named).expanduser().resolve() if named else wardpose_home() / _NAME
    if named or path.exists():
        return load_yaml(path, CoordinatorConfig)
    return CoordinatorConfig(state=wardpose_home() / "coordinator")


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Where a run's charges are kept.

    Attributes:
        ledger_path: SQLite file of the ledger.
        heads: what sites' ledgers were last seen to be.
        witness: of the ledger; `None` for a ledger that lives and dies with its run's folder.
        config: the coordinator's; `None` where sites are simulated.

    """

    ledger_path: Path
    heads: Heads
    witness: LedgerWitness | None = None
    config: CoordinatorConfig | None = None

    def ledger(self) -> ServerLedger:
        """Open the ledger; made on first use.

        Raises:
            LedgerError: it is not the one that the witness remembers, the witness is gone, or it cannot be used.

        """
        if self.witness is None:
            return ServerLedger(self.ledger_path, signer=self.signer())
        there = self.ledger_path.exists() or self.heads.path.exists()  # first: the witness is made before them
        if self.witness.head() is None:
            if there:
                raise LedgerError(
                    f"{self.witness.path}: the witness of {self.ledger_path} is gone; what was charged stays charged "
                    "(restore the newest backup, or see wardpose server accept-witness)"
                )
            self.witness.begin()
        return ServerLedger(self.ledger_path, witness=self.witness, signer=self.signer())

    def signer(self) -> Signer:
        """Return the coordinator's key, `coordinator.key` beside the ledger; made on first use.

        Raises:
            ConfigError: what is there is no key, or others may read it.

        """
        return coordinator_key(self.ledger_path.parent)

    def contact(self, ledger: ServerLedger, *, run: str) -> Contact:
        """Return what passed between the coordinator and each site, for a run."""
        return Contact(self.ledger_path.with_name("contact.sqlite"), self.signer(), ledger, self.heads, run=run)

    def bind_registered(
        self, ledger: ServerLedger, nodes: Iterable[NodeInfo], sites: Collection[str]
    ) -> dict[str, str]:
        """Bind the accounts of sites to the keys that they are registered with at the SuperLink.

        Args:
            ledger: with the accounts.
            nodes: as Flower names them; simulated ones have no key, and are passed over.
            sites: whose accounts.

        Returns:
            Sites whose key is not that of their account, with the reason.

        """
        refused = {}
        for node in nodes:
            if node.name not in sites or not node.public_key:
                continue
            try:
                key = read_public_key(node.public_key.decode(errors="replace"), f"site {node.name}")
                self.heads.follow(node.name, ledger.bind(node.name, key))
            except (LedgerError, ConfigError) as error:
                refused[node.name] = str(error)
        return refused

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the state beside other runs, whose charges the ledger orders; `alone` is refused meanwhile.

        Raises:
            ConfigError: somebody is alone with it.

        """
        if self.witness is None:  # whoever holds the run's folder holds its ledger
            yield
            return
        with shared_use(self.ledger_path.parent):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the state without anybody else.

        Raises:
            ConfigError: a run is at work.

        """
        with shared_use(self.ledger_path.parent, alone=True):
            yield

    def check_run_folder(self, folder: Path) -> None:
        """Refuse a run's folder that would mix with the coordinator's state, or that knows of charges which it lacks.

        Raises:
            ConfigError: it lies in the state's folder, or the other way round.
            LedgerError: the folder's own ledger, or that of another run in Wardpose's home, was not imported; or rounds
                that the folder's journal knows were paid are not in the ledger.

        """
        if self.witness is None:
            return
        state, place = self.ledger_path.parent.resolve(), folder.resolve()
        if state == place or state in place.parents or place in state.parents:
            raise ConfigError(f"run-directory {folder}: overlaps with the coordinator's state {state}")
        ledger, old = self.ledger(), {folder / "ledger.sqlite"}
        if wardpose_home() in state.parents:
            old |= set((wardpose_home() / "server").glob("*/ledger.sqlite"))
        for path in sorted(old):
            refuse_unimported(ledger, path)
        if (folder / "journal.sqlite").exists():
            refuse_lost(folder, LedgerPlace(path=self.ledger_path, witness=self.witness))


def refuse_unimported(ledger: ServerLedger, old: Path) -> None:
    """Refuse to go on while a ledger from the time when every folder had one has charges that nobody counts.

    Raises:
        LedgerError: names the ledger and the command that imports it.

    """
    if old.exists() and Ledger.open_readonly(old).identity() not in ledger.imported():
        raise LedgerError(
            f"{old}: was charged, and the coordinator's ledger {ledger.path} does not count it "
            f"(import it once: wardpose server import-ledger {old})"
        )


def coordinator_accounts(config: CoordinatorConfig) -> Accounts:
    """Return the one place of a coordinator's charges."""
    place = config.ledger
    return Accounts(
        ledger_path=place.path, heads=Heads(config.state / "heads.sqlite"), witness=place.witness, config=config
    )


def folder_accounts(folder: Path) -> Accounts:
    """Return the place of the charges of sites that are simulated: the run's own folder."""
    return Accounts(ledger_path=folder / "ledger.sqlite", heads=Heads(folder / "heads.sqlite"))


def import_ledger(accounts: Accounts, old: Path) -> int:
    """Charge again, in the coordinator's ledger, everything that a run folder's own ledger holds, once.

    Returns:
        How many reservations.

    Raises:
        ConfigError: a run is at work.
        LedgerError: the old ledger cannot be read, is a site's, or was imported before.

    """
    with accounts.alone():
        number = accounts.ledger().import_from(Ledger.open_readonly(old))
        for site, sequence, digest in Heads(old.with_name("heads.sqlite")).all():
            if accounts.heads.last(site) is None:
                accounts.heads.remember(site, sequence, digest)
    return number


def accept_ledger_as_it_is(accounts: Accounts, why: str) -> tuple[int, str]:
    """Begin with a new witness, whose first head is that of the ledger as it is now; returns that head.

    Raises:
        ConfigError: a run is at work, or the witness is there: a ledger that it does not know was rolled back.
        LedgerError: the ledger is missing or broken.

    """
    with accounts.alone():
        witness = accounts.witness
        if witness is None or witness.head() is not None:
            raise ConfigError(f"{accounts.ledger_path}: its witness is there, so that none has to be accepted")
        ledger = Ledger.open_readonly(accounts.ledger_path)
        ledger.verify()
        sequence, digest = ledger.head()
        witness.accept(sequence, digest, why)
        return sequence, digest
