"""Where a run starts: the configured weights, after the public phase when the plan has one."""

import hashlib
import json
from pathlib import Path

from wardpose.server.scoring import open_all
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel, build_model
from wardpose.shared.pose.pretrain import pretrain
from wardpose.shared.pose.weights import load_model, save_model


def initial_model(config: FederationConfig, folder: Path, *, reuse: bool) -> PoseModel:
    """Build the first global model.

    Args:
        config: the plan.
        folder: where `initial.safetensors` is kept.
        reuse: take the `initial.safetensors` that an earlier start of the same plan left.

    Raises:
        ConfigError: a public phase without public data.
        DataError: weights or data cannot be read.

    """
    plan = {
        "model": config.model.model_dump(mode="json"),
        "pretrain": config.pretrain and config.pretrain.model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"initial-{key}.safetensors"
    if reuse and path.exists():
        return load_model(path)
    model = build_model(config.model)
    if config.pretrain is not None:
        public = open_all(config.data.public, config.model.skeleton)
        if public is None:
            raise ConfigError("data.public: missing; the public phase (pretrain) needs public data")
        pretrain(model, [public], config.pretrain, folder=folder)
    save_model(model, path, {"role": "initial"})
    return model
