"""One step of kind `recoverable`: G_X, G_Y and P against the discriminators D_X and D_Y."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wardpose.shared.anonymize.generators import CodeDecoder, RecoverableGenerator, round_symbols
from wardpose.shared.anonymize.weights_file import Kind
from wardpose.simulation.anonymizer import objectives
from wardpose.simulation.anonymizer.discriminators import PatchDiscriminator
from wardpose.simulation.anonymizer.feed import Batch
from wardpose.simulation.anonymizer.objectives import ObjectiveConfig
from wardpose.simulation.anonymizer.trainers import Part, Trainer


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
