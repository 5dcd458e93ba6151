"""Scores on public data at the server; what sites measure on their own patients never comes here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.shared.config import FederationConfig
from wardpose.shared.data.dataset import concatenate
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.source import DataSource, open_source
from wardpose.shared.errors import DataError
from wardpose.shared.pose.estimators import TorchEstimator, estimate_records
from wardpose.shared.pose.evaluation import Scores, evaluate, score
from wardpose.shared.pose.intervals import SCORES, Sample, interval
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.skeleton import get_skeleton

Arrays = dict[str, NDArray[np.float32]]


class Scorer:
    """Score global weights on the federation's public data sets.

    Attributes:
        config: the federation.
        model: a network to load weights into.

    """

    def __init__(self, config: FederationConfig, model: PoseModel) -> None:
        self.config = config
        self.model = model
        self._validation = open_all(config.data.validation, config.model.skeleton)
        self._test = open_all(config.data.test, config.model.skeleton) or self._validation

    def validation(self, weights: Arrays) -> float | None:
        """Return the configured score on validation data; `None` without any."""
        return None if self._validation is None else self._score(self._scores(weights, self._validation))

    def test(self, weights: Arrays) -> dict[str, Any] | None:
        """Return all scores on test data, the configured one as `score`; `None` without any."""
        if self._test is None:
            return None
        load_arrays(self.model, weights)
        estimator = TorchEstimator(self.model, device=_device())
        joints, confidence = estimate_records(estimator, self._test)
        scores = score(joints, self._test)
        records = [self._test.record(i) for i in range(len(self._test))]
        sample = Sample.of(joints, confidence, records, self.model.skeleton)
        found = interval(sample, SCORES[self.config.server.score])
        heads = self.config.server.score == "pckh@0.5"  # every figure by the plan's own score
        return {
            "score": self._score(scores),
            "interval": [found.low, found.high],
            "patients": len({record.patient_id for record in records}),
            "by_group": (scores.by_group_pckh if heads else scores.by_group) or {},
            "per_joint": (scores.per_joint_pckh if heads else scores.per_joint) or {},
            "records": len(self._test),
        }

    def _scores(self, weights: Arrays, dataset: PoseDataset) -> Scores:
        load_arrays(self.model, weights)
        return evaluate(self.model, dataset, device=_device())

    def _score(self, scores: Scores) -> float | None:
        return {"pck@0.2": scores.pck_box_02, "pckh@0.5": scores.pckh_05}[self.config.server.score]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_public_data(config: FederationConfig) -> None:
    """Open every public data set and look for the weights, so that a wrong path is found before anything is made.

    Raises:
        DataError: a data set cannot be opened, or the weights file does not exist.

    """
    for sources in (config.data.public, config.data.validation, config.data.test):
        open_all(sources, config.model.skeleton)
    weights = Path(config.model.weights)
    if config.model.weights not in ("bundled", "random", "timm") and not weights.is_file():
        raise DataError(f"model.weights = {weights}: no such file")


def open_all(sources: Sequence[DataSource], skeleton: str) -> PoseDataset | None:
    """Open several sources as one data set; `None` when there is none."""
    opened = [open_source(source, skeleton=get_skeleton(skeleton)) for source in sources]
    return concatenate(opened) if opened else None


def arrays_of(model: PoseModel) -> Arrays:
    """Copy a network's state to numpy, by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def load_arrays(model: PoseModel, weights: Arrays) -> None:
    """Put weights, by name, into a network."""
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
