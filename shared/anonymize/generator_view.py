"""The trained public view on one crop."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wardpose.shared.anonymize.generators import PartGenerator, enlarge
from wardpose.shared.anonymize.tensors import to_frame, to_unit
from wardpose.shared.anonymize.weights_file import load_public_view, read_info
from wardpose.shared.data.records import Frame
from wardpose.shared.side_by_side import side_by_side

_BATCH = 8


class GeneratorView:
    """The `public-view` generator as a map from a crop to what is released of it: part maps on black."""

    keeps_scene = False

    def __init__(self, path: Path, *, hardened: bool = False) -> None:
        """Load the weights.

        Args:
            path: of kind `public-view`.
            hardened: show less than they say: `PartConfig.hardened`.

        Raises:
            ConfigError: they are of kind `recoverable`.
            DataError: they cannot be read.

        """
        self._network: PartGenerator = load_public_view(path)
        self._sha256 = read_info(path).sha256
        self._level = ""
        if hardened:
            shape = self._network.config = self._network.config.hardened()
            self._level = f" levels {shape.levels} cell {shape.cell} threshold {shape.threshold}"
        self.name = f"generator({path.name}{', hardened' if hardened else ''})"

    @torch.inference_mode()
    def __call__(self, crop: Frame) -> Frame:
        """Return phi(crop), (H, W, 3) uint8."""
        height, width = crop.shape[:2]
        view = enlarge(self._network(to_unit(padded(crop, 32)[None])))
        return to_frame(view[0, :, :height, :width])

    def many(self, crops: Sequence[Frame]) -> list[Frame]:
        """Return phi of crops of one size, each as if it were alone.

        Batches are always full, with the last crop repeated: what comes out for one does not hang on how many others
        there are, and no row of the network sees another. Each thread makes batches of its own.
        """
        batches = [list(crops[start : start + _BATCH]) for start in range(0, len(crops), _BATCH)]
        return [view for views in side_by_side(self._batch, batches) for view in views]

    @torch.inference_mode()
    def _batch(self, batch: list[Frame]) -> list[Frame]:
        height, width = batch[0].shape[:2]
        full = np.stack([padded(crop, 32) for crop in batch + batch[-1:] * (_BATCH - len(batch))])
        views = enlarge(self._network(to_unit(full)))
        return [to_frame(view[:, :height, :width]) for view in views[: len(batch)]]

    def identity(self) -> str:
        """SHA-256 over the weights, a level other than theirs, and the version of the code around them."""
        return hashlib.sha256(f"generator {self._sha256}{self._level} version 1".encode()).hexdigest()


def padded(frame: Frame, multiple: int) -> Frame:
    """Repeat the last rows and columns until both sides are multiples."""
    bottom, right = -frame.shape[0] % multiple, -frame.shape[1] % multiple
    return np.pad(frame, ((0, bottom), (0, right), (0, 0)), mode="edge")
