"""A disk that is full: one line that says how much is missing, nothing half-written, and the same command goes on."""

import re

import numpy as np
import pytest
from PIL import Image
from support.films import film

from wardpose.client.anonymize.apply import Job, run
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.video import Video
from wardpose.shared.errors import DataError

COUNT = 40
ONE_LINE = (
    r"^{path}.*: cannot be read or written \(.*\): (\d+) bytes are needed, (\d+) are free; .*run the same command again"
)


def noise(number):
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def negative(frame, name):
    return 255 - frame


def job(source, destination, **more):
    return Job(source=source, destination=destination, change=negative, identity="negative", **more)


@pytest.fixture
def noisy(tmp_path):
    """A film of which nothing can be made smaller: 9 kB a frame."""
    return film(tmp_path / "noise.mkv", "ffv1", count=COUNT, pixels="bgr0", height=48, width=64, picture=noise)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(noise(number)).save(folder / f"{number:02d}.png")
    return folder


def refused(action, path):
    with pytest.raises(DataError) as caught:
        run(action)
    (needed, free) = re.match(ONE_LINE.format(path=re.escape(str(path))), str(caught.value)).groups()
    assert "\n" not in str(caught.value)
    return int(needed), int(free)


def whole_only(folder):
    """See that whatever lies under a name is whole, and nothing has a name that only work in progress has."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.name == ".wardpose-manifest.jsonl":
            continue
        assert path.suffix in (".png", ".segment", ".npz", ".mkv"), path
        if path.suffix == ".png":
            assert read_picture(path).shape == (48, 64, 3)
        if path.suffix == ".segment":
            assert path.stat().st_size > 9000


def test_a_folder_onto_a_small_disk(small_disk, pictures):
    out = small_disk.folder / "out"
    needed, free = refused(job(pictures, out), out)
    assert 9000 < needed < 11_000
    assert free < needed
    whole_only(small_disk.folder)
    done = len(list(out.glob("*.png")))
    assert 4 <= done <= 6
    small_disk.resize("1m")
    outcome = run(job(pictures, out))
    assert (outcome.resumed, outcome.frames) == (done, 12 - done)
    for number in range(12):
        np.testing.assert_array_equal(read_picture(out / f"{number:02d}.png"), 255 - noise(number))


@pytest.mark.parametrize(
    ("size", "done"), [("32k", 0), ("200k", 0), ("352k", 0), ("440k", 32), ("560k", COUNT), ("960k", COUNT)]
)
def test_a_film_onto_a_small_disk(small_disk, noisy, size, done):
    """The first segment has 393 kB, the second 98, the film 491: each of the three in turn does not fit."""
    small_disk.resize(size)
    out = small_disk.folder / "out.mkv"
    needed, free = refused(job(noisy, out), small_disk.folder)
    assert needed in range(390_000, 396_000) if done == 0 else True
    assert needed > free or done == COUNT
    assert not out.exists()
    whole_only(small_disk.folder)
    small_disk.resize("4m")
    outcome = run(job(noisy, out))
    assert (outcome.resumed, outcome.frames) == (done, COUNT - done)
    video = Video(out)
    for number in (0, 31, 32, COUNT - 1):
        np.testing.assert_array_equal(video.frame(number), 255 - noise(number))
    assert [path.name for path in small_disk.folder.iterdir()] == ["out.mkv"]


def test_a_film_in_a_folder_onto_a_small_disk(small_disk, pictures, noisy):
    noisy.rename(pictures / "noise.mkv")
    small_disk.resize("600k")
    out = small_disk.folder / "out"
    refused(job(pictures, out, on_bad="skip"), out)  # a full disk is no bad picture
    whole_only(small_disk.folder)
    small_disk.resize("4m")
    outcome = run(job(pictures, out, on_bad="skip"))
    assert outcome.resumed >= 12 + 32
    assert (outcome.frames + outcome.resumed, outcome.skipped) == (12 + COUNT, [])


@pytest.mark.parametrize("limit", [100, 5000, 30_000, 390_000, 400_000])
def test_a_film_where_no_file_can_grow(full_disk, tmp_path, noisy, limit):
    """The same without a disk of its own: at every limit something else does not fit, the whole film last of all."""
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "out.mkv"
    with full_disk(limit):
        refused(job(noisy, out), folder)
    assert not out.exists()
    whole_only(folder)
    outcome = run(job(noisy, out))
    assert outcome.resumed == (COUNT if limit == 400_000 else 0)
    np.testing.assert_array_equal(Video(out).frame(39), 255 - noise(39))
    assert [path.name for path in folder.iterdir()] == ["out.mkv"]


def test_one_picture_where_no_file_can_grow(full_disk, tmp_path, pictures):
    out = tmp_path / "o" / "out.png"
    with full_disk(5000):
        refused(job(pictures / "03.png", out), out)
    assert list(out.parent.iterdir()) == []
    run(job(pictures / "03.png", out))


def test_a_manifest_that_cannot_grow(full_disk, tmp_path, pictures):
    """Its line is torn, and spoils itself alone."""
    out = tmp_path / "out"
    run(job(pictures, out))
    manifest = out / ".wardpose-manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[:-1]))
    for path in (out / "11.png", out / "10.png"):
        path.unlink()
    with full_disk(manifest.stat().st_size + 40):
        refused(job(pictures, out), manifest)
    assert (run(job(pictures, out)).resumed, run(job(pictures, out)).resumed) == (10, 12)
