"""A video in, the anonymised (or recovered) one out, with the same frames at the same times.

Frames are numbered as `shared.data.video_index` numbers them, so a label's frame is the same frame before and after.
What is done is kept in segments beside the destination; the next run goes on after the last of them.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from wardpose.client.anonymize import disk
from wardpose.client.anonymize.encoding import Segment, Storage, Stored, assemble, read_segment, storage_for
from wardpose.client.anonymize.job import BATCH, BATCH_BYTES, Job, LeftOut, Outcome, naming, refuse_existing
from wardpose.client.anonymize.manifest import Done
from wardpose.client.anonymize.timing import shown_at
from wardpose.client.anonymize.unfinished import clear, work_folder
from wardpose.shared import files
from wardpose.shared.data.records import Frame
from wardpose.shared.data.video_file import Video
from wardpose.shared.data.video_stream import open_stream, other_contents
from wardpose.shared.errors import DataError, StorageError, WardposeError


def anonymise_video(
    job: Job, *, name: str | None = None, before_naming: Callable[[Path, Done], None] | None = None
) -> Outcome:
    """Do a job whose source is a video.

    Args:
        job: what to do.
        name: of the video in the names of its frames; that of its file when absent.
        before_naming: called with the finished file and what is to be known of it before it gets its name.

    Raises:
        ConfigError: the destination exists, or cannot hold the result.
        DataError: the source cannot be read, or not all of it and `on_bad` is `error`.
        OSError: something cannot be written.

    """
    refuse_existing(job)
    storage = storage_for(job.destination, source=job.source, lossless=job.lossless)
    facts = [files.sha256_file(job.source), job.identity, str(storage), str(av.library_versions)]
    digest = hashlib.sha256("|".join(facts).encode()).hexdigest()[:16]
    work = work_folder(job.destination, digest)
    try:
        outcome = _anonymise(job, storage, work, name or job.source.name, before_naming)
    except BaseException as error:
        if not _segment_path(work, 0).exists():  # there is nothing to go on from
            shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, av.FFmpegError):
            raise DataError(
                f"{job.destination}: FFmpeg cannot store it as {storage.codec} ({error.strerror})"
            ) from error
        raise
    clear(job.destination)
    outcome.made.append((job.source, job.destination))
    return outcome


def _anonymise(
    job: Job, storage: Storage, work: Path, label: str, before_naming: Callable[[Path, Done], None] | None
) -> Outcome:
    video = Video(job.source, index_folder=work)
    outcome = Outcome(left_out=_missing(video, label, job))
    stamps, unit = shown_at(video.index, storage, source=job.source, destination=job.destination)
    files.private_folder(work)
    work.chmod(0o700)  # what lies here may be less hidden than what it becomes
    segments = _finished(work, job)
    outcome.resumed = sum(segment.frames for segment in segments)
    segments += _change(video, job, label, storage, work, outcome)
    outcome.skipped = [sentence for segment in segments for sentence in segment.skipped]
    if len(outcome.skipped) == video.frame_count:
        shutil.rmtree(work)
        raise DataError(f"{job.source}: not one frame of {video.frame_count} can be used ({outcome.skipped[0]})")
    temporary = work / f"whole{job.destination.suffix}"
    try:
        with disk.needing(job.destination, sum(segment.path.stat().st_size for segment in segments)):
            assemble(segments, temporary, storage, stamps, unit)
            if before_naming is not None:
                left_out = tuple(left.reason for left in outcome.left_out)
                cut = bool(video.index.losses)
                before_naming(temporary, Done(video.frame_count, tuple(outcome.skipped), left_out, cut=cut))
            with naming(job):
                disk.move(temporary, job.destination, mode=job.mode)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return outcome


def _missing(video: Video, label: str, job: Job) -> list[LeftOut]:
    """List what of the file is not among its frames."""
    losses = "; ".join(video.index.losses)
    if losses and job.on_bad == "error":
        raise DataError(
            f"{job.source}: {losses} (allowed: a whole video; --on-bad skip takes the {video.frame_count} frames that "
            "are there)"
        )
    container, _ = open_stream(job.source)
    with container:
        more = other_contents(container)
    tracks = [
        *filter(None, [video.index.tracks()]),
        *(f"its {kind} {'are' if kind[-1] == 's' else 'is'} not read" for kind in more),
    ]
    return [LeftOut(label, reason) for reason in (losses, *tracks) if reason]


def _finished(work: Path, job: Job) -> list[Stored]:
    segments: list[Stored] = []
    number = 0
    while (segment := read_segment(_segment_path(work, number))) is not None:
        if segment.skipped and job.on_bad == "error":
            break  # an earlier run was content with black frames
        segments.append(segment)
        number += segment.frames
    return segments


def _change(video: Video, job: Job, label: str, storage: Storage, work: Path, outcome: Outcome) -> list[Stored]:
    """Change the frames that are not done yet, and store them."""
    height, width = video.height, video.width
    aspect = Fraction(*video.index.aspect.tolist())
    segments: list[Stored] = []
    segment, begin = None, outcome.resumed
    try:
        for number, frame, why in _changed_frames(video, range(outcome.resumed, video.frame_count), job, label):
            if segment is None:
                segment, begin = Segment(storage, height, width, aspect), number
            segment.add(frame, why)
            outcome.frames += not why
            if segment.full:
                done, segment = segment, None
                segments.append(_store(done, work, begin, job))
            if job.progress is not None:
                job.progress(number + 1, video.frame_count)
    except BaseException:
        if segment is not None and segment.frames:
            with suppress(OSError, av.FFmpegError):  # what was wrong first is what is said
                _store(segment, work, begin, job)
        raise
    if segment is not None:
        segments.append(_store(segment, work, begin, job))
    return segments


def _changed_frames(video: Video, numbers: range, job: Job, label: str) -> Iterator[tuple[int, Frame, str]]:
    """Give out changed frames, or black ones and why; several go through the network together where that can be."""
    size = 1 if job.change_many is None else max(1, min(BATCH, BATCH_BYTES // (3 * video.height * video.width)))
    for start in range(0, len(numbers), size):
        group = numbers[start : start + size]
        done = _together(video, group, job, label) if len(group) > 1 else None
        for place, number in enumerate(group):
            frame, why = _changed(video, number, job, label) if done is None else (done[place], "")
            yield number, frame, why


def _together(video: Video, numbers: range, job: Job, label: str) -> list[Frame] | None:
    """Change frames at once; `None` where one of them has to be looked at alone."""
    if job.change_many is None:
        return None
    try:
        frames = [_read(video, number, job) for number in numbers]
        return job.change_many(frames, [f"{label}#{number}" for number in numbers])
    except StorageError:
        raise
    except WardposeError:
        return None


def _read(video: Video, number: int, job: Job) -> Frame:
    frame = video.frame(number)
    if frame.shape[:2] != (video.height, video.width):
        raise DataError(
            f"{job.source}: frame {number} is {frame.shape[1]} x {frame.shape[0]} pixels, the first "
            f"{video.width} x {video.height} (allowed: one size)"
        )
    return frame


def _changed(video: Video, number: int, job: Job, label: str) -> tuple[Frame, str]:
    """Return the changed frame, or a black one and why."""
    try:
        return job.change(_read(video, number, job), f"{label}#{number}"), ""
    except StorageError:
        raise  # a full disk is no bad frame
    except WardposeError as error:
        message = f"{job.source}: frame {number} of {video.frame_count} cannot be used ({error})"
        if job.on_bad == "error":
            raise type(error)(f"{message}; the frames before it are kept, --on-bad skip makes it black") from error
        return np.zeros((video.height, video.width, 3), np.uint8), message


def _store(segment: Segment, work: Path, begin: int, job: Job) -> Stored:
    path = _segment_path(work, begin)
    files.write_bytes(path, segment.content(), mode=job.mode)
    return Stored(path, segment.frames, segment.skipped)


def _segment_path(work: Path, begin: int) -> Path:
    return work / f"{begin:09d}.segment"
