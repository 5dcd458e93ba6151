"""Training of the anonymiser: stages, checkpoints, resume, progress and picture grids.

Trains on public data only. A data source that belongs to a private role is refused before anything is read,
and the identity of what was used is stored in the weights' metadata. P is trained first, then everything
jointly, as in the paper. The default sizes and steps are for a CPU; see
`simulation/configs/anonymizer_real.yaml` for real images.
"""

import json
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors.torch import load_file
from torch import Tensor

from wardpose.shared import files
from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.anonymize.generators import PartConfig
from wardpose.shared.anonymize.tensors import to_frame
from wardpose.shared.anonymize.weights_file import Kind, save_weights
from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.records import Frame
from wardpose.shared.data.source import DataSource, LspSource, WardSource, open_source
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer.feed import Batch, Feed
from wardpose.simulation.anonymizer.objectives import ObjectiveConfig
from wardpose.simulation.anonymizer.public_view_trainer import PublicViewTrainer
from wardpose.simulation.anonymizer.recoverable_trainer import RecoverableTrainer
from wardpose.simulation.anonymizer.trainers import Part, Trainer


class Stage(BaseModel):
    """A part of the schedule.

    Attributes:
        steps: how many updates.
        train: what is updated; everything else is frozen.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    train: tuple[Part, ...] = ("generator", "pose", "adversaries")


class PublicSource(BaseModel):
    """A public data set and its share of the batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: DataSource
    share: float = Field(default=1.0, gt=0)

    @field_validator("source")
    @classmethod
    def _public(cls, source: DataSource) -> DataSource:
        if isinstance(source, WardSource) and source.hospital != "public":
            raise ValueError(f'the people of ward "{source.hospital}" are private, only "public" may train')
        if isinstance(source, LspSource) and source.split != "public":
            raise ValueError(f'the people of LSP "{source.split}" are not for training, only "public" may train')
        return source


class TrainingConfig(BaseModel):
    """Everything that decides a training; stored beside the checkpoint, a resume with another one is refused.

    Attributes:
        kind: of the weights.
        data: public data sets with joints.
        pictures: folders of public pictures without joints (for the recovery, and never for `public-view`).
        crop: height and width of the crops in pixels, multiples of 64.
        stages: schedule.
        batch_size: crops a step.
        learning_rate: AdamW's, of the networks from scratch; a pre-trained encoder learns at 0.3 of it;
            cosine to 0.
        parts: part map of a `public-view`; a `recoverable` uses its levels and always a light encoder.
        backbone: TinyViT-5M weights (timm's names) that a trunk encoder starts from; `None` starts from
            scratch.
        guidance: the desensitisation that a cover follows.
        augmentation: random geometry of the crops.
        objective: weights of the terms.
        seed: of batches and initial values.
        checkpoint_every: steps between checkpoints.
        pictures_every: steps between picture grids.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    data: tuple[PublicSource, ...] = Field(min_length=1)
    pictures: tuple[Path, ...] = ()
    crop: tuple[int, int] = (256, 192)
    stages: tuple[Stage, ...] = (Stage(steps=100, train=("pose",)), Stage(steps=900))
    batch_size: int = Field(default=8, ge=2)
    learning_rate: float = Field(default=1e-3, gt=0)
    parts: PartConfig = PartConfig()
    backbone: Path | None = None
    guidance: Desensitise = Desensitise(kind="mosaic", strength=8)
    augmentation: Augmentation = Augmentation(half_body=0.0)
    objective: ObjectiveConfig = ObjectiveConfig()
    seed: int = 0
    checkpoint_every: int = Field(default=100, ge=1)
    pictures_every: int = Field(default=100, ge=1)

    @field_validator("crop")
    @classmethod
    def _multiple(cls, crop: tuple[int, int]) -> tuple[int, int]:
        if any(side % 64 or side <= 0 for side in crop):
            raise ValueError(f"crop {crop} must be two multiples of 64")
        return crop


Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each step with step, total steps and the terms."""


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    command: str = "",
    progress: Progress | None = None,
) -> Path:
    """Train and write `<folder>/<kind>.safetensors`; returns its path.

    Args:
        config: what to do.
        folder: gets `config.json`, `checkpoint.pt`, `pictures/step_*.png`, `log.jsonl` and the weights.
        resume: go on from the folder's checkpoint.
        device: where to compute; bfloat16 on `cuda`.
        command: stored in the weights' metadata.
        progress: called after each step.

    Raises:
        ConfigError: the folder holds another training, or there is nothing to resume.
        DataError: a data set or the backbone cannot be used, or the disk is full; the last checkpoint is still there.

    """
    with files.storing(folder, "the last checkpoint is still there, resume from it"):
        return _train(config, folder, resume, device, command, progress)


def _train(
    config: TrainingConfig,
    folder: Path,
    resume: bool,
    device: Literal["cpu", "cuda"],
    command: str,
    progress: Progress | None,
) -> Path:
    torch.manual_seed(config.seed)
    _claim(config, folder, resume)
    feed = _feed(config)
    trainer = _trainer(config, torch.device(device))
    trainer.start(config.learning_rate)
    first = 0
    checkpoint = folder / "checkpoint.pt"
    if resume:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        trainer.restore(state["trainer"])
        torch.set_rng_state(state["random"].cpu())
        first = int(state["step"])
    else:
        _checkpoint(checkpoint, trainer, 0)
    schedule = [stage.train for stage in config.stages for _ in range(stage.steps)]
    started = time.monotonic()
    for step in range(first, len(schedule)):
        _anneal(trainer, step / len(schedule))
        batch = feed.batch(step, config.batch_size).to(trainer.device)
        terms = trainer.step(batch, schedule[step])
        if progress is not None:
            progress(step + 1, len(schedule), terms)
        done = step + 1
        if done % config.pictures_every == 0 or done == len(schedule):
            _log(folder, done, terms, time.monotonic() - started)
            files.write_bytes(folder / "pictures" / f"step_{done:06d}.png", png(picture_grid(trainer, batch)))
        if done % config.checkpoint_every == 0 or done == len(schedule):
            _checkpoint(checkpoint, trainer, done)
    networks, shape = trainer.released()
    path = folder / f"{config.kind}.safetensors"
    save_weights(path, kind=config.kind, networks=networks, config=shape, data=feed.identity(), command=command)
    return path


def picture_grid(trainer: Trainer, batch: Batch, rows: int = 6) -> Frame:
    """Columns of the trainer's pictures, and P's joints on the last but one that it reads."""
    rows = min(rows, len(batch.image))
    part = Batch(**{name: value[:rows] for name, value in vars(batch).items()})
    columns = trainer.pictures(part)
    lines = [np.concatenate([to_frame(column[i]) for column in columns], axis=1) for i in range(rows)]
    with torch.no_grad():
        logits_x, logits_y = trainer.pose(columns[2])
    joints = (trainer.codec.decode(logits_x.float(), logits_y.float())[0] + 0.5) * 2 - 0.5
    width = trainer.size[1]
    for line, points in zip(lines, joints.cpu().numpy(), strict=True):
        for a, b in LSP14.limbs:
            ends = [(round(float(points[j][0])) + 2 * width, round(float(points[j][1]))) for j in (a, b)]
            cv2.line(line, ends[0], ends[1], (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate(lines, axis=0)


def png(frame: Frame) -> bytes:
    """Encode RGB as PNG."""
    return bytes(cv2.imencode(".png", np.ascontiguousarray(frame[..., ::-1]))[1])


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read TinyViT-5M weights.

    Raises:
        DataError: the file is missing or broken.

    """
    try:
        return load_file(path)
    except Exception as error:  # safetensors has no common base of its errors
        raise DataError(f"{path}: not a readable backbone: {error}") from error


def _claim(config: TrainingConfig, folder: Path, resume: bool) -> None:
    content = config.model_dump(mode="json")
    stored = folder / "config.json"
    if resume:
        if not (folder / "checkpoint.pt").is_file():
            raise ConfigError(f"{folder}: there is no checkpoint to resume from")
        before = json.loads(stored.read_text())
        before["objective"] = {"relinking": 0.0} | before["objective"]  # a folder from before there was this attacker
        if before != content:
            raise ConfigError(f"{stored}: the folder holds a training with another configuration")
    elif stored.exists():
        raise ConfigError(f"{folder}: holds a training already; resume it or choose another folder")
    files.write_json(stored, content)


def _feed(config: TrainingConfig) -> Feed:
    pictures = [path for folder in config.pictures for path in sorted(folder.glob("*.[jp][pn]g"))]
    return Feed(
        [(open_source(entry.source, skeleton=LSP14), entry.share) for entry in config.data],
        size=config.crop,
        guidance=config.guidance,
        augmentation=config.augmentation,
        pictures=pictures if config.kind == "recoverable" else [],
        seed=config.seed,
    )


def _trainer(config: TrainingConfig, device: torch.device) -> Trainer:
    if config.kind == "recoverable":
        return RecoverableTrainer(config.crop, config.objective, device, levels=config.parts.levels)
    backbone = None if config.backbone is None else read_backbone(config.backbone)
    return PublicViewTrainer(config.crop, config.objective, device, parts=config.parts, backbone=backbone)


def _anneal(trainer: Trainer, done: float) -> None:
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group.setdefault("full", group["lr"])
            group["lr"] = group["full"] * 0.5 * (1 + float(np.cos(np.pi * done)))


def _checkpoint(path: Path, trainer: Trainer, step: int) -> None:
    buffer = BytesIO()
    torch.save({"trainer": trainer.state(), "random": torch.get_rng_state(), "step": step}, buffer)
    files.write_bytes(path, buffer.getvalue())


def _log(folder: Path, step: int, terms: dict[str, float], seconds: float) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **terms}) + "\n")
