"""When the frames of a video are shown: as in the source, as exactly as the container of the result can say it."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median

from wardpose.client.anonymize.encoding import Storage
from wardpose.shared.data.video_index import NO_STAMP, VideoIndex
from wardpose.shared.errors import ConfigError


def shown_at(index: VideoIndex, storage: Storage, *, source: Path, destination: Path) -> tuple[list[int], Fraction]:
    """Return when each frame is shown, rising, and the seconds of one unit.

    Late starts, pauses and variable rates stay. Only where the source has no time, or one that does not rise, a frame
    comes a usual step after the one before it.

    Raises:
        ConfigError: the container has one frame rate and the source has not.

    """
    unit = index.unit
    stamps = rising([int(stamp) for stamp in index.stamps], usual=max(1, round(1 / (25 * unit))))
    if storage.container == "avi":
        return _at_one_rate(stamps, unit, source, destination)
    if storage.unit is not None:
        # Two frames of one source are never shown at once, whatever the rounding makes of them.
        rounded: list[int] = []
        for stamp in stamps:
            at = round(stamp * unit / storage.unit)
            rounded.append(max(at, rounded[-1] + 1) if rounded else at)
        stamps, unit = rounded, storage.unit
    else:  # an MP4's clock counts parts of a second
        stamps, unit = [stamp * unit.numerator for stamp in stamps], Fraction(1, unit.denominator)
    early = min(0, stamps[0])
    return [stamp - early for stamp in stamps], unit


def rising(stamps: Sequence[int], *, usual: int) -> list[int]:
    """Return rising time stamps, equal to those given wherever these rise.

    Args:
        stamps: as a container gives them, in the order in which the frames are shown.
        usual: step where the stamps do not tell.

    """
    known = [stamp for stamp in stamps if stamp != NO_STAMP]
    if len(known) == len(stamps) and not _rise(stamps) and _rise(sorted(stamps)):
        return sorted(stamps)  # times of decoding (H.264 in AVI): right all together, each at another frame
    steps = [after - before for before, after in pairwise(known) if after > before]
    usual = round(median(steps)) if steps else usual
    out: list[int] = []
    shift = 0
    for before, stamp in zip([None, *stamps], stamps, strict=False):
        if not out:
            out.append(0 if stamp == NO_STAMP else stamp)
        elif stamp == NO_STAMP:
            out.append(out[-1] + usual)
        elif stamp + shift > out[-1]:
            out.append(stamp + shift)
        elif stamp == before:
            out.append(out[-1] + 1)
        else:  # the clock was set back: clips laid end to end
            shift = out[-1] + usual - stamp
            out.append(stamp + shift)
    return out


def _rise(stamps: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(stamps))


def _at_one_rate(stamps: list[int], unit: Fraction, source: Path, destination: Path) -> tuple[list[int], Fraction]:
    if len(stamps) == 1:
        return [0], Fraction(1, 25)
    passed = [(stamp - stamps[0]) * unit for stamp in stamps]
    rate = (len(stamps) - 1) / passed[-1]
    for most in (1, 1001, 100_000):  # 30 a second, 30000 / 1001 a second, or whatever it is: the simplest that is right
        step = 1 / max(rate.limit_denominator(most), Fraction(1, most))
        if all(abs(at - number * step) <= unit for number, at in enumerate(passed)):
            return list(range(len(stamps))), step
    raise ConfigError(
        f"{destination}: an AVI has one frame rate, {source} has not (allowed: .mkv, which keeps its times)"
    )
