"""What a run needs to go on after any crash: one safetensors file, replaced atomically after each round.

The ledger is not in it: it has its own file, which a resume can only find the same or higher. The journal's rows of the
round are: a coordinator that is killed after the checkpoint and before the journal writes them when it goes on.
Weights that are not finite are neither written nor read: no site would train them, and every order of them would be
charged.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save

from wardpose.shared.errors import DataError
from wardpose.shared.files import write_bytes
from wardpose.shared.wire import hash_arrays

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
        dropped: sites that left the run, with the reason.
        course: the declared course, as JSON.
        closed: the journal's rows of the last finished round, as plain values; `None` before the first.

    """

    run: str
    round: int
    weights: Arrays
    aggregator: Arrays = field(default_factory=dict)
    config: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    closed: dict[str, Any] | None = None
    course: str = ""

    def save(self, path: Path) -> None:
        """Replace the file by this state.

        Raises:
            DataError: a weight is not finite; the file is as it was.
            OSError: the disk is full or the folder is not writable; the file is as it was.

        """
        name = self._not_finite()
        if name is not None:
            raise DataError(f'{path}: not written, "{name}" is not finite')
        tensors = {f"weights/{name}": np.ascontiguousarray(value) for name, value in self.weights.items()}
        tensors |= {f"aggregator/{name}": np.ascontiguousarray(value) for name, value in self.aggregator.items()}
        facts = {
            "run": self.run,
            "round": self.round,
            "config": self.config,
            "dropped": self.dropped,
            "closed": self.closed,
            "course": self.course,
        }
        text = json.dumps(facts)
        write_bytes(path, save(tensors, metadata={"checkpoint": text, "sha256": _digest(text, tensors)}))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote.

        Raises:
            DataError: the file is missing, broken or not a checkpoint, or its weights are not finite.

        """
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                facts = json.loads(about["checkpoint"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            if about.get("sha256", "") not in ("", _digest(about["checkpoint"], tensors)):  # none: of version 0.1
                raise ValueError("its content does not fit its hash: damaged")
            groups: dict[str, Arrays] = {"weights": {}, "aggregator": {}}
            for key, value in tensors.items():
                group, _, name = key.partition("/")
                groups[group][name] = value
            facts.pop("ledger_heads", None)  # of version 0.1, which kept them here
            state = cls(weights=groups["weights"], aggregator=groups["aggregator"], **facts)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: is not a checkpoint ({error})") from error
        name = state._not_finite()
        if name is not None:
            raise DataError(
                f'{path}: "{name}" is not finite, so that no site can train it; start a new run without --resume '
                "(what was charged stays charged)"
            )
        return state

    @staticmethod
    def run_of(path: Path) -> str:
        """Return whose checkpoint a file is, without reading its weights; `unknown` for one that cannot be read."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                run = str(json.loads((file.metadata() or {})["checkpoint"])["run"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return "unknown"
        return run if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run) else "unknown"  # it becomes a file's name

    def _not_finite(self) -> str | None:
        """Return the name of a weight, or of the rule's memory, that is not finite."""
        everything = [*self.weights.items(), *self.aggregator.items()]
        return next((name for name, value in everything if not np.isfinite(value).all()), None)


def _digest(facts: str, tensors: Arrays) -> str:
    """SHA-256 over everything that is stored: a flipped bit may leave numbers and JSON that can be read."""
    return hashlib.sha256(f"{facts}\0{hash_arrays(tensors)}".encode()).hexdigest()
