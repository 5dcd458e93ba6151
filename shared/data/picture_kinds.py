"""Which files are pictures that can be read here, told by what they hold and not by what they are called."""

import importlib.util
from pathlib import Path

HEAD_BYTES = 160
"""So many bytes from the start of a file tell its kind."""

_PLAIN = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".gif", ".bmp", ".dib",
    ".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".avif", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
_EXTRAS = {
    "HEIC": ("heic", "pillow_heif", {".heic", ".heif", ".hif"}),
    "DICOM": ("dicom", "pydicom", {".dcm", ".dicom"}),
}
_OTHERS = {
    "a video": {
        ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mts", ".m2ts", ".ts", ".mpg", ".mpeg", ".vob", ".wmv",
        ".asf", ".flv", ".3gp", ".3g2", ".ogv", ".mxf", ".mjpg", ".mjpeg", ".dv",
    },
    "a camera's raw file": {
        ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw",
        ".raw", ".x3f", ".iiq", ".3fr",
    },
    "a drawing or document": {".pdf", ".svg", ".psd", ".psb", ".ai", ".eps", ".ps", ".xcf", ".emf", ".wmf", ".ico"},
}  # fmt: skip
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def _installed(kind: str) -> bool:
    return kind not in _EXTRAS or importlib.util.find_spec(_EXTRAS[kind][1]) is not None


PICTURE_ENDINGS: frozenset[str] = frozenset(
    _PLAIN.union(*(endings for kind, (_, _, endings) in _EXTRAS.items() if _installed(kind)))
)
"""Endings, in lower case, of what can be read here: HEIC and DICOM only where their libraries are installed."""


def kind_of(head: bytes) -> str | None:
    """Name the kind of picture that begins with `head` (`HEAD_BYTES` of it); `None` for anything else."""
    for kind, marks in {
        "JPEG": (b"\xff\xd8\xff",),
        "PNG": (b"\x89PNG\r\n\x1a\n",),
        "GIF": (b"GIF87a", b"GIF89a"),
        "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    }.items():
        if head.startswith(marks):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and head[6:10] == bytes(4) and len(head) >= 26:
        return "BMP"
    if head[:2] in (b"P4", b"P5", b"P6") and head[2:3].isspace():
        return "PPM"
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIC" if head[8:12] in _HEIF_BRANDS else None
    return "DICOM" if head[128:132] == b"DICM" else None


def head_of(path: Path) -> bytes:
    """First bytes of a file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def missing_extra(kind: str | None) -> str:
    """Say what to install for this kind of picture; empty where nothing is missing."""
    if kind is None or _installed(kind):
        return ""
    return f"{kind}, which needs: pip install 'wardpose[{_EXTRAS[kind][0]}]'"


def is_picture(path: Path) -> bool:
    """Tell whether a file is to be read as a picture: by its ending, or by its content where the ending says nothing.

    A file with a picture's ending counts even where it turns out to be broken, so that it is named and not left out.
    """
    return not why_not(path)


def why_not(path: Path) -> str:
    """Say in one phrase why a file is not read as a picture; empty where it is."""
    ending = path.suffix.lower()
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return "missing"
    if path.name.startswith("._"):
        return "a companion file of macOS, no picture"
    for phrase, endings in _OTHERS.items():
        if ending in endings:
            return f"{phrase} ({ending})"
    if ending in PICTURE_ENDINGS:
        return ""
    head = head_of(path)
    if not head:
        return "an empty file, or one that may not be read"
    kind = kind_of(head)
    return "of no kind of picture that is read here" if kind is None else missing_extra(kind)
