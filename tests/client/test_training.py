from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.orders import make_order

from wardpose.client import training
from wardpose.client.site import Site, open_public_data
from wardpose.client.training import site_seed, train_round
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import DataError
from wardpose.shared.messages import RoundOrder
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism
from wardpose.shared.site_config import CohortConfig, SiteConfig
from wardpose.shared.skeleton import LSP14
from wardpose.shared.training.settings import AnchorOptions, LocalTraining
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


@pytest.mark.parametrize("asks", ["anchor", "judgement"])
def test_public_people_are_those_of_site_yaml_and_no_patient_is_among_them(
    asks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their gradient is added without noise, and what is decided by them is not charged."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        training, "local_update", lambda model, data, mechanism, training, **rest: asked.update(rest, data=data)
    )
    public = {"kind": "ward", "hospital": "public", "patients": 4, "frames_per_patient": 1, "seed": 7}
    config = SiteConfig.model_validate(
        {
            "site": "north",
            "cohort": cohort().model_dump(),
            "state": tmp_path / "state",
            "ledger": tmp_path / "ledger.sqlite",
            "public_data": [public],
            "public_view": {"kind": "blur"},
            "policy": {"certificate": None},
        }
    )
    model = ModelConfig(weights="random", input_size=(64, 32))
    weights = {name: value.numpy() for name, value in build_model(model).state_dict().items()}
    order = make_order(
        Mechanism(name="feature", noise_multiplier=1.0, feature=FeatureOptions(max_difference=1.0))
        if asks == "judgement"
        else Mechanism(noise_multiplier=1.0),
        training=LocalTraining(steps=3, anchor=AnchorOptions() if asks == "anchor" else None),
        model=model,
        weights_hash=hash_arrays(weights),
    )
    train_round(Site(config), open_source(config.cohort.data, skeleton=LSP14), order, weights)
    people, known = asked["public"], open_public_data(config.public_data, "lsp14")
    assert (people.identity, len(people.rows)) == (known.identity(), 4)
    patients = {row.tobytes() for row in np.asarray(asked["data"].private.inputs)}
    assert len(patients) == 10
    assert patients.isdisjoint(row.tobytes() for row in np.asarray(people.rows.inputs))
    shown = [] if people.shown is None else [row.tobytes() for row in np.asarray(people.shown.inputs)]
    assert (len(shown), patients.isdisjoint(shown)) == (4 if asks == "judgement" else 0, True)


@pytest.mark.slow
@pytest.mark.guard
def test_what_imputes_features_is_made_of_public_people_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hospitals with other patients and the same public people make the same network, to the last bit."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        training, "local_update", lambda model, data, mechanism, training, **rest: asked.append({**rest, "data": data})
    )
    public = {"kind": "ward", "hospital": "public", "patients": 6, "frames_per_patient": 1, "seed": 7}
    model = ModelConfig(weights="random", input_size=(64, 32))
    weights = {name: value.numpy() for name, value in build_model(model).state_dict().items()}
    order = make_order(
        Mechanism(name="feature", noise_multiplier=1.0, feature=FeatureOptions(max_difference=1.0, impute=True)),
        training=LocalTraining(steps=3),
        model=model,
        weights_hash=hash_arrays(weights),
    )
    kept = []
    for hospital in ("north", "south"):
        patients = {"kind": "ward", "hospital": hospital, "patients": 3, "frames_per_patient": 1}
        config = SiteConfig.model_validate(
            {
                "site": hospital,
                "cohort": {"name": "c", "declared_patients": 100, "data": patients},
                "state": tmp_path / hospital,
                "ledger": tmp_path / hospital / "ledger.sqlite",
                "public_data": [public],
                "public_view": {"kind": "blur"},
                "policy": {"certificate": None},
            }
        )
        train_round(Site(config), open_source(config.cohort.data, skeleton=LSP14), order, weights)
        kept += [path.read_bytes() for path in config.cache_folder.glob("imputed-*/weights.safetensors")]
    assert len(kept) == 2
    assert kept[0] == kept[1]
    first, second = (set(map(bytes, np.asarray(found["data"].public.inputs))) for found in asked)
    assert first.isdisjoint(second)
    assert asked[0]["public"].unseen.tolist() == asked[1]["public"].unseen.tolist()
    assert 0 < len(asked[0]["public"].unseen) < 6
