"""How well a pose model reads a view: the project's own P trained on it, and an off-the-shelf one as it is.

P is the production network (`shared.pose`), trained in the same way on every view and on untouched crops, with a
frozen trunk whose features are computed once. `pose_kept` is the ratio of the two scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wardpose.shared.data.crops import to_tensor
from wardpose.shared.data.records import Frame
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model, trainable_names
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.skeleton import COCO17, LSP14
from wardpose.simulation.anonymizer.attacks import MoveNet
from wardpose.simulation.anonymizer.feed import Sample

_STRATEGY: Strategy = "last-stage"
_COMMON = [(LSP14.index(joint), COCO17.index(joint)) for joint in LSP14.joints if joint in COCO17.joints]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Crops with what PCK needs.

    Attributes:
        frames: crops (H, W, 3), one a person.
        joints: (N, 14, 2) crop pixels.
        visibility: (N, 14).
        scales: (N,) long side of the person's box in crop pixels.

    """

    frames: list[Frame]
    joints: NDArray[np.float32]
    visibility: NDArray[np.uint8]
    scales: NDArray[np.float32]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Labelled":
        """Collect samples; the box is that of the joints and 12 % of its long side all around."""
        joints = np.stack([one.joints for one in samples])
        visibility = np.stack([one.visibility for one in samples])
        scales = []
        for points, seen in zip(joints, visibility > 0, strict=True):
            spans = np.ptp(points[seen], axis=0) if seen.any() else np.zeros(2)
            scales.append(1.24 * float(spans.max()))
        return cls(
            frames=[one.image for one in samples],
            joints=joints,
            visibility=visibility,
            scales=np.array(scales, np.float32),
        )


def train_and_score(
    train: Labelled,
    test: Labelled,
    shown: tuple[Sequence[Frame], Sequence[Frame]],
    *,
    config: ModelConfig,
    steps: int,
    seed: int,
    batch_size: int = 32,
) -> float:
    """PCK@0.2 (box) on `test` of a fresh P.

    Args:
        train: whom P learns from.
        test: whom it is tested on.
        shown: what P sees of them, first of `train`, then of `test`.
        config: P.
        steps: updates.
        seed: of initial values and batches.
        batch_size: people a step.

    """
    model = build_model(config, seed=seed)
    codec = SimCC.of(config)
    features = _features(model, shown[0])
    held_out = _features(model, shown[1])
    names = set(trainable_names(model, _STRATEGY))
    parameters = [parameter for name, parameter in model.named_parameters() if name in names]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    joints, visibility = torch.from_numpy(train.joints), torch.from_numpy(train.visibility)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randperm(len(features), generator=generator)[:batch_size]
        logits_x, logits_y = model.from_features(features[rows].float(), _STRATEGY)
        loss = simcc_loss(logits_x, logits_y, joints[rows], visibility[rows], codec).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        parts = [model.from_features(part.float(), _STRATEGY) for part in torch.split(held_out, 32)]
        decoded = [codec.decode(logits_x, logits_y)[0] for logits_x, logits_y in parts]
    return pck(torch.cat(decoded).numpy(), test)


def movenet_pck(movenet: MoveNet, test: Labelled, changed: Sequence[Frame]) -> float:
    """PCK@0.2 (box) of an off-the-shelf model over the 12 joints that both layouts have."""
    found = np.zeros_like(test.joints)
    visibility = np.zeros_like(test.visibility)
    for i, frame in enumerate(changed):
        joints = movenet(frame)
        for own, other in _COMMON:
            found[i, own], visibility[i, own] = joints[other], test.visibility[i, own]
    return pck(found, Labelled(frames=[], joints=test.joints, visibility=visibility, scales=test.scales))


def pck(found: NDArray[np.float32], truth: Labelled, threshold: float = 0.2) -> float:
    """Share of labelled joints within `threshold` of the box's long side."""
    distance = np.linalg.norm(found - truth.joints, axis=2)
    seen = truth.visibility > 0
    return float((distance <= threshold * truth.scales[:, None])[seen].mean())


class FeatureDistance:
    """Squared difference of channel-normalised TinyViT features (patch embedding and stages 1-3), averaged.

    Stands in for LPIPS, whose backbones cannot be had here; 0.08 for JPEG quality 30, 1.36 for another picture.
    """

    def __init__(self, config: ModelConfig, originals: Sequence[Frame]) -> None:
        self._backbone = build_model(config).backbone
        self._originals = [self._maps(frame) for frame in originals]

    def __call__(self, changed: Sequence[Frame]) -> float:
        """Mean distance from the originals to the first so many changed crops."""
        total = 0.0
        for first, frame in zip(self._originals, changed, strict=False):
            terms = [(x - y).square().sum(1).mean() for x, y in zip(first, self._maps(frame), strict=True)]
            total += float(torch.stack(terms).mean())
        return total / len(self._originals)

    @torch.inference_mode()
    def _maps(self, frame: Frame) -> list[Tensor]:
        x = self._backbone.patch_embed(to_tensor(frame[None]))
        maps = [functional.normalize(x, dim=1)]
        for stage in self._backbone.stages[:3]:
            x = stage(x)
            maps.append(functional.normalize(x, dim=1))
        return maps


@torch.inference_mode()
def _features(model: PoseModel, frames: Sequence[Frame]) -> Tensor:
    """(N, C, h, w) fp16 features in front of the last stage."""
    parts = [
        model.frozen_features(to_tensor(np.stack(frames[i : i + 16])), _STRATEGY).half()
        for i in range(0, len(frames), 16)
    ]
    # Out of inference mode's tensors, so that they can be part of a graph.
    return torch.cat(parts).clone()
