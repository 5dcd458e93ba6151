"""The hidden folder beside a file to be, in which an interrupted run leaves what it has finished."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardpose.client.anonymize.sources import WORK


def work_folder(destination: Path, identity: str) -> Path:
    """Return where the parts of `destination` lie that were made of one source in one way."""
    return destination.with_name(f".{destination.name}.{identity}{WORK}")


@contextmanager
def working_in(work: Path) -> Iterator[None]:
    """Make the folder, for its owner alone; where an interrupted run leaves nothing in it, it is removed again."""
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o700)  # what lies here is a patient's
    try:
        yield
    except BaseException:
        if not any(work.iterdir()):  # there is nothing to go on from
            shutil.rmtree(work, ignore_errors=True)
        raise


def clear(destination: Path) -> None:
    """Remove what earlier runs left of this destination, those of another source or with other options too."""
    name = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in destination.name)
    for work in destination.parent.glob(f".{name}.*{WORK}"):
        shutil.rmtree(work, ignore_errors=True)
