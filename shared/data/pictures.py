"""Pictures from files."""

from pathlib import Path

import cv2
import numpy as np

from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError


def read_picture(path: Path) -> Frame:
    """Read an RGB picture from a file.

    Raises:
        DataError: missing or broken.

    """
    content = path.read_bytes() if path.is_file() else b""
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if decoded is None:
        raise DataError(f"{path}: not a readable picture")
    return np.ascontiguousarray(decoded[..., ::-1])
