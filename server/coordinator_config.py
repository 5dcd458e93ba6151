"""coordinator.yaml: limits, and where a coordinator keeps the one ledger of all its federations.

Apart from `coordinator`, so that whoever only looks at the ledger needs neither Flower nor torch.
"""

from pathlib import Path

from wardpose.server.limits import Limits
from wardpose.server.spent import LedgerPlace
from wardpose.server.witness import LedgerWitness


class CoordinatorConfig(Limits):
    """coordinator.yaml: limits (`Limits`) and places; relative paths are relative to the file.

    Attributes:
        state: folder of the ledger of all federations and of the heads of sites' ledgers; back it up.
        witness: SQLite file that remembers the ledger's head, beside `state` when absent; best on another disk. Back it
            up as well, and never restore it alone.

    """

    state: Path = Path("coordinator")
    witness: Path | None = None

    @property
    def ledger(self) -> LedgerPlace:
        """Where the ledger and its witness are."""
        witness = self.witness or self.state.with_name(f"{self.state.name}.witness.sqlite")
        return LedgerPlace(path=self.state / "ledger.sqlite", witness=LedgerWitness(witness))
