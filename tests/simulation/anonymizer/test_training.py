import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from wardpose.shared.anonymize.weights_file import read_info
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import ConfigError, DataError
from wardpose.simulation.anonymizer import training
from wardpose.simulation.anonymizer.feed import Feed
from wardpose.simulation.anonymizer.training import TrainingConfig, train

WARD = {"kind": "ward", "hospital": "public", "patients": 3, "frames_per_patient": 2, "seed": 5}


def config(kind, **more):
    content = {
        "kind": kind,
        "data": [{"source": WARD}],
        "crop": [64, 64],
        "stages": [{"steps": 1, "train": ["pose"]}, {"steps": 3}],
        "batch_size": 2,
        "parts": {"encoder": "light", "levels": 4},
        "checkpoint_every": 2,
        "pictures_every": 2,
    }
    return TrainingConfig.model_validate(content | more)


@pytest.mark.parametrize("kind", ["public-view", "recoverable"])
def test_training_writes_weights_that_say_what_they_learned_from(kind, tmp_path):
    seen = []
    path = train(config(kind), tmp_path / "run", command="by hand", progress=lambda *step: seen.append(step))
    info = read_info(path)
    assert (info.kind, info.command) == (kind, "by hand")
    assert info.data == {"ward/public": WardDataset("public", patients=3, frames_per_patient=2, seed=5).identity()}
    assert [step[:2] for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(np.isfinite(list(step[2].values())).all() for step in seen)
    grid = read_picture(tmp_path / "run" / "pictures" / "step_000004.png")
    assert grid.shape == (128, 64 * (4 if kind == "public-view" else 5), 3)


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path):
    whole = train(config("recoverable"), tmp_path / "whole")

    def stop(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config("recoverable"), tmp_path / "parts", progress=stop)
    resumed = train(config("recoverable"), tmp_path / "parts", resume=True)
    first, second = load_file(whole), load_file(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, full_disk):
    whole = train(config("recoverable"), tmp_path / "whole")

    def fill(step, *_):
        if step == 3:
            limit.__enter__()

    limit = full_disk(20_000)
    try:
        with pytest.raises(DataError, match="resume from it"):
            train(config("recoverable"), tmp_path / "run", progress=fill)
    finally:
        limit.__exit__(None, None, None)
    assert not (tmp_path / "run" / "recoverable.safetensors").exists()
    resumed = train(config("recoverable"), tmp_path / "run", resume=True)
    first, second = load_file(whole), load_file(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_that_was_stopped_before_its_first_checkpoint_can_be_resumed(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config("recoverable"), tmp_path / "run", progress=stop)
    train(config("recoverable"), tmp_path / "run", resume=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["public-view", "recoverable"])
def test_mixed_precision_on_a_gpu_stays_finite(kind, tmp_path):
    seen = []
    train(config(kind), tmp_path / "run", device="cuda", progress=lambda *step: seen.append(step[2]))
    assert all(np.isfinite(list(terms.values())).all() for terms in seen)


def test_a_folder_holds_one_training(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint"):
        train(config("recoverable"), tmp_path / "run", resume=True)
    train(config("recoverable"), tmp_path / "run")
    with pytest.raises(ConfigError, match="already"):
        train(config("recoverable"), tmp_path / "run")
    with pytest.raises(ConfigError, match="another configuration"):
        train(config("recoverable", seed=1), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "source",
    [WARD | {"hospital": "north"}, *({"kind": "lsp", "path": ".", "split": s} for s in ("private", "test", "val"))],
)
def test_private_and_held_out_people_never_train_it(source):
    with pytest.raises(ValidationError, match='only "public" may train'):
        config("public-view", data=[{"source": source}])


def test_frozen_parts_do_not_move(tmp_path, monkeypatch):
    trainers = []
    genuine = training._trainer

    def spy(*args):
        trainers.append(genuine(*args))
        return trainers[-1]

    monkeypatch.setattr(training, "_trainer", spy)
    only = config("recoverable", stages=[{"steps": 1, "train": ["adversaries"]}])
    torch.manual_seed(only.seed)
    before = genuine(only, torch.device("cpu")).networks
    train(only, tmp_path / "run")
    after = trainers[0].networks
    for name in ("generator", "recovery", "pose"):
        for a, b in zip(before[name].parameters(), after[name].parameters(), strict=True):
            torch.testing.assert_close(a, b)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(before["judge_x"].parameters(), after["judge_x"].parameters(), strict=True)
    ]
    assert any(moved)


def test_batches_depend_on_seed_and_step_alone():
    def feed(seed):
        ward = WardDataset("public", patients=2, frames_per_patient=1, seed=5)
        settings = config("recoverable")
        return Feed(
            [(ward, 1.0)], size=(64, 64), guidance=settings.guidance, augmentation=settings.augmentation, seed=seed
        )

    torch.testing.assert_close(feed(0).batch(7, 2).image, feed(0).batch(7, 2).image)
    assert not torch.equal(feed(0).batch(7, 2).image, feed(0).batch(8, 2).image)
    assert not torch.equal(feed(0).batch(7, 2).image, feed(1).batch(7, 2).image)


def test_the_configuration_is_stored_beside_the_checkpoint(tmp_path):
    settings = config("public-view", stages=[{"steps": 1}])
    train(settings, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == settings.model_dump(mode="json")
