"""One step of kind `public-view`: G_X and P against attackers: reconstruction, re-identification and relinking."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize.blocks import LightEncoder, TrunkEncoder, blocks
from wardpose.shared.anonymize.generators import PartConfig, PartGenerator, enlarge
from wardpose.shared.anonymize.weights_file import Kind
from wardpose.simulation.anonymizer import objectives
from wardpose.simulation.anonymizer.feed import Batch
from wardpose.simulation.anonymizer.objectives import ObjectiveConfig
from wardpose.simulation.anonymizer.relink_adversary import RelinkAdversary
from wardpose.simulation.anonymizer.trainers import Part, Trainer


class PublicViewTrainer(Trainer):
    """G_X of kind `public-view` with P, against its attackers."""

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
        # Only where it is asked for: it is larger than the other attackers together, and old checkpoints have none.
        self.relinker = RelinkAdversary() if objective.relinking > 0 else None
        if self.relinker is not None:
            self.networks["relinker"] = self.relinker

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
                terms |= {"attack_l1": rebuilt.item(), "attack_linkage": linked.item()}
                loss = rebuilt + linked
                if self.relinker is not None:
                    relinked = self.relinker(shown, batch.image)
                    loss, terms["attack_relinking"] = loss + relinked, relinked.item()
            self.update("adversaries", loss)
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
        if self.relinker is not None:
            gain = self.relinker.penalty(shown, batch.image)
            loss, terms["relinking_gain"] = loss + objective.relinking * gain, gain.item()
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
        adversaries: list[nn.Module] = [self.reconstruct, self.link_view, self.link_image]
        if self.relinker is not None:
            adversaries.append(self.relinker)
        return [(network.parameters(), 1.0) for network in adversaries]


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
