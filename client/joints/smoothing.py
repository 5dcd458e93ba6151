"""Smoothing over time: a Butterworth low pass of fourth order, forwards and backwards, as movement laboratories use.

Winter, "Biomechanics and Motor Control of Human Movement", section 3.4. It needs equal steps: where a video has none,
the path is laid through equal ones first, and read at the frames' own times afterwards. Where a person is not seen for
a while, each piece is smoothed alone; a piece too short for the filter stays as it is. Confidence is not touched.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

from wardpose.client.joints.people import Found
from wardpose.shared.errors import ConfigError

_ORDER = 2  # twice: forwards and backwards
_UNEQUAL = 0.01  # of a step


def smoothed(found: Sequence[Found], cutoff: float, *, rate: float) -> list[Found]:
    """Return the frames of one film with smooth joints.

    Args:
        found: in their order; `time` of each, or their place times 1 / rate.
        cutoff: frequency in Hz above which movement is noise.
        rate: frames a second.

    """
    times = np.array([row / rate if frame.time is None else float(frame.time) for row, frame in enumerate(found)])
    out = [{person.number: person for person in frame.people} for frame in found]
    for number in {number for people in out for number in people}:
        rows = [row for row, people in enumerate(out) if number in people]
        for piece in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            path = np.stack([out[row][number].joints for row in piece]).astype(np.float64)
            smooth = _low_pass(path, times[piece], cutoff)
            for row, joints in zip(piece, smooth, strict=True):
                out[row][number] = replace(out[row][number], joints=joints.astype(np.float32))
    return [
        replace(frame, people=tuple(people[person.number] for person in frame.people))
        for frame, people in zip(found, out, strict=True)
    ]


def check_cutoff(cutoff: float, rate: float | None, name: str) -> None:
    """See that a film can be smoothed.

    Raises:
        ConfigError: it has no frame rate, or the cutoff is not below half of it.

    """
    if rate is None:
        raise ConfigError(f"--smooth: {name} has no frame rate (allowed: a video, or a folder and --rate)")
    if not 0 < cutoff < rate / 2:
        raise ConfigError(f"--smooth {cutoff:g} is not allowed (above 0, below {rate / 2:g} Hz, half the frame rate)")


def _low_pass(path: NDArray[np.float64], times: NDArray[np.float64], cutoff: float) -> NDArray[np.float64]:
    """Filter (N, J, 2) along N."""
    steps = np.diff(times)
    if len(path) < 2 or steps.min() <= 0:
        return path
    step = float(np.median(steps))
    if cutoff >= 0.5 / step:
        return path
    sections = butter(_ORDER, cutoff, fs=1 / step, output="sos")
    equal = np.abs(steps - step).max() <= _UNEQUAL * step
    even = times if equal else np.linspace(times[0], times[-1], max(2, round((times[-1] - times[0]) / step) + 1))
    if len(even) <= 3 * (2 * len(sections) + 1):  # scipy's own padding
        return path
    flat = path.reshape(len(path), -1)
    laid = flat if equal else np.stack([np.interp(even, times, column) for column in flat.T], axis=1)
    filtered = sosfiltfilt(sections, laid, axis=0)
    back = filtered if equal else np.stack([np.interp(times, even, column) for column in filtered.T], axis=1)
    smooth: NDArray[np.float64] = back.reshape(path.shape)
    return smooth
