"""The updates of one round: few lie in memory, the others on the disk, so that memory does not grow with the sites.

No rule can begin before the last update is there where each is shortened to the median of all norms
(`server.admission.clip_to_median`). Their arrays therefore wait in a folder that is gone with the round; what waits
there was released by the sites under their noise, and is for this account alone all the same.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from safetensors.numpy import load_file, save

from wardpose.server.aggregation import Arrays
from wardpose.shared.files import storage_error

_IN_MEMORY = 16


class Updates(Mapping[str, Arrays]):
    """Updates of the trained weights by site, in the order of their names; a context manager.

    Attributes:
        norms: L2 norm of each.

    """

    def __init__(self, folder: Path) -> None:
        self.norms: dict[str, float] = {}
        self._folder = folder
        self._near: dict[str, Arrays] = {}
        self._far: dict[str, Path] = {}
        self._place: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._place is not None:
            self._place.cleanup()

    def keep(self, site: str, update: Arrays, *, norm: float) -> None:
        """Keep one site's update until the round ends.

        Raises:
            StorageError: the disk is full.

        """
        self.norms[site] = norm
        if len(self._near) < _IN_MEMORY:
            self._near[site] = update
            return
        try:
            if self._place is None:
                self._place = tempfile.TemporaryDirectory(prefix=".updates-", dir=self._folder)
            self._far[site] = Path(self._place.name) / f"{len(self._far)}.safetensors"
            self._far[site].write_bytes(save({name: np.ascontiguousarray(value) for name, value in update.items()}))
        except OSError as error:
            raise storage_error(error, self._folder) from error

    def __getitem__(self, site: str) -> Arrays:
        """Return one site's update."""
        return self._near[site] if site in self._near else load_file(self._far[site])

    def __iter__(self) -> Iterator[str]:
        """Yield the sites' names, sorted."""
        return iter(sorted(self.norms))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.norms)


class Shortened(Mapping[str, tuple[Arrays, float]]):
    """The same, multiplied by a factor of each site, and with its public weight."""

    def __init__(self, updates: Updates, factors: Mapping[str, float], public: Mapping[str, float]) -> None:
        self._updates, self._factors, self._public = updates, factors, public

    def __getitem__(self, site: str) -> tuple[Arrays, float]:
        """Return one site's shortened update and weight."""
        update, factor = self._updates[site], np.float32(self._factors[site])
        shortened = update if factor == 1 else {name: value * factor for name, value in update.items()}
        return shortened, self._public[site]

    def __iter__(self) -> Iterator[str]:
        """Yield the sites' names, sorted."""
        return iter(self._updates)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._updates)
