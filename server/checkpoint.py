"""What a run needs to go on after any crash: one safetensors file, replaced atomically after each round.

The ledger is not in it: it has its own file, which a resume can only find the same or higher.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from wardpose.shared.errors import DataError
from wardpose.shared.files import write_bytes

Arrays = dict[str, NDArray[np.float32]]


@dataclass(kw_only=True)
class Checkpoint:
    """State of a run after a round.

    Attributes:
        run: identity of the run.
        round: last finished round; 0 before the first.
        weights: global weights by name.
        aggregator: the aggregation rule's memory.
        config: the federation's configuration, to refuse a resume with another plan.
        ledger_heads: last ledger sequence that each site stated; a later, smaller one is a rollback.
        dropped: sites that left the run, with the reason.

    """

    run: str
    round: int
    weights: Arrays
    aggregator: Arrays = field(default_factory=dict)
    config: str = ""
    ledger_heads: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Replace the file by this state."""
        tensors = {f"weights/{name}": np.ascontiguousarray(value) for name, value in self.weights.items()}
        tensors |= {f"aggregator/{name}": np.ascontiguousarray(value) for name, value in self.aggregator.items()}
        facts = {
            "run": self.run,
            "round": self.round,
            "config": self.config,
            "ledger_heads": self.ledger_heads,
            "dropped": self.dropped,
        }
        write_bytes(path, save(tensors, metadata={"checkpoint": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote.

        Raises:
            DataError: the file is missing, broken or not a checkpoint.

        """
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["checkpoint"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            groups: dict[str, Arrays] = {"weights": {}, "aggregator": {}}
            for key, value in tensors.items():
                group, _, name = key.partition("/")
                groups[group][name] = value
            return cls(weights=groups["weights"], aggregator=groups["aggregator"], **facts)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is not a checkpoint ({error})") from error
