from pathlib import Path

import numpy as np
import pytest

from wardpose.server.checkpoint import Checkpoint
from wardpose.shared.errors import DataError


def checkpoint() -> Checkpoint:
    return Checkpoint(
        run="r",
        round=3,
        weights={"a/b.weight": np.arange(6, dtype=np.float32).reshape(2, 3)},
        aggregator={"m/a/b.weight": np.ones((2, 3), np.float32)},
        config="{}",
        ledger_heads={"north": 7},
        dropped={"x": "spent"},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    state = checkpoint()
    state.save(tmp_path / "c.safetensors")
    loaded = Checkpoint.load(tmp_path / "c.safetensors")
    np.testing.assert_array_equal(loaded.weights["a/b.weight"], state.weights["a/b.weight"])
    np.testing.assert_array_equal(loaded.aggregator["m/a/b.weight"], state.aggregator["m/a/b.weight"])
    assert (loaded.run, loaded.round, loaded.ledger_heads, loaded.dropped) == (
        "r",
        3,
        {"north": 7},
        {"x": "spent"},
    )


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
