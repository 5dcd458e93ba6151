"""One picture under several names: links, and copies that somebody made for each person in it.

Who is in a picture is known from all records of it, so a copy must not pass for another picture. Files of one size are
compared by a sample from their middle, and by their whole content only where the samples agree: in most folders that
reads next to nothing. A picture that was encoded anew is another file, and is not found.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from wardpose.shared.data.dataset import FrameSource, ImageFile
from wardpose.shared.data.pictures import PictureError

_SAMPLE = 4096


def same_pictures(frames: Iterable[FrameSource]) -> dict[str, str]:
    """Map the fingerprint of each image file that is there under several names to one for all of them.

    Args:
        frames: sources; only image files are compared.

    Raises:
        PictureError: a file cannot be read any more.

    """
    files = {frame.fingerprint(): frame.path for frame in frames if isinstance(frame, ImageFile)}
    groups = [list(files.items())]
    for tell in (_bytes, _sample, _content):
        groups = [group for before in groups for group in _split(before, tell)]
    return {name: min(other for other, _ in group) for group in groups for name, _ in group}


def _split(files: list[tuple[str, Path]], tell: Callable[[Path], Hashable]) -> Iterable[list[tuple[str, Path]]]:
    """Part files by what `tell` says of them; those that are alone are left out."""
    found: dict[Hashable, list[tuple[str, Path]]] = defaultdict(list)
    for name, path in files:
        try:
            found[tell(path)].append((name, path))
        except OSError as error:
            raise PictureError(f"{path}: cannot be read ({error.strerror})") from error
    return [group for group in found.values() if len(group) > 1]


def _bytes(path: Path) -> int:
    return path.stat().st_size


def _sample(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(_SAMPLE)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
