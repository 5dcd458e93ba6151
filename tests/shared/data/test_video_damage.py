"""Cut, flipped and half-written files: never a wrong picture, never a loss without a word, never a traceback."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.films import film, number_of, truth

from wardpose.shared.data import video_index
from wardpose.shared.data.cut_files import cut_off
from wardpose.shared.data.video import Video
from wardpose.shared.data.video_index import HOLED, LOST, WHOLE, make_index, read_index
from wardpose.shared.data.video_stream import open_stream
from wardpose.shared.errors import DataError

COUNT = 16
SMALL = {"count": COUNT, "height": 64, "width": 96, "key_every": 5}
KINDS: dict[str, dict[str, Any]] = {
    "plain.mp4": {"b_frames": 2},
    "first.mp4": {"b_frames": 2, "muxing": {"movflags": "faststart"}},
    "pieces.mp4": {"muxing": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"b_frames": 2},
    "live.webm": {"codec": "libvpx", "muxing": {"live": "1"}},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "h264.ts": {"b_frames": 2},
    "0001.MTS": {"container": "mpegts", "muxing": {"mpegts_m2ts_mode": "1"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "wmv2.wmv": {"codec": "wmv2"},
    "flash.flv": {"codec": "flv"},
    "vp8.ogv": {"codec": "libvpx"},
    "mpeg2.mxf": {"codec": "mpeg2video"},
    "ffv1.mkv": {"codec": "ffv1", "pixels": "bgr0"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
}
MXF_PARTS = bytes.fromhex("060e2b34020501010d01020101110100")
BOUNDED = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one film of each kind."""
    folder = tmp_path_factory.mktemp("films")
    for name, kind in KINDS.items():
        film(folder / name, **SMALL, **kind)
    return folder


def cannot_show(name: str, whole: bytes, length: int) -> bool:
    """Tell whether a cut leaves a file that is whole in itself: between two packets, or two fragments, of a stream.

    Or before what is optional: MXF's list of its parts, the last byte that makes an AVI chunk even.
    """
    rest = whole[length:]
    return {
        "h264.ts": length % 188 == 0,
        "0001.MTS": length % 192 == 0,
        "mpeg2.mpg": rest[:3] == b"\0\0\1"
        and rest[3:4] >= b"\xba"
        and whole[length - 12 : length - 8] != b"\0\0\1\xba",
        "pieces.mp4": rest[4:8] in (b"moof", b"mfra") and b"mdat" in whole[:length],
        "mpeg2.mxf": rest.startswith(MXF_PARTS),
    }.get(name, name.endswith(".avi") and len(rest) == 1)


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_not_called_cut(tmp_path: Path, films: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes((films / name).read_bytes())
    index = make_index(path)
    assert len(index) == COUNT
    assert index.losses == index.notes == ()
    assert (index.states == WHOLE).all()


@BOUNDED
@given(name=st.sampled_from(sorted(KINDS)), part=st.floats(0.02, 0.999))
def test_a_cut_file_says_so_and_shows_no_wrong_picture(tmp_path: Path, films: Path, name: str, part: float) -> None:
    whole = (films / name).read_bytes()
    length = int(part * len(whole))
    content = whole[: length - cannot_show(name, whole, length)]
    path = tmp_path / name
    path.write_bytes(content)
    video = opened(path)
    if video is None:
        return
    assert any("cut off" in loss for loss in video.index.losses), (name, len(content))
    assert video.frame_count <= COUNT
    expected, given_out = truth(path), video.index.states != LOST
    for number in (video.frame_count - 1, 0, video.frame_count // 2):
        if video.index.states[number] == WHOLE:
            np.testing.assert_array_equal(video.frame(number), expected[given_out[:number].sum()])
    with pytest.raises(DataError, match=r"allowed: 0 to \d+; .*cut off"):
        video.frame(COUNT)


@BOUNDED
@given(
    name=st.sampled_from(sorted(KINDS)),
    flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(1, 255)), min_size=1, max_size=12),
)
def test_flipped_bytes_end_in_pictures_or_in_one_line(
    tmp_path: Path, films: Path, name: str, flips: list[tuple[float, int]]
) -> None:
    content = bytearray((films / name).read_bytes())
    for at, value in flips:
        content[int(at * len(content))] ^= value
    path = tmp_path / name
    path.write_bytes(content)
    video = opened(path)
    if video is None:
        return
    first = dict(readable(video, range(0, video.frame_count, 3)))
    again = dict(readable(Video(path), reversed(range(0, video.frame_count, 3))))
    for number in first.keys() & again.keys():  # what decodes to another picture each time is refused, now or then
        np.testing.assert_array_equal(first[number], again[number])


def opened(path: Path) -> Video | None:
    """Open a damaged file; `None` where it is refused on a line that names it."""
    try:
        return Video(path)
    except DataError as refusal:
        if str(refusal).startswith(f"{path}: is no video"):
            return None
        raise


def readable(video: Video, numbers: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Read what can be read; what cannot is refused on a line that names file and frame."""
    for number in numbers:
        try:
            yield number, video.frame(number)
        except DataError as refusal:
            if not str(refusal).startswith(f"{video.path}: frame {number} is corrupt"):
                raise


def blank(content: bytes, number: int, *, start: bytes, end: bytes) -> bytes:
    """Overwrite the data of one frame by zeros."""
    at = -1
    for _ in range(number + 1):
        at = content.index(start, at + 1)
    stop = content.index(end, at)
    return content[:at] + bytes(stop - at) + content[stop:]


def test_damaged_frames_keep_their_numbers(tmp_path: Path, films: Path) -> None:
    path = tmp_path / "mjpeg.avi"
    content = (films / "mjpeg.avi").read_bytes()
    for number in (4, 3):  # blanked data no longer has a start: the later one first
        content = blank(content, number, start=b"\xff\xd8\xff", end=b"\xff\xd9")
    path.write_bytes(content)
    video = Video(path)
    assert video.frame_count == COUNT
    assert np.flatnonzero(video.index.states != WHOLE).tolist() == [3, 4]
    assert video.index.sentences() == ["2 frames do not decode (3, 4)"]
    for number in (15, 5, 0, 2):
        assert number_of(video.frame(number)) == number
    with pytest.raises(DataError, match=r"mjpeg\.avi: frame 3 is corrupt"):
        video.frame(3)


def test_what_does_not_decode_at_the_end_is_not_counted_but_said(tmp_path: Path, films: Path) -> None:
    path = tmp_path / "mjpeg.avi"
    content = (films / "mjpeg.avi").read_bytes()
    for _ in range(2):  # blanked data no longer has a start: the last one is another one each time
        content = blank(content, content.count(b"\xff\xd8\xff") - 1, start=b"\xff\xd8\xff", end=b"\xff\xd9")
    path.write_bytes(content)
    video = Video(path)
    assert video.frame_count == COUNT - 2
    (loss,) = video.index.losses
    assert loss.startswith("after frame 13 the rest, 2 packets, does not decode")


def test_painted_over_damage_is_no_picture(tmp_path: Path) -> None:
    """FFmpeg fills what it cannot decode with what it has: such a frame counts, and is refused."""
    path = film(tmp_path / "mpeg4.avi", "mpeg4", count=40, b_frames=2)
    whole, painted = path.read_bytes(), 0
    for at in range(len(whole) // 3, 2 * len(whole) // 3, 500):
        path.write_bytes(whole[:at] + bytes(100) + whole[at + 100 :])
        index = make_index(path)
        video, shown, given_out = Video(path), truth(path), index.states != LOST
        for bad in np.flatnonzero(index.states == HOLED).tolist():
            painted += 1
            with pytest.raises(DataError, match=f"frame {bad} is corrupt"):
                video.frame(bad)
        for number in np.flatnonzero(index.states == WHOLE).tolist()[::-7]:
            np.testing.assert_array_equal(video.frame(number), shown[given_out[:number].sum()])
    assert painted


@pytest.mark.parametrize("name", KINDS)
def test_every_cut_of_every_container_shows(tmp_path: Path, films: Path, name: str) -> None:
    """At every byte, but where the rest is a whole stream in itself, or has no film yet."""
    path, content = tmp_path / "cut", (films / name).read_bytes()
    container, _ = open_stream(films / name)
    container.close()
    unseen = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        if cut_off(path, container.format.name) is None and not cannot_show(name, content, length):
            unseen.append(length)
    for length in unseen:
        path.write_bytes(content[:length])
        assert opened(path) is None, length


def test_an_index_is_kept_and_made_anew_when_it_cannot_be_relied_on(
    tmp_path: Path, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "h264.mkv", tmp_path / "state" / "videos"
    path.write_bytes((films / "h264.mkv").read_bytes())
    made = []
    make = make_index
    monkeypatch.setattr(video_index, "make_index", lambda path: made.append(path) or make(path))

    def read() -> int:
        video_index._read_index.cache_clear()  # as another process
        return len(read_index(path, folder))

    assert [read(), read(), len(made)] == [COUNT, COUNT, 1]
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    content = kept.read_bytes()
    for broken in (b"", b"PK\x03\x04 nothing", content[:-30], content[:200] + bytes(50) + content[250:]):
        kept.write_bytes(broken)
        assert read() == COUNT
        assert kept.read_bytes() == content
    made.clear()
    path.write_bytes((films / "ffv1.mkv").read_bytes()[:-1] + b"\0")  # another film under the same name
    assert [read(), len(made), len(list(folder.iterdir()))] == [COUNT, 1, 2]


def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path: Path, films: Path) -> None:
    path = tmp_path / "h264.mkv"
    path.write_bytes((films / "h264.mkv").read_bytes())
    (tmp_path / "file").write_bytes(b"")
    assert Video(path, index_folder=tmp_path / "file" / "videos").frame_count == COUNT


def test_a_phone_video_that_was_never_finished_is_told_apart_from_no_video(tmp_path: Path, films: Path) -> None:
    """Its index comes last."""
    content = (films / "plain.mp4").read_bytes()
    path = tmp_path / "plain.mp4"
    for length, words in {
        len(content) // 2: "the file is cut off",
        content.index(b"moov") - 4: "never finished it",
    }.items():
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"is no video that can be read: .*{words}"):
            Video(path)


def test_a_film_in_triplets_that_was_never_finished_is_cut(tmp_path: Path, films: Path) -> None:
    content = bytearray((films / "mpeg2.mxf").read_bytes())
    content[14], content[17 + 3 + 24 : 17 + 3 + 32] = 1, bytes(8)  # open, and its footer not known yet
    path = tmp_path / "open.mxf"
    path.write_bytes(content[: content.rindex(bytes.fromhex("060e2b34020501010d010201010404"))])
    assert cut_off(path, "mxf") is not None
