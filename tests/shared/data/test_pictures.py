"""One rule for pixels: upright, 8-bit RGB, whole, one page."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from wardpose.shared.data.pictures import (
    PICTURE_ENDINGS,
    is_picture,
    picture_header,
    picture_size,
    read_pages,
    read_picture,
    why_not,
)
from wardpose.shared.errors import DataError

HEIGHT, WIDTH = 48, 64


def scene() -> np.ndarray:
    """Red above left, green above right, blue below left, white below right: each turn and mirror is another one."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[: HEIGHT // 2, : WIDTH // 2] = (240, 20, 20)
    frame[: HEIGHT // 2, WIDTH // 2 :] = (20, 240, 20)
    frame[HEIGHT // 2 :, : WIDTH // 2] = (20, 20, 240)
    frame[HEIGHT // 2 :, WIDTH // 2 :] = (240, 240, 240)
    return frame


def corners(frame: np.ndarray) -> str:
    """Name the colours of the four corners, row by row."""
    height, width = frame.shape[:2]
    found = ""
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            red, green, blue = (int(value) > 128 for value in frame[y, x])
            found += {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}.get((red, green, blue), "?")
    return found


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    if path.suffix in (".heic", ".heif"):
        from pillow_heif import HeifImagePlugin  # noqa: F401 (registers the writer)
    image.save(path, **options)
    return path


def marked(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


UPRIGHT = {1: "rgbw", 2: "grwb", 3: "wbgr", 4: "bwrg", 5: "rbgw", 6: "brwg", 7: "wgbr", 8: "gwrb"}
TURNING = [".jpg", ".png", ".tif", ".webp", ".avif", ".heic"]


@pytest.mark.parametrize("ending", TURNING)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_picture_is_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    path = save(tmp_path / f"x{ending}", Image.fromarray(scene()), exif=marked(orientation), quality=95)
    frame = read_picture(path)
    assert corners(frame) == UPRIGHT[orientation]
    assert frame.shape[:2] == picture_size(path) == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    assert (frame.dtype, frame.flags.c_contiguous, frame.flags.writeable) == (np.uint8, True, True)
    if ending != ".heic":  # the container turns the picture itself
        assert picture_header(path).orientation == orientation
        assert picture_header(path).stored == (HEIGHT, WIDTH)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_deep_tiff_is_turned_once(tmp_path: Path, bits: int, orientation: int) -> None:
    values = scene() if bits == 8 else scene().astype(np.uint16) * 257
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(values, orientation=orientation))
    assert corners(read_picture(path)) == UPRIGHT[orientation]
    path.write_bytes(tiff(values[..., 0], orientation=orientation))
    turned = corners(read_picture(path)).replace("?", "0")
    assert turned == UPRIGHT[orientation].replace("r", "w").replace("g", "0").replace("b", "0")


@pytest.mark.parametrize(
    "note", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*" + bytes(9), b"xx"]
)
def test_a_damaged_note_leaves_the_picture_as_stored(tmp_path: Path, note: bytes) -> None:
    path = save(tmp_path / "x.jpg", Image.fromarray(scene()), exif=note)
    assert corners(read_picture(path)) == "rgbw"
    assert picture_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_without_a_meaning_is_none(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "x.jpg", Image.fromarray(scene()), exif=marked(value))
    assert corners(read_picture(path)) == "rgbw"
    assert picture_header(path).orientation == 1


def test_an_orientation_that_only_xmp_knows_is_ignored(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    for name in ("x.jpg", "x.webp", "x.tif"):
        options = {"tiffinfo": {700: xmp}} if name == "x.tif" else {"xmp": xmp}
        path = save(tmp_path / name, Image.fromarray(scene()), **options)
        assert b"tiff:Orientation" in path.read_bytes()
        assert corners(read_picture(path)) == "rgbw"
        assert picture_size(path) == (HEIGHT, WIDTH)


# Depth


def tiff(values: np.ndarray, *, orientation: int = 1, order: str = "<", **tags: int) -> bytes:
    """An uncompressed TIFF of one strip, of any type of number."""
    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    bits = tags.pop("bits", 8 * values.dtype.itemsize)
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    formats = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    photometric = tags.pop("photometric", 2 if samples >= 3 else 1)
    entries = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [1]), 262: (3, [photometric]),
        273: (4, [8]), 274: (3, [orientation]), 277: (3, [samples]), 278: (4, [height]), 279: (4, [len(data)]),
        339: (3, [formats] * samples), **({338: (3, [2])} if samples in (2, 4) else {}),
    }  # fmt: skip
    extra, rows, after = b"", b"", 8 + len(data) + len(data) % 2
    base = after + 2 + 12 * len(entries) + 4
    for tag in sorted(entries):
        kind, numbers = entries[tag]
        value = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(value) > 4:
            extra += value
            value = struct.pack(order + "I", base + len(extra) - len(value))
        rows += struct.pack(order + "HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", after)
    directory = struct.pack(order + "H", len(entries)) + rows + bytes(4)
    return head + data + bytes(len(data) % 2) + directory + extra


def png(values: np.ndarray, *, notes: dict[bytes, bytes] | None = None) -> bytes:
    """A 16-bit PNG of grey, grey and alpha, RGB or RGB and alpha."""
    height, width = values.shape[:2]
    samples = 1 if values.ndim == 2 else values.shape[2]
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[samples], 0, 0, 0)
    chunks = {b"IHDR": header, **(notes or {}), b"IDAT": zlib.compress(raw), b"IEND": b""}
    out = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out


def ramp(largest: int) -> np.ndarray:
    return np.linspace(0, largest, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(
    ("largest", "divisor"), [(65535, 256), (30000, 256), (16383, 64), (4095, 16), (900, 4), (255, 1)]
)
def test_sixteen_bit_grey_is_scaled_by_the_bits_it_uses(
    tmp_path: Path, kind: str, order: str, largest: int, divisor: int
) -> None:
    values = ramp(largest)
    path = tmp_path / f"x.{kind}"
    path.write_bytes(png(values) if kind == "png" else tiff(values, order=order))
    frame = read_picture(path)
    np.testing.assert_array_equal(frame, np.repeat((values // divisor)[..., None], 3, axis=2))
    assert 60 < frame.max() <= 255


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(("largest", "divisor"), [(65535, 256), (4095, 16)])
def test_sixteen_bit_colours_are_scaled_alike(
    tmp_path: Path, kind: str, channels: int, largest: int, divisor: int
) -> None:
    values = np.dstack([ramp(largest), ramp(largest)[::-1], ramp(largest) // 2])
    if channels == 4:
        values = np.dstack([values, np.full((HEIGHT, WIDTH), 65535, np.uint16)])
    path = tmp_path / f"x.{kind}"
    path.write_bytes(png(values) if kind == "png" else tiff(values))
    assert np.abs(read_picture(path).astype(int) - values[..., :3] // divisor).max() <= 1


def test_what_the_file_says_about_its_bits_counts_where_it_can_be_true(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(ramp(700), notes={b"sBIT": b"\x0c"}))
    assert read_picture(path).max() == 700 // 16  # 12 bits, although 10 would hold it
    path.write_bytes(png(ramp(65535), notes={b"sBIT": b"\x0c"}))
    np.testing.assert_array_equal(read_picture(path)[..., 0], ramp(65535) // 256)  # scaled up when written, as PNG asks


def test_a_mark_for_no_reading_does_not_darken_a_depth_picture(tmp_path: Path) -> None:
    values = ramp(4000)
    values[:5] = 65535
    path = tmp_path / "x.png"
    path.write_bytes(png(values))
    frame = read_picture(path)
    assert frame[-1, -1, 0] == 4000 // 16
    assert (frame[:5] == 255).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_white_may_be_zero_in_deep_tiff(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(ramp(65535), order=order, photometric=0))
    frame = read_picture(path)
    assert (frame[0, 0, 0], frame[-1, -1, 0]) == (255, 0)


@pytest.mark.parametrize(
    ("values", "first", "last"),
    [
        (np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32), 0, 255),
        (np.linspace(0.25, 0.5, HEIGHT * WIDTH, dtype=np.float32), 64, 128),
        (np.linspace(10, 200, HEIGHT * WIDTH, dtype=np.float32), 10, 200),
        (np.linspace(20.5, 39.5, HEIGHT * WIDTH, dtype=np.float64) * 100, 0, 255),
        (np.linspace(-300, 900, HEIGHT * WIDTH).astype(np.int16), 0, 255),
        (np.linspace(0, 4000, HEIGHT * WIDTH).astype(np.int32), 0, 250),
        (np.linspace(0, 5e8, HEIGHT * WIDTH).astype(np.int32), 0, 255),
    ],
)
def test_numbers_without_a_stated_range(tmp_path: Path, values: np.ndarray, first: int, last: int) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(values.reshape(HEIGHT, WIDTH)))
    frame = read_picture(path)
    assert (frame[0, 0, 0], frame[-1, -1, 0]) == (first, last)


def test_floating_colours_and_what_is_no_number(tmp_path: Path) -> None:
    values = np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)
    values[0, 0] = np.nan
    values[0, 1] = (1, 0, 0)
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(values))
    frame = read_picture(path)
    assert frame[0, :3].tolist() == [[0, 0, 0], [255, 0, 0], [128, 128, 128]]


def test_deep_jpeg_2000(tmp_path: Path) -> None:
    values = np.kron(scene().astype(np.uint16), np.ones((4, 4, 1), np.uint16)) * 16  # 12 bits in 16
    path = tmp_path / "x.jp2"
    cv2.imwrite(str(path), values[..., ::-1])
    frame = read_picture(path)
    assert corners(frame) == "rgbw"
    assert frame.max() > 200


# Colour


def test_every_way_to_store_colours_gives_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(scene())
    lab = ImageCms.applyTransform(
        image, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )
    stored = {
        "cmyk.tif": image.convert("CMYK"),
        "cmyk.jpg": image.convert("CMYK"),
        "lab.tif": lab,
        "palette.png": image.convert("P", palette=Image.Palette.ADAPTIVE),
        "palette.gif": image,
        "plain.bmp": image,
        "plain.jp2": image,
        "plain.ppm": image,
        "plain.webp": image,
        "plain.jfif": image,
        "alpha.png": image.convert("RGBA"),
        "alpha.webp": image.convert("RGBA"),
    }
    for name, picture in stored.items():
        path = save(tmp_path / name, picture, **({"format": "JPEG"} if name.endswith("jfif") else {}))
        frame = read_picture(path)
        assert corners(frame) == "rgbw", name
        assert np.abs(frame.astype(int) - scene())[5:15, 5:15].max() < 60, name


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_is_grey(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "x.png", Image.new("L", (9, 7), 255).convert(mode))
    assert (read_picture(path) == 255).all()


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (200, 100, 50, 0))
    image.putpixel((0, 0), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 128))
    frame = read_picture(save(tmp_path / "x.png", image))
    assert frame[0, 0].tolist() == [200, 100, 50]
    assert frame[0, 1].tolist() == [100, 50, 25]
    assert frame[0, 2].tolist() == [0, 0, 0]
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, 250, 250, 250])
    assert read_picture(save(tmp_path / "p.png", palette, transparency=1)).max() == 0
    deep = np.dstack([ramp(65535), np.zeros((HEIGHT, WIDTH), np.uint16)])
    (tmp_path / "deep.png").write_bytes(png(deep))
    assert read_picture(tmp_path / "deep.png").max() == 0


def test_a_profile_changes_no_number(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    path = save(tmp_path / "x.png", Image.fromarray(scene()), icc_profile=profile)
    np.testing.assert_array_equal(read_picture(path), scene())


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"keep_rgb": True}, {"restart_marker_rows": 1}],
)
def test_every_jpeg_is_what_pillow_makes_of_it(tmp_path: Path, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    path = save(tmp_path / "x.jpg", Image.fromarray(noise), quality=85, **options)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_picture(path), np.asarray(image))


# Pages


def paged(path: Path, count: int = 4) -> Path:
    pages = [Image.new("RGB", (20, 10), (60 * number, 0, 0)) for number in range(count)]
    return save(
        path, pages[0], save_all=True, append_images=pages[1:], **({"lossless": True} if path.suffix == ".webp" else {})
    )


@pytest.mark.parametrize("name", ["x.tif", "x.webp", "x.png", "x.gif", "x.heic", "x.avif"])
def test_several_pages_are_refused_by_number_or_read_one_by_one(tmp_path: Path, name: str) -> None:
    path = paged(tmp_path / name)
    for read in (read_picture, picture_size):
        with pytest.raises(DataError, match=rf"{name}: .*it has 4 pages"):
            read(path)
    assert [round(int(page[5, 5, 0]) / 60) for page in read_pages(path)] == [0, 1, 2, 3]
    single = save(tmp_path / f"one_{name}", Image.new("RGB", (20, 10)))
    assert len(read_pages(single)) == 1


def test_a_phone_s_previews_are_no_pages_but_a_second_lens_is(tmp_path: Path) -> None:
    def write(second: Image.Image, kind: int) -> Path:
        path = save(tmp_path / "x.mpo", Image.fromarray(scene()), save_all=True, append_images=[second])
        content = path.read_bytes()
        entry = re.search(rb"\x00\x00\x03\x00.{4}\x00{8}", content, re.DOTALL)  # of the first picture
        at = entry.end() if entry else -1
        path.write_bytes(content[:at] + struct.pack("<I", kind) + content[at + 4 :])
        return path

    view, small = Image.fromarray(scene()[::-1]), Image.new("RGB", (WIDTH // 2, HEIGHT // 2))
    for second, kind in ((small, 0), (small, 0x010001), (view, 0x010001)):  # a gain map, previews
        path = write(second, kind)
        assert corners(read_picture(path)) == "rgbw"
        assert len(read_pages(path)) == 1
    for kind in (0, 0x020002):
        path = write(view, kind)
        with pytest.raises(DataError, match=r"x\.mpo: .*it has 2 pages"):
            read_picture(path)
        assert [corners(page) for page in read_pages(path)] == ["rgbw", "bwrg"]


def test_a_reduced_copy_in_a_tiff_is_no_page(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    small = Image.fromarray(scene()).resize((16, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(scene()).save(path, save_all=True, append_images=[small])
    assert picture_size(path) == (HEIGHT, WIDTH)
    assert corners(read_picture(path)) == "rgbw"


# What is no picture, or no whole one


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.mov", b"\0\0\0\x14ftypqt  ", "a video"),
        ("IMG.NEF", b"II*\0", "a camera's raw file"),
        ("x.pdf", b"%PDF", "a drawing or document"),
        ("x.txt", b"hello", "no kind of picture"),
        ("empty", b"", "an empty file"),
        ("._bed.jpg", b"\0\5\x16\7", "a companion file of macOS"),
    ],
)
def test_why_a_file_is_no_picture(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert reason in why_not(path)
    assert not is_picture(path)


def test_pictures_are_told_by_ending_or_by_content(tmp_path: Path) -> None:
    save(tmp_path / "0001", Image.fromarray(scene()), format="PNG")
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    assert is_picture(tmp_path / "0001")
    assert is_picture(tmp_path / "page.jpg")  # so that it is named, and not left out
    with pytest.raises(DataError, match=r"page\.jpg: image is broken: it is of no kind"):
        read_picture(tmp_path / "page.jpg")
    assert not is_picture(tmp_path)
    assert why_not(tmp_path / "nothing.png") == "missing"
    assert {".jpg", ".heic", ".dcm", ".jfif"} <= PICTURE_ENDINGS
    assert not any(ending.isupper() for ending in PICTURE_ENDINGS)


def test_without_the_libraries_a_file_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "IMG_1.HEIC".lower(), Image.fromarray(scene()))
    monkeypatch.setattr("wardpose.shared.data.picture_kinds.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("wardpose.shared.data.picture_kinds.PICTURE_ENDINGS", frozenset({".jpg"}))
    assert "pip install 'wardpose[heic]'" in why_not(path)
    for read in (read_picture, picture_size):
        with pytest.raises(DataError, match=r"img_1\.heic: .*pip install"):
            read(path)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png: image is missing"):
        read_picture(tmp_path / "x.png")
    (tmp_path / "x.png").touch()
    with pytest.raises(DataError, match=r"x\.png: image is broken: the file is empty"):
        picture_size(tmp_path / "x.png")


def test_a_decompression_bomb_is_one_line(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    data = struct.pack(">I", 4) + b"IDAT" + bytes(4) + struct.pack(">I", zlib.crc32(b"IDAT" + bytes(4)))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + data + end)
    (tmp_path / "bomb.ppm").write_bytes(b"P6 12000 12000 255\n")
    for read in (read_picture, picture_size, read_pages):
        with pytest.raises(DataError, match=r"bomb\.png: .*60000 x 60000 pixels are too few or too many") as caught:
            read(tmp_path / "bomb.png")
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"bomb\.ppm: image is broken"):
        read_picture(tmp_path / "bomb.ppm")
    assert not recwarn.list


@pytest.mark.parametrize("ending", [".jpg", ".png", ".gif", ".webp", ".tif", ".heic", ".avif", ".jp2"])
def test_room_that_was_kept_but_not_filled_is_no_grey_half(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    options = {"compression": "tiff_lzw"} if ending == ".tif" else {}
    path = save(tmp_path / f"x{ending}", Image.fromarray(noise), **options)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    with pytest.raises(DataError, match=rf"x\{ending}: image is broken"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_a_cut_jpeg_that_was_given_an_end_mark_is_no_grey_half(
    tmp_path: Path, mode: str, options: dict[str, Any]
) -> None:
    large = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    path = tmp_path / "x.jpg"
    Image.fromarray(large).resize((160, 120)).convert(mode).save(path, quality=90, **options)
    content = path.read_bytes()
    read_picture(path)
    for part in (0.5, 0.8):
        path.write_bytes(content[: int(len(content) * part)] + b"\xff\xd9")
        with pytest.raises(DataError, match=r"x\.jpg: image is broken: .*(JPEG's pixels end|truncated)"):
            read_picture(path)
    below = Image.fromarray(np.vstack([large.repeat(8, 0).repeat(8, 1), np.zeros((40, 128, 3), np.uint8)]))
    below.convert(mode).save(path, quality=90, **options)
    assert read_picture(path)[-9:].max() < 12  # a picture may end in one colour


def test_a_cut_run_length_bitmap_is_no_black_half(tmp_path: Path) -> None:
    pixels = b"".join(b"\x40\x01\0\0" for _ in range(HEIGHT))
    head = struct.pack("<2sIHHI", b"BM", 54 + 8 + len(pixels), 0, 0, 62)
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(pixels), 0, 0, 2, 0)
    content = head + info + bytes([0, 0, 0, 0, 255, 255, 255, 0]) + pixels
    path = tmp_path / "x.bmp"
    path.write_bytes(content)
    assert (read_picture(path) == 255).all()
    path.write_bytes(content[:-60])
    with pytest.raises(DataError, match="the file is cut"):
        read_picture(path)


def test_a_changed_pixel_of_a_png_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.fromarray(scene()), compress_level=0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"the checksum of PNG's chunk IDAT is wrong"):
        read_picture(path)


@pytest.mark.parametrize("values", [scene(), scene().astype(np.float32)])
def test_pixels_beyond_the_end_of_a_tiff_are_missed(tmp_path: Path, values: np.ndarray) -> None:
    content = bytearray(tiff(values))
    at = content.rindex(struct.pack("<HHI", 279, 4, 1)) + 8
    content[at : at + 4] = struct.pack("<I", 10**6)
    (tmp_path / "x.tif").write_bytes(content)
    for read in (read_picture, picture_size):
        with pytest.raises(DataError, match="the file is cut: a TIFF page's pixels lie beyond its end"):
            read(tmp_path / "x.tif")


def test_bytes_after_the_end_do_no_harm(tmp_path: Path) -> None:
    for ending in (".jpg", ".png", ".gif", ".bmp", ".webp", ".tif"):
        path = save(tmp_path / f"x{ending}", Image.fromarray(scene()))
        path.write_bytes(path.read_bytes() + b"motion photo" * 50)
        assert corners(read_picture(path)) == "rgbw", ending


@pytest.mark.realdata
def test_real_pictures_are_what_pillow_and_opencv_make_of_them(data_root: Path) -> None:
    paths = sorted((data_root / "lspet" / "images" / "val").glob("*.jpg"))[::10]
    paths += sorted((data_root / "coco_sample" / "images").glob("*.jpg"))[::4]
    for path in paths:
        frame = read_picture(path)
        with Image.open(path) as image:
            np.testing.assert_array_equal(frame, np.asarray(image.convert("RGB")))
        assert frame.shape[:2] == picture_size(path)
        bgr = cv2.imdecode(np.frombuffer(io.BytesIO(path.read_bytes()).getvalue(), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(frame, bgr[..., ::-1])
