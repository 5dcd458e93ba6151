"""What is to be done with a picture, a folder or a video, and what became of it."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wardpose.shared import files
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError

Change = Callable[[Frame, str], Frame]
"""Frame and its name (`photo.png`; `clip.mp4#12` and `scan.tif#2`: one of several, from 0) -> the changed frame of the
same size; may raise a `WardposeError`."""

ChangeMany = Callable[[Sequence[Frame], Sequence[str]], list[Frame]]
"""The same of several frames, each changed as if it were alone."""

BATCH = 16
"""Most frames that are changed together,"""

BATCH_BYTES = 64 << 20
"""and about how many bytes they may have, but for a frame that alone has more."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

OnBad = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to do.

    Attributes:
        source: picture, video, or folder of them.
        destination: of the same sort.
        change: what happens to each frame.
        change_many: the same for several frames of any sizes; one by one when absent.
        identity: of the change; work done by another one is not continued.
        lossless: the result must be stored without loss.
        force: overwrite what exists.
        on_bad: what cannot be read: stop there, or leave a picture out, make a frame in the middle of a video black (so
            that the frames after it keep their numbers), and end a video that was cut off where it was cut off.
        progress: called after each frame.
        mode: permissions of what is written.
        log: says what is to be kept of a vault's log beside what is written in a folder: `vault`, whose it is, and
            `entry`, the hash of its last entry.

    """

    source: Path
    destination: Path
    change: Change
    identity: str
    change_many: ChangeMany | None = None
    lossless: bool = True
    force: bool = False
    on_bad: OnBad = "error"
    progress: Progress | None = None
    mode: int = files.PRIVATE
    log: Callable[[], dict[str, str]] | None = None


@dataclass(frozen=True)
class LeftOut:
    """Something of the source that is not in the destination.

    Attributes:
        name: of the file, relative to the source folder.
        reason: why, in a phrase.

    """

    name: str
    reason: str


@dataclass(kw_only=True)
class Outcome:
    """What was done.

    Attributes:
        frames: changed in this run.
        resumed: found done from an earlier run.
        skipped: sentences on what should have been read and could not be; only with `on_bad = "skip"`.
        left_out: files of a folder that are of a sort which is not read, parts of a video that are not there, and boxes
            of no file.
        made: each source file and what became of it, in earlier runs too; a file of several pages comes several times.

    """

    frames: int = 0
    resumed: int = 0
    skipped: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    made: list[tuple[Path, Path]] = field(default_factory=list)


def file_of(name: str) -> str:
    """Return the file name in a frame's name: `clip.mp4` of `clip.mp4#12`."""
    return re.sub(r"#\d+$", "", name)


def refuse_existing(job: Job) -> None:
    """See that the destination is a file that may be written.

    Raises:
        ConfigError: it exists, is a folder, or is the source.

    """
    if job.destination.is_dir():
        raise ConfigError(f"{job.destination}: is a folder, a file needs a file")
    if job.destination.exists() and not job.force:
        raise ConfigError(f"{job.destination}: exists already (--force overwrites)")
    if job.destination.resolve() == job.source.resolve():
        raise ConfigError(f"{job.destination}: is the source itself")


@contextmanager
def naming(job: Job) -> Iterator[None]:
    """Hold the folder of the destination while the finished file gets its name, if it still may have it.

    Raises:
        ConfigError: another job has written it meanwhile.

    """
    files.private_folder(job.destination.parent)
    folder = os.open(job.destination.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        refuse_existing(job)
        yield
    finally:
        os.close(folder)


def unreadable(path: Path, error: OSError) -> DataError:
    """Say that the system does not let a source be read."""
    return DataError(f"{path}: cannot be read ({error.strerror})")
