"""DICOM pictures: the right grey, every page, and nothing of the patient."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from wardpose.shared.data.pictures import is_picture, picture_size, read_pages, read_picture
from wardpose.shared.errors import DataError

HEIGHT, WIDTH = 24, 40
SECRET = "MUSTERMANN^ERIKA"


def write(
    path: Path, values: np.ndarray, *, frames: int = 1, syntax: Any = ExplicitVRLittleEndian, **tags: Any
) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.PatientName, data.PatientID, data.PatientBirthDate = SECRET, "P-4711", "19530712"
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colours = values.shape[-1] if values.ndim > 2 + (frames > 1) else 1
    shape = values.shape[1:] if frames > 1 else values.shape
    data.Rows, data.Columns = shape[0], shape[-1] if colours == 1 else shape[1]
    data.SamplesPerPixel = colours
    data.PhotometricInterpretation = "RGB" if colours == 3 else "MONOCHROME2"
    if colours == 3:
        data.PlanarConfiguration = 0
    if frames > 1:
        data.NumberOfFrames = frames
    bits = 8 * values.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    if "BitsStored" in tags:
        data.HighBit = tags["BitsStored"] - 1
    if syntax.is_compressed:
        data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)
    return path


def ramp(low: int, high: int, kind: Any = np.uint16) -> np.ndarray:
    return np.linspace(low, high, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(kind)


def ends(path: Path) -> tuple[int, int]:
    frame = read_picture(path)
    assert frame.shape == (*picture_size(path), 3) == (HEIGHT, WIDTH, 3)
    return int(frame[0, 0, 0]), int(frame[-1, -1, 0])


WHITE_IS_ZERO = {"PhotometricInterpretation": "MONOCHROME1"}
OF_ONE_BIT = {"BitsAllocated": 1, "BitsStored": 1, "Rows": HEIGHT, "Columns": WIDTH}


@pytest.mark.parametrize(
    ("values", "tags", "expected"),
    [
        (ramp(0, 4095), {"BitsStored": 12}, (0, 255)),
        (ramp(0, 1000), {"BitsStored": 12}, (0, 62)),  # dark, as it was stored
        (ramp(0, 4095), {}, (0, 255)),  # 12 bits in 16 without a word
        (ramp(0, 65535), {}, (0, 255)),
        (ramp(0, 255, np.uint8), {}, (0, 255)),
        (ramp(0, 4095), {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}, (255, 0)),
        (ramp(0, 4095), {"WindowCenter": 1000, "WindowWidth": 2001}, (0, 255)),
        (ramp(0, 4000), {"WindowCenter": [8000, 1], "WindowWidth": [16001, 1]}, (0, 64)),
        (ramp(0, 4000), {"WindowCenter": 0, "WindowWidth": 1000, "PhotometricInterpretation": "MONOCHROME1"}, (127, 0)),
        (ramp(0, 9), {"RescaleSlope": 100, "RescaleIntercept": -450, "WindowCenter": 0, "WindowWidth": 901}, (0, 255)),
        (ramp(-1000, 1000, np.int16), {"WindowCenter": 0, "WindowWidth": 2001}, (0, 255)),
        (ramp(-1000, 1000, np.int16), {}, (0, 255)),
        (ramp(0, 4095), {"BitsStored": 12, "WindowCenter": 60000, "WindowWidth": 10}, (0, 255)),  # shows nothing
        (ramp(0, 1000), {"WindowCenter": 500, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}, (0, 255)),
        (ramp(0, 1000), {"WindowCenter": 500, "WindowWidth": 500, "VOILUTFunction": "SIGMOID"}, (5, 250)),
        (ramp(0, 63, np.uint8), {"BitsStored": 6}, (0, 255)),
        (np.packbits(ramp(0, 1.9, np.uint8), bitorder="little"), OF_ONE_BIT, (0, 255)),
        (np.packbits(ramp(0, 1.9, np.uint8), bitorder="little"), {**OF_ONE_BIT, **WHITE_IS_ZERO}, (255, 0)),
    ],
)  # fmt: skip
def test_grey_goes_through_rescaling_window_and_inversion(
    tmp_path: Path, values: np.ndarray, tags: dict[str, Any], expected: tuple[int, int]
) -> None:
    found = ends(write(tmp_path / "x.dcm", values, **tags))
    assert found == pytest.approx(expected, abs=1)


def test_overlays_in_unused_bits_are_not_grey(tmp_path: Path) -> None:
    assert ends(write(tmp_path / "x.dcm", ramp(0, 4095) | 0x8000, BitsStored=12)) == (0, 255)


def test_a_lookup_table_goes_before_a_window(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.LUTData = np.arange(255, -1, -1, np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    path = write(tmp_path / "x.dcm", ramp(0, 255, np.uint8), VOILUTSequence=[table])
    assert ends(path) == (255, 0)


def test_colours_and_compressed_pixels(tmp_path: Path) -> None:
    scene = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    scene[:, : WIDTH // 2] = (220, 30, 30)
    scene[:, WIDTH // 2 :] = (30, 30, 220)
    assert np.array_equal(read_picture(write(tmp_path / "rgb.dcm", scene)), scene)
    for name, syntax, options, kind in (
        ("jpeg", JPEGBaseline8Bit, {"format": "JPEG", "quality": 95}, "YBR_FULL_422"),
        ("j2k", JPEG2000Lossless, {"format": "JPEG2000", "no_jp2": True}, "RGB"),
    ):
        buffer = io.BytesIO()
        Image.fromarray(scene).save(buffer, **options)
        path = write(
            tmp_path / f"{name}.dcm", scene, syntax=syntax, PixelData=encapsulate([buffer.getvalue()]),
            PhotometricInterpretation=kind,
        )  # fmt: skip
        frame = read_picture(path)
        assert np.abs(frame[:, 2:10].astype(int) - (220, 30, 30)).max() < 25, name
        assert np.abs(frame[:, -10:-2].astype(int) - (30, 30, 220)).max() < 25, name
    data = pydicom.dcmread(write(tmp_path / "rle.dcm", scene))
    data.compress(RLELossless)
    data.save_as(tmp_path / "rle.dcm")
    assert np.array_equal(read_picture(tmp_path / "rle.dcm"), scene)


def test_a_palette_becomes_colours(tmp_path: Path) -> None:
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, first in (("Red", 250), ("Green", 10), ("Blue", 10)):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = np.array([first * 257, 0], np.uint16).tobytes()
    path = write(tmp_path / "x.dcm", np.eye(HEIGHT, WIDTH, dtype=np.uint8), **tags)
    frame = read_picture(path)
    assert frame[0, 1].tolist() == [250, 10, 10]
    assert frame[0, 0].tolist() == [0, 0, 0]


def test_a_cine_has_pages(tmp_path: Path) -> None:
    pages = np.stack([np.full((HEIGHT, WIDTH), 60 * number, np.uint8) for number in range(4)])
    path = write(tmp_path / "x.dcm", pages, frames=4)
    for read in (read_picture, picture_size):
        with pytest.raises(DataError, match=r"x\.dcm: .*it has 4 pages"):
            read(path)
    assert [int(page[0, 0, 0]) for page in read_pages(path)] == [0, 60, 120, 180]


def test_a_file_without_pixels_or_of_an_unknown_compression_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.dcm", ramp(0, 255, np.uint8))
    data = pydicom.dcmread(path)
    del data.PixelData
    data.save_as(tmp_path / "report.dcm")
    with pytest.raises(DataError, match="holds no pixels"):
        read_picture(tmp_path / "report.dcm")
    stored = encapsulate([b"\xff\xd8\xff\xf7" + bytes(200)])
    path = write(tmp_path / "ls.dcm", ramp(0, 255, np.uint8), syntax=JPEGLSLossless, PixelData=stored)
    with pytest.raises(DataError, match=r"JPEG-LS.*cannot be decoded here"):
        read_picture(path)


def test_it_is_told_by_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "IM000001", ramp(0, 255, np.uint8))
    assert is_picture(path)
    assert ends(path) == (0, 255)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_a_cut_file_is_an_error_that_names_no_patient(
    tmp_path: Path,
    share: float,
    syntax: Any,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    path = write(tmp_path / "x.dcm", values)
    if syntax is RLELossless:
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    elif syntax is JPEG2000Lossless:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, format="JPEG2000", no_jp2=True)
        path = write(path, values, syntax=syntax, PixelData=encapsulate([buffer.getvalue()]))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
        read_picture(path)
    said = str(caught.value) + caplog.text + "".join(capfd.readouterr()) + "".join(str(w.message) for w in recwarn.list)
    assert "MUSTERMANN" not in said
    assert "4711" not in said
    assert "\n" not in str(caught.value)


def test_nothing_of_the_patient_is_read_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    dcmread = pydicom.dcmread
    monkeypatch.setattr(
        pydicom, "dcmread", lambda *given, **options: read.append(dcmread(*given, **options)) or read[-1]
    )
    path = write(tmp_path / "x.dcm", ramp(0, 255, np.uint8))
    read_picture(path)
    picture_size(path)
    assert len(read) == 3
    for data in read:
        assert "Rows" in data
        assert not [element for element in data if element.tag.group in (0x0008, 0x0010)]


def test_a_damaged_patient_field_is_not_quoted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    path = write(tmp_path / "x.dcm", ramp(0, 255, np.uint8))
    content = path.read_bytes().replace(b"19530712", b"12.07.53")
    content = content.replace(SECRET.encode(), b"MUSTERMANN\xff\xfe\\\\\x80^")
    path.write_bytes(content)
    assert ends(path) == (0, 255)
    said = "".join(capfd.readouterr()) + "".join(str(w.message) for w in recwarn.list)
    assert "12.07.53" not in said
    assert "MUSTERMANN" not in said
