"""How each kind of picture file is opened: its header, its pages and its pixels, without naming the file.

Pillow decodes; OpenCV does what Pillow cannot (16-bit colours, 64-bit and floating TIFF), and the two are compared.
What goes wrong is raised as the decoder raises it; `pictures` turns it into one line.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from wardpose.shared.data import pixels
from wardpose.shared.data.records import Frame
from wardpose.shared.data.tiff import TiffPage, tiff_pages
from wardpose.shared.data.whole_files import check_scan, gif_frames, png_chunks
from wardpose.shared.errors import DataError

# Pillow's warnings quote what is in a file; what is wrong with one is said in our own line.
warnings.filterwarnings("ignore", module=r"PIL\b")

_OPENERS: dict[str, type] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_ORIENTATION_TAG, _LONG = 274, 4
_MP_ENTRIES = 0xB002
_PNG_GREY = 0
_FILLED_ROWS = 8  # at the bottom of a picture whose pixels end early, of one colour
_AS_STORED = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What a file says about its pictures.

    Attributes:
        height: in pixels, of the upright picture (the largest, where there are several).
        width: in pixels, of the upright picture.
        orientation: EXIF's mark, 1 (as stored) to 8; 1 where the container turns the picture itself.
        pages: how many pictures it holds.

    """

    height: int
    width: int
    orientation: int = 1
    pages: int = 1

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) of the pixels as they are stored."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


@dataclass(frozen=True)
class Opened:
    """A file whose header is read.

    Attributes:
        kind: as `kind_of` names it.
        header: what it says.
        image: Pillow's, where Pillow opens this kind.

    """

    kind: str
    header: PictureHeader
    image: Image.Image | None = None


def open_header(file: BinaryIO, kind: str) -> Opened:
    """Read the header of a file of this kind (as `kind_of` names it)."""
    file.seek(0)
    if kind == "DICOM":
        from wardpose.shared.data.dicom import dicom_shape

        pages, height, width = dicom_shape(file)
        return Opened(kind, PictureHeader(height=height, width=width, pages=pages))
    if kind == "HEIC":
        from wardpose.shared.data.heic import heic_shape

        pages, height, width = heic_shape(file)
        return Opened(kind, PictureHeader(height=height, width=width, pages=pages))
    if kind == "TIFF":
        stored = tiff_pages(file)
        largest = max(stored, key=lambda page: page.height * page.width)
        return Opened(kind, _header((largest.width, largest.height), largest.orientation, len(stored)))
    image: Image.Image = _OPENERS[kind](file)
    pages = 1
    exif = image.info.get("exif")
    if kind == "GIF":
        file.seek(0)
        pages = gif_frames(file.read())
    elif kind == "JPEG" and "mp" in image.info:
        pages = len(_jpeg_views(file)[1])
    elif kind in ("PNG", "WebP", "AVIF"):
        pages = getattr(image, "n_frames", 1)
    if kind == "PNG":
        exif = _png_note(file, b"eXIf")
    return Opened(kind, _header(image.size, exif_orientation(exif) if isinstance(exif, bytes) else 1, pages), image)


def decode(content: bytes, opened: Opened) -> list[Frame]:
    """Decode every page of a file as (H, W, 3) uint8 RGB, upright. `opened` reads the same content."""
    if opened.kind == "DICOM":
        from wardpose.shared.data.dicom import dicom_pages

        return dicom_pages(content)
    if opened.kind == "HEIC":
        from wardpose.shared.data.heic import heic_pages

        return heic_pages(content)
    if opened.kind == "TIFF":
        return [_tiff_page(content, page) for page in tiff_pages(io.BytesIO(content))]
    return [
        frame if opened.header.orientation == 1 else pixels.turn(frame, opened.header.orientation)
        for frame in _stored_pages(content, opened)
    ]


def _stored_pages(content: bytes, opened: Opened) -> Iterator[Frame]:
    if opened.kind == "JPEG" and opened.header.pages > 1:
        views, places = _jpeg_views(io.BytesIO(content))
        for place in places:
            views.seek(place)
            yield pixels.frame_of(views)
        return
    image = opened.image
    assert image is not None  # noqa: S101 (all other kinds are Pillow's)
    if opened.kind == "JPEG":
        if image.mode == "RGB":  # the same library as Pillow's, and the same numbers, in less time
            only = _opencv(content, flags=cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        else:
            only = pixels.frame_of(image)
        if "progressive" in image.info or (only[-_FILLED_ROWS:] == only[-1, -1]).all():
            check_scan(content)
        yield only
        return
    bits, deep = _stored_depth(opened.kind, content)
    for page in range(opened.header.pages):
        if page:
            image.seek(page)
        frame = pixels.frame_of(image, bits)
        yield pixels.frame(_deep(content, frame), bits) if deep and opened.header.pages == 1 else frame


def exif_orientation(exif: bytes) -> int:
    """Orientation, 1 to 8, in a block of EXIF (TIFF 6.0, tag 274); 1 where it says none that has a meaning."""
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    order = {b"II": "<", b"MM": ">"}.get(exif[start : start + 2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", exif, start + 4)
        (count,) = struct.unpack_from(order + "H", exif, start + at)
        for row in range(start + at + 2, start + at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, row)
            if tag == _ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + ("I" if kind == _LONG else "H"), exif, row + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass  # viewers, too, show a picture with a damaged note as it is stored
    return 1


def _header(stored: tuple[int, int], orientation: int, pages: int) -> PictureHeader:
    width, height = stored if orientation < 5 else stored[::-1]
    return PictureHeader(height=height, width=width, orientation=orientation, pages=pages)


def _jpeg_views(file: BinaryIO) -> tuple[Image.Image, list[int]]:
    """Open a JPEG of several pictures (MPO) and list those that are views, not previews or gain maps."""
    file.seek(0)
    first: Image.Image = _OPENERS["JPEG"](file)
    try:
        file.seek(0)
        image = JpegImagePlugin.jpeg_factory(file)
        index = image.mpinfo if isinstance(image, MpoImagePlugin.MpoImageFile) else None
        kinds = [str(entry["Attribute"]["MPType"]) for entry in (index[_MP_ENTRIES] if index else [])]
        return image, [0, *(place for place, kind in enumerate(kinds) if place and _is_view(image, place, kind))]
    except Exception:  # a damaged index of further pictures does not touch the first
        return first, [0]


def _is_view(image: JpegImagePlugin.JpegImageFile, place: int, kind: str) -> bool:
    """Phones leave a gain map's kind undefined, as others do a view's: a view is as large as the first picture."""
    if kind.startswith("Multi-Frame"):
        return True
    if kind not in ("Undefined", "Unknown"):
        return False
    image.seek(0)
    size = image.size
    image.seek(place)
    own = image.applist[-20:]
    return image.size == size and not any(b"hdrgm" in note or b"hdrgainmap" in note for _, note in own)


def _png_note(file: BinaryIO, wanted: bytes) -> bytes | None:
    """Read the data of a PNG's first chunk of this name."""
    for name, start, size in png_chunks(file):
        if name == wanted:
            file.seek(start)
            return file.read(size)
    return None


def _stored_depth(kind: str, content: bytes) -> tuple[int | None, bool]:
    """Bits that the file says it uses of 16, and whether it has 16-bit colours, which Pillow would cut to 8 bits."""
    if kind == "PNG" and content[24] == 16:
        used = _png_note(io.BytesIO(content), b"sBIT")
        return (max(used[:3]) if used else None), content[25] != _PNG_GREY
    if kind == "JPEG 2000":
        at = content.find(b"\xff\x51")  # SIZ: 36 bytes of sizes, the number of components, the depth of the first
        return None, content[at + 38 : at + 41] in (b"\0\3\x0f", b"\0\4\x0f")
    return None, False


def _tiff_page(content: bytes, page: TiffPage) -> Frame:
    try:
        image: Image.Image | None = TiffImagePlugin.TiffImageFile(io.BytesIO(content))
    except SyntaxError:
        image = None  # of a kind that Pillow does not know (64-bit, floating colours)
    if image is None:
        frame = pixels.frame(_opencv(content, page.index), page.bits)
    else:
        image.seek(page.index)
        image.info.pop("xmp", None)  # Pillow would take an orientation from it
        frame = pixels.frame_of(image, page.bits)
        if page.bits > 8 and page.samples > 1 and image.mode in ("RGB", "RGBA"):
            frame = pixels.frame(_deep(content, frame, page.index), page.bits)
    return 255 - frame if page.white_is_zero and page.bits > 8 else frame  # up to 8 bits Pillow does it


def _deep(content: bytes, shallow: Frame, page: int = 0) -> NDArray[Any]:
    """Decode 16-bit colours, and see that they are those of the picture that Pillow cut to 8 bits."""
    deep = _opencv(content, page)
    colours = deep[..., :3] if deep.ndim == 3 else deep[..., None]
    if deep.dtype != np.uint16 or deep.shape[:2] != shallow.shape[:2]:
        raise DataError("its 16-bit colours are stored in a way that is not read here")
    if deep.ndim == 3 and deep.shape[2] == 4:
        return deep
    if np.abs((colours >> 8).astype(np.int16) - shallow).max() > 1:
        raise DataError("its 16-bit colours are stored in a way that is not read here")
    return deep


def _opencv(content: bytes, page: int = 0, flags: int = _AS_STORED) -> NDArray[Any]:
    """Decode a page by OpenCV: grey, RGB or RGB and alpha, of any depth; TIFF upright, others as stored."""
    buffer = np.frombuffer(content, np.uint8)
    values: NDArray[Any] | None
    if page:
        good, found = cv2.imdecodemulti(buffer, flags, range=(page, page + 1))
        values = found[0] if good and found else None
    else:
        values = cv2.imdecode(buffer, flags)
    if values is None:
        raise DataError("its pixels are stored in a way that is not read here")
    swapped = flags == _AS_STORED and values.ndim == 3
    return values[..., [2, 1, 0, 3][: values.shape[2]]] if swapped else values
