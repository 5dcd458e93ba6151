"""A folder in, an anonymised (or recovered) one of the same structure out; nothing in it is left out in silence.

Pictures become PNG, each page of a picture of several one of its own (`scan-0001.png`, ...), videos become Matroska
where the result must be stored without loss and MP4 elsewhere. What is of no sort that can be read is listed.

Where frames can be changed together, pictures wait for a few others, of whatever sizes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wardpose.client.anonymize.job import BATCH, BATCH_BYTES, Job, LeftOut, Outcome, unreadable
from wardpose.client.anonymize.manifest import Done, Manifest
from wardpose.client.anonymize.picture import encode_picture
from wardpose.client.anonymize.sources import Source, survey, without_ending
from wardpose.client.anonymize.video import anonymise_video
from wardpose.shared import files
from wardpose.shared.data.pictures import read_pages
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError, StorageError, WardposeError

_PARTS = 1000  # of a file, for the progress


def anonymise_folder(job: Job) -> Outcome:
    """Do a job whose source is a folder.

    Raises:
        ConfigError: the destination is a file, lies in the source, or holds foreign files or another job's.
        DataError: nothing can be read, two files would become one, or one cannot be read and `on_bad` is `error`.
        OSError: something cannot be written.

    """
    if job.destination.is_file():
        raise ConfigError(f"{job.destination}: is a file, a folder needs a folder")
    if job.destination.resolve().is_relative_to(job.source.resolve()):
        raise ConfigError(f"{job.destination}: lies inside the source folder")
    found = survey(job.source)
    if not found.sources:
        listed = "; ".join(f"{left.name}: {left.reason}" for left in found.left_out)
        raise DataError(
            f"{job.source}: no picture or video in this folder can be read{f' ({listed})' if listed else ''}"
        )
    with Manifest(job) as manifest:
        work = _Work(job, found.sources, manifest)
        work.outcome.left_out = found.left_out
        try:
            for number, source in enumerate(found.sources):
                work.do(source, number)
        except WardposeError:
            work.finish_waiting()  # what comes before the file that cannot be used
            raise
        work.finish_waiting()
    return work.outcome


@dataclass(frozen=True, eq=False)
class _Page:
    """A picture, or a page of one, that was read and is to be changed."""

    source: Source
    number: int
    digest: str
    target: Path
    frame: Frame
    page: int
    pages: int

    @property
    def name(self) -> str:
        return self.source.name if self.pages == 1 else f"{self.source.name}#{self.page}"


class _Work:
    """The files of a folder, one after the other."""

    def __init__(self, job: Job, sources: Sequence[Source], manifest: Manifest) -> None:
        self.outcome = Outcome()
        self._job = job
        self._count = len(sources)
        self._becomes: dict[Path, str] = {}  # target -> the source it is for
        for source in sources:
            self._claim(source, _target(job, source))
        self._manifest = manifest
        self._waiting: list[_Page] = []

    def do(self, source: Source, number: int) -> None:
        """Change one file soon, unless that is done."""
        try:
            digest = files.sha256_file(source.path)
        except OSError as error:
            self._cannot(unreadable(source.path, error))
            return
        done = self._manifest.done(source.name, digest)
        new = done is None or (self._job.on_bad == "error" and (done[1].skipped or done[1].cut))
        if new and source.kind == "picture":
            self._picture(source, digest, number)
            return
        self.finish_waiting()
        if done is not None and not new:
            targets, before = done
            self.outcome.resumed += before.frames
            self.outcome.skipped += before.skipped
            self.outcome.left_out += [LeftOut(source.name, reason) for reason in before.left_out]
            self.outcome.made += [(source.path, target) for target in targets]
        else:
            self._video(source, digest, number)
        self._progress(number, 1, 1)

    def finish_waiting(self) -> None:
        """Change and write the pictures that were read, in their order."""
        waiting, self._waiting = self._waiting, []
        changed = self._changed_together(waiting)
        spoiled = ""  # a picture of which a page cannot be used
        for place, page in enumerate(waiting):
            if page.source.name == spoiled:
                continue
            try:
                self._write(page, self._job.change(page.frame, page.name) if changed is None else changed[place])
            except WardposeError as error:
                spoiled = page.source.name
                self._cannot(error)
            if page.page + 1 == page.pages or spoiled == page.source.name:
                self._progress(page.number, 1, 1)

    def _picture(self, source: Source, digest: str, number: int) -> None:
        try:
            pages = read_pages(source.path)
        except OSError as error:
            self._cannot(unreadable(source.path, error))
            self._progress(number, 1, 1)
            return
        except WardposeError as error:
            if _is_dicom(source.path):  # a report or a plan in DICOM is whole, and no picture
                reason = str(error).removeprefix(f"{source.path}: ")
                self.outcome.left_out.append(LeftOut(source.name, reason))
            else:
                self._cannot(error)
            self._progress(number, 1, 1)
            return
        targets = _pages(_target(self._job, source), len(pages))
        for target in targets:
            self._claim(source, target)
            self._refuse_foreign(source, target)
        for page, (frame, target) in enumerate(zip(pages, targets, strict=True)):
            self._waiting.append(_Page(source, number, digest, target, frame, page, len(pages)))
        held = sum(page.frame.nbytes for page in self._waiting)
        if self._job.change_many is None or len(self._waiting) >= BATCH or held >= BATCH_BYTES:
            self.finish_waiting()

    def _changed_together(self, waiting: Sequence[_Page]) -> list[Frame] | None:
        """Change frames at once; `None` where one of them has to be looked at alone."""
        if self._job.change_many is None or len(waiting) < 2:
            return None
        try:
            return self._job.change_many([page.frame for page in waiting], [page.name for page in waiting])
        except StorageError:
            raise
        except WardposeError:
            return None

    def _write(self, page: _Page, changed: Frame) -> None:
        content = encode_picture(changed, page.target.suffix)
        hashed = hashlib.sha256(content).hexdigest()
        self._manifest.add(page.source.name, page.digest, page.target, hashed, page=page.page, pages=page.pages)
        files.write_bytes(page.target, content, mode=self._job.mode)
        self.outcome.frames += 1
        self.outcome.made.append((page.source.path, page.target))

    def _video(self, source: Source, digest: str, number: int) -> None:
        target = _target(self._job, source)
        self._refuse_foreign(source, target)

        def note(finished: Path, done: Done) -> None:
            self._manifest.add(source.name, digest, target, files.sha256_file(finished), done=done)

        job = replace(
            self._job,
            source=source.path,
            destination=target,
            force=True,
            progress=lambda done, total: self._progress(number, done, total),
        )
        try:
            outcome = anonymise_video(job, name=source.name, before_naming=note)
        except DataError as error:
            self._cannot(error)
            return
        self.outcome.frames += outcome.frames
        self.outcome.resumed += outcome.resumed
        self.outcome.skipped += outcome.skipped
        self.outcome.left_out += outcome.left_out
        self.outcome.made += outcome.made

    def _claim(self, source: Source, target: Path) -> None:
        other = self._becomes.setdefault(target, source.name)
        if other != source.name:
            raise DataError(
                f"{self._job.source}: {other} and {source.name} would both become {target} (allowed: one file each)"
            )

    def _refuse_foreign(self, source: Source, target: Path) -> None:
        if target.is_dir():
            raise ConfigError(f"{target}: is a folder, {source.name} would become a file of that name")
        if target.exists() and not self._job.force and not self._manifest.ours(source.name, target):
            raise ConfigError(f"{target}: exists already (--force overwrites)")

    def _cannot(self, error: WardposeError) -> None:
        if self._job.on_bad == "error" or isinstance(error, StorageError):  # a full disk is no bad picture
            raise error
        self.outcome.skipped.append(str(error))

    def _progress(self, number: int, done: int, total: int) -> None:
        if self._job.progress is not None:
            self._job.progress(_PARTS * number + _PARTS * done // total, _PARTS * self._count)


def _target(job: Job, source: Source) -> Path:
    ending = ".png" if source.kind == "picture" else ".mkv" if job.lossless else ".mp4"
    path = job.destination / source.name
    return path.with_name(without_ending(path.name) + ending)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _pages(target: Path, count: int) -> list[Path]:
    if count == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{page:04d}{target.suffix}") for page in range(1, count + 1)]
