"""`wardpose predict` on a film beside its plain network: what decoding, tracking, drawing and writing add.

The film is rendered: one ward patient who drifts over a 720p frame. The plain network takes crops of the right size in
the same batches, and nothing else. It is measured before and after; the mean counts, so that a machine that gets
slower in between does not flatter either.
"""

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import cv2
import numpy as np
import torch

from wardpose.client.joints.predict import Request, predict
from wardpose.shared.data.records import Frame
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.pose.estimators import TorchEstimator, open_estimator
from wardpose.simulation.benchmarks.step import hardware

_HEIGHT, _WIDTH = 720, 1280
_RATE = 25
_PLAIN_CROPS = 160


def measure_predict(*, seconds: int, batch_size: int, device: str = "cpu") -> dict[str, Any]:
    """Frames per second of the plain network, and of predict in three ways.

    Args:
        seconds: length of the film at 25 frames a second.
        batch_size: crops at a time.
        device: of the network.

    """
    estimator = open_estimator("bundled", device=device)
    if not isinstance(estimator, TorchEstimator):
        raise TypeError("the bundled model is torch's")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film, boxes = folder / "film.mp4", folder / "boxes.csv"
        _film(film, boxes, seconds * _RATE)
        before = _plain(estimator, batch_size)
        ways: dict[str, dict[str, Any]] = {
            "boxes given, CSV": {"outputs": (folder / "a.csv",), "boxes": boxes},
            "one patient followed, CSV": {"outputs": (folder / "b.csv",)},
            "boxes given, CSV and drawn video": {"outputs": (folder / "c.csv", folder / "c.mp4"), "boxes": boxes},
        }
        rates = {}
        for way, options in ways.items():
            begun = perf_counter()
            done = predict(Request(sources=(film,), estimator=estimator, batch_size=batch_size, **options))
            rates[way] = done.frames / (perf_counter() - begun)
        after = _plain(estimator, batch_size)
    plain = 2 / (1 / before + 1 / after)
    rows = [{"what": "plain network", "frames_per_second": round(plain, 2), "share": 1.0}]
    rows += [
        {"what": way, "frames_per_second": round(rate, 2), "share": round(rate / plain, 3)}
        for way, rate in rates.items()
    ]
    return {
        "rows": rows,
        "hardware": hardware(device),
        "setting": {
            "film": f"{seconds} s, {_RATE} frames/s, {_WIDTH} x {_HEIGHT}, H.264",
            "model": "bundled",
            "crops": f"{estimator.input_size[1]} x {estimator.input_size[0]}",
            "batch": batch_size,
            "threads": torch.get_num_threads(),
            "plain_before": round(before, 2),
            "plain_after": round(after, 2),
        },
    }


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


def _plain(estimator: TorchEstimator, batch_size: int) -> float:
    """Crops a second of the network alone."""
    height, width = estimator.input_size
    crops = np.random.default_rng(0).integers(0, 256, (batch_size, height, width, 3), dtype=np.uint8)
    estimator(crops)
    begun = perf_counter()
    batches = max(1, _PLAIN_CROPS // batch_size)
    for _ in range(batches):
        estimator(crops)
    return batches * batch_size / (perf_counter() - begun)
