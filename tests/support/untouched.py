"""See that nothing in a folder is made, changed or touched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder with its size, time of change and content."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted((folder, *folder.rglob("*")))
    }


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Fail where something below the folder differs afterwards."""
    before = state(folder)
    yield
    assert state(folder) == before
