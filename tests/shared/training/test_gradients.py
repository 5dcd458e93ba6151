"""How many units are differentiated at a time: as asked for, else as many as the free memory holds."""

import pytest
import torch
from support.engine import head_engine, make_cohort, make_mechanism, make_model

from wardpose.shared.training import gradients
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients


def bags_of(engine: UnitGradients, frames: int) -> Bags:
    data = make_cohort(make_mechanism("dp-sgd"), (1,) * 4)
    ids = torch.arange(4).numpy()[:, None].repeat(frames, 1)
    return load_bags(engine, data.private, ids)


def sizes(engine: UnitGradients, bags: Bags) -> list[int]:
    return [len(part[engine.names[0]]) for part in engine.per_unit(engine.parameters(), bags)]


def test_a_micro_batch_is_as_large_as_asked_for() -> None:
    engine = UnitGradients(make_model(torch.float32), "head", micro_batch=3)
    assert sizes(engine, bags_of(engine, 1)) == [3, 1]
    with pytest.raises(ValueError, match="micro_batch is 0"):
        UnitGradients(make_model(torch.float32), "head", micro_batch=0)


def test_memory_decides_where_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for free in (1e4, 2e9, 4e9, 1e15):
        monkeypatch.setattr(gradients, "available_bytes", lambda _, free=free: free)
        for frames in (1, 4):
            engine = UnitGradients(make_model(torch.float32), "full")
            found[free, frames] = engine.micro_batch(bags_of(engine, frames))
    assert found[1e4, 1] == 1  # one unit is always differentiated, however little there is
    assert 1 < found[2e9, 1] < found[4e9, 1] <= found[1e15, 1]  # above 1.2 GB page faults cost more than is gained
    assert found[4e9, 1] > found[4e9, 4] >= 1  # a patient's frames are differentiated together
    engine = head_engine()
    assert engine.micro_batch(bags_of(engine, 1)) == 4
