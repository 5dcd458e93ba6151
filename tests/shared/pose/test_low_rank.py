"""Updates of low rank: gradients are those of the whole weight in A's rows, and nothing else trains or travels."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.engine import make_cohort, make_mechanism, make_model, make_step, private_sums, without_last_unit

from wardpose.shared.pose.low_rank import SUFFIX, directions, expanded
from wardpose.shared.pose.model import ModelConfig, build_model, check_strategy, shapes_of, trainable_names
from wardpose.shared.pose.pretrain import PretrainConfig
from wardpose.shared.pose.trainable import LowRank
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.settings import LocalTraining

FC = "backbone.stages.3.blocks.1.mlp.fc1.weight"
FEW = LowRank(rank=3, layers=("backbone.stages.3.blocks.1.mlp.fc1", "head.maps"), also=("head.x.bias",))


def test_the_directions_are_orthonormal_and_the_same_everywhere() -> None:
    rows = directions(FC, 3, 320)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64))
    assert float(rows[0, 0]) == pytest.approx(float(directions.__wrapped__(FC, 3, 320)[0, 0]), abs=1e-15)
    assert not torch.allclose(rows, directions("head.maps.weight", 3, 320))


def test_gradients_are_those_of_the_whole_weight_along_the_directions() -> None:
    model = make_model(torch.float64)
    few, whole = (UnitGradients(model, strategy, micro_batch=2) for strategy in (FEW, "last-stage"))
    assert few.names == (FC + SUFFIX, "head.maps.weight" + SUFFIX, "head.x.bias")
    data = make_cohort(make_mechanism("dp-sgd"), (1, 1, 1))
    bags = load_bags(few, data.private, np.arange(3)[:, None])
    for mine, all_of_it in zip(
        few.per_unit(few.parameters(), bags), whole.per_unit(whole.parameters(), bags), strict=True
    ):
        for name in (FC, "head.maps.weight"):
            expected = all_of_it[name].flatten(2) @ directions(name, 3, 320).T
            torch.testing.assert_close(mine[name + SUFFIX], expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mine["head.x.bias"], all_of_it["head.x.bias"])


def test_an_update_is_as_long_as_its_factors_and_of_their_rank() -> None:
    model = make_model(torch.float64)
    vector = {
        name: torch.randn(value.shape, dtype=torch.float64)
        for name, value in UnitGradients(model, FEW).parameters().items()
    }
    update = expanded(vector, dict(shapes_of(model)))
    assert set(update) == {FC, "head.maps.weight", "head.x.bias"}
    for name, value in vector.items():
        assert float(update[name.removesuffix(SUFFIX)].norm()) == pytest.approx(float(value.norm()))
    assert int(torch.linalg.matrix_rank(update[FC])) == 3
    assert update["head.maps.weight"].shape == model.head.maps.weight.shape


def test_factors_begin_at_nothing_and_the_network_is_as_it_was() -> None:
    model = make_model(torch.float64)
    engine = UnitGradients(model, FEW)
    bags = load_bags(engine, make_cohort(make_mechanism("dp-sgd"), (1, 1)).private, np.arange(2)[:, None])
    plain = UnitGradients(model, "last-stage")
    assert torch.equal(engine.losses(engine.parameters(), bags), plain.losses(plain.parameters(), bags))


def test_no_unit_moves_the_factors_by_more_than_the_clip_norm() -> None:
    engine, chosen = (
        UnitGradients(make_model(torch.float32), FEW, micro_batch=2),
        make_mechanism("dp-sgd", max_grad_norm=0.05),
    )
    data = make_cohort(chosen, (1, 1), engine=engine)
    sums = [private_sums(make_step(engine, d, chosen), engine.parameters())[0] for d in (data, without_last_unit(data))]
    numbers = sum(value.numel() for value in engine.parameters().values())
    assert sums[0].total.numel() == numbers == 3 * (1280 + 14) + 64
    assert 0.9 < float((sums[0].total - sums[1].total).norm()) / 0.05 <= 1 + 1e-9


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (LowRank(rank=3, layers=("backbone.stages.9.*",)), "names no parameter"),
        (LowRank(rank=3, layers=("backbone.stages.3.blocks.0.local_conv.conv",)), "is no matrix"),
        (LowRank(rank=3, layers=("backbone.stages.3.*.norm",)), "is no matrix"),
        (LowRank(rank=200, layers=("head.x",)), "rank is 200"),
        (LowRank(rank=3, layers=("head.maps",), also=("maps",)), "by layers and by also"),
        (LowRank(rank=3, layers=()), "layers is empty"),
    ],
)
def test_what_has_no_update_of_that_rank_is_refused(strategy: LowRank, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_strategy(ModelConfig(weights="random", input_size=(128, 96)), strategy)


def test_it_travels_unchanged_and_public_training_knows_no_rank() -> None:
    training = LocalTraining.model_validate({"strategy": {"rank": 4, "layers": ["*.fc1"], "also": ["maps"]}})
    assert LocalTraining.model_validate_json(training.model_dump_json()) == training
    model = build_model(ModelConfig(weights="random", input_size=(64, 64)))
    assert model.front(training.strategy) == "full"
    assert len(trainable_names(model, training.strategy)) == 2 + 2 + 6 + 2
    with pytest.raises(ValidationError, match="has low rank"):
        PretrainConfig.model_validate({"strategy": {"rank": 4, "layers": ["*.fc1"]}})
