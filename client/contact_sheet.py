"""A contact sheet: many records at a glance, with their joints drawn; what is doubtful comes first, framed in red."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from wardpose.shared.data.crops import box_to_affine, transform, warp
from wardpose.shared.data.dataset import ListDataset
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError
from wardpose.shared.files import write_bytes
from wardpose.shared.pose.drawing import draw_skeleton

_CELL = 180
_CAPTION = 18
_COLUMNS = 8
_MOST = 64
_RED = (220, 40, 40)


def write_sheet(path: Path, dataset: ListDataset, marked: Mapping[int, str], unread: set[int]) -> list[int]:
    """Write the sheet and return the rows that are on it, in their order.

    Args:
        path: `.png` or `.jpg`, replaced atomically.
        dataset: the records.
        marked: rows of doubtful records and a word for each.
        unread: rows whose picture cannot be read.

    Raises:
        DataError: there is no record to show.

    """
    plain = [row for row in range(len(dataset)) if row not in marked and row not in unread]
    room = max(0, _MOST - len(marked))
    count = min(room, len(plain))
    spread = np.unique(np.linspace(0, len(plain) - 1, count).astype(int)).tolist() if count else []
    rows = [row for row in marked if row not in unread][:_MOST] + [plain[place] for place in spread]
    if not rows:
        raise DataError(f"{path}: no record can be shown (allowed: pictures that can be read)")
    cells = [_cell(dataset, row, marked.get(row, "")) for row in rows]
    wide = min(_COLUMNS, len(cells))
    blank = np.full_like(cells[0], 255)
    cells += [blank] * (-len(cells) % wide)
    sheet = np.concatenate([np.concatenate(cells[at : at + wide], axis=1) for at in range(0, len(cells), wide)], axis=0)
    _, content = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(sheet[..., ::-1]))
    write_bytes(path, bytes(content), mode=0o600)
    return rows


def _cell(dataset: ListDataset, row: int, mark: str) -> Frame:
    record, size = dataset.record(row), (_CELL, _CELL)
    affine = box_to_affine(record.box, size)
    picture = warp(dataset.frame(row), affine, size)
    picture = draw_skeleton(picture, transform(record.joints, affine), record.visibility, dataset.skeleton, thickness=2)
    if mark:
        cv2.rectangle(picture, (0, 0), (_CELL - 1, _CELL - 1), _RED, 3)
    cell = np.full((_CELL + _CAPTION, _CELL, 3), 255, np.uint8)
    cell[:_CELL] = picture
    text = f"{mark} {record.record_id}".strip().encode("ascii", "replace").decode()[:26]
    cv2.putText(
        cell, text, (2, _CELL + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.38, _RED if mark else (40, 40, 40), 1, cv2.LINE_AA
    )
    return cell
