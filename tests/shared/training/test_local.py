"""A whole round: repeatable, the model untouched, the update where the optimiser went, and nothing else in it."""

import numpy as np
import pytest
import torch
from support.engine import PRIVATE, head_engine, make_cohort, make_mechanism, make_model, make_public, make_step

from wardpose.shared.pose.model import trainable_names
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cohort import load_bags
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


class Seen:
    def __init__(self) -> None:
        self.unit_losses: list[float] = []
        self.unit_norms: list[float] = []
        self.frames = 0

    def losses(self, values: list[float], *, frames: int) -> None:
        self.unit_losses += values
        self.frames += frames * len(values)

    def norms(self, values: list[float]) -> None:
        self.unit_norms += values


@pytest.mark.parametrize("name", ["dp-sgd", "projected"])
def test_whoever_looks_changes_nothing_and_sees_every_unit_once(name: str) -> None:
    engine = head_engine()
    chosen = make_mechanism(name, noise_multiplier=1.0, frames_per_unit=1)
    data = make_cohort(chosen, (1, 1, 1, 1), engine=engine)

    def run(observer: Seen | None) -> Vector:
        return local_update(
            engine._model,
            data,
            chosen,
            LocalTraining(strategy="head", steps=2, micro_batch=3),
            streams=seeded_streams(3),
            declared_units=4,
            public=make_public(engine=engine),
            observer=observer,
        ).update

    seen = Seen()
    assert torch.equal(flatten(run(seen)), flatten(run(None)))
    assert len(seen.unit_losses) == len(seen.unit_norms) == seen.frames == 8  # nothing that only fills a batch up
    bags = load_bags(engine, data.private, np.arange(4)[:, None])
    start = engine.parameters()
    assert seen.unit_losses[:4] == pytest.approx(engine.losses(start, bags).tolist(), rel=1e-5)
    gradients = torch.cat([flatten_units(part) for part in engine.per_unit(start, bags)])
    whole = gradients.norm(dim=1)
    if name == "dp-sgd":
        assert seen.unit_norms[:4] == pytest.approx(whole.tolist(), rel=1e-4)
    else:  # of what is clipped: the part in the public basis
        assert all(0 < norm < whole[unit] for unit, norm in enumerate(seen.unit_norms[:4]))


def flatten_units(gradients: Vector) -> torch.Tensor:
    return torch.cat([value.flatten(1) for value in gradients.values()], dim=1)
