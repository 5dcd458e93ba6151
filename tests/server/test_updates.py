"""Many updates: they wait on the disk, are averaged in parts, and never lie in memory together."""

import gc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from wardpose.server.aggregation import Aggregator, Arrays
from wardpose.server.updates import Shortened, Updates
from wardpose.shared.config import AggregationConfig

SHAPE = (50, 3)


@pytest.fixture
def request_message() -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(RecordDict(), 1, "train", group_id="1", ttl=60)


def update(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).standard_normal(SHAPE).astype(np.float32)


def mean(numbers: range, weights: list[float]) -> NDArray[np.float64]:
    total = sum(weight * update(number).astype(np.float64) for number, weight in zip(numbers, weights, strict=True))
    return np.asarray(total) / sum(weights)


def test_many_wait_on_the_disk_for_this_account_alone_and_are_gone_with_the_round(tmp_path: Path) -> None:
    with Updates(tmp_path) as updates:
        for number in range(20):
            updates.keep(f"site-{19 - number:02}", {"w": update(number)}, norm=float(number))
        assert list(updates) == [f"site-{number:02}" for number in range(20)]
        assert updates.norms["site-03"] == 16
        for number in range(20):
            np.testing.assert_array_equal(updates[f"site-{19 - number:02}"]["w"], update(number))
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert len(list(folder.iterdir())) == 4
        shortened = Shortened(updates, dict.fromkeys(updates, 0.5), dict.fromkeys(updates, 2.0))
        np.testing.assert_array_equal(shortened["site-00"][0]["w"], update(19) * np.float32(0.5))
        assert shortened["site-00"][1] == 2.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sites", [1, 16, 17, 40, 100])
@pytest.mark.parametrize("rule", ["fedavg", "fedadam"])
def test_a_mean_in_parts_is_the_mean(request_message: Message, sites: int, rule: str) -> None:
    weights = [1.0 + number % 3 for number in range(sites)]
    updates = {f"{number:03}": ({"w": update(number)}, weights[number]) for number in range(sites)}
    start = {"w": np.ones(SHAPE, np.float32), "still": np.zeros(2, np.float32)}
    config = AggregationConfig.model_validate({"name": rule})
    combined = Aggregator(config).combine(start, updates, round_number=1, request=request_message)
    expected = mean(range(sites), weights)
    if rule == "fedadam":  # of the mean, as of one site that sent it
        single = {"000": ({"w": expected.astype(np.float32)}, 1.0)}
        expected = Aggregator(config).combine(start, single, round_number=1, request=request_message)["w"] - 1.0
    np.testing.assert_allclose(combined["w"] - 1.0, expected, atol=5e-6)
    assert combined["still"] is start["still"]


class Counted(Mapping[str, tuple[Arrays, float]]):
    """Makes each update when it is asked for, and counts how many are alive at once."""

    def __init__(self, sites: int) -> None:
        self.sites, self.most = sites, 0
        self._alive: list[weakref.ref[NDArray[np.float32]]] = []

    def __getitem__(self, site: str) -> tuple[Arrays, float]:
        array = update(int(site))
        self._alive = [reference for reference in self._alive if reference() is not None]
        self._alive.append(weakref.ref(array))
        self.most = max(self.most, len(self._alive))
        return {"w": array}, 1.0

    def __iter__(self) -> Iterator[str]:
        return iter(f"{number:03}" for number in range(self.sites))

    def __len__(self) -> int:
        return self.sites


def test_updates_of_a_mean_are_not_in_memory_together(request_message: Message) -> None:
    gc.collect()
    start = {"w": np.zeros(SHAPE, np.float32)}
    counted = Counted(200)
    Aggregator(AggregationConfig()).combine(start, counted, round_number=1, request=request_message)
    assert counted.most <= 3
