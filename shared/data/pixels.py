"""From stored numbers to 8-bit RGB: depth, transparency, colour and orientation, decided once for every format.

* **Depth.** n-bit numbers lose their lowest n - 8 bits: 16-bit ones are divided by 256; fewer than 8 bits span black
  to white. A file of 16-bit numbers may
  hold fewer (cameras store 10, 12 or 14 bits in 16). n is what the file says (PNG's sBIT, TIFF's BitsPerSample,
  DICOM's BitsStored) where the largest number fits into it and it is less than 16; else the smallest of 8, 10, 12, 14
  and 16 that holds the largest number below 65535 (with which depth cameras mark "no reading").
* **Numbers without a stated range** (signed, 32-bit, floating): a picture within 0 to 1 spans black to white, one of
  floating numbers within 0 to 255 is taken as it is, any other is stretched from its least to its greatest number.
  What is not finite is black.
* **Transparency** lies on black: what a file hides is not shown.
* **Colour** is taken as sRGB; embedded profiles (ICC) are ignored. CMYK, LAB and palettes are converted.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError

_DEPTHS = (8, 10, 12, 14, 16)


def eight_bit(values: NDArray[Any], bits: int | None = None) -> NDArray[np.uint8]:
    """Scale numbers of any type to 0..255.

    Args:
        values: any shape.
        bits: how many bits of an integer the file says it uses, where it does.

    """
    if values.dtype == np.uint8 and bits in (None, 8):
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    integer = np.issubdtype(values.dtype, np.integer)
    if integer and bits is not None and bits < 8 and values.size and values.min() >= 0 and values.max() < 1 << bits:
        return (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    if not values.size or (integer and int(values.min()) >= 0 and int(values.max()) <= 65535):
        return (values >> (depth(values, bits) - 8)).astype(np.uint8)
    return _stretched(values.astype(np.float64), integer)


def depth(values: NDArray[Any], bits: int | None) -> int:
    """How many bits (8 to 16) the numbers 0..65535 use, by the rule above."""
    largest = int(values.max(initial=0))
    if bits is not None and 8 <= bits < 16 and largest < 1 << bits:
        return bits
    readings = values[values < 65535] if largest == 65535 else values
    largest = int(readings.max(initial=0)) if readings.size else largest
    return next(n for n in _DEPTHS if largest < 1 << n)


def _stretched(values: NDArray[np.float64], integer: bool) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    if not integer and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif not integer and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values - low) / ((high - low) or 1.0) * 255
    return np.where(finite, np.clip(np.nan_to_num(scaled), 0, 255), 0).round().astype(np.uint8)


def frame(values: NDArray[Any], bits: int | None = None) -> Frame:
    """Make RGB (H, W, 3) of grey (H, W), grey and alpha, RGB or RGB and alpha (H, W, 1 to 4) numbers.

    Raises:
        DataError: another shape.

    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 2, 3, 4):
        raise DataError(f"pixels have shape {values.shape} (allowed: grey or RGB, with or without alpha)")
    channels = values.shape[2]
    colours = values if channels in (1, 3) else values[..., :-1]
    out = eight_bit(colours, bits)
    if channels in (2, 4):
        alpha = eight_bit(values[..., -1:], bits).astype(np.uint16)
        out = ((out * alpha + 127) // 255).astype(np.uint8)
    if out.shape[2] == 1:
        out = np.repeat(out, 3, axis=2)
    return np.require(out, requirements=["C", "W"])


def frame_of(image: Image.Image, bits: int | None = None) -> Frame:
    """Make RGB (H, W, 3) of an opened picture of up to 8 bits a colour, or of grey ones of any depth.

    Raises:
        DataError: its colours are of a kind that cannot be converted.

    """
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        hidden = image.info.get("transparency")
        return frame(np.where(values == hidden, 0, values) if isinstance(hidden, int) else values, bits)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return frame(np.asarray(image.convert("RGBA")))
    if image.mode == "LAB":
        return np.array(_lab_to_rgb(image))
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        raise DataError(f"colours of mode {image.mode} cannot be converted to RGB") from error


def turn(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels (H, W, ...) upright, by EXIF's orientation 1 to 8 (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise DataError("LAB colours cannot be converted to RGB")
    return converted
