import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from wardpose.server.checkpoint import Checkpoint
from wardpose.shared.errors import DataError


def checkpoint() -> Checkpoint:
    return Checkpoint(
        run="r",
        round=3,
        weights={"a/b.weight": np.arange(6, dtype=np.float32).reshape(2, 3)},
        aggregator={"m/a/b.weight": np.ones((2, 3), np.float32)},
        config="{}",
        dropped={"x": "spent"},
        closed={"round": {"round": 3, "epsilon_disjoint": float("inf")}, "sites": []},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    state = checkpoint()
    state.save(tmp_path / "c.safetensors")
    loaded = Checkpoint.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(loaded.weights["a/b.weight"], state.weights["a/b.weight"])
    np.testing.assert_array_equal(loaded.aggregator["m/a/b.weight"], state.aggregator["m/a/b.weight"])
    assert (loaded.run, loaded.round, loaded.dropped, loaded.closed) == ("r", 3, {"x": "spent"}, state.closed)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"c\.safetensors"):
        Checkpoint.load(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"c\.safetensors"):
        Checkpoint.load(path)


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Also one that leaves numbers and JSON that can be read: another round, another course, other weights."""
    path = tmp_path / "c.safetensors"
    checkpoint().save(path)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert Checkpoint.run_of(path).replace("-", "").isalnum()
        try:
            loaded = Checkpoint.load(path)
        except DataError:
            refused += 1
            continue
        assert (loaded.run, loaded.round, loaded.dropped, loaded.config) == ("r", 3, {"x": "spent"}, "{}")
        np.testing.assert_array_equal(loaded.weights["a/b.weight"], checkpoint().weights["a/b.weight"])
    assert refused > 0.9 * len(whole)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("group", ["weights", "aggregator"])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path: Path, value: float, group: str) -> None:
    """Also one that an older version wrote: no site trains such weights, and every order of them would be charged."""
    path = tmp_path / "c.safetensors"
    good, bad = checkpoint(), checkpoint()
    good.save(path)
    before = path.read_bytes()
    next(iter(getattr(bad, group).values()))[0, 1] = value
    with pytest.raises(DataError, match="not finite"):
        bad.save(path)
    assert path.read_bytes() == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "_not_finite", lambda _: None)
        bad.save(path)
    with pytest.raises(DataError, match=r"c\.safetensors: .* not finite.* start a new run without --resume"):
        Checkpoint.load(path)


def test_a_checkpoint_of_version_0_1_is_read(tmp_path: Path) -> None:
    """Its heads had no hashes; they are asked for anew."""
    path = tmp_path / "c.safetensors"
    facts = {"run": "r", "round": 1, "config": "{}", "ledger_heads": {"north": 7}, "dropped": {}}
    path.write_bytes(save({"weights/a": np.ones(2, np.float32)}, metadata={"checkpoint": json.dumps(facts)}))
    loaded = Checkpoint.load(path)
    assert (loaded.run, loaded.round, loaded.closed) == ("r", 1, None)


def test_whose_it_is_can_be_told_of_any_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    assert Checkpoint.run_of(path) == "unknown"
    checkpoint().save(path)
    assert Checkpoint.run_of(path) == "r"
    path.write_bytes(b"torn")
    assert Checkpoint.run_of(path) == "unknown"
