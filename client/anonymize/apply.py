"""A frame, a folder or a video in, the anonymised (or recovered) one out.

Nothing is half-written: each file appears under its name when it is complete. What is done stays done: a
folder keeps a manifest, a video its finished frames, and the next run goes on from there. Pixels are decoded
and encoded anew, so EXIF, GPS, comments, thumbnails and sound are gone. Nothing existing is overwritten
unless asked for.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from wardpose.shared import files
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError, WardposeError

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}

Change = Callable[[Frame, str], Frame]
"""Frame and its name (`photo.png`, `clip.mp4#12`) -> the changed frame; may raise a `WardposeError`."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to do.

    Attributes:
        source: picture, folder of pictures, or video.
        destination: of the same sort.
        change: what happens to each frame.
        identity: of the change; work done by another one is not continued.
        lossless: the result must be stored without loss.
        force: overwrite what exists.
        on_bad: a frame that cannot be read: stop there, or leave it out of a folder and make it black in a
            video.
        progress: called after each frame.
        mode: permissions of what is written.

    """

    source: Path
    destination: Path
    change: Change
    identity: str
    lossless: bool = True
    force: bool = False
    on_bad: Literal["error", "skip"] = "error"
    progress: Progress | None = None
    mode: int = 0o644


@dataclass(kw_only=True)
class Outcome:
    """What was done.

    Attributes:
        frames: changed in this run.
        resumed: found done from an earlier run.
        skipped: names of the frames that could not be read, with the reason.

    """

    frames: int = 0
    resumed: int = 0
    skipped: list[str] = field(default_factory=list)


def run(job: Job) -> Outcome:
    """Do the job.

    Raises:
        ConfigError: the destination exists, is of another sort than the source, or cannot hold a lossless
            result.
        DataError: a source that cannot be read, or a full disk; what was finished before stays.

    """
    with files.storing(job.destination, "what was finished stays, run the same command again to go on"):
        if job.source.is_dir():
            return _folder(job)
        if job.source.suffix.lower() in VIDEOS:
            return _video(job)
        return _picture(job)


def pairs(source: Path, destination: Path) -> list[tuple[Path, Path]]:
    """Pair each finished source with what became of it."""
    if not source.is_dir():
        return [(source, destination)]
    found = [(path, _target(source, destination, path)) for path in _pictures(source)]
    return [(path, target) for path, target in found if target.is_file()]


def encode_picture(frame: Frame, suffix: str) -> bytes:
    """Encode RGB without any metadata; the suffix says how."""
    ok, content = cv2.imencode(suffix, np.ascontiguousarray(frame[..., ::-1]))
    if not ok:
        raise DataError(f"a picture cannot be encoded as {suffix}")
    return bytes(content)


def _picture(job: Job) -> Outcome:
    _refuse_existing(job)
    suffix = job.destination.suffix.lower()
    if suffix not in PICTURES:
        raise ConfigError(f"{job.destination}: a picture needs one of the endings {', '.join(sorted(PICTURES))}")
    if job.lossless and suffix not in (".png", ".bmp", ".tif", ".tiff"):
        raise ConfigError(f"{job.destination}: this result must be stored without loss, use .png")
    changed = job.change(read_picture(job.source), job.source.name)
    files.write_bytes(job.destination, encode_picture(changed, suffix), mode=job.mode)
    if job.progress is not None:
        job.progress(1, 1)
    return Outcome(frames=1)


def _folder(job: Job) -> Outcome:
    if job.destination.is_file():
        raise ConfigError(f"{job.destination}: is a file, a folder needs a folder")
    if job.destination.resolve().is_relative_to(job.source.resolve()):
        raise ConfigError(f"{job.destination}: lies inside the source folder")
    sources = _pictures(job.source)
    if not sources:
        raise DataError(f"{job.source}: no pictures ({', '.join(sorted(PICTURES))}) in this folder")
    targets = [_target(job.source, job.destination, source) for source in sources]
    if len(set(targets)) != len(targets):
        raise DataError(f"{job.source}: two pictures differ only in their ending and would become one")
    outcome = Outcome()
    manifest = _Manifest(job)
    for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1):
        name = str(source.relative_to(job.source))
        digest = files.sha256_file(source)
        if manifest.done(name, digest, target):
            outcome.resumed += 1
        elif target.exists() and not job.force and not manifest.ours(name):
            raise ConfigError(f"{target}: exists already (--force overwrites)")
        else:
            try:
                changed = job.change(read_picture(source), name)
            except WardposeError as error:
                if job.on_bad == "error":
                    raise
                outcome.skipped.append(str(error))
                continue
            content = encode_picture(changed, target.suffix)
            # Noted first: what then lies under the target's name is known to be ours, whenever the power fails.
            manifest.add(name, digest, hashlib.sha256(content).hexdigest())
            files.write_bytes(target, content, mode=job.mode)
            outcome.frames += 1
        if job.progress is not None:
            job.progress(number, len(sources))
    return outcome


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())


def _target(folder: Path, destination: Path, source: Path) -> Path:
    return (destination / source.relative_to(folder)).with_suffix(".png")


class _Manifest:
    """Which pictures of a folder are done or begun: name -> hashes, one JSON line each."""

    def __init__(self, job: Job) -> None:
        self._path = job.destination / ".wardpose-manifest.jsonl"
        self._identity = job.identity
        self._entries: dict[str, dict[str, str]] = {}
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a line cut off by a crash: its picture is done again
            if entry["identity"] != job.identity and not job.force:
                raise ConfigError(
                    f"{job.destination}: was begun with other weights, key or strength; use another folder or --force"
                )
            self._entries[entry["name"]] = entry

    def done(self, name: str, digest: str, target: Path) -> bool:
        entry = self._entries.get(name)
        return (
            entry is not None
            and entry["identity"] == self._identity
            and entry["source"] == digest
            and target.is_file()
            and files.sha256_file(target) == entry["target"]
        )

    def ours(self, name: str) -> bool:
        return name in self._entries

    def add(self, name: str, source: str, target: str) -> None:
        entry = {"name": name, "source": source, "target": target, "identity": self._identity}
        self._entries[name] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            # The line break comes first: a line that a crash cut off spoils itself alone.
            file.write("\n" + json.dumps(entry))
            file.flush()
            os.fsync(file.fileno())


def _video(job: Job) -> Outcome:
    _refuse_existing(job)
    suffix = job.destination.suffix.lower()
    if suffix not in ((".mkv", ".avi") if job.lossless else VIDEOS):
        allowed = ".mkv or .avi, stored without loss" if job.lossless else ", ".join(sorted(VIDEOS))
        raise ConfigError(f"{job.destination}: a video needs the ending {allowed}")
    if not job.source.is_file():
        raise DataError(f"{job.source}: no such video")
    digest = hashlib.sha256((files.sha256_file(job.source) + job.identity).encode()).hexdigest()[:16]
    work = job.destination.with_name(f".{job.destination.name}.{digest}.frames")
    outcome, rate, count = Outcome(), 25.0, 0
    for count, (frame, total, fps) in enumerate(_frames(job.source), start=1):
        rate = fps
        target = work / f"{count:08d}.png"
        message = f"{job.source}: frame {count - 1} of {total} cannot be decoded"
        if target.exists() and target.stat().st_size:
            outcome.resumed += 1
        elif frame is None:
            if job.on_bad == "error":
                raise DataError(f"{message}; the frames before it are kept, --on-bad skip makes it black")
            outcome.skipped.append(message)
            # Nothing can be anonymised here, and an empty file marks the place of a black frame.
            files.write_bytes(target, b"")
        else:
            changed = job.change(_even(frame), f"{job.source.name}#{count - 1}")
            files.write_bytes(target, encode_picture(changed, ".png"), mode=job.mode)
            outcome.frames += 1
        if job.progress is not None:
            job.progress(count, max(total, count))
    if count == 0:
        raise DataError(f"{job.source}: not a readable video")
    _assemble(work, count, rate, job)
    shutil.rmtree(work)
    return outcome


def _frames(source: Path) -> Iterator[tuple[Frame | None, int, float]]:
    """Frames in order (`None` where one cannot be decoded), with how many there should be and how many a second."""
    capture = cv2.VideoCapture(str(source))
    total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    number = 0
    try:
        while True:
            frame: Frame | None = None
            if capture.grab():
                ok, decoded = capture.retrieve()
                frame = np.ascontiguousarray(decoded[..., ::-1]) if ok else None
            elif number < total:
                # A damaged frame ends OpenCV's reading, but what follows it can often be sought.
                capture.set(cv2.CAP_PROP_POS_FRAMES, number + 1)
            else:
                return
            number += 1
            yield frame, total, rate
    finally:
        capture.release()


def _assemble(work: Path, count: int, rate: float, job: Job) -> None:
    """Write the frames as one video under a temporary name, check it, then give it its name."""
    suffix = job.destination.suffix.lower()
    whole = [path for path in sorted(work.glob("*.png")) if path.stat().st_size]
    if not whole:
        raise DataError(f"{job.source}: not one frame of {count} can be decoded")
    shape = read_picture(whole[0]).shape
    code = "FFV1" if job.lossless or suffix in (".mkv", ".avi") else "VP80" if suffix == ".webm" else "mp4v"
    temporary = work / f"video{suffix}"
    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*code), rate, (shape[1], shape[0]))
    if not writer.isOpened():
        raise DataError(f"{job.destination}: no encoder for {suffix}; use .mkv")
    for number in range(1, count + 1):
        path = work / f"{number:08d}.png"
        frame = read_picture(path) if path.stat().st_size else np.zeros(shape, np.uint8)
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    check = cv2.VideoCapture(str(temporary))
    written = 0
    while check.grab():
        written += 1
    check.release()
    if written != count:
        raise DataError(f"{job.destination}: only {written} of {count} frames could be written (is the disk full?)")
    temporary.chmod(job.mode)
    temporary.replace(job.destination)


def _even(frame: Frame) -> Frame:
    """Repeat the last row or column where a side is odd; encoders cut it otherwise."""
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")


def _refuse_existing(job: Job) -> None:
    if not job.source.exists():
        raise DataError(f"{job.source}: no such file or folder")
    if job.destination.is_dir():
        raise ConfigError(f"{job.destination}: is a folder, a file needs a file")
    if job.destination.exists() and not job.force:
        raise ConfigError(f"{job.destination}: exists already (--force overwrites)")
    if job.destination.resolve() == job.source.resolve():
        raise ConfigError(f"{job.destination}: is the source itself")
