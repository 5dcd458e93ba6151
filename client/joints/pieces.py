"""Finished pieces of a reel: each is there whole or not at all, and says how to go on after it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardpose.client.joints.people import Found
from wardpose.client.joints.reels import Reel
from wardpose.shared import files

_PIECE_FRAMES = 32
_PIECE_BYTES = 64 << 20
_PIECE_PICTURES = 8


def piece_length(reel: Reel) -> int:
    """How many entries are one piece."""
    if reel.video is None:
        return _PIECE_PICTURES
    return max(1, min(_PIECE_FRAMES, _PIECE_BYTES // (3 * reel.video.height * reel.video.width)))


def write_piece(path: Path, found: Sequence[Found], state: dict[str, Any]) -> None:
    """Store what was found in the frames of a piece, and the state after it.

    Raises:
        StorageError: the disk is full.

    """
    content = json.dumps({"found": [frame.to_json() for frame in found], "state": state})
    digest = hashlib.sha256(content.encode()).hexdigest()
    files.write_bytes(path, f"{digest}\n{content}".encode(), mode=0o600)


def read_piece(path: Path) -> tuple[list[Found], dict[str, Any]] | None:
    """Return a piece; `None` where there is none, or a spoiled one."""
    try:
        digest, _, content = path.read_text().partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if hashlib.sha256(content.encode()).hexdigest() != digest:
        return None
    read = json.loads(content)
    return [Found.from_json(frame) for frame in read["found"]], read["state"]
