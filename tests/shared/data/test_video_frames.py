"""The same number is the same picture: over containers, codecs, orders of reading, threads and processes."""

import json
import multiprocessing
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from support.films import HEIGHT, WIDTH, card, film, number_of, remux, truth, turned

from wardpose.shared.data.video import Video, read_video
from wardpose.shared.data.video_stream import why_no_video
from wardpose.shared.errors import DataError

OPEN_GOP_265 = {"x265-params": "open-gop=1:keyint=8:log-level=none"}
INTERLACED = 0x40000 | 0x20000000
FILMS = {
    "h264.mp4": {"b_frames": 2},
    "no-b.mp4": {},
    "first.mp4": {"b_frames": 2, "muxing": {"movflags": "faststart"}},
    "pieces.mp4": {"b_frames": 2, "muxing": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {"b_frames": 3},
    "h264.ts": {"b_frames": 2},
    "00001.MTS": {"b_frames": 2, "container": "mpegts", "muxing": {"mpegts_m2ts_mode": "1"}},
    "open.ts": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "refresh.ts": {"options": {"x264-params": "intra-refresh=1:keyint=8"}},
    "fields.mp4": {"b_frames": 2, "options": {"x264-params": "interlaced=1"}},
    "h264.avi": {"b_frames": 2},
    "hevc.mp4": {"codec": "libx265", "b_frames": 3, "options": OPEN_GOP_265},
    "hevc.ts": {"codec": "libx265", "b_frames": 3, "options": OPEN_GOP_265},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "10"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"}},
    "vp8.ogv": {"codec": "libvpx"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj422p"},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg4.3gp": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "fields.mpg": {"codec": "mpeg2video", "b_frames": 2, "flags": INTERLACED},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg2.mxf": {"codec": "mpeg2video", "b_frames": 2},
    "mpeg1.mpg": {"codec": "mpeg1video", "b_frames": 2},
    "wmv2.wmv": {"codec": "wmv2"},
    "sorenson.flv": {"codec": "flv"},
    "prores.mov": {"codec": "prores", "pixels": "yuv422p10le"},
    "ffv1.mkv": {"codec": "ffv1", "pixels": "bgr0"},
    "odd.mkv": {"codec": "ffv1", "height": 97, "width": 131},
    "odd.avi": {"codec": "mjpeg", "pixels": "yuvj420p", "height": 97, "width": 131},
}  # fmt: skip


def make(folder: Path, name: str) -> Path:
    return film(folder / name, **FILMS[name])


def agrees(path: Path, order: list[int], expected: list[np.ndarray]) -> None:
    video = Video(path)
    assert video.frame_count == len(expected)
    for number in order:
        np.testing.assert_array_equal(video.frame(number), expected[number], err_msg=f"{path.name}, frame {number}")


@pytest.mark.parametrize("name", FILMS)
def test_any_order_gives_the_pictures_that_a_player_shows(tmp_path: Path, name: str) -> None:
    path = make(tmp_path, name)
    expected = truth(path)
    assert [number_of(frame) for frame in expected] == list(range(30))
    shuffled = random.Random(name).sample(range(30), 30)
    agrees(path, [*shuffled, *range(30), *reversed(range(30)), 0, 29, 0], expected)


@pytest.mark.parametrize("name", ["h264.ts", "open.ts", "mpeg2.mpg", "refresh.ts", "hevc.mp4", "mpeg4.avi"])
def test_nothing_is_remembered_that_was_not_checked(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its cache every single frame is sought."""
    monkeypatch.setattr("wardpose.shared.data.video_file._KEPT_BYTES", 0)
    path = make(tmp_path, name)
    agrees(path, random.Random(1).sample(range(30), 30), truth(path))


def test_a_frame_costs_the_pictures_since_its_key_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    whole = Video._reader

    def counting(self: Video) -> object:
        reader = whole(self)
        if not hasattr(reader, "_counted"):
            reader._counted = True
            place = reader._is
            reader._is = lambda number, frame: decoded.append(number) or place(number, frame)
        return reader

    monkeypatch.setattr(Video, "_reader", counting)
    for name in ("h264.mp4", "h264.mkv", "h264.ts", "00001.MTS", "hevc.mp4", "vp9.webm", "mpeg4.avi"):
        path = film(tmp_path / name, **{**FILMS[name], "count": 240})
        video = Video(path)
        video.frame(130)  # what this demuxer seeks by is learned here
        for number in (239, 3, 120, 60, 200, 7):
            decoded.clear()
            video.frame(number)
            assert len(decoded) <= 2 * 12 + 2, (name, number)  # a group of pictures has 8 to 12


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm", "ts"])
@pytest.mark.parametrize(
    "stamps",
    [
        [1000 * n if n < 10 else 3000 * n - 20_000 if n < 20 else 1000 * n + 20_000 for n in range(30)],
        [1000 * n + (90_000 if n >= 15 else 0) for n in range(30)],
        [150_000 + 1000 * n for n in range(30)],
        [1000 * n + random.Random(n).randrange(500) for n in range(30)],
    ],
    ids=["slow-stretch", "pause", "late", "jitter"],
)
def test_times_do_not_decide_numbers(tmp_path: Path, ending: str, stamps: list[int]) -> None:
    codec = "libvpx" if ending == "webm" else "libx264"
    path = film(tmp_path / f"clip.{ending}", codec, stamps=stamps, b_frames=0 if ending == "webm" else 2)
    agrees(path, random.Random(2).sample(range(30), 30), truth(path))
    assert [number_of(Video(path).frame(n)) for n in (0, 12, 17, 29)] == [0, 12, 17, 29]


def test_a_header_without_a_duration_or_with_a_wrong_count(tmp_path: Path) -> None:
    live = film(tmp_path / "live.webm", "libvpx", muxing={"live": "1"})
    with av.open(str(live)) as read:
        assert read.duration is None
    agrees(live, [29, 0, 15], truth(live))
    lying = film(tmp_path / "lying.avi", "mjpeg", pixels="yuvj420p")
    content = bytearray(lying.read_bytes())
    for name, offset in ((b"avih", 24), (b"strh", 40)):
        at = content.index(name) + offset
        assert content[at : at + 4] == (30).to_bytes(4, "little")
        content[at : at + 4] = (70).to_bytes(4, "little")
    lying.write_bytes(content)
    agrees(lying, [29, 0, 15], truth(lying))
    assert Video(lying).index.notes == ("its header counts 70 frames, 30 are there",)


def test_a_recorder_that_was_stopped_hard(tmp_path: Path) -> None:
    """What lies on the disk before a recorder finishes its file: sizes open, no index, no count."""
    for name, codec, pixels in (("killed.avi", "mjpeg", "yuvj420p"), ("killed.mkv", "libx264", "yuv420p")):
        path = tmp_path / name
        with av.open(
            str(path),
            "w",
            options={"flush_packets": "1", **({"cluster_time_limit": "50"} if name.endswith("mkv") else {})},
        ) as out:
            stream = out.add_stream(codec, rate=30)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
            stream.codec_context.max_b_frames = 0
            for n in range(20):
                frame = av.VideoFrame.from_ndarray(card(n), format="rgb24").reformat(format=pixels)
                frame.pts = n
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            content = path.read_bytes()
        (tmp_path / f"left_{name}").write_bytes(content)
        video = Video(tmp_path / f"left_{name}")
        assert video.frame_count >= 15
        assert [number_of(video.frame(n)) for n in (video.frame_count - 1, 0, 7)] == [video.frame_count - 1, 0, 7]


def test_an_edit_list_is_followed(tmp_path: Path) -> None:
    """A cut within a group of pictures: the frames before the cut are there to be decoded, not to be shown."""
    path = film(tmp_path / "whole.mp4")
    content = bytearray(path.read_bytes())
    at = content.index(b"elst")
    entry = at + 12
    assert int.from_bytes(content[at + 8 : at + 12], "big") == 1
    content[entry + 4 : entry + 8] = (5 * 512).to_bytes(4, "big")  # media time: the sixth frame of 1/15360 s
    length = int.from_bytes(content[entry : entry + 4], "big")
    content[entry : entry + 4] = (length * 25 // 30).to_bytes(4, "big")
    path.write_bytes(content)
    expected = truth(path)
    assert number_of(expected[0]) == 5
    assert len(expected) == 25
    agrees(path, random.Random(3).sample(range(25), 25), expected)


def test_a_clip_that_was_cut_without_encoding(tmp_path: Path) -> None:
    for name in ("h264.ts", "mpeg2.mpg", "hevc.ts", "h264.mkv"):
        source = make(tmp_path, name)
        cut = remux(source, tmp_path / f"cut_{name}", start=11)
        expected = truth(cut)
        assert number_of(expected[0]) > 8
        agrees(cut, random.Random(4).sample(range(len(expected)), len(expected)), expected)


def test_clips_laid_end_to_end_have_each_time_twice(tmp_path: Path) -> None:
    for name in ("h264.ts", "mpeg2.mpg"):
        one = make(tmp_path, name)
        two = film(tmp_path / f"other_{name}", **FILMS[name], picture=lambda n: card(n + 30))
        joined = tmp_path / f"joined_{name}"
        joined.write_bytes(one.read_bytes() + two.read_bytes())
        expected = truth(joined)
        assert len(expected) == 60
        agrees(joined, random.Random(5).sample(range(60), 60), expected)


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_a_turned_phone_gives_an_upright_picture(tmp_path: Path, degrees: int, ending: str) -> None:
    path = film(tmp_path / f"plain.{ending}", b_frames=2)
    stored = truth(path)
    video = Video(turned(path, degrees))
    for number in (20, 3):
        np.testing.assert_array_equal(video.frame(number), np.rot90(stored[number], -degrees // 90))
    assert (video.height, video.width) == video.frame(0).shape[:2] == video.size(29)


def test_the_front_camera_of_a_phone_is_mirrored(tmp_path: Path) -> None:
    path = film(tmp_path / "selfie.mp4")
    stored = truth(path)
    content = bytearray(turned(path, 90).read_bytes())
    at = content.index(b"tkhd") + 44
    content[at + 12 : at + 16] = (1 << 16).to_bytes(4, "big")  # c = +1: along the diagonal
    path.write_bytes(content)
    np.testing.assert_array_equal(Video(path).frame(4), stored[4].transpose(1, 0, 2))


def test_a_cover_is_not_the_film_and_of_two_films_the_marked_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("mjpeg", rate=30), *(out.add_stream("libx264", rate=30) for _ in range(2))]
        for stream in streams:
            stream.width, stream.height = WIDTH, HEIGHT
            stream.pix_fmt = "yuvj420p" if stream.codec_context.name == "mjpeg" else "yuv420p"
        streams[0].disposition = av.stream.Disposition.attached_pic
        streams[1].disposition = av.stream.Disposition(0)
        streams[2].disposition = av.stream.Disposition.default
        for n in range(30):
            for stream, shown in zip(streams, (99, n, n + 100), strict=True):
                if n and shown == 99:
                    continue
                frame = av.VideoFrame.from_ndarray(card(shown), format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts = n
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    video = Video(path)
    assert video.frame_count == 30
    assert [number_of(video.frame(n)) for n in (0, 29, 11)] == [100, 129, 111]
    assert video.index.sentences() == ["1 other video track is not read"]


def test_colours_follow_the_stated_colour_space(tmp_path: Path) -> None:
    path = tmp_path / "hd.mkv"
    colour = (200, 30, 60)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace = 1  # BT.709
        plain = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
        out.mux(stream.encode(plain.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="MPEG")))
        out.mux(stream.encode(None))
    assert np.abs(Video(path).frame(0).astype(int) - colour).max() <= 3


def test_threads_share_a_video(tmp_path: Path) -> None:
    path = make(tmp_path, "open.ts")
    video, numbers = Video(path), random.Random(6).choices(range(30), k=200)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: number_of(video.frame(n)), numbers)) == numbers


def _numbers(video: Video, wanted: list[int], answers: "multiprocessing.Queue[list[int]]") -> None:
    answers.put([number_of(video.frame(n)) for n in wanted])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_video(tmp_path: Path, method: str) -> None:
    path = make(tmp_path, "h264.ts")
    video = Video(path)
    video.frame(13)  # the decoder stands somewhere when the others begin
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    orders = [random.Random(seed).sample(range(30), 30) for seed in range(2)]
    held = video._reader().lock
    with held:  # a forked lock that nobody opens is no reason to wait
        children = [context.Process(target=_numbers, args=(video, order, answers)) for order in orders]
        for child in children:
            child.start()
    here = [number_of(video.frame(n)) for n in orders[0]]
    given = sorted(answers.get(timeout=120) for _ in orders)
    for child in children:
        child.join()
    assert here == orders[0]
    assert given == sorted(orders)


def test_a_pickled_video_needs_no_second_look_at_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps(Video(make(tmp_path, "h264.mkv")))
    monkeypatch.setattr("wardpose.shared.data.video_index.make_index", None)
    assert number_of(pickle.loads(content).frame(17)) == 17


def test_what_no_frame_can_be_is_named(tmp_path: Path) -> None:
    path = make(tmp_path, "h264.mp4")
    video = Video(path)
    for number in (30, -1, 10**9):
        with pytest.raises(DataError, match=rf"h264\.mp4: frame is {number} \(allowed: 0 to 29\)"):
            video.frame(number)
    labels = tmp_path / "labels.json"
    joints = [[20, 20, 2]] * 14
    labels.write_text(json.dumps({"skeleton": "lsp14", "records": [{"frame": 30, "joints": joints}]}))
    with pytest.raises(DataError, match=r"labels\.json: record #0 \(frame 30\): .*h264\.mp4: frame is 30 \(allowed: 0"):
        read_video(path, labels)


def test_a_file_that_was_exchanged_is_not_read_as_the_old_one(tmp_path: Path) -> None:
    path = make(tmp_path, "h264.mkv")
    video = Video(path)
    film(tmp_path / "other.mkv", b_frames=1, picture=lambda n: card(29 - n)).replace(path)
    with pytest.raises(DataError, match=r"h264\.mkv: .*(changed since it was opened|same picture twice)"):
        video.frame(5)


@pytest.mark.parametrize("name", ["a:b.mp4", "pipe:0.mp4", "concat:a|b.mp4", "é ü.mp4", b"\xff\xfe.mp4", "%d.mp4"])
def test_a_name_is_only_a_name(tmp_path: Path, name: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(os.fsdecode(name))
    film(tmp_path / "plain.mp4").rename(tmp_path / path)
    monkeypatch.chdir(tmp_path)
    assert why_no_video(path) is None
    video = Video(path)
    monkeypatch.chdir("/")
    assert number_of(video.frame(9)) == 9


def test_nothing_but_the_file_itself_is_read(tmp_path: Path) -> None:
    """A play list or a script may name any file of the machine, or any address."""
    film(tmp_path / "secret.mp4")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "script.ffconcat").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "script.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("list.m3u8", "script.ffconcat", "script.mp4"):
        with pytest.raises(DataError, match=f"{name}: is no video that can be read"):
            Video(tmp_path / name)


def test_what_holds_no_moving_picture_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    cv2.imwrite(str(tmp_path / "photo.png"), card(0))
    (tmp_path / "photo.png").rename(tmp_path / "photo.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    film(tmp_path / "raw.mp4", container="h264")
    reasons = {
        "photo": "it is of a format",
        "raw": "it is of a format",
        "empty": "the file is empty",
        "sound": "it holds",
    }
    for name in ("sound.mp4", "photo.mp4", "empty.mp4", "folder.mp4", "raw.mp4"):
        with pytest.raises(DataError, match=rf"{name}: is (no video that can be read: |missing)") as caught:
            Video(tmp_path / name)
        assert reasons.get(name[:-4], "missing") in str(caught.value)


@pytest.mark.realdata
@pytest.mark.parametrize("case", ["video-vfr", "video-mts", "video-late-start", "video-webm-live"])
@pytest.mark.parametrize("turn", [0, 4])
def test_labels_of_real_recordings_get_their_pictures(data_root: Path, case: str, turn: int) -> None:
    folder = data_root / "real_files" / case
    (path,) = [path for path in folder.iterdir() if path.suffix.lower() in (".mp4", ".mkv", ".webm", ".mts")]
    wanted = [entry["frame"] for entry in json.loads((folder / "labels.json").read_text())["records"]]
    dataset = read_video(path, folder / "labels.json")
    order = [*range(len(wanted))[turn:], *range(len(wanted))[:turn]]
    assert [number_of(dataset.frame(i)) for i in order] == [wanted[i] for i in order]
    assert Video(path).frame_count == 40
    assert Video(path).index.losses == ()


@pytest.mark.realdata
def test_a_real_phone_and_a_real_odd_size(data_root: Path) -> None:
    phone = Video(data_root / "real_files" / "video-rotated-phone" / "clip.mp4")
    assert (phone.height, phone.width) == phone.frame(7).shape[:2] == (160, 120)
    assert number_of(np.rot90(phone.frame(7), 1)) == 7
    odd = Video(data_root / "real_files" / "video-odd-size" / "clip.avi")
    assert odd.frame(39).shape == (119, 161, 3)
    assert odd.index.unit == Fraction(1, 30)
