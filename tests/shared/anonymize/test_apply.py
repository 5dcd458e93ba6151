import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from wardpose.shared import files
from wardpose.shared.anonymize import apply
from wardpose.shared.anonymize.apply import Job, run
from wardpose.shared.anonymize.feed import read_picture
from wardpose.shared.errors import ConfigError, DataError


class Negative:
    """Counts its calls; the change is its own inverse."""

    def __init__(self, stop_after=None):
        self.names = []
        self.stop_after = stop_after

    def __call__(self, frame, name):
        if self.stop_after is not None and len(self.names) == self.stop_after:
            raise KeyboardInterrupt
        self.names.append(name)
        return 255 - frame


def job(source, destination, change=None, **more):
    return Job(source=source, destination=destination, change=change or Negative(), identity="negative", **more)


@pytest.fixture
def photo(tmp_path):
    """A JPEG with EXIF, a comment and a GPS position."""
    path = tmp_path / "in" / "photo.jpg"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x010E] = "patient Jane Doe"
    exif.get_ifd(0x8825)[1] = "N"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif, comment=b"Jane Doe")
    assert b"Jane Doe" in path.read_bytes()
    return path


@pytest.fixture
def folder(photo):
    for name in ("b.png", "sub/c.png", "sub/d.bmp"):
        path = photo.parent / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (photo.parent / "notes.txt").write_text("no picture")
    return photo.parent


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 10, (64, 48))
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def read_video(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames
        frames.append(frame)


def test_a_picture_is_changed_and_loses_its_metadata(photo, tmp_path):
    out = tmp_path / "out.png"
    assert run(job(photo, out)).frames == 1
    np.testing.assert_array_equal(read_picture(out), 255 - read_picture(photo))
    assert b"Jane" not in out.read_bytes()
    assert not Image.open(out).getexif()
    assert list(tmp_path.glob(".*")) == []


def test_nothing_is_overwritten_unless_forced(photo, tmp_path):
    out = tmp_path / "out.png"
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="--force"):
        run(job(photo, out))
    assert out.read_bytes() == b"precious"
    run(job(photo, out, force=True))
    assert out.read_bytes() != b"precious"


@pytest.mark.parametrize("name", ["out.jpg", "out.txt", "out"])
def test_an_ending_that_cannot_hold_the_result_is_refused(photo, tmp_path, name):
    with pytest.raises(ConfigError, match="out"):
        run(job(photo, tmp_path / name))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0 cut off"])
def test_an_unreadable_picture_is_named_and_leaves_nothing(tmp_path, content):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        run(job(bad, tmp_path / "out.png"))
    assert not (tmp_path / "out.png").exists()


def test_a_folder_keeps_its_structure_and_continues_where_it_stopped(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(job(folder, out, Negative(stop_after=2)))
    assert len(list(out.rglob("*.png"))) == 2
    second = Negative()
    outcome = run(job(folder, out, second))
    assert (outcome.frames, outcome.resumed, len(second.names)) == (2, 2, 2)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == [
        "b.png", "photo.png", "sub/c.png", "sub/d.png",
    ]  # fmt: skip
    assert run(job(folder, out)).resumed == 4


def test_a_changed_source_or_a_damaged_result_is_done_again(folder, tmp_path):
    out = tmp_path / "out"
    run(job(folder, out))
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "b.png")
    (out / "sub" / "c.png").write_bytes(b"half")
    again = Negative()
    run(job(folder, out, again))
    assert sorted(again.names) == ["b.png", "sub/c.png"]
    assert read_picture(out / "b.png").min() == 255


def test_work_of_other_weights_is_not_continued(folder, tmp_path):
    run(job(folder, tmp_path / "out"))
    other = Job(source=folder, destination=tmp_path / "out", change=Negative(), identity="other")
    with pytest.raises(ConfigError, match="other weights"):
        run(other)


def test_foreign_files_in_the_destination_are_kept(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo.png").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="--force"):
        run(job(folder, out))
    assert (out / "photo.png").read_bytes() == b"precious"


def test_a_bad_picture_in_a_folder_stops_or_is_listed(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"broken\.png"):
        run(job(folder, tmp_path / "out"))
    outcome = run(job(folder, tmp_path / "out", on_bad="skip"))
    assert len(outcome.skipped) == 1
    assert "broken.png" in outcome.skipped[0]
    assert outcome.frames + outcome.resumed == 4
    assert not (tmp_path / "out" / "broken.png").exists()


def test_a_full_disk_is_said_and_nothing_is_half_written(folder, tmp_path, monkeypatch):
    written = []
    original = files.write_bytes

    def full(path, content, **more):
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        original(path, content, **more)

    monkeypatch.setattr(apply.files, "write_bytes", full)
    with pytest.raises(DataError, match="No space left"):
        run(job(folder, tmp_path / "out"))
    monkeypatch.undo()
    assert sorted((tmp_path / "out").rglob("*.png")) == sorted(written)
    assert run(job(folder, tmp_path / "out")).resumed == 2


def test_a_video_is_stored_without_loss_and_leaves_no_working_files(video, tmp_path):
    out = tmp_path / "out.mkv"
    assert run(job(video, out)).frames == 6
    for i, frame in enumerate(read_video(out)):
        assert (frame == 255 - 40 * i).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.avi", "out.mkv"]


def test_an_interrupted_video_continues(video, tmp_path):
    out = tmp_path / "out.mkv"
    with pytest.raises(KeyboardInterrupt):
        run(job(video, out, Negative(stop_after=4)))
    assert not out.exists()
    rest = Negative()
    outcome = run(job(video, out, rest))
    assert (outcome.resumed, outcome.frames) == (4, 2)
    assert rest.names == ["clip.avi#4", "clip.avi#5"]
    assert len(read_video(out)) == 6


def test_a_corrupt_video_frame_is_named_kept_apart_and_can_be_black(video, tmp_path, monkeypatch):
    genuine = apply._frames

    def damaged(source):
        for number, (frame, total, rate) in enumerate(genuine(source)):
            yield (None if number == 3 else frame), total, rate

    monkeypatch.setattr(apply, "_frames", damaged)
    out = tmp_path / "out.mkv"
    with pytest.raises(DataError, match="frame 3 of 6"):
        run(job(video, out))
    assert not out.exists()
    outcome = run(job(video, out, on_bad="skip"))
    assert len(outcome.skipped) == 1
    frames = read_video(out)
    assert len(frames) == 6
    assert frames[3].max() == 0
    assert frames[4].min() == 255 - 160


def test_a_cut_off_video_is_noticed(video, tmp_path):
    cut = tmp_path / "cut.avi"
    content = video.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.avi"):
        run(job(cut, tmp_path / "out.mkv"))
    assert not (tmp_path / "out.mkv").exists()


def test_a_lossy_video_cannot_hold_a_recoverable_result(video, tmp_path):
    with pytest.raises(ConfigError, match="without loss"):
        run(job(video, tmp_path / "out.mp4"))


def test_the_manifest_survives_a_torn_line(folder, tmp_path):
    out = tmp_path / "out"
    run(job(folder, out))
    manifest = out / ".wardpose-manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    again = Negative()
    run(job(folder, out, again, force=True))
    assert again.names == [json.loads(lines[-1])["name"]]


def test_the_destination_inside_the_source_is_refused(folder):
    with pytest.raises(ConfigError, match="inside"):
        run(job(folder, folder / "out"))
    assert not os.path.lexists(folder / "out")
