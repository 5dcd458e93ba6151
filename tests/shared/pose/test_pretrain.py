import itertools
from pathlib import Path

import pytest
import torch

from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.looks import Looks
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import DataError
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model
from wardpose.shared.pose.pretrain import PretrainConfig, learning_rate_factor, pretrain
from wardpose.shared.pose.weights import state_hash

SMALL = ModelConfig(input_size=(64, 64), last_stride=16, weights="random")
WARD = WardDataset("public", patients=3, frames_per_patient=2, seed=900)
LOOKS = Looks(occlusion=0.5, blanket=0.5, colour=0.5)
FAST = PretrainConfig(epochs=3, batch_size=2, learning_rate=1e-3, checkpoint_steps=2, looks=LOOKS)


def state(model: PoseModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_interrupted_and_resumed_is_the_same_as_never_interrupted(tmp_path: Path) -> None:
    whole = build_model(SMALL, seed=3)
    report = pretrain(whole, [WARD], FAST)
    assert report.steps == 9
    assert report.provenance == ({"name": WARD.name, "identity": WARD.identity(), "records": 6},)

    def stop(step: int, total: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(build_model(SMALL, seed=3), [WARD], FAST, folder=tmp_path, progress=stop)
    assert (tmp_path / "pretrain.checkpoint").is_file()
    resumed, steps = build_model(SMALL, seed=3), []
    pretrain(resumed, [WARD], FAST, folder=tmp_path, progress=lambda step, total, loss: steps.append(step))
    assert steps == [6, 7, 8, 9]
    assert state_hash(resumed) == state_hash(whole)
    assert not (tmp_path / "pretrain.checkpoint").exists()


def test_looks_change_what_is_learned_and_are_named_only_where_they_do_something() -> None:
    changed, plain = build_model(SMALL, seed=3), build_model(SMALL, seed=3)
    once = FAST.model_copy(update={"epochs": 1})
    pretrain(changed, [WARD], once)
    pretrain(plain, [WARD], once.model_copy(update={"looks": Looks()}))
    assert state_hash(changed) != state_hash(plain)
    assert FAST.model_dump()["looks"] == LOOKS.model_dump()
    assert "looks" not in PretrainConfig(looks=Looks()).model_dump()  # the fingerprint of an earlier version's run


def test_a_checkpoint_of_another_run_is_not_taken_up(tmp_path: Path) -> None:
    def stop(step: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(build_model(SMALL, seed=3), [WARD], FAST, folder=tmp_path, progress=stop)
    other, steps = FAST.model_copy(update={"learning_rate": 2e-3, "epochs": 1}), []
    pretrain(
        build_model(SMALL, seed=3),
        [WARD],
        other,
        folder=tmp_path,
        progress=lambda step, total, loss: steps.append(step),
    )
    assert steps == [1, 2, 3]
    (tmp_path / "pretrain.checkpoint").write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match=r"pretrain\.checkpoint: the checkpoint is broken"):
        pretrain(build_model(SMALL, seed=3), [WARD], FAST, folder=tmp_path)


def test_loss_falls_and_only_the_strategy_trains() -> None:
    model = build_model(SMALL, seed=1)
    before, losses = state(model), []
    plain = PretrainConfig(
        epochs=12, batch_size=6, strategy="head", learning_rate=5e-3, augmentation=Augmentation.preset("none")
    )
    pretrain(model, [WARD], plain, progress=lambda step, total, loss: losses.append(loss))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_learning_rate_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] < 1e-3
    assert learning_rate_factor(0, 10, 0.0) == 1.0


def test_wrong_data_is_refused() -> None:
    with pytest.raises(DataError, match="skeleton lsp14, but the model predicts coco17"):
        pretrain(build_model(SMALL.model_copy(update={"skeleton": "coco17"})), [WARD], FAST)
    with pytest.raises(DataError, match="no record"):
        pretrain(build_model(SMALL), [], FAST)
