"""A real process, interrupted as a user does it."""

import csv
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from support.figures import ward
from support.films import card, film, number_of

from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.pose.weights import save_model

COMMAND = "from wardpose.simulation.cli import main; main()"


def predict(source: Path, model: Path | str, *outputs: Path, batch: int = 2) -> subprocess.Popen:
    args = [
        sys.executable,
        "-c",
        COMMAND,
        "predict",
        str(source),
        "--model",
        str(model),
        "--batch",
        str(batch),
        "--json",
    ]
    args += [part for path in outputs for part in ("--out", str(path))]
    return subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_gives_the_same_files(tmp_path: Path) -> None:
    source = ward(tmp_path / "a.mkv", lambda n: [(20 + n % 60, 15, 40, 80)], 600, height=96, width=128)
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


def walker(number: int) -> np.ndarray:
    """Draw a card of 720p on which somebody walks."""
    frame, left = card(number, 720, 1280), 100 + number % 1000
    frame[260:700, left : left + 150] = (200, 150, 120)
    return frame


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_minute_of_720p_is_whole_and_in_order_wherever_it_was_interrupted(tmp_path: Path) -> None:
    count, unit = 60 * 25, Fraction(1, 25)
    source = film(
        tmp_path / "a.mp4", count=count, stamps=range(count), unit=unit, height=720, width=1280, key_every=50,
        b_frames=2, options={"preset": "ultrafast"}, picture=walker,
    )  # fmt: skip
    parts, whole = ([tmp_path / folder / name for name in ("a.csv", "a.mp4")] for folder in ("parts", "whole"))
    first = predict(source, "bundled", *parts, batch=16)
    until = time.monotonic() + 900
    while len(list((tmp_path / "parts").glob(".*/*.people"))) < 4 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=300)
    assert first.returncode != 0, (out, err)
    assert not any(path.exists() for path in parts)
    for outputs, resumed in ((parts, True), (whole, False)):
        done = predict(source, "bundled", *outputs, batch=16)
        out, err = done.communicate(timeout=900)
        assert done.returncode == 0, err
        assert (b'"resumed": 0' not in out) == resumed
    for ours, theirs in zip(parts, whole, strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours.name
    with whole[0].open(newline="") as file:
        table = list(csv.DictReader(file))
    shown = [(int(row["frame"]), float(row["time_s"])) for row in table[:: len(table) // count]]
    assert shown == [(n, pytest.approx(n / 25)) for n in range(count)]
    with av.open(str(whole[1])) as read:
        drawn = [
            (frame.pts * frame.time_base, number_of(frame.to_ndarray(format="rgb24"))) for frame in read.decode(video=0)
        ]
    assert drawn == [(n * unit, n % 256) for n in range(count)]
