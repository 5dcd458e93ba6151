"""TRC, the marker file of motion laboratories, as OpenSim reads it: tabs, five lines of header, blanks where missing.

    PathFileType  4  (X/Y/Z)  clip.trc
    DataRate  CameraRate  NumFrames  NumMarkers  Units  OrigDataRate  OrigDataStartFrame  OrigNumFrames
    25        25          1500       14          px     25            1                   1500
    Frame#  Time  right_ankle          right_knee ...
                  X1  Y1  Z1           X2  Y2  Z2 ...

x goes to the right and y **up** from the frame's lower edge, z is 0; units are pixels (`px`), or metres where the user
says how large a pixel is. TRC has no confidence: it is the x of a marker `<joint>_confidence` beside each joint. Where
there are several people, their markers begin with `person0_`, `person1_` ... Whoever is not in a frame is blank there.
"""

from collections.abc import Sequence

import numpy as np

from wardpose.client.joints.people import Found
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import Skeleton


def trc(
    found: Sequence[Found], skeleton: Skeleton, *, name: str, rate: float, metres_per_pixel: float | None = None
) -> str:
    """Write the people of one film.

    Args:
        found: its frames in order.
        skeleton: of the joints.
        name: of the file.
        rate: frames a second.
        metres_per_pixel: size of a pixel, where it is known.

    Raises:
        DataError: there is no frame.

    """
    if not found:
        raise DataError(f"{name}: no frames (allowed: a film of one or more)")
    numbers = sorted({person.number for frame in found for person in frame.people})
    prefixes = {number: f"person{number}_" if len(numbers) > 1 else "" for number in numbers or [0]}
    markers = [f"{prefix}{joint}" for prefix in prefixes.values() for joint in skeleton.joints]
    markers = [name for marker in markers for name in (marker, f"{marker}_confidence")]
    shown = f"{rate:.6g}"
    facts = [shown, shown, len(found), len(markers), "px" if metres_per_pixel is None else "m", shown, 1, len(found)]
    lines = [
        f"PathFileType\t4\t(X/Y/Z)\t{name}",
        "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames",
        "\t".join(map(str, facts)),
        "Frame#\tTime\t" + "\t\t\t".join(markers) + "\t\t",
        "\t\t" + "\t".join(f"X{i}\tY{i}\tZ{i}" for i in range(1, len(markers) + 1)),
    ]
    scale = 1.0 if metres_per_pixel is None else metres_per_pixel
    for row, frame in enumerate(found):
        time = row / rate if frame.time is None else float(frame.time)
        there = {person.number: person for person in frame.people}
        cells = [str(row + 1), f"{time:.6f}"]
        for number in prefixes:
            if number not in there:
                cells += [""] * (6 * len(skeleton))
                continue
            person = there[number]
            for (x, y), sure in zip(person.joints.astype(np.float64), person.scores, strict=True):
                cells += [f"{x * scale:.6f}", f"{(frame.size[0] - 1 - y) * scale:.6f}", "0.000000"]
                cells += [f"{sure:.6f}", "0.000000", "0.000000"]
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"
