"""`wardpose predict` on a film beside its plain network: what decoding, tracking, drawing and writing add.

The film is rendered: one ward patient who drifts over a 720p frame; each way gets a copy of its own, because a process
indexes a file once. The plain network takes crops of the right size, and nothing else, in batches of the size that was
fastest before. What else a machine does changes from minute to minute, so both are measured in turns: predict stands
still every hundred and sixty frames, while the plain network takes crops, and a share is predict's rate in parts of
that of the plain network in the same minutes. (In such a pause the reader fills its queue of 32 frames, once for each
160; without the pauses it would have done so while the network was busy, as it does between them.)
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import av
import cv2
import numpy as np
import torch

from wardpose.client.joints.predict import Request, predict
from wardpose.shared.allocator import tune_allocator
from wardpose.shared.data.records import Frame
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.pose.estimators import TorchEstimator, open_estimator
from wardpose.simulation.benchmarks.step import hardware

_HEIGHT, _WIDTH = 720, 1280
_RATE = 25
_TURN = 160
"""Frames from one turn of the plain network to the next."""
_PLAIN_CROPS = 32
"""Crops of such a turn."""
_BATCHES = (4, 8, 16, 32)


def measure_predict(*, seconds: int, batch_size: int, device: str = "cpu") -> dict[str, Any]:
    """Frames per second of the plain network, and of predict in three ways.

    Args:
        seconds: length of the film at 25 frames a second.
        batch_size: crops at a time of predict.
        device: of the network.

    """
    tune_allocator()  # as the command does
    estimator = open_estimator("bundled", device=device)
    if not isinstance(estimator, TorchEstimator):
        raise TypeError("the bundled model is torch's")
    best = min(_BATCHES, key=lambda size: min(_turn(estimator, size).seconds for _ in range(2)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film, boxes = folder / "film.mp4", folder / "boxes.csv"
        _film(film, boxes, seconds * _RATE)
        ways: dict[str, dict[str, Any]] = {
            "boxes given, CSV": {"outputs": (folder / "a.csv",), "boxes": boxes},
            "one patient followed, CSV": {"outputs": (folder / "b.csv",)},
            "boxes given, CSV and drawn video": {"outputs": (folder / "c.csv", folder / "c.mp4"), "boxes": boxes},
        }
        rows = []
        for number, (way, options) in enumerate(ways.items()):
            source = folder / str(number) / film.name
            source.parent.mkdir()
            shutil.copyfile(film, source)
            request = {"sources": (source,), "estimator": estimator, "batch_size": batch_size, **options}
            rows.append({"what": way, **_in_turns(request, estimator, best)})
    return {
        "rows": rows,
        "hardware": hardware(device),
        "setting": {
            "film": f"{seconds} s, {_RATE} frames/s, {_WIDTH} x {_HEIGHT}, H.264",
            "model": "bundled",
            "crops": f"{estimator.input_size[1]} x {estimator.input_size[0]}",
            "batch": batch_size,
            "plain_batch": best,
            "threads": torch.get_num_threads(),
        },
    }


def _in_turns(request: dict[str, Any], estimator: TorchEstimator, best: int) -> dict[str, Any]:
    """Run predict and, every so many frames, the plain network instead."""
    turns = [_turn(estimator, best)]
    last = 0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done - last >= _TURN and done < total:
            turns.append(_turn(estimator, best))
            last = done

    begun = _Spent.until_now()
    done = predict(Request(**request, progress=progress))
    spent = _Spent.until_now().less(begun)
    for turn in turns[1:]:
        spent = spent.less(turn)
    turns.append(_turn(estimator, best))
    plain = _Spent(sum(turn.seconds for turn in turns), sum(turn.processor for turn in turns))
    crops = len(turns) * _turn_crops(best)
    rates = [_turn_crops(best) / turn.seconds for turn in turns]
    return {
        "frames_per_second": round(done.frames / spent.seconds, 2),
        "plain_network": round(crops / plain.seconds, 2),
        "share": round((done.frames / spent.seconds) / (crops / plain.seconds), 3),
        "share_of_processor_time": round((plain.processor / crops) / (spent.processor / done.frames), 3),
        "plain_lowest": round(min(rates), 2),
        "plain_highest": round(max(rates), 2),
    }


@dataclass(frozen=True)
class _Spent:
    """Seconds on the clock, and of all processors."""

    seconds: float
    processor: float

    @classmethod
    def until_now(cls) -> "_Spent":
        return cls(perf_counter(), process_time())

    def less(self, other: "_Spent") -> "_Spent":
        return _Spent(self.seconds - other.seconds, self.processor - other.processor)


def _film(path: Path, boxes: Path, count: int) -> None:
    """Write the film and where its patient is."""
    ward = WardDataset("north", patients=1, frames_per_patient=1, seed=3)
    frame, record = ward.frame(0), ward.record(0)
    scale = min(_HEIGHT / frame.shape[0], 0.7 * _WIDTH / frame.shape[1])
    picture: Frame = np.asarray(cv2.resize(frame, None, fx=scale, fy=scale), np.uint8)
    lines = ["file,frame,x,y,width,height"]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=_RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        for number in range(count):
            left = int((_WIDTH - picture.shape[1]) * (0.5 - 0.5 * np.cos(number / 100)))
            canvas = np.full((_HEIGHT, _WIDTH, 3), 90, np.uint8)
            canvas[: picture.shape[0], left : left + picture.shape[1]] = picture[:_HEIGHT]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))
            x, y, wide, high = (float(value) * scale for value in record.box)
            lines.append(f"{path.name},{number},{x + left:.1f},{y:.1f},{wide:.1f},{high:.1f}")
        out.mux(stream.encode(None))
    boxes.write_text("\n".join(lines) + "\n")


def _turn(estimator: TorchEstimator, batch_size: int) -> _Spent:
    """Let the network alone take some crops."""
    height, width = estimator.input_size
    crops = np.random.default_rng(0).integers(0, 256, (batch_size, height, width, 3), dtype=np.uint8)
    begun = _Spent.until_now()
    for _ in range(_turn_crops(batch_size) // batch_size):
        estimator(crops)
    return _Spent.until_now().less(begun)


def _turn_crops(batch_size: int) -> int:
    return max(1, _PLAIN_CROPS // batch_size) * batch_size
