"""A real process, interrupted as a user does it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.figures import ward

from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.pose.weights import save_model

COMMAND = "from wardpose.simulation.cli import main; main()"


def predict(source: Path, model: Path, *outputs: Path) -> subprocess.Popen:
    args = [sys.executable, "-c", COMMAND, "predict", str(source), "--model", str(model), "--batch", "2", "--json"]
    args += [part for path in outputs for part in ("--out", str(path))]
    return subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_gives_the_same_files(tmp_path: Path) -> None:
    source = ward(tmp_path / "a.mkv", lambda n: [(20 + n % 60, 15, 40, 80)], 150, height=96, width=128)
    small = ModelConfig(weights="random", input_size=(64, 64))
    save_model(build_model(small), tmp_path / "m.safetensors")
    names = ("a.csv", "a.mp4")
    parts, whole = ([tmp_path / folder / name for name in names] for folder in ("parts", "whole"))

    first = predict(source, tmp_path / "m.safetensors", *parts)
    until = time.monotonic() + 300
    while not list((tmp_path / "parts").glob(".*/*.people")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=300)
    assert first.returncode != 0, (out, err)
    assert b"Traceback" not in err
    assert not any(path.exists() for path in parts)

    second = predict(source, tmp_path / "m.safetensors", *parts)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert b'"resumed": 0' not in out
    third = predict(source, tmp_path / "m.safetensors", *whole)
    assert third.wait(timeout=300) == 0
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours.name
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == list(names)
