"""What a file is: its content says, not its name; and what lies in a folder, down to the last file."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wardpose.client.anonymize.job import LeftOut
from wardpose.shared.data.pictures import PICTURE_ENDINGS, is_picture, why_not
from wardpose.shared.data.video_stream import VIDEO_ENDINGS, why_no_video

MANIFEST = ".wardpose-manifest.jsonl"
"""Name of the file in a destination folder that says what is done."""

WORK = ".wardpose-work"
"""Ending of the folder beside a video to be, of what is done of it."""

_MORE_ENDINGS = {".heic", ".heif", ".hif", ".avif", ".dcm", ".dicom"}  # of pictures that are read where a library is

Kind = Literal["picture", "video"]


@dataclass(frozen=True)
class Source:
    """A file to be changed.

    Attributes:
        path: where it is.
        name: relative to the folder it was found in.
        kind: what it is.

    """

    path: Path
    name: str
    kind: Kind


@dataclass
class Survey:
    """What lies in a folder: everything is in one of the two lists."""

    sources: list[Source] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def recognise(path: Path) -> tuple[Kind | None, str]:
    """Say what a file is, and in a phrase why it is nothing that can be read."""
    if not path.is_file():
        return None, "a link to nothing" if path.is_symlink() else "neither a file nor a folder"
    named_video = path.suffix.lower() in VIDEO_ENDINGS
    if not named_video and is_picture(path):
        return "picture", ""
    why = why_no_video(path)
    if why is None:
        return "video", ""
    if named_video and is_picture(path):
        return "picture", ""
    return None, why if named_video else why_not(path)


def survey(folder: Path) -> Survey:
    """Look at every file under a folder, in the order of their names."""
    found = Survey()

    def closed(error: OSError) -> None:
        found.left_out.append(LeftOut(_name(folder, error.filename), f"cannot be opened ({error.strerror})"))

    for at, folders, names in os.walk(folder, onerror=closed):
        folders[:] = sorted(name for name in folders if not name.endswith(WORK))
        for name in folders:
            if Path(at, name).is_symlink():
                found.left_out.append(LeftOut(_name(folder, Path(at, name)), "a link to a folder is not followed"))
        for path in sorted(Path(at, name) for name in names if name != MANIFEST):
            kind, why = recognise(path)
            if kind is None:
                found.left_out.append(LeftOut(_name(folder, path), why))
            else:
                found.sources.append(Source(path, _name(folder, path), kind))
    found.sources.sort(key=lambda source: source.path)
    return found


def without_ending(name: str) -> str:
    """Take the ending off a file's name; a part after a dot that is no ending of a picture or video stays."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in PICTURE_ENDINGS | VIDEO_ENDINGS | _MORE_ENDINGS else name


def _name(folder: Path, path: str | Path) -> str:
    return str(Path(path).relative_to(folder))
