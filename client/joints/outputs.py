"""Which files are to be written, and what each of them needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from wardpose.client.anonymize.encoding import storage_for
from wardpose.client.joints.reels import Reel
from wardpose.shared.data.video_stream import VIDEO_ENDINGS
from wardpose.shared.errors import ConfigError

Format = Literal["coco", "csv", "openpose", "openpose-coco", "trc", "video", "pictures"]

FORMATS: tuple[Format, ...] = get_args(Format)

_ENDINGS: dict[str, Format] = {".json": "coco", ".csv": "csv", ".trc": "trc", ".png": "pictures", ".jpg": "pictures"}
_SUFFIXES = {"trc": frozenset({".trc"}), "pictures": frozenset({".png", ".jpg"}), "video": VIDEO_ENDINGS}
_OF_ONE_FILE = ("coco", "csv")
_FOLDERS = ("openpose", "openpose-coco")


@dataclass(frozen=True)
class Output:
    """One thing to write.

    Attributes:
        path: a file, or a folder where it is one file a frame or a film.
        format: what is in it.

    """

    path: Path
    format: Format

    @property
    def drawn(self) -> bool:
        """Whether skeletons are drawn on frames."""
        return self.format in ("video", "pictures")

    def is_folder(self, reels: Sequence[Reel]) -> bool:
        """Whether it is a folder of files."""
        if self.format in _FOLDERS:
            return True
        return self.format not in _OF_ONE_FILE and self.path.suffix.lower() not in _suffixes(self.format)

    def target(self, reel: Reel, ending: str, reels: Sequence[Reel], root: Path) -> Path:
        """Return where the file of one film goes, below `root`, which stands for `path`."""
        return root / f"{reel.name}{ending}" if self.is_folder(reels) else root


def plan_outputs(paths: Sequence[Path], formats: Sequence[str], reels: Sequence[Reel]) -> list[Output]:
    """Say what is to be written where.

    Args:
        paths: of the outputs.
        formats: one for each; by the endings of the paths where there is none at all: `.json` is COCO results, `.csv`,
            `.trc`, those of videos and pictures are themselves, and a folder is OpenPose's JSON.
        reels: what is looked at.

    Raises:
        ConfigError: a format is unknown, cannot hold these sources, or an output is one of them.

    """
    if not paths:
        raise ConfigError("--out is missing (allowed: one or more files or folders to write)")
    if formats and len(formats) != len(paths):
        raise ConfigError(
            f"--format is given {len(formats)} times, --out {len(paths)} times (allowed: as often, or never)"
        )
    outputs = [
        Output(path, _format(path, named)) for path, named in zip(paths, formats or [""] * len(paths), strict=True)
    ]
    resolved = [output.path.resolve() for output in outputs]
    if len(set(resolved)) < len(resolved):
        raise ConfigError(f"--out: {_twice(resolved)} is named twice (allowed: each path once)")
    for output in outputs:
        _check(output, reels)
    return outputs


def _format(path: Path, named: str) -> Format:
    if named:
        for known in FORMATS:
            if named == known:
                return known
        raise ConfigError(f'--format "{named}" is not allowed ({", ".join(FORMATS)})')
    ending = path.suffix.lower()
    if ending in VIDEO_ENDINGS:
        return "video"
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if ending == "" or path.is_dir():
        return "openpose"
    raise ConfigError(f'{path}: the ending "{ending}" is of no format (allowed: --format {", ".join(FORMATS)})')


def _check(output: Output, reels: Sequence[Reel]) -> None:
    path, folder = output.path, output.is_folder(reels)
    inputs = {source.path.resolve() for reel in reels for source in reel.pictures}
    inputs |= {reel.video.path.resolve() for reel in reels if reel.video is not None}
    if path.resolve() in inputs:
        raise ConfigError(f"{path}: is a source itself")
    if output.format in _OF_ONE_FILE and path.is_dir():
        raise ConfigError(f"{path}: is a folder, {output.format} needs a file")
    if folder and path.is_file():
        raise ConfigError(f"{path}: is a file, {output.format} of these sources needs a folder")
    if not folder and output.format in ("trc", "video", "pictures") and len(reels) > 1:
        raise ConfigError(
            f"{path}: {len(reels)} sources cannot be one {output.format} (allowed: a folder, and --format)"
        )
    for reel in reels:
        if output.format == "trc" and (not reel.linked or reel.rate is None):
            raise ConfigError(f"{path}: {reel.name} has no frame rate (allowed: a video, or a folder and --rate)")
        if output.format == "video":
            if reel.video is None:
                raise ConfigError(f"{path}: {reel.name} is no video (allowed: --format pictures)")
            ending = Path("x.mp4") if folder else path
            storage_for(ending, source=reel.video.path, lossless=False)
        if output.format == "pictures" and not folder and (reel.video is not None or reel.entries != 1):
            raise ConfigError(f"{path}: {reel.name} is not one picture (allowed: a folder, and --format pictures)")


def _suffixes(format_: Format) -> frozenset[str]:
    return _SUFFIXES.get(format_, frozenset())


def _twice(paths: Sequence[Path]) -> Path:
    return next(path for place, path in enumerate(paths) if path in paths[:place])
