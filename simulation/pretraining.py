"""The plan of a public training run as a YAML file has it, and what is said about its outcome."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.source import DataSource, open_source
from wardpose.shared.pose.evaluation import evaluate
from wardpose.shared.pose.model import ModelConfig, PoseModel, check_strategy
from wardpose.shared.pose.pretrain import PretrainConfig, PretrainReport, Progress
from wardpose.shared.pose.pretrain import pretrain as pretrain_model
from wardpose.shared.skeleton import Skeleton

BUNDLED_CONFIG = Path(__file__).parent / "configs" / "pretrain_ward.yaml"


class PretrainFile(BaseModel):
    """What `wardpose pretrain` reads.

    Attributes:
        model: the network and where it starts from.
        data: public data sets to train on.
        validation: public data sets to score before and after, each on its own.
        training: the recipe.
        half: write matrices and kernels as float16.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig(weights="random")
    data: tuple[DataSource, ...] = Field(min_length=1)
    validation: tuple[DataSource, ...] = ()
    training: PretrainConfig = PretrainConfig()
    half: bool = False

    @model_validator(mode="after")
    def _of_the_network(self) -> Self:
        check_strategy(self.model, self.training.strategy)
        return self


def open_named(sources: Sequence[DataSource], skeleton: Skeleton) -> list[PoseDataset]:
    """Open data sets; errors as `open_source`."""
    return [open_source(source, skeleton=skeleton) for source in sources]


def train(
    model: PoseModel,
    public: Sequence[PoseDataset],
    plan: PretrainFile,
    *,
    folder: Path,
    progress: Progress | None = None,
) -> PretrainReport:
    """Train in place on the fastest device there is; a checkpoint lies in `folder` meanwhile."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return pretrain_model(model, public, plan.training, folder=folder, device=device, progress=progress)


def score_all(model: PoseModel, datasets: Sequence[PoseDataset]) -> dict[str, float]:
    """PCK@0.2 of the box's long side on each data set, by its name."""
    device = next(model.parameters()).device
    return {dataset.name: evaluate(model, dataset, device=device).pck_box_02 for dataset in datasets}


def metadata(path: Path, model: PoseModel, report: PretrainReport, scores: dict[str, float]) -> dict[str, str]:
    """Text that goes with the weights: how they were made, from what, and how good they are."""
    return {
        "command": f"wardpose pretrain {path.name}",
        "started_from": model.weights_source.replace(str(Path(model.config.weights).parent) + "/", ""),
        "public_data": json.dumps(list(report.provenance)),
        "pck_box_02": json.dumps({name: round(score, 4) for name, score in scores.items()}),
    }
