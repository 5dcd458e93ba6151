"""Long CSV: one row a joint, for statistics programs and spreadsheets.

Columns: `file`, `frame` (number in a video from 0; empty for a picture), `time_s`, `person`, `joint`, `x`, `y` (pixels
of the upright frame, y down) and `confidence`. A frame without people has no rows.
"""

import csv
import io
from collections.abc import Sequence

from wardpose.client.joints.people import Found
from wardpose.shared.skeleton import Skeleton

COLUMNS = ("file", "frame", "time_s", "person", "joint", "x", "y", "confidence")


def long_table(found: Sequence[Found], skeleton: Skeleton) -> str:
    """Write the people of all frames."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for frame in found:
        number = "" if frame.number is None else frame.number
        time = "" if frame.time is None else f"{float(frame.time):.6f}"
        for person in frame.people:
            for joint, (x, y), sure in zip(skeleton.joints, person.joints, person.scores, strict=True):
                row = (frame.source, number, time, person.number, joint, f"{x:.3f}", f"{y:.3f}", f"{sure:.5f}")
                writer.writerow(row)
    return text.getvalue()
