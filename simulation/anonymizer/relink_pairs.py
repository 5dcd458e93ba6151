"""What a relinking attacker learns from: frames and views at its size, and how they are varied."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError
from wardpose.simulation.anonymizer.relinking_nets import SIZE


@dataclass(frozen=True, kw_only=True, eq=False)
class Looks:
    """Frames and views at the attackers' size, and who is on them.

    Attributes:
        frames: (N, 3, 64, 48) uint8.
        views: the same.
        owners: the person of each.

    """

    frames: Tensor
    views: Tensor
    owners: list[str]

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[Frame, Frame, str]]) -> Self:
        """Take frame, view (H, W, 3 of any size) and owner one after the other; no large picture is kept."""
        rows = [(small(frame), small(view), owner) for frame, view, owner in pairs]
        if not rows:
            raise DataError("an attacker without pairs learns nothing")
        frames, views, owners = zip(*rows, strict=True)
        return cls(frames=stacked(frames), views=stacked(views), owners=list(owners))

    def __len__(self) -> int:
        return len(self.owners)

    def of(self, people: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of these people."""
        wanted = set(people)
        return np.array([i for i, owner in enumerate(self.owners) if owner in wanted], np.int64)


def subset(looks: Looks, people: int, *, generator: torch.Generator) -> Looks:
    """Take so many people at random, with all their pairs."""
    names = sorted(set(looks.owners))
    chosen = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()[:people]]
    rows = looks.of(chosen)
    return Looks(frames=looks.frames[rows], views=looks.views[rows], owners=[looks.owners[i] for i in rows])


def augmented(views: Tensor, frames: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Move each pair together, and change the frame's light and hide a part of it; (B, 3, h, w) uint8 -> -0.5..0.5."""
    count = len(views)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    turn, zoom = 0.2 * uniform(count), 1 + 0.12 * uniform(count)
    ratio = frames.shape[3] / frames.shape[2]
    cosine, sine = zoom * turn.cos(), zoom * turn.sin()
    shift = 0.08 * uniform(count, 2)
    affine = torch.stack(
        [
            torch.stack([cosine, -sine / ratio, shift[:, 0]], 1),
            torch.stack([sine * ratio, cosine, shift[:, 1]], 1),
        ],
        1,
    )
    grid = functional.affine_grid(affine, [count, 3, *frames.shape[2:]], align_corners=False)
    moved = [functional.grid_sample(x.float() / 255, grid, align_corners=False) for x in (views, frames)]
    gain = 1 + 0.3 * uniform(count, 3, 1, 1) * 0.5 + 0.3 * uniform(count, 1, 1, 1)
    light = ((moved[1] - 0.5) * gain + 0.5 + 0.15 * uniform(count, 1, 1, 1)).clamp(0, 1)
    return moved[0] - 0.5, light - 0.5


def small(frame: Frame) -> Frame:
    """Bring a picture (H, W, 3) to the attackers' size."""
    height, width = SIZE
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def stacked(frames: Sequence[Frame]) -> Tensor:
    """(h, w, 3) each -> (N, 3, h, w)."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
