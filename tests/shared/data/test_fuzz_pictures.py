"""Damaged pictures of every kind: an error of one line, or a picture; a cut file is always an error."""

import functools
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_heif import HeifImagePlugin  # noqa: F401 (registers the writer)
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from wardpose.shared.data import pictures
from wardpose.shared.data.pictures import picture_size, read_pages, read_picture
from wardpose.shared.errors import DataError

pytestmark = pytest.mark.timeout(120)

SIZE = (24, 20)
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def image(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def saved(kind: str, picture: Image.Image | None = None, *, pages: int = 1, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if pages > 1:
        options |= {"save_all": True, "append_images": [image(seed) for seed in range(1, pages)]}
    (picture or image()).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(*, compressed: bool = False) -> bytes:
    values = np.random.default_rng(0).integers(0, 4096, SIZE[::-1], dtype=np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID, data.PatientName = meta.MediaStorageSOPClassUID, "1.2.3", "X^Y"
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.WindowCenter, data.WindowWidth = 2000, 4000
    data.PixelData = values.tobytes()
    data["PixelData"].VR = "OW"
    if compressed:
        data.compress(RLELossless)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def bitmap_of_runs() -> bytes:
    rows = b"".join(bytes([SIZE[0], number % 2, 0, 0]) for number in range(SIZE[1]))
    head = struct.pack("<2sIHHI", b"BM", 62 + len(rows), 0, 0, 62)
    info = struct.pack("<IiiHHIIiiII", 40, *SIZE, 1, 8, 1, len(rows), 0, 0, 2, 0)
    return head + info + bytes([0, 0, 0, 0, 255, 255, 255, 0]) + rows


SEEDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved("JPEG", exif=exif()),
    "jpeg progressive": lambda: saved("JPEG", progressive=True),
    "jpeg cmyk": lambda: saved("JPEG", image().convert("CMYK")),
    "png": lambda: saved("PNG", exif=exif()),
    "png palette": lambda: saved("PNG", image().quantize(8), transparency=1),
    "png 16 bit": lambda: saved("PNG", Image.fromarray(np.asarray(image().convert("L")).astype(np.uint16) * 257)),
    "png pages": lambda: saved("PNG", pages=3),
    "tiff": lambda: saved("TIFF", exif=exif()),
    "tiff lzw": lambda: saved("TIFF", compression="tiff_lzw"),
    "tiff float": lambda: saved("TIFF", image().convert("F")),
    "tiff pages": lambda: saved("TIFF", pages=3, compression="tiff_adobe_deflate"),
    "webp": lambda: saved("WEBP", exif=exif()),
    "webp lossless": lambda: saved("WEBP", lossless=True),
    "webp pages": lambda: saved("WEBP", pages=3),
    "gif": lambda: saved("GIF"),
    "gif pages": lambda: saved("GIF", pages=3),
    "bmp": lambda: saved("BMP"),
    "bmp runs": bitmap_of_runs,
    "jpeg 2000": lambda: saved("JPEG2000"),
    "jpeg 2000 stream": lambda: saved("JPEG2000", no_jp2=True),
    "ppm": lambda: saved("PPM"),
    "avif": lambda: saved("AVIF"),
    "heic": lambda: saved("HEIF"),
    "heic pages": lambda: saved("HEIF", pages=3),
    "dicom": dicom,
    "dicom runs": lambda: dicom(compressed=True),
}


def exif() -> bytes:
    note = Image.Exif()
    note[0x0112] = 6
    note[0x010F] = "camera"
    return note.tobytes()


@functools.cache
def seed(kind: str) -> bytes:
    return SEEDS[kind]()


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged size may be huge; what is read at all stays small here."""
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1 << 20)
    monkeypatch.setattr(pictures, "_MAX_PIXELS_OF_PAGES", 1 << 22)


def attempt(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except DataError as error:
        return error


def check_line(found: Any, path: Path) -> None:
    if isinstance(found, DataError):
        assert str(path) in str(found)
        assert "\n" not in str(found)


def outcome(path: Path, content: bytes) -> list[np.ndarray] | str:
    """Read in every way; give the pages, or the error of one line that names the file."""
    path.write_bytes(content)
    for read in (picture_size, read_picture):
        check_line(attempt(read, path), path)
    pages = attempt(read_pages, path)
    if isinstance(pages, DataError):
        check_line(pages, path)
        return str(pages)
    for page in pages:
        assert (page.dtype, page.shape[2:], page.flags.writeable) == (np.uint8, (3,), True)
        assert min(page.shape[:2]) > 0
    return pages


@pytest.mark.parametrize("kind", SEEDS)
def test_a_whole_file_is_read(tmp_path: Path, kind: str) -> None:
    pages = outcome(tmp_path / "x", seed(kind))
    assert len(pages) == (3 if "pages" in kind else 1)


@pytest.mark.parametrize("kind", SEEDS)
def test_a_cut_file_is_an_error(tmp_path: Path, kind: str) -> None:
    content = seed(kind)
    whole = len(content)
    if kind == "tiff pages":
        whole = len(content.rstrip(b"\0")) + 1  # what its writer adds to the last number is no loss

    @SETTINGS
    @given(st.integers(0, whole - 1))
    def cut(length: int) -> None:
        assert isinstance(outcome(tmp_path / "x", content[:length]), str), f"{length} of {len(content)} bytes"

    cut()
    for length in (*range(100, 140), *range(whole - 12, whole)):  # headers end, and files do
        assert isinstance(outcome(tmp_path / "x", content[:length]), str), f"{length} of {len(content)} bytes"


@pytest.mark.parametrize("kind", SEEDS)
def test_flipped_bytes_are_an_error_or_a_picture(tmp_path: Path, kind: str) -> None:
    content = seed(kind)
    place = st.one_of(st.integers(0, min(200, len(content)) - 1), st.integers(0, len(content) - 1))

    @SETTINGS
    @given(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6))
    def flip(changes: list[tuple[int, int]]) -> None:
        changed = bytearray(content)
        for at, value in changes:
            changed[at] = value
        outcome(tmp_path / "x", bytes(changed))

    flip()


@SETTINGS
@given(st.sampled_from(sorted(SEEDS)), st.integers(2, 200), st.binary(max_size=300))
def test_a_head_and_anything_after_it(tmp_path: Path, kind: str, length: int, rest: bytes) -> None:
    outcome(tmp_path / "x", seed(kind)[:length] + rest)
