"""What is looked at: reels of frames, each a video, or pictures one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from wardpose.client.anonymize.job import LeftOut
from wardpose.client.anonymize.sources import Source, recognise, survey, without_ending
from wardpose.client.anonymize.timing import rising
from wardpose.shared import files
from wardpose.shared.data.pictures import read_pages
from wardpose.shared.data.records import Frame
from wardpose.shared.data.video_file import Video
from wardpose.shared.data.video_stream import open_stream, other_contents
from wardpose.shared.errors import ConfigError, DataError

OnBad = Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One frame of a reel, before it is read.

    Attributes:
        source: name of its file.
        number: of the frame in a video, of the page in a picture of several.
        time: seconds at which it is shown.

    """

    source: str
    number: int | None
    time: Fraction | None


@dataclass(kw_only=True)
class Reel:
    """Frames in an order.

    Attributes:
        name: of the file or folder, without its ending; parts of it are folders.
        entries: how many can be asked for.
        linked: whether the frames are of one film, so that people are followed from one to the next.
        rate: frames a second; `None` where nobody knows.
        identity: of the content.
        video: where it is one.
        file: its name.
        pictures: where it is none.

    """

    name: str
    entries: int
    linked: bool
    rate: float | None
    identity: str
    video: Video | None = None
    file: str = ""
    pictures: tuple[Source, ...] = ()
    times: tuple[Fraction, ...] = ()

    def load(self, entry: int) -> list[tuple[Shot, Frame]]:
        """Read an entry: a frame of a video, or every page of a picture.

        Raises:
            DataError: it cannot be read.

        """
        shot = self.shot(entry)
        if self.video is not None:
            frame, first = self.video.frame(entry), (self.video.height, self.video.width)
            if frame.shape[:2] != first:
                raise DataError(
                    f"{self.video.path}: frame {entry} is {frame.shape[1]} x {frame.shape[0]} pixels, the first "
                    f"{first[1]} x {first[0]} (allowed: one size)"
                )
            return [(shot, frame)]
        try:
            pages = read_pages(self.pictures[entry].path)
        except OSError as error:
            raise DataError(f"{self.pictures[entry].path}: cannot be read ({error.strerror})") from error
        if len(pages) == 1:
            return [(shot, pages[0])]
        if self.linked:
            raise DataError(
                f"{self.pictures[entry].path}: has {len(pages)} pages (allowed: one, where --rate is given)"
            )
        return [(Shot(source=shot.source, number=page, time=None), frame) for page, frame in enumerate(pages)]

    def shot(self, entry: int) -> Shot:
        """Return what is known of an entry without reading it."""
        if self.video is not None:
            return Shot(source=self.file, number=entry, time=self.times[entry])
        time = Fraction(entry) / Fraction(self.rate).limit_denominator(100_000) if self.rate is not None else None
        return Shot(source=self.pictures[entry].name, number=None, time=time)

    def size(self, entry: int) -> tuple[int, int]:
        """(height, width) of an entry that cannot be read, as far as it is known."""
        return self.video.size(entry) if self.video is not None else (0, 0)


@dataclass
class Reels:
    """All that is looked at, and what is not."""

    reels: list[Reel] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def open_reels(sources: Sequence[Path], *, rate: float | None, on_bad: OnBad) -> Reels:
    """Open pictures, videos and folders of them.

    A folder's pictures are one reel, in the order of their names; with a `rate` they are the frames of a film. Pictures
    that are named one by one are one reel, too.

    Raises:
        ConfigError: two sources have one name, so that nobody could tell their frames apart, or the rate is no rate.
        DataError: there is nothing to read, or a video has losses and `on_bad` is `error`.

    """
    if rate is not None and not 0 < rate <= 100_000:
        raise ConfigError(f"--rate {rate} is not allowed (above 0, frames a second)")
    found = Reels()
    single: list[Source] = []
    for path in sources:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir():
            _add_folder(found, path, rate, on_bad)
            continue
        kind, why = recognise(path)
        if kind is None:
            raise DataError(f"{path}: {why} (allowed: a picture, a video, or a folder of them)")
        if kind == "video":
            _add_video(found, Source(path, path.name, "video"), on_bad)
        else:
            single.append(Source(path, path.name, "picture"))
    if single:
        found.reels.append(
            _of_pictures(without_ending(single[0].name) if len(single) == 1 else "pictures", single, rate)
        )
    if not found.reels:
        listed = "; ".join(f"{left.name}: {left.reason}" for left in found.left_out)
        named = ", ".join(map(str, sources))
        raise DataError(f"{named}: no picture or video can be read{f' ({listed})' if listed else ''}")
    _refuse_doubles(found)
    return found


def _add_folder(found: Reels, folder: Path, rate: float | None, on_bad: OnBad) -> None:
    listed = survey(folder)
    found.left_out += listed.left_out
    pictures = [source for source in listed.sources if source.kind == "picture"]
    if pictures:
        found.reels.append(_of_pictures(folder.resolve().name, pictures, rate))
    for source in listed.sources:
        if source.kind == "video":
            _add_video(found, source, on_bad)


def _of_pictures(name: str, pictures: Sequence[Source], rate: float | None) -> Reel:
    digest = [f"{source.name}:{files.sha256_file(source.path)}" for source in pictures if source.path.exists()]
    return Reel(
        name=name,
        entries=len(pictures),
        linked=rate is not None,
        rate=rate,
        identity="|".join(digest),
        pictures=tuple(pictures),
    )


def _add_video(found: Reels, source: Source, on_bad: OnBad) -> None:
    path = source.path
    video = Video(path)
    losses = "; ".join(video.index.losses)
    if losses and on_bad == "error":
        raise DataError(
            f"{path}: {losses} (allowed: a whole video; --on-bad skip takes the {video.frame_count} frames that are "
            "there)"
        )
    container, _ = open_stream(path)
    with container:
        more = other_contents(container)
    unread = [f"its {kind} {'are' if kind[-1] == 's' else 'is'} not read" for kind in more]
    tracks = video.index.tracks()
    reasons = [reason for reason in (losses, tracks, *unread) if reason]
    found.left_out += [LeftOut(source.name, reason) for reason in reasons]
    unit = video.index.unit
    stamps = rising([int(stamp) for stamp in video.index.stamps], usual=max(1, round(1 / (25 * unit))))
    times = tuple(stamp * unit for stamp in stamps)
    found.reels.append(
        Reel(
            name=without_ending(source.name),
            entries=video.frame_count,
            linked=True,
            rate=_rate(times, unit),
            identity=files.sha256_file(path),
            video=video,
            file=source.name,
            times=times,
        )
    )


def _refuse_doubles(found: Reels) -> None:
    seen: set[str] = set()
    for reel in found.reels:
        names = [reel.file] if reel.video is not None else [source.name for source in reel.pictures]
        for name in names:
            if name in seen:
                raise ConfigError(f"{name}: two sources have this name (allowed: names that tell them apart)")
            seen.add(name)


def _rate(times: Sequence[Fraction], unit: Fraction) -> float | None:
    """Frames a second of a film: the simplest number that its times, which are rounded to a unit, allow."""
    spanned = times[-1] - times[0]
    if spanned <= 0:
        return None
    mean = (len(times) - 1) / spanned
    for most in (1, 1001):  # 30 a second, 30000 / 1001 a second
        rate = mean.limit_denominator(most)
        if rate > 0 and all(abs(at - times[0] - number / rate) <= unit for number, at in enumerate(times)):
            return float(rate)
    return float(mean)
