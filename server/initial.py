"""Where a run starts: the configured weights, after the public phase when the plan has one."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from wardpose.server.scoring import open_all
from wardpose.shared.config import FederationConfig, wardpose_home
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel, build_model
from wardpose.shared.pose.pretrain import pretrain
from wardpose.shared.pose.weights import load_model, save_model, state_hash

logger = logging.getLogger("wardpose.server")

INITIAL = "initial.safetensors"


def initial_model(config: FederationConfig, folder: Path, *, reuse: bool) -> PoseModel:
    """Build the first global model.

    A public phase that was finished once is kept in `$WARDPOSE_HOME/pretrained`, under the hash of its start, recipe
    and data.

    Args:
        config: the plan.
        folder: where `initial.safetensors` and, during a public phase, its checkpoint are kept.
        reuse: take the `initial.safetensors` that an earlier start of the same run left.

    Raises:
        ConfigError: a public phase without public data.
        DataError: weights or data cannot be read.

    """
    path = folder / INITIAL
    if reuse and path.exists():
        return load_model(path)
    model = build_model(config.model)
    logger.info("weights: %s", model.weights_source)
    if config.pretrain is not None:
        public = open_all(config.data.public, config.model.skeleton)
        if public is None:
            raise ConfigError("data.public: missing; the public phase (pretrain) needs public data")
        model = _public_phase(model, [public], config, folder)
    save_model(model, path, {"role": "initial"})
    return model


def _public_phase(model: PoseModel, public: Sequence[PoseDataset], config: FederationConfig, folder: Path) -> PoseModel:
    recipe = config.pretrain
    if recipe is None:
        return model
    facts = [state_hash(model), recipe.model_dump(mode="json"), [dataset.identity() for dataset in public]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]
    kept = wardpose_home() / "pretrained" / f"{key}.safetensors"
    if kept.exists():
        logger.info("public phase: taken from %s", kept)
        return load_model(kept)
    logger.info("public phase: %d epochs on %d public records", recipe.epochs, sum(map(len, public)))

    def progress(done: int, total: int, loss: float) -> None:
        if done % max(1, total // 10) == 0:
            logger.info("public phase: step %d of %d, loss %.3f", done, total, loss)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pretrain(model, public, recipe, folder=folder, device=device, progress=progress)
    save_model(model, kept, {"role": "public phase", "recipe": recipe.model_dump_json()})
    return model
