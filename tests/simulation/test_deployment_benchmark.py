"""What the benchmarks of deployments and of scale say follows from what was written down."""

import inspect

import pytest
from flwr.supercore.inflatable import inflatable_utils

from wardpose.server.journal import RoundRow
from wardpose.shared.flower_pace import PULLING, ask_soon_again
from wardpose.shared.laps import Laps, read_laps
from wardpose.simulation.benchmarks.deployment import _row, plan
from wardpose.simulation.benchmarks.scale import _aggregation


def test_overhead_is_the_time_since_the_last_round_less_the_slowest_training() -> None:
    row = RoundRow(
        run="r",
        round=2,
        started=101.0,
        seconds=9.0,
        score=None,
        bytes_down=30,
        bytes_up=12,
        epsilon_disjoint=1.0,
        epsilon_overlap=1.0,
    )
    server = {"round 2": {"charge": 0.5, "prepare": 0.1, "wait": 7.0, "judge": 0.2, "aggregate": 0.1, "close": 0.3}}
    site = {
        "train 2": {"pull": 0.2, "answer": 5.0, "push": 0.1},
        "order 2": {"checks": 0.3, "charge": 0.4, "train": 4.0, "release": 0.1},
    }
    slower = {"train 2": dict(site["train 2"]), "order 2": {**site["order 2"], "train": 4.9}}
    made = _row(row, 100.0, server, {"a": site, "b": slower, "c": site})
    assert (made["round"], made["bytes_down"], made["bytes_up"]) == (2, 10, 4)
    assert made["overhead_s"] == pytest.approx(10.0 - 4.9)
    assert made["transport_s"] == pytest.approx(7.0 - (0.2 + 0.3 + 0.4 + 0.1 + 0.1 + 4.9))
    assert made["between_s"] == pytest.approx(1.0)


def test_laps_are_read_back_and_a_mark_that_comes_again_is_added() -> None:
    laps = Laps()
    for name in ("wait", "judge", "wait"):
        laps.mark(name)
    log = f"12:00:01 INFO {laps.line('round', 3)}\nsomething else {{}}\nINFO {laps.line('query.preflight', '-')}"
    found = dict(read_laps(log))
    assert set(found) == {"round 3", "query.preflight -"}
    assert list(found["round 3"]) == ["wait", "judge"]


def test_the_measured_federation_sends_22_mb_and_trains_a_head() -> None:
    config = plan(3)
    assert (len(config.sites), config.rounds, config.training.strategy) == (3, 3, "head")


def test_aggregation_is_measured() -> None:
    row = _aggregation(20)
    assert (row["what"], row["sites"]) == ("aggregation", 20)


def test_flower_asks_soon_again_and_as_long_as_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PULLING:
        function = getattr(inflatable_utils, name)
        monkeypatch.setattr(function, "__kwdefaults__", dict(function.__kwdefaults__))
    before = {name: inspect.signature(getattr(inflatable_utils, name)).parameters for name in PULLING}
    ask_soon_again()
    for name in PULLING:
        now = inspect.signature(getattr(inflatable_utils, name)).parameters
        assert now["initial_backoff"].default < before[name]["initial_backoff"].default
        assert now["backoff_cap"].default <= before[name]["backoff_cap"].default
        assert now["max_tries_per_object"].default is None
        assert now["max_time"].default == before[name]["max_time"].default
