"""The weights that no round of a run changes, kept at the site so that they come once and not with every order.

Only the trained tensors change from round to round: 0.4 of 21 MB where the head trains. A site keeps the others, under
their hash, in `models/` of its state folder, for its owner alone. Nothing rests on what is kept: an order's seal names
the hash of *all* weights, and they are held against it once they are put together, whoever wrote the file.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from wardpose.client.policy import trained_weights
from wardpose.shared.errors import StorageError
from wardpose.shared.files import write_bytes
from wardpose.shared.messages import RoundOrder
from wardpose.shared.wire import hash_arrays

logger = logging.getLogger("wardpose.client")

_MOST_FILES = 4
_LARGEST = 1 << 30  # bytes of one file
_PRIVATE = 0o600

Weights = dict[str, NDArray[np.float32]]


class KeptWeights:
    """Weights by their hash, in a folder.

    Attributes:
        folder: made with the first; it holds the four that were used last.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def have(self, digest: str) -> bool:
        """Tell whether weights are here, by their hash; a file that holds others is removed."""
        return self.load(digest) is not None

    def load(self, digest: str) -> Weights | None:
        """Return weights by their hash; `None` where they are not here, or not whole any more."""
        path = self._path(digest)
        try:
            if path.stat().st_size > _LARGEST:
                return None
            weights = load(path.read_bytes())
            if hash_arrays(weights) == digest:
                path.touch()
                return weights
            logger.warning("%s: does not hold what its name says; removed", path)
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        except (OSError, SafetensorError, KeyError, ValueError) as error:  # safetensors: of an unknown type, a KeyError
            logger.warning("%s: cannot be read (%s)", path, type(error).__name__)
        return None

    def assembled(self, order: RoundOrder, received: Mapping[str, NDArray[np.float32]]) -> Weights | None:
        """Return all weights of an order: what came along, and what it calls resident; `None` where that is not here.

        Whether they are those that the order names, the caller must see.
        """
        if order.resident is None:
            return dict(received)
        kept = self.load(order.resident)
        return None if kept is None else {**kept, **received}

    def keep(self, order: RoundOrder, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep those weights of a believed order that its rounds do not change; a full disk is no reason to fail."""
        trained = trained_weights(order)
        resident = {name: np.asarray(value, order="C") for name, value in weights.items() if name not in trained}
        path = self._path(hash_arrays(resident))
        if not resident or path.exists():
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(path, save(resident), mode=_PRIVATE)
            newest = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
            for file in newest[_MOST_FILES:]:
                file.unlink(missing_ok=True)
        except (OSError, StorageError) as error:
            logger.warning("the weights are not kept, and come again with the next order: %s", error)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"
