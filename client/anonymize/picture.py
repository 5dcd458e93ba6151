"""A picture in, the anonymised (or recovered) one out, without anything but its pixels."""

import cv2
import numpy as np

from wardpose.client.anonymize.job import Job, Outcome, naming, refuse_existing
from wardpose.shared.data.pictures import read_pages
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.files import write_bytes

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
_ENDINGS = (*_LOSSLESS, ".jpg", ".jpeg", ".webp")


def anonymise_picture(job: Job) -> Outcome:
    """Do a job whose source is one picture.

    Raises:
        ConfigError: the destination exists, or cannot hold the result.
        DataError: the source cannot be read, or has several pages.
        OSError: the destination cannot be written.

    """
    refuse_existing(job)
    suffix = job.destination.suffix.lower()
    if suffix not in (_LOSSLESS if job.lossless else _ENDINGS):
        without = ", stored without loss" if job.lossless else ""
        allowed = ", ".join(_LOSSLESS if job.lossless else _ENDINGS)
        raise ConfigError(
            f"{job.source} is a picture: {job.destination} cannot hold it (allowed: the ending {allowed}{without})"
        )
    pages = read_pages(job.source)
    if len(pages) > 1:
        raise DataError(
            f"{job.source}: has {len(pages)} pages (allowed: one; of the files in a folder every page is written)"
        )
    content = encode_picture(job.change(pages[0], job.source.name), suffix)
    with naming(job):
        write_bytes(job.destination, content, mode=job.mode)
    if job.progress is not None:
        job.progress(1, 1)
    return Outcome(frames=1, made=[(job.source, job.destination)])


def encode_picture(frame: Frame, suffix: str) -> bytes:
    """Encode RGB without any metadata; the suffix says how."""
    ok, content = cv2.imencode(suffix, np.ascontiguousarray(frame[..., ::-1]))
    if not ok:
        raise DataError(f"a picture cannot be encoded as {suffix}")
    return bytes(content)
