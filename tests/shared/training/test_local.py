"""A whole round: repeatable, the model untouched, the update where the optimiser went, and nothing else in it."""

import pytest
import torch
from support.engine import PRIVATE, head_engine, make_cohort, make_mechanism, make_model, make_public, make_step

from wardpose.shared.pose.model import trainable_names
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.vectors import Vector, flatten


@pytest.mark.parametrize("name", ["none", "public-only", *PRIVATE])
def test_a_round_is_repeatable_and_leaves_the_model_alone(name: str) -> None:
    model = make_model(torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = make_mechanism(
        name, sample_rate=0.6, **({} if name in ("none", "public-only") else {"noise_multiplier": 0.5})
    )
    seen: list[tuple[int, int]] = []

    def run(seed: int, micro_batch: int | None) -> Vector:
        return local_update(
            model,
            make_cohort(chosen),
            chosen,
            LocalTraining(
                strategy="last-stage",
                steps=2,
                optimizer=OptimizerConfig(name="sgd", learning_rate=1e-2),
                micro_batch=micro_batch,
            ),
            streams=seeded_streams(seed),
            declared_units=4,
            public=make_public(),
            progress=lambda done, total: seen.append((done, total)),
        ).update

    one, other = run(4, 2), run(4, 3)
    assert seen == [(1, 2), (2, 2)] * 2
    # Statistics of normalisation layers included: nothing of them is updated, and nothing of them is sent.
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert tuple(one) == trainable_names(model, "last-stage")
    assert not any("running" in key for key in one)
    assert all(value.dtype == torch.float32 for value in one.values())
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-5)
    if name not in ("none", "public-only"):
        assert not torch.equal(flatten(run(5, 2)), flatten(one))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_update_is_where_the_optimiser_went(name: str) -> None:
    engine = head_engine()
    chosen = make_mechanism("dp-sgd", noise_multiplier=1.0)
    optimizer = OptimizerConfig(name=name, learning_rate=1e-2, momentum=0.5, weight_decay=0.1)
    data = make_cohort(chosen, engine=engine)
    update = local_update(
        engine._model,
        data,
        chosen,
        LocalTraining(strategy="head", steps=3, optimizer=optimizer),
        streams=seeded_streams(2),
        declared_units=4,
    ).update
    step = make_step(engine, data, chosen, streams=seeded_streams(2))
    leaves = engine.parameters()
    algorithm = {
        "adam": lambda values: torch.optim.Adam(values, lr=1e-2, weight_decay=0.1),
        "adamw": lambda values: torch.optim.AdamW(values, lr=1e-2, weight_decay=0.1),
        "sgd": lambda values: torch.optim.SGD(values, lr=1e-2, momentum=0.5, weight_decay=0.1),
    }[name](list(leaves.values()))
    for _ in range(3):
        for key, value in step(leaves).items():
            leaves[key].grad = value.float()
        algorithm.step()
    for key, start in engine.parameters().items():
        torch.testing.assert_close(update[key], leaves[key] - start)
