import json
import os
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from wardpose.client.anonymize.apply import Job, run
from wardpose.shared import files
from wardpose.shared.data.pictures import read_picture
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


def test_a_full_disk_is_said_nothing_is_half_written_and_the_rest_is_done_later(folder, tmp_path, full_disk):
    out = tmp_path / "out"
    noisy = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noisy).save(folder / "sub" / "d.bmp")  # the last one, 30 kB as PNG; the others have 4 and 7
    with full_disk(20_000), pytest.raises(DataError, match=r"cannot be read or written .*run the same command again"):
        run(job(folder, out))
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        ".wardpose-manifest.jsonl", "b.png", "c.png", "photo.png",
    ]  # fmt: skip
    outcome = run(job(folder, out))
    assert (outcome.frames, outcome.resumed) == (1, 3)


def test_what_a_crash_left_between_manifest_and_picture_is_done_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_bytes", crash)
    with pytest.raises(KeyboardInterrupt):
        run(job(folder, out))
    monkeypatch.undo()
    assert run(job(folder, out)).frames == 4


def test_a_video_is_stored_without_loss_and_leaves_no_working_files(video, tmp_path):
    out = tmp_path / "out.mkv"
    assert run(job(video, out, mode=0o600)).frames == 6
    assert out.stat().st_mode & 0o077 == 0
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


def test_a_corrupt_video_frame_is_named_and_the_frames_after_it_are_kept(tmp_path):
    video, out = tmp_path / "clip.avi", tmp_path / "out.mkv"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    content = bytearray(video.read_bytes())
    starts = [m.end() + 4 for m in re.finditer(b"00dc", content) if content[m.end() + 4 : m.end() + 6] == b"\xff\xd8"]
    assert len(starts) == 6
    content[starts[3] : starts[4] - 8] = bytes(starts[4] - 8 - starts[3])
    video.write_bytes(content)
    with pytest.raises(DataError, match="frame 3 of 6"):
        run(job(video, out))
    assert not out.exists()
    again = Negative()
    outcome = run(job(video, out, again, on_bad="skip"))
    assert outcome.resumed == 3
    assert again.names == ["clip.avi#4", "clip.avi#5"]
    assert ["frame 3 of 6" in line for line in outcome.skipped] == [True]
    means = [frame.mean() for frame in read_video(out)]
    assert means == pytest.approx([255, 215, 175, 0, 95, 55], abs=4)


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
    last = json.loads(lines[-1])["name"]
    (out / last).with_suffix(".png").unlink()  # the line is written before the picture
    again = Negative()
    run(job(folder, out, again))
    assert again.names == [last]
    assert run(job(folder, out)).resumed == 4


def test_the_destination_inside_the_source_is_refused(folder):
    with pytest.raises(ConfigError, match="inside"):
        run(job(folder, folder / "out"))
    assert not os.path.lexists(folder / "out")
