"""One step of each kind of training: who is updated against what.

A trainer owns the networks of its kind, their optimisers, and says which of them a stage updates. Losses are
those of `objectives`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize import objectives
from wardpose.shared.anonymize.blocks import LightEncoder, TrunkEncoder, blocks
from wardpose.shared.anonymize.feed import Batch
from wardpose.shared.anonymize.networks import (
    CodeDecoder,
    LightPose,
    PartConfig,
    PartGenerator,
    PatchDiscriminator,
    RecoverableGenerator,
    enlarge,
    round_symbols,
)
from wardpose.shared.anonymize.objectives import ObjectiveConfig
from wardpose.shared.anonymize.weights_file import Kind
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.skeleton import LSP14

Part = Literal["generator", "pose", "adversaries"]
"""What a stage may train: G_X (and G_Y), P, and the discriminators or attackers."""


class Trainer:
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

    def step(self, batch: Batch, parts: Iterable[Part]) -> dict[str, float]:
        """Update the named parts on one batch; returns the terms' values."""
        raise NotImplementedError

    def pictures(self, batch: Batch) -> list[Tensor]:
        """Columns of the picture grid, each (B, 3, H, W) in 0..1."""
        raise NotImplementedError

    def released(self) -> tuple[dict[str, nn.Module], dict[str, object]]:
        """Networks that go into the weights file, and their configuration."""
        raise NotImplementedError

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
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()

    @contextmanager
    def mixed(self) -> Iterator[None]:
        """bfloat16 on a GPU, float32 on a CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            yield

    def _groups(self, part: Part) -> list[tuple[Iterable[nn.Parameter], float]]:
        raise NotImplementedError


class PublicViewTrainer(Trainer):
    """G_X of kind `public-view` with P, against a reconstruction and a re-identification attacker."""

    kind: Kind = "public-view"

    def __init__(
        self,
        size: tuple[int, int],
        objective: ObjectiveConfig,
        device: torch.device,
        *,
        parts: PartConfig,
        backbone: dict[str, Tensor] | None,
    ) -> None:
        super().__init__(size, objective, device)
        generator = PartGenerator(parts)
        if backbone is not None and isinstance(generator.encoder, TrunkEncoder):
            generator.encoder.load_backbone(backbone)
        self.generator = generator
        self.reconstruct = _Reconstructor()
        self.link_view, self.link_image = _Embedder(), _Embedder()
        self.networks |= {
            "generator": generator,
            "reconstruct": self.reconstruct,
            "link_view": self.link_view,
            "link_image": self.link_image,
        }

    def step(self, batch: Batch, parts: Iterable[Part]) -> dict[str, float]:
        """Alternate: first G_X and P together, then the attackers on what G_X now shows."""
        parts = set(parts)
        terms: dict[str, float] = {}
        target = objectives.part_target(batch.joints, batch.visibility, self.size)
        if parts == {"pose"}:  # before there is a view, P learns on the view that G_X is to give
            with self.mixed():
                loss = self.pose_loss(enlarge(target), batch)
            self.update("pose", loss)
            return {"pose": loss.item()}
        small = functional.avg_pool2d(batch.image, 4)
        if "generator" in parts:
            with self.mixed():
                raw = self.generator.raw(batch.image)
                shown = self.generator.quantised(raw)
                loss, terms = self._loss(raw, shown, target, small, batch)
            if "pose" in parts:
                self.optimizers["pose"].zero_grad(set_to_none=True)
            self.update("generator", loss)
            if "pose" in parts and self.objective.pose > 0:
                self.optimizers["pose"].step()
        else:
            with torch.no_grad():
                shown = self.generator(batch.image)
        if "adversaries" in parts:
            shown = shown.detach()
            with self.mixed():
                rebuilt = (self.reconstruct(shown) - small).abs().mean()
                linked = objectives.linkage_loss(self.link_view(shown), self.link_image(small))
            self.update("adversaries", rebuilt + linked)
            terms |= {"attack_l1": rebuilt.item(), "attack_linkage": linked.item()}
        return terms

    def _loss(
        self, raw: Tensor, shown: Tensor, target: Tensor, small: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        objective = self.objective
        structure = objectives.structure_loss(raw, target)
        loss, terms = objective.structure * structure, {"structure": structure.item()}
        if objective.pose > 0:
            pose = self.pose_loss(enlarge(shown), batch)
            loss, terms["pose"] = loss + objective.pose * pose, pose.item()
        if objective.reconstruction > 0:
            loss = loss - objective.reconstruction * (self.reconstruct(shown) - small).abs().mean()
        if objective.linkage > 0:
            gain = objectives.linkage_penalty(self.link_view(shown), self.link_image(small))
            loss, terms["linkage_gain"] = loss + objective.linkage * gain, gain.item()
        return loss, terms

    @torch.no_grad()
    def pictures(self, batch: Batch) -> list[Tensor]:
        """Original, perfect view, view, the attacker's reconstruction, joints predicted from the view."""
        self.generator.eval()
        shown = self.generator(batch.image)
        self.generator.train()
        rebuilt = functional.interpolate(self.reconstruct(shown), size=self.size, mode="bilinear")
        target = enlarge(objectives.part_target(batch.joints, batch.visibility, self.size))
        return [batch.image, target, enlarge(shown), rebuilt]

    def released(self) -> tuple[dict[str, nn.Module], dict[str, object]]:
        """Only the generator: there is no way back."""
        return {"generator": self.generator}, self.generator.config.model_dump()

    def _groups(self, part: Part) -> list[tuple[Iterable[nn.Parameter], float]]:
        if part == "generator":
            slow = 0.3 if isinstance(self.generator.encoder, TrunkEncoder) else 1.0
            return [(self.generator.encoder.parameters(), slow), (self.generator.decoder.parameters(), 1.0)]
        if part == "pose":
            return [(self.networks["pose"].parameters(), 1.0)]
        adversaries = self.reconstruct, self.link_view, self.link_image
        return [(network.parameters(), 1.0) for network in adversaries]


class RecoverableTrainer(Trainer):
    """G_X and G_Y of kind `recoverable` with P, against D_X and D_Y."""

    kind: Kind = "recoverable"

    def __init__(self, size: tuple[int, int], objective: ObjectiveConfig, device: torch.device, *, levels: int) -> None:
        super().__init__(size, objective, device)
        self.generator, self.recovery = RecoverableGenerator(levels), CodeDecoder()
        self.judge_x, self.judge_y = PatchDiscriminator(), PatchDiscriminator()
        self.networks |= {
            "generator": self.generator,
            "recovery": self.recovery,
            "judge_x": self.judge_x,
            "judge_y": self.judge_y,
        }

    def step(self, batch: Batch, parts: Iterable[Part]) -> dict[str, float]:
        """Alternate: first G_X, G_Y and P together, then D_X and D_Y."""
        parts = set(parts)
        terms: dict[str, float] = {}
        if parts == {"pose"}:  # before there is a cover, P learns on the guidance
            with self.mixed():
                loss = self.pose_loss(batch.mask * batch.guidance + (1 - batch.mask) * batch.image, batch)
            self.update("pose", loss)
            return {"pose": loss.item()}
        with self.mixed(), torch.set_grad_enabled("generator" in parts):
            cover, symbols = self.generator(batch.image, batch.guidance, batch.mask)
            recovered = self.recovery(round_symbols(symbols))
        if "generator" in parts:
            with self.mixed():
                loss, terms = self._loss(cover, recovered, batch)
            if "pose" in parts:
                self.optimizers["pose"].zero_grad(set_to_none=True)
            self.update("generator", loss)
            if "pose" in parts and self.objective.pose > 0:
                self.optimizers["pose"].step()
        if "adversaries" in parts and self.objective.adversarial > 0:
            with self.mixed():
                loss = objectives.hinge_discriminator(
                    self.judge_x(batch.guidance), self.judge_x(cover.detach())
                ) + objectives.hinge_discriminator(self.judge_y(batch.image), self.judge_y(recovered.detach()))
            self.update("adversaries", loss)
            terms["judges"] = loss.item()
        return terms

    def _loss(self, cover: Tensor, recovered: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        objective = self.objective
        guidance = objectives.guidance_loss(cover, batch.guidance, batch.mask)
        absolute = (recovered - batch.image).abs().mean()
        unlike = 1 - objectives.ssim(recovered.float(), batch.image).mean()
        loss = objective.guidance * guidance + objective.recovery * absolute + objective.similarity * unlike
        terms = {
            "guidance": guidance.item(),
            "recovery": absolute.item(),
            "ssim": 1 - unlike.item(),
            "psnr": objectives.psnr(recovered.detach().float(), batch.image).mean().item(),
        }
        if objective.structure > 0:
            labelled = (batch.visibility > 0).any(1)
            if labelled.any():
                target = objectives.part_target(batch.joints, batch.visibility, self.size)
                raw = self.generator.parts.raw(batch.image)
                structure = objectives.structure_loss(raw[labelled], target[labelled])
                loss, terms["structure"] = loss + objective.structure * structure, structure.item()
        if objective.pose > 0:
            pose = self.pose_loss(cover, batch)
            loss, terms["pose"] = loss + objective.pose * pose, pose.item()
        if objective.adversarial > 0:
            fooled = objectives.hinge_generator(self.judge_x(cover)) + objectives.hinge_generator(
                self.judge_y(recovered)
            )
            loss = loss + objective.adversarial * fooled
        return loss, terms

    @torch.no_grad()
    def pictures(self, batch: Batch) -> list[Tensor]:
        """Original, guidance, cover, recovered with the key, decoded with a wrong key."""
        cover, symbols = self.generator(batch.image, batch.guidance, batch.mask)
        wrong = torch.rand_like(symbols) * 2 - 1
        return [
            batch.image,
            batch.guidance,
            cover,
            self.recovery(round_symbols(symbols)),
            self.recovery(round_symbols(wrong)),
        ]

    def released(self) -> tuple[dict[str, nn.Module], dict[str, object]]:
        """G_X and G_Y."""
        return (
            {"generator": self.generator, "recovery": self.recovery},
            {"levels": self.generator.parts.config.levels},
        )

    def _groups(self, part: Part) -> list[tuple[Iterable[nn.Parameter], float]]:
        if part == "generator":
            return [(self.generator.parameters(), 1.0), (self.recovery.parameters(), 1.0)]
        if part == "pose":
            return [(self.networks["pose"].parameters(), 1.0)]
        return [(self.judge_x.parameters(), 1.0), (self.judge_y.parameters(), 1.0)]


class _Reconstructor(nn.Module):
    """The attacker R inside training: part map -> the image at a quarter of its size."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), blocks(width, 3), nn.Conv2d(width, 12, 1))

    def forward(self, parts: Tensor) -> Tensor:
        return torch.sigmoid(functional.pixel_shuffle(self.net(parts), 2))


class _Embedder(nn.Module):
    """The attackers A and A' inside training: part map or small image -> what to match by, (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = LightEncoder(depth=1)
        self.out = nn.Linear(sum(self.encoder.channels), 64)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2] % 32 or image.shape[-1] % 32:
            size = [-(-side // 32) * 32 for side in image.shape[-2:]]
            image = functional.interpolate(image, size=size, mode="bilinear")
        maps = self.encoder(image)
        out: Tensor = self.out(torch.cat([m.mean((2, 3)) for m in maps], 1))
        return out
