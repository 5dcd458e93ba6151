"""Attackers that are trained for one view: reconstruction, re-identification, and identity of patients.

Each sees pairs of public crops and their views, as anybody who holds the anonymiser can make them, and is measured on
people it never saw. They work at half the crop's size.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize.blocks import LightEncoder, blocks
from wardpose.shared.anonymize.tensors import to_frame, to_unit
from wardpose.shared.data.records import Frame
from wardpose.simulation.anonymizer import objectives
from wardpose.simulation.anonymizer.attacks import Embeddings, unit

View = Callable[[Frame], Frame]


class ReconstructionNet(nn.Module):
    """View -> original, both (B, 3, H, W) in 0..1; a two-level network with a skip from the view itself."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(48, width, 1)
        self.fine = blocks(width, 2)
        self.down = nn.Conv2d(4 * width, 2 * width, 1)
        self.coarse = blocks(2 * width, 4)
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.merge = blocks(width, 2)
        self.out = nn.Conv2d(width, 48, 1)

    def forward(self, view: Tensor) -> Tensor:
        """Return the guessed original."""
        fine = self.fine(self.stem(functional.pixel_unshuffle(view - 0.5, 4)))
        coarse = self.coarse(self.down(functional.pixel_unshuffle(fine, 2)))
        merged = self.merge(fine + functional.pixel_shuffle(self.up(coarse), 2))
        out: Tensor = self.out(merged)
        return torch.sigmoid(functional.pixel_shuffle(out, 4))


class EmbeddingNet(nn.Module):
    """Image (B, 3, H, W) in 0..1 -> what a gallery is searched by, (B, D)."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.encoder = LightEncoder()
        self.out = nn.Sequential(nn.Linear(2 * sum(self.encoder.channels), 256), nn.GELU(), nn.Linear(256, dimension))

    def forward(self, image: Tensor) -> Tensor:
        """Return embeddings that are not yet scaled to length 1."""
        maps = self.encoder(image)
        pooled = [m.mean((2, 3)) for m in maps] + [m.amax((2, 3)) for m in maps]
        out: Tensor = self.out(torch.cat(pooled, 1))
        return out


class Pairs:
    """Public crops and their views at half size, kept in memory."""

    def __init__(self, originals: Sequence[Frame], views: Sequence[Frame]) -> None:
        self.original = to_unit(np.stack([_half(frame) for frame in originals]))
        self.view = to_unit(np.stack([_half(frame) for frame in views]))

    def __len__(self) -> int:
        return len(self.view)


def train_reconstruction(
    pairs: Pairs, *, steps: int, generator: torch.Generator, batch_size: int = 16
) -> ReconstructionNet:
    """Fit a fresh reconstruction network on public pairs."""
    network = ReconstructionNet()

    def loss(rows: Tensor, mirrored: bool) -> Tensor:
        view, original = _rows(pairs, rows, mirrored)
        guess: Tensor = network(view)
        return (guess - original).abs().mean() + 0.25 * (1 - objectives.ssim(guess, original).mean())

    _fit([network], loss, len(pairs), steps, batch_size, generator)
    return network


def train_reidentification(
    pairs: Pairs, targets: Embeddings, *, steps: int, generator: torch.Generator, batch_size: int = 48
) -> EmbeddingNet:
    """Fit a fresh network that finds, from a view, the re-identification embedding (N, D) of its original."""
    network = EmbeddingNet(targets.shape[1])
    wanted = torch.from_numpy(targets)

    def loss(rows: Tensor, mirrored: bool) -> Tensor:
        view, _ = _rows(pairs, rows, mirrored)
        return objectives.linkage_loss(network(view), wanted[rows])

    _fit([network], loss, len(pairs), steps, min(batch_size, len(pairs)), generator)
    return network


def identity_linkage(
    train: tuple[Pairs, Sequence[str]],
    test: tuple[Pairs, Sequence[str]],
    *,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 32,
) -> float:
    """Rank-1 of finding the patient of a view among other frames of held-out patients; needs no outside model.

    Two networks, one for views and one for originals, learn to agree on frames of one patient. Tested on patients that
    they never saw: each view is looked up among the originals of all other frames.

    Args:
        train: pairs and the patient of each.
        test: the same of other patients.
        steps: updates.
        generator: of initial values and batches.
        batch_size: patients a step.

    """
    pairs, names = train
    by_patient = {name: [i for i, other in enumerate(names) if other == name] for name in set(names)}
    patients = sorted(name for name, rows in by_patient.items() if len(rows) > 1)
    of_view, of_original = EmbeddingNet(64), EmbeddingNet(64)

    def loss(rows: Tensor, mirrored: bool) -> Tensor:
        first, second = [], []
        for row in rows.tolist():
            frames = by_patient[patients[row]]
            picked = torch.randperm(len(frames), generator=generator)[:2].tolist()
            first.append(frames[picked[0]])
            second.append(frames[picked[1]])
        view, _ = _rows(pairs, torch.tensor(first), mirrored)
        _, original = _rows(pairs, torch.tensor(second), mirrored)
        return objectives.linkage_loss(of_view(view), of_original(original))

    _fit([of_view, of_original], loss, len(patients), steps, min(batch_size, len(patients)), generator)
    held_out, owners = test
    queries, gallery = embed(of_view, held_out.view), embed(of_original, held_out.original)
    similarity = queries @ gallery.T
    np.fill_diagonal(similarity, -np.inf)
    best = similarity.argmax(axis=1)
    return float(np.mean([owners[i] == owners[j] for i, j in enumerate(best)]))


@torch.inference_mode()
def embed(network: EmbeddingNet, images: Tensor) -> Embeddings:
    """Embed images (N, 3, H, W)."""
    return unit(np.concatenate([network(part).numpy() for part in torch.split(images, 32)]))


@torch.inference_mode()
def reconstruct(network: ReconstructionNet, views: Tensor) -> list[Frame]:
    """Guess the originals of views (N, 3, H, W)."""
    return [to_frame(image) for part in torch.split(views, 32) for image in network(part)]


def _fit(
    networks: list[nn.Module],
    loss: Callable[[Tensor, bool], Tensor],
    count: int,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    parameters = [parameter for network in networks for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randperm(count, generator=generator)[:batch_size]
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(rows, mirrored))
        optimizer.step()
        schedule.step()
    for network in networks:
        network.eval()


def _rows(pairs: Pairs, rows: Tensor, mirrored: bool) -> tuple[Tensor, Tensor]:
    view, original = pairs.view[rows], pairs.original[rows]
    return (view.flip(3), original.flip(3)) if mirrored else (view, original)


def _half(frame: Frame) -> Frame:
    height, width = frame.shape[0] // 64 * 32, frame.shape[1] // 64 * 32
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
