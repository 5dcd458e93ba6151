"""What both kinds of training share: networks, optimisers, P, mixed precision.

A trainer owns the networks of its kind, their optimisers, and says which of them a stage updates. Losses are those of
`objectives`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize.weights_file import Kind
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer.feed import Batch
from wardpose.simulation.anonymizer.light_pose import LightPose
from wardpose.simulation.anonymizer.objectives import ObjectiveConfig

Part = Literal["generator", "pose", "adversaries"]
"""What a stage may train: G_X (and G_Y), P, and the discriminators or attackers."""


class Trainer(ABC):
    """What both kinds share: P at half the crop's size, optimisers, mixed precision.

    Attributes:
        kind: of the weights that come out.
        networks: name -> network, all of them in the checkpoint.

    """

    kind: Kind

    def __init__(self, size: tuple[int, int], objective: ObjectiveConfig, device: torch.device) -> None:
        self.size = size
        self.objective = objective
        self.device = device
        pose_size = (size[0] // 2, size[1] // 2)
        self.codec = SimCC(input_size=pose_size)
        self.networks: dict[str, nn.Module] = {"pose": LightPose(len(LSP14), pose_size)}
        self.optimizers: dict[Part, torch.optim.Optimizer] = {}

    def start(self, learning_rate: float) -> None:
        """Move the networks to the device and make the optimisers."""
        for network in self.networks.values():
            network.to(self.device).train()
        for part in ("generator", "pose", "adversaries"):
            groups = [
                {"params": list(parameters), "lr": learning_rate * factor} for parameters, factor in self._groups(part)
            ]
            self.optimizers[part] = torch.optim.AdamW(groups, weight_decay=1e-4, betas=(0.9, 0.99))

    @abstractmethod
    def step(self, batch: Batch, parts: Iterable[Part]) -> dict[str, float]:
        """Update the named parts on one batch; returns the terms' values."""

    @abstractmethod
    def pictures(self, batch: Batch) -> list[Tensor]:
        """Columns of the picture grid, each (B, 3, H, W) in 0..1."""

    @abstractmethod
    def released(self) -> tuple[dict[str, nn.Module], dict[str, object]]:
        """Networks that go into the weights file, and their configuration."""

    def pose(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """P's logits for images (B, 3, H, W)."""
        logits: tuple[Tensor, Tensor] = self.networks["pose"](functional.avg_pool2d(image, 2))
        return logits

    def pose_loss(self, image: Tensor, batch: Batch) -> Tensor:
        """L_PE: mean SimCC loss over the records that have joints."""
        logits_x, logits_y = self.pose(image)
        joints = (batch.joints + 0.5) / 2 - 0.5
        return simcc_loss(logits_x.float(), logits_y.float(), joints, batch.visibility, self.codec).mean()

    def state(self) -> dict[str, Any]:
        """Everything that a resumed training needs."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for part, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][part])

    def update(self, part: Part, loss: Tensor) -> None:
        """One optimiser step, gradients clipped to norm 1."""
        optimizer = self.optimizers[part]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()

    @contextmanager
    def mixed(self) -> Iterator[None]:
        """bfloat16 on a GPU, float32 on a CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            yield

    @abstractmethod
    def _groups(self, part: Part) -> list[tuple[Iterable[nn.Parameter], float]]:
        """Parameters that a part trains, each group with its factor of the learning rate."""
