from pathlib import Path
from typing import Any

import pytest
from support.orders import make_order

from wardpose.client import training
from wardpose.client.site import Site
from wardpose.client.training import site_seed, train_round
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import DataError
from wardpose.shared.messages import RoundOrder
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.site_config import CohortConfig, SiteConfig
from wardpose.shared.skeleton import LSP14
from wardpose.shared.training.settings import LocalTraining
from wardpose.shared.wire import hash_arrays


def cohort() -> CohortConfig:
    data = {"kind": "ward", "hospital": "north", "patients": 10, "frames_per_patient": 1}
    return CohortConfig.model_validate({"name": "c", "declared_patients": 100, "data": data})


def test_a_simulated_site_has_another_seed_in_every_round() -> None:
    seeds = {site_seed(seed, site, number) for seed in (1, 2) for site in "ab" for number in (1, 2)}
    assert len(seeds) == 8


def test_the_order_says_how_to_train_and_the_site_how_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        training,
        "local_update",
        lambda model, data, mechanism, training, **rest: asked.update(rest, data=data, training=training),
    )
    config = SiteConfig.model_validate(
        {
            "site": "north",
            "cohort": cohort().model_dump() | {"multi_owner": "one-owner-group"},
            "state": tmp_path / "state",
            "ledger": tmp_path / "ledger.sqlite",
            "cache": {"precision": "float16", "maximum_gigabytes": 0.1},
        }
    )
    model = ModelConfig(weights="random", input_size=(64, 32))
    weights = {name: value.numpy() for name, value in build_model(model).state_dict().items()}
    training_asked = LocalTraining(steps=3, micro_batch=5, precision="bfloat16")
    order = make_order(
        Mechanism(noise_multiplier=1.0),
        training=training_asked,
        round_number=4,
        model=model,
        weights_hash=hash_arrays(weights),
    )
    train_round(Site(config), open_source(config.cohort.data, skeleton=LSP14), order, weights)
    assert asked["training"] == order.training
    assert (asked["first_step"], asked["declared_units"]) == (9, 100)
    assert asked["streams"].secure
    assert asked["data"].private.inputs.dtype == "float16"
    assert len(list(config.cache_folder.iterdir())) == 1
    too_small = config.model_copy(update={"cache": config.cache.model_copy(update={"maximum_gigabytes": 1e-9})})
    with pytest.raises(DataError, match="may take"):
        train_round(Site(too_small), open_source(config.cohort.data, skeleton=LSP14), fresh(order), weights)


def fresh(order: RoundOrder) -> RoundOrder:
    """The same order for features that are not kept yet."""
    return order.model_copy(update={"training": order.training.model_copy(update={"augmented_views": 2})})
