"""Plain training on public data: where every federation's model comes from. Nothing here protects anybody.

AdamW with a linear warm-up and a cosine decay, augmented crops, the training loss of the private phase. A run that is
interrupted leaves a checkpoint from which the same call goes on, step for step as if nothing had happened.
"""

import hashlib
import io
import json
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)
from torch import Tensor, nn

from wardpose.shared.data import crops
from wardpose.shared.data.looks import Looks, change_looks
from wardpose.shared.data.records import Frame, PoseDataset, PoseRecord
from wardpose.shared.errors import DataError
from wardpose.shared.files import write_bytes
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import LowRank, Strategy, selected
from wardpose.shared.pose.weights import state_hash

Progress = Callable[[int, int, float], None]
"""Called after each step with the number of steps done, of all steps, and the step's loss."""


class PretrainConfig(BaseModel):
    """Recipe of the public phase.

    Attributes:
        epochs: passes over all records.
        batch_size: records per step.
        strategy: which parameters train.
        learning_rate: peak of the schedule.
        weight_decay: AdamW's, on matrices and kernels only.
        warmup: share of the steps during which the learning rate rises linearly.
        augmentation: geometry of the crops.
        looks: what is laid over or in front of people, and the light; nothing by default.
        precision: `bfloat16` runs the network under autocast, which is faster where the processor has it.
        checkpoint_steps: steps between checkpoints.
        cache_gigabytes: frames kept in memory, the rest is read again in each epoch.
        seed: of order and augmentation.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=32, ge=1)
    strategy: Strategy = "full"
    learning_rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    augmentation: crops.Augmentation = crops.Augmentation()
    looks: Looks = Looks()
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: int = Field(default=100, ge=1)
    cache_gigabytes: float = Field(default=2.0, ge=0)
    seed: int = Field(default=0, ge=0)

    @field_validator("strategy")
    @classmethod
    def _as_it_is(cls, value: Strategy) -> Strategy:
        if isinstance(value, LowRank):
            raise ValueError("has low rank (allowed in public training: a set, or a list of sets and patterns)")
        return value

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out looks that do nothing, so that a run of an earlier version is still the same run."""
        values: dict[str, Any] = handler(self)
        if self.looks == Looks():
            values.pop("looks", None)
        return values


@dataclass(frozen=True, kw_only=True)
class PretrainReport:
    """What a finished public phase has to say.

    Attributes:
        steps: optimiser steps.
        loss: mean loss of the last tenth of the steps that this call took; NaN when it took none.
        seconds: of this call.
        provenance: name, identity and number of records of every data set, for the weights' metadata.

    """

    steps: int
    loss: float
    seconds: float
    provenance: tuple[dict[str, Any], ...]


def pretrain(
    model: PoseModel,
    datasets: Sequence[PoseDataset],
    config: PretrainConfig,
    *,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> PretrainReport:
    """Train `model` in place on public data.

    Args:
        model: where to start; afterwards on `device`, with every parameter trainable again.
        datasets: public data in the model's skeleton.
        config: the recipe.
        folder: keeps `pretrain.checkpoint` while training. When one of the same start, recipe and data is there,
            training goes on from it; Ctrl-C writes one before it is passed on.
        device: where to compute.
        progress: observer.

    Returns:
        The report.

    Raises:
        DataError: no record, a data set in another skeleton, or a frame that cannot be read.

    """
    started = time.monotonic()
    frames = _Frames(datasets, model, limit=int(config.cache_gigabytes * 1e9))
    per_epoch = -(-len(frames) // config.batch_size)
    total = per_epoch * config.epochs
    key = _fingerprint(model, frames.provenance, config)
    chosen = set(selected((name for name, _ in model.named_parameters()), config.strategy))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, config)
    path = None if folder is None else folder / "pretrain.checkpoint"
    step = 0 if path is None else _load_checkpoint(path, key, model, optimizer)
    losses: list[float] = []
    try:
        while step < total:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, total, config.warmup)
            rows = _batch(step, per_epoch, len(frames), config)
            losses.append(_train_step(model, optimizer, frames, rows, step, config))
            step += 1
            if progress is not None:
                progress(step, total, losses[-1])
            if path is not None and step % config.checkpoint_steps == 0 and step < total:
                _save_checkpoint(path, key, step, model, optimizer)
    except KeyboardInterrupt:
        if path is not None:
            _save_checkpoint(path, key, step, model, optimizer)
        raise
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        model.to(memory_format=torch.contiguous_format)
    if path is not None:
        path.unlink(missing_ok=True)
    tail = losses[-max(1, len(losses) // 10) :]
    return PretrainReport(
        steps=total,
        loss=float(np.mean(tail)) if tail else float("nan"),
        seconds=time.monotonic() - started,
        provenance=frames.provenance,
    )


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at `step` of `total`: linear over the warm-up, then half a cosine down to 0."""
    rising = max(1, round(warmup * total)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return float(0.5 * (1 + np.cos(np.pi * (step - rising) / max(1, total - rising))))


class _Frames:
    """All records of several data sets, with as many frames as fit kept in memory; itself a `PoseDataset`."""

    def __init__(self, datasets: Sequence[PoseDataset], model: PoseModel, *, limit: int) -> None:
        for dataset in datasets:
            if dataset.skeleton.name != model.skeleton.name:
                raise DataError(
                    f"{dataset.name}: skeleton {dataset.skeleton.name}, but the model predicts {model.skeleton.name}"
                )
        self.name = "+".join(dataset.name for dataset in datasets)
        self.skeleton = model.skeleton
        self.notes: list[str] = [note for dataset in datasets for note in dataset.notes]
        self._places = [(dataset, i) for dataset in datasets for i in range(len(dataset))]
        if not self._places:
            raise DataError("public training: no record in any of the data sets (allowed: at least one)")
        self.provenance: tuple[dict[str, Any], ...] = tuple(
            {"name": dataset.name, "identity": dataset.identity(), "records": len(dataset)} for dataset in datasets
        )
        self._records: dict[int, PoseRecord] = {}
        self._frames: dict[int, Frame] = {}
        self._room = limit

    def __len__(self) -> int:
        return len(self._places)

    def record(self, index: int) -> PoseRecord:
        if index not in self._records:
            dataset, row = self._places[index]
            self._records[index] = dataset.record(row)
        return self._records[index]

    def frame(self, index: int) -> Frame:
        if index in self._frames:
            return self._frames[index]
        dataset, row = self._places[index]
        frame = dataset.frame(row)
        if frame.nbytes <= self._room:
            self._room -= frame.nbytes
            self._frames[index] = frame
        return frame

    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self.provenance, sort_keys=True).encode()).hexdigest()


def _train_step(
    model: PoseModel,
    optimizer: torch.optim.Optimizer,
    frames: _Frames,
    rows: Sequence[int],
    step: int,
    config: PretrainConfig,
) -> float:
    generator = np.random.default_rng([config.seed, 1, step])
    size = model.config.input_size
    batch = [
        crops.crop_record(frames, row, size, augmentation=config.augmentation, generator=generator) for row in rows
    ]
    batch = change_looks(batch, model.skeleton, config.looks, seed=(config.seed, 2, step))
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.stack([crop.image for crop in batch])).to(device)
    joints = torch.from_numpy(np.stack([crop.joints for crop in batch])).to(device)
    visibility = torch.from_numpy(np.stack([crop.visibility for crop in batch])).to(device)
    x = crops.to_tensor(pixels).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits_x, logits_y = model(x)
    per_record: Tensor = simcc_loss(logits_x.float(), logits_y.float(), joints, visibility, SimCC.of(model.config))
    loss = per_record.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch publishes no type for it
    optimizer.step()
    return float(loss.detach())


def _optimizer(model: PoseModel, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices and kernels, none on biases, norms and attention biases."""
    training = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    plain = [value for name, value in training if value.ndim <= 1 or "attention_biases" in name]
    decayed = [value for name, value in training if not (value.ndim <= 1 or "attention_biases" in name)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)


def _batch(step: int, per_epoch: int, records: int, config: PretrainConfig) -> list[int]:
    """Rows of a step: each epoch is a permutation of its own."""
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([config.seed, 0, epoch]).permutation(records)
    rows: list[int] = order[place * config.batch_size : (place + 1) * config.batch_size].tolist()
    return rows


def _fingerprint(model: nn.Module, provenance: Sequence[dict[str, Any]], config: PretrainConfig) -> str:
    """Name everything that decides the outcome, so that a checkpoint of another run is never taken up."""
    recipe = config.model_dump(mode="json", exclude={"checkpoint_steps", "cache_gigabytes"})
    content = json.dumps([state_hash(model), list(provenance), recipe], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _save_checkpoint(path: Path, key: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    buffer = io.BytesIO()
    state = {"key": key, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def _load_checkpoint(path: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take up a checkpoint of this very run; return the steps it has done, 0 when there is none."""
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: the checkpoint is broken ({error}); delete it to start again") from error
    if not isinstance(state, dict) or state.get("key") != key:
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
