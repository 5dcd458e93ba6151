"""Pictures in DICOM files, through pydicom (the extra `dicom`). Of a header only what describes its pixels is read.

Grey values go through the rescaling (Modality LUT), then the file's first window or VOI LUT (DICOM PS3.3 C.11), or,
where it states none or one that shows nothing, over the range of BitsStored as `pixels` says; MONOCHROME1 (white is
least) is inverted. Colours (RGB, YBR, palettes) become RGB.
"""

import functools
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from wardpose.shared.data import pixels
from wardpose.shared.data.records import Frame
from wardpose.shared.data.whole_files import CutFileError
from wardpose.shared.errors import DataError

# What pydicom says about a damaged file quotes its header, names and dates of birth included: neither its warnings nor
# the texts of its errors may reach a screen or log.
warnings.filterwarnings("ignore", module=r"pydicom\b")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_T = TypeVar("_T")
_SHAPE = ["Rows", "Columns", "NumberOfFrames"]
_PIXELS = [
    *_SHAPE, "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip


def _in_our_words(read: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Keep the text of pydicom's errors to ourselves."""

    @functools.wraps(read)
    def read_quietly(source: Any) -> _T:
        try:
            return read(source)
        except DataError:
            raise
        except Exception as error:  # pydicom raises whatever it likes
            raise DataError(f"DICOM is cut or damaged ({type(error).__name__})") from None

    return read_quietly


@_in_our_words
def dicom_shape(file: BinaryIO) -> tuple[int, int, int]:
    """Pages, height and width that a header states."""
    return _shape(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_SHAPE)))


@_in_our_words
def dicom_pages(content: bytes) -> list[Frame]:
    """Decode every page.

    Raises:
        DataError: there are no pixels, they are cut, or their compression cannot be undone here.

    """
    data = pydicom.dcmread(io.BytesIO(content), specific_tags=list(_PIXELS))
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DataError("DICOM holds no pixels (a report or a plan, perhaps)")
    _check_end(content, data)
    count, height, width = _shape(data)
    syntax = data.file_meta.TransferSyntaxUID
    try:
        stored = data.pixel_array
    except (NotImplementedError, RuntimeError):
        if "PixelData" in data and syntax.is_compressed:
            raise DataError(f"DICOM's pixels are stored as {syntax.name}, which cannot be decoded here") from None
        raise
    colours = int(data.get("SamplesPerPixel", 1))
    wanted = (count, height, width) if colours == 1 else (count, height, width, colours)
    return [_page(page, data) for page in stored.reshape(wanted)]


def _check_end(content: bytes, data: Any) -> None:
    """See that a sequence of compressed pixels ends with its delimiter (PS3.5 A.4), which pydicom does without."""
    if "PixelData" in data and data["PixelData"].is_undefined_length:
        start = content.rfind(b"\xe0\x7f\x10\x00O")
        if content.rfind(b"\xfe\xff\xdd\xe0\0\0\0\0") < start:
            raise CutFileError("DICOM's pixels do not end")


def _shape(data: Any) -> tuple[int, int, int]:
    count = int(data.get("NumberOfFrames") or 1)
    if "Rows" not in data or "Columns" not in data:
        raise DataError("DICOM holds no picture (Rows and Columns are missing)")
    return count, int(data.Rows), int(data.Columns)


def _page(stored: NDArray[Any], data: Any) -> Frame:
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
    if kind == "PALETTE COLOR":
        return pixels.frame(apply_color_lut(stored, data)[..., :3])
    if stored.ndim == 3:
        return pixels.frame(stored, int(data.get("BitsStored", 8)))
    grey = _grey(stored, data)
    return pixels.frame(255 - grey if kind == "MONOCHROME1" else grey)


def _grey(stored: NDArray[Any], data: Any) -> NDArray[np.uint8]:
    bits = int(data.get("BitsStored", 8 * stored.dtype.itemsize))
    values = np.asarray(apply_modality_lut(stored, data))
    seen: NDArray[np.uint8] | None = None
    if data.get("VOILUTSequence"):
        table = np.asarray(apply_voi(values, data))
        seen = pixels.eight_bit(table, int(data.VOILUTSequence[0].LUTDescriptor[2]))
    elif data.get("WindowWidth") is not None and data.get("WindowCenter") is not None:
        seen = _windowed(values.astype(np.float64), data)
    if seen is not None and (seen.min() < seen.max() or values.min() == values.max()):
        return seen
    if np.issubdtype(values.dtype, np.floating) and values.min() >= 0 and (values == values.round()).all():
        values = values.astype(np.int64)  # a rescaling by whole numbers
    return pixels.eight_bit(values, bits)


def _windowed(values: NDArray[np.float64], data: Any) -> NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, to 0..255."""
    centre, width = _first(data.WindowCenter), max(_first(data.WindowWidth), 1e-6)
    function = str(data.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    else:
        share = (values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5
    return (np.clip(np.nan_to_num(share), 0, 1) * 255).round().astype(np.uint8)


def _first(value: Any) -> float:
    return float(value[0] if isinstance(value, MultiValue | list | tuple) else value)
