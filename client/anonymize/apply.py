"""A picture, a folder or a video in, the anonymised (or recovered) one out.

Nothing is half-written: each file appears under its name when it is complete. What is done stays done: a folder keeps
a manifest, a video its finished frames, and the next run goes on from there. Pixels are decoded and encoded anew, so
EXIF, GPS, comments, thumbnails and sound are gone. Nothing existing is overwritten unless asked for, and nothing is
left out without a word.
"""

from wardpose.client.anonymize.folder import anonymise_folder
from wardpose.client.anonymize.job import Change, Job, LeftOut, Outcome, Progress, file_of
from wardpose.client.anonymize.picture import anonymise_picture
from wardpose.client.anonymize.sources import recognise
from wardpose.client.anonymize.video import anonymise_video
from wardpose.shared.data.pictures import PICTURE_ENDINGS
from wardpose.shared.data.video_stream import VIDEO_ENDINGS
from wardpose.shared.errors import DataError
from wardpose.shared.files import storing

__all__ = ["Change", "Job", "LeftOut", "Outcome", "Progress", "file_of", "run"]

_GO_ON = "what was finished stays, run the same command again to go on"


def run(job: Job) -> Outcome:
    """Do the job.

    Raises:
        ConfigError: the destination exists, is of another sort than the source, or cannot hold a lossless result.
        DataError: a source that is missing or cannot be read, or a full disk; what was finished before stays.

    """
    if not job.source.exists():
        raise DataError(f"{job.source}: no such file or folder")
    with storing(job.destination, _GO_ON):
        if job.source.is_dir():
            return anonymise_folder(job)
        kind, why = recognise(job.source)
        if kind == "video":
            return anonymise_video(job)
        if kind == "picture":
            return anonymise_picture(job)
        allowed = f"a folder, {_listed(PICTURE_ENDINGS)}, {_listed(VIDEO_ENDINGS)}"
        raise DataError(f"{job.source}: {why} (allowed: {allowed})")


def _listed(endings: frozenset[str]) -> str:
    return " ".join(sorted(endings))
