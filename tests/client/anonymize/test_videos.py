"""A video keeps its frames and their times, loses everything else, and what is missing of it is said."""

import json
from dataclasses import asdict
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.films import HEIGHT, WIDTH, card, film, number_of, times, turned

from wardpose.client.anonymize.apply import Job, run
from wardpose.client.anonymize.timing import rising
from wardpose.shared.data.video import Video
from wardpose.shared.data.video_index import NO_STAMP
from wardpose.shared.errors import ConfigError, DataError, RecoveryError


def negative(frame, name):
    return 255 - frame


def job(source, destination, change=negative, **more):
    return Job(source=source, destination=destination, change=change, identity="negative", **more)


def numbers(path):
    video = Video(path)
    return [number_of(255 - video.frame(n)) for n in range(video.frame_count)]


@pytest.mark.parametrize("ending", ["mkv", "mp4", "mov", "m4v", "webm", "avi"])
@pytest.mark.parametrize(
    "source", ["clip.mp4", "clip.mkv", "00001.MTS", "clip.mpg", "clip.wmv", "clip.3gp", "clip.avi"]
)
def test_every_sort_of_video_becomes_every_sort(tmp_path, source, ending):
    kinds = {
        ".mpg": {"codec": "mpeg2video", "b_frames": 2},
        ".wmv": {"codec": "wmv2"},
        ".3gp": {"codec": "mpeg4"},
        ".avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
        ".MTS": {"b_frames": 2, "container": "mpegts", "muxing": {"mpegts_m2ts_mode": "1"}},
    }
    path = film(tmp_path / source, count=12, **kinds.get(path_ending(source), {"b_frames": 2}))
    out = tmp_path / f"out.{ending}"
    outcome = run(job(path, out, lossless=False))
    assert (outcome.frames, outcome.left_out, outcome.skipped) == (12, [], [])
    assert numbers(out) == list(range(12))
    first, last = times(path), times(out)
    with av.open(str(out)) as read:
        unit = read.streams.video[0].time_base
        assert len(read.streams) == 1
    if ending == "avi":  # which begins at nought and knows one rate
        assert max(abs((a - first[0]) - (b - last[0])) for a, b in zip(first, last, strict=True)) < Fraction(1, 400)
    else:
        assert max(abs(a - b) for a, b in zip(first, last, strict=True)) <= unit / 2


def path_ending(name):
    return name[name.rindex(".") :]


TIMES = {
    "slow": [1000 * n if n < 10 else 3000 * n - 20_000 for n in range(20)],
    "pause": [1000 * n + (90_000 if n >= 9 else 0) for n in range(20)],
    "late": [150_000 + 1000 * n for n in range(20)],
    "jitter": [1000 * n + n * n % 317 for n in range(20)],
    "late-and-slow": [77_777 + 1001 * n + (5 * n * n) for n in range(20)],
}


@pytest.mark.parametrize("stamps", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize(
    ("source", "ending"), [("mp4", "mp4"), ("mp4", "mkv"), ("mkv", "mp4"), ("ts", "mov"), ("ts", "webm")]
)
def test_times_stay_as_they_are(tmp_path, stamps, source, ending):
    path = film(tmp_path / f"clip.{source}", count=20, stamps=stamps, b_frames=2)
    out = tmp_path / f"out.{ending}"
    run(job(path, out, lossless=False))
    first, last = times(path), times(out)
    with av.open(str(out)) as read:
        unit = read.streams.video[0].time_base
    exact = ending in ("mp4", "mov")
    assert [abs(a - b) <= (0 if exact else unit / 2) for a, b in zip(first, last, strict=True)] == [True] * 20


def test_an_avi_is_refused_where_it_cannot_hold_the_times(tmp_path):
    path = film(tmp_path / "clip.mp4", count=20, stamps=TIMES["pause"])
    with pytest.raises(ConfigError, match=r"out\.avi: an AVI has one frame rate, .*clip\.mp4 has not \(allowed: \.mkv"):
        run(job(path, tmp_path / "out.avi"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("ending", ["mkv", "avi"])
@pytest.mark.parametrize(("height", "width"), [(96, 128), (97, 131), (33, 64)])
def test_without_loss_means_every_pixel(tmp_path, ending, height, width):
    """Noise in the lowest bits, where a recoverable frame carries its code."""
    noise = [np.random.default_rng(n).integers(0, 256, (height, width, 3), dtype=np.uint8) for n in range(40)]
    path = film(
        tmp_path / "clip.mkv", "ffv1", count=40, pixels="bgr0", height=height, width=width, picture=noise.__getitem__
    )
    out = tmp_path / f"out.{ending}"
    run(job(path, out))
    video = Video(out)
    assert video.frame_count == 40
    for n in (39, 0, 32, 31, 17):
        np.testing.assert_array_equal(video.frame(n), 255 - noise[n])
    back = tmp_path / "back.mkv"
    run(job(out, back))
    np.testing.assert_array_equal(Video(back).frame(33), noise[33])


@pytest.mark.parametrize("ending", ["mp4", "webm", "mov"])
def test_odd_sides_lose_nothing(tmp_path, ending):
    path = film(tmp_path / "clip.mkv", "ffv1", count=4, pixels="bgr0", height=97, width=131)
    run(job(path, tmp_path / f"out.{ending}", lossless=False))
    frame = Video(tmp_path / f"out.{ending}").frame(2)
    assert frame.shape[0] in (97, 98)
    assert frame.shape[1] in (131, 132)
    assert np.abs(frame[:97, :131].astype(int) - (255 - card(2, 97, 131))).mean() < 4


def test_a_turned_phone_comes_out_upright(tmp_path):
    path = turned(film(tmp_path / "clip.mp4", count=6), 90)
    run(job(path, tmp_path / "out.mkv"))
    out = Video(tmp_path / "out.mkv")
    assert (out.height, out.width) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(out.frame(3), 255 - Video(path).frame(3))
    with av.open(str(tmp_path / "out.mkv")) as read:
        assert next(read.decode(video=0)).rotation == 0


def test_flat_pixels_stay_flat(tmp_path):
    path = tmp_path / "dvd.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 15)
        for n in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(card(n, 64, 96), format="rgb24")))
        out.mux(stream.encode(None))
    for ending in ("mp4", "mov"):
        run(job(path, tmp_path / f"out.{ending}", lossless=False))
        with av.open(str(tmp_path / f"out.{ending}")) as read:
            assert read.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


@pytest.mark.parametrize("ending", ["mkv", "mp4", "webm", "avi"])
def test_sound_titles_places_and_further_tracks_are_gone(tmp_path, ending):
    path = tmp_path / "clip.mov"
    secrets = {"title": "Jane Doe", "comment": "ward 7, bed 3", "location": "+52.5200+013.4050/", "artist": "Dr. Who"}
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as out:
        out.metadata.update(secrets)
        video, sound = out.add_stream("libx264", rate=30), out.add_stream("aac", rate=8000)
        second = out.add_stream("mpeg4", rate=30)
        for stream in (video, second):
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for n in range(10):
            for stream in (video, second):
                frame = av.VideoFrame.from_ndarray(card(n), format="rgb24").reformat(format="yuv420p", threads=1)
                frame.pts = n
                out.mux(stream.encode(frame))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            noise.sample_rate, noise.pts = 8000, 1024 * n
            out.mux(sound.encode(noise))
        for stream in (video, sound, second):
            out.mux(stream.encode(None))
    assert b"Jane Doe" in path.read_bytes()
    outcome = run(job(path, tmp_path / f"out.{ending}", lossless=False))
    assert [asdict(left) for left in outcome.left_out] == [
        {"name": "clip.mov", "reason": "1 other video track is not read"},
        {"name": "clip.mov", "reason": "its sound is not read"},
    ]
    content = (tmp_path / f"out.{ending}").read_bytes()
    for secret in secrets.values():
        assert secret.encode() not in content
    with av.open(str(tmp_path / f"out.{ending}")) as read:
        assert [stream.type for stream in read.streams] == ["video"]
        assert not {key.lower() for key in read.metadata} & {"title", "comment", "location", "artist", "date"}


def test_names_of_frames_are_the_numbers_of_the_reader(tmp_path):
    path = film(tmp_path / "a#1.mp4", count=5, b_frames=2)
    seen = {}
    run(job(path, tmp_path / "out.mkv", lambda frame, name: seen.setdefault(name, frame)))
    assert list(seen) == [f"a#1.mp4#{n}" for n in range(5)]
    assert [number_of(frame) for frame in seen.values()] == list(range(5))


def stopping(after):
    calls = []

    def change(frame, name):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(name)
        return 255 - frame

    return change


@pytest.mark.parametrize("ending", ["mkv", "mp4", "webm"])
def test_it_goes_on_wherever_it_was_interrupted(tmp_path, ending):
    path = film(tmp_path / "clip.mkv", count=70, b_frames=2)
    out = tmp_path / f"out.{ending}"
    done = 0
    for more in (5, 30, 1, 20):
        with pytest.raises(KeyboardInterrupt):
            run(job(path, out, stopping(more), lossless=False))
        done += more
        assert not out.exists()
    outcome = run(job(path, out, lossless=False))
    assert (outcome.resumed, outcome.frames) == (done, 70 - done)
    assert numbers(out) == list(range(70))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.mkv", out.name]


def test_spoiled_or_foreign_work_is_not_continued(tmp_path):
    path, out = film(tmp_path / "clip.mkv", count=70), tmp_path / "out.mkv"
    with pytest.raises(KeyboardInterrupt):
        run(job(path, out, stopping(50)))
    (work,) = tmp_path.glob(".out.mkv.*.wardpose-work")
    second = sorted(work.glob("*.segment"))[1]
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(KeyboardInterrupt):  # another method begins anew, beside it
        run(Job(source=path, destination=out, change=stopping(3), identity="other"))
    outcome = run(job(path, out))
    assert (outcome.resumed, outcome.frames) == (32, 38)
    assert numbers(out) == list(range(70))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.mkv", "out.mkv"]


def damaged(tmp_path, *bad, count=40):
    """An MJPEG film with some frames' data blanked."""
    path = film(tmp_path / "clip.avi", "mjpeg", count=count, pixels="yuvj420p")
    content = path.read_bytes()
    for number in sorted(bad, reverse=True):  # a blanked one no longer has a start: the last one first
        at = -1
        for _ in range(number + 1):
            at = content.index(b"\xff\xd8\xff", at + 1)
        end = content.index(b"\xff\xd9", at)
        content = content[:at] + bytes(end - at) + content[end:]
    path.write_bytes(content)
    return path


def test_a_bad_frame_in_the_middle_is_black_and_named_however_often_it_goes_on(tmp_path):
    path, out = damaged(tmp_path, 3, 35), tmp_path / "out.mkv"
    with pytest.raises(DataError, match=r"clip\.avi: frame 3 of 40 cannot be used .* the frames before it are kept"):
        run(job(path, out))
    with pytest.raises(KeyboardInterrupt):
        run(job(path, out, stopping(36 - 4), on_bad="skip"))
    with pytest.raises(DataError, match="frame 3 of 40"):  # what was black for one run is an error for another
        run(job(path, out))
    outcome = run(job(path, out, on_bad="skip"))
    assert (outcome.resumed, outcome.frames, len(outcome.skipped)) == (37, 3, 2)
    assert ["frame 3 of 40" in outcome.skipped[0], "frame 35 of 40" in outcome.skipped[1]] == [True, True]
    video = Video(out)
    assert [n for n in range(40) if not video.frame(n).any()] == [3, 35]
    assert [number_of(255 - video.frame(n)) for n in (2, 4, 34, 36, 39)] == [2, 4, 34, 36, 39]


def test_a_bad_end_is_left_away_and_named(tmp_path):
    path, out = damaged(tmp_path, 38, 39), tmp_path / "out.mkv"
    with pytest.raises(
        DataError, match=r"clip\.avi: after frame 37 the rest, 2 packets, does not decode .*--on-bad skip"
    ):
        run(job(path, out))
    outcome = run(job(path, out, on_bad="skip"))
    assert (outcome.frames, outcome.skipped) == (38, [])
    (left,) = outcome.left_out
    assert left.name == "clip.avi"
    assert left.reason.startswith("after frame 37 the rest")
    assert numbers(out) == list(range(38))


def test_a_video_of_which_nothing_decodes_is_refused(tmp_path):
    path = damaged(tmp_path, *range(10), count=10)
    for on_bad in ("error", "skip"):
        with pytest.raises(DataError, match=r"clip\.avi: .*(not one frame|nothing of it) decodes"):
            run(job(path, tmp_path / "out.mkv", on_bad=on_bad))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.avi"]


def test_a_change_that_fails_follows_the_same_rule(tmp_path):
    path, out = film(tmp_path / "clip.mp4", count=6), tmp_path / "out.mkv"

    def change(frame, name):
        if name.endswith("#2"):
            raise RecoveryError("no code in it")
        return frame

    with pytest.raises(RecoveryError, match=r"clip\.mp4: frame 2 of 6 cannot be used \(no code in it\)"):
        run(job(path, out, change))
    assert len(run(job(path, out, change, on_bad="skip")).skipped) == 1
    assert [n for n in range(6) if not Video(out).frame(n).any()] == [2]
    out.unlink()

    def refuse(frame, name):
        raise RecoveryError("wrong key")

    with pytest.raises(DataError, match=r"not one frame of 6 can be used .*wrong key"):
        run(Job(source=path, destination=out, change=refuse, identity="refuse", on_bad="skip"))
    assert not out.exists()


def test_what_an_encoder_cannot_hold_is_said_in_one_line(tmp_path):
    path = film(tmp_path / "wide.mkv", "ffv1", count=2, pixels="bgr0", height=8, width=17_000)
    with pytest.raises(DataError, match=r"out\.mp4: FFmpeg cannot store it as libx264"):
        run(job(path, tmp_path / "out.mp4", lossless=False))
    assert [entry.name for entry in tmp_path.iterdir()] == ["wide.mkv"]
    assert run(job(path, tmp_path / "out.mkv")).frames == 2


def test_a_film_that_changes_its_size_is_said(tmp_path):
    small, large = (
        film(tmp_path / f"{n}.ts", count=8, height=h, width=w) for n, (h, w) in enumerate([(96, 128), (120, 160)])
    )
    path = tmp_path / "clip.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(DataError, match=r"frame 8 of 16 .*160 x 120 pixels, the first 128 x 96"):
        run(job(path, tmp_path / "out.mkv"))


def test_what_lies_about_while_it_works_is_for_its_owner_alone(tmp_path):
    path, out, seen = film(tmp_path / "clip.mp4", count=40), tmp_path / "out.mkv", []

    def change(frame, name):
        seen.extend(path.stat().st_mode & 0o077 for path in tmp_path.glob(".out*"))
        return frame

    run(job(path, out, change, mode=0o600))
    assert seen
    assert set(seen) == {0}
    assert out.stat().st_mode & 0o077 == 0


def test_a_lying_header_is_no_damage(tmp_path):
    """Forty of forty frames decode, and the header says seventy."""
    path = film(tmp_path / "clip.avi", "mjpeg", count=40, pixels="yuvj420p")
    content = bytearray(path.read_bytes())
    for name, offset in ((b"avih", 24), (b"strh", 40)):
        at = content.index(name) + offset
        content[at : at + 4] = (70).to_bytes(4, "little")
    path.write_bytes(content)
    outcome = run(job(path, tmp_path / "out.mkv"))
    assert (outcome.frames, outcome.skipped, outcome.left_out) == (40, [], [])
    assert numbers(tmp_path / "out.mkv") == list(range(40))


CUTS = {
    "first.mp4": {"b_frames": 2, "muxing": {"movflags": "faststart"}},
    "clip.mkv": {"b_frames": 2},
    "live.webm": {"codec": "libvpx", "muxing": {"live": "1"}},
    "clip.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "clip.ts": {"b_frames": 2},
    "clip.mpg": {"codec": "mpeg2video", "b_frames": 2},
}


@pytest.fixture(scope="module")
def whole_films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for name, kind in CUTS.items():
        film(folder / name, count=16, **kind)
    return folder


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=st.sampled_from(sorted(CUTS)), part=st.floats(0.05, 0.999))
def test_a_cut_file_is_an_error_or_gives_what_is_there_and_says_what_is_not(tmp_path, whole_films, name, part):
    content = (whole_films / name).read_bytes()
    content = content[: int(part * len(content))]
    if name == "clip.ts" and len(content) % 188 == 0:
        content = content[:-1]  # between two packets nothing can tell
    path, out = tmp_path / name, tmp_path / "out.mkv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        run(job(path, out))
    assert not out.exists()
    try:
        outcome = run(job(path, out, on_bad="skip", force=True))
    except DataError as refusal:
        if str(path) in str(refusal):
            return
        raise
    assert any("cut off" in left.reason and left.name == name for left in outcome.left_out)
    assert Video(out).frame_count <= 16
    assert out.stat().st_size
    out.unlink()


def test_the_message_names_the_source_and_what_it_may_become(tmp_path):
    video = film(tmp_path / "00001.MTS", count=4, container="mpegts")
    for destination, words in {"o.png": "allowed: the ending .mkv", "o.xyz": ".mkv, .avi", "o": ".mkv"}.items():
        with pytest.raises(ConfigError, match=rf"00001\.MTS is a video: .*{destination} cannot hold it .*{words}"):
            run(job(video, tmp_path / destination))
    with pytest.raises(ConfigError, match="stored without loss"):
        run(job(video, tmp_path / "o.mp4"))
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.4 nothing to see")
    (tmp_path / "broken.mov").write_bytes(bytes(64))
    for name in ("letter.pdf", "broken.mov"):
        with pytest.raises(DataError, match=rf"{name}: .*\(allowed: a folder, .*\.png.* \.mts"):
            run(job(tmp_path / name, tmp_path / "o.png"))
    with pytest.raises(DataError, match=r"nowhere\.mp4: no such file or folder"):
        run(job(tmp_path / "nowhere.mp4", tmp_path / "o.mkv"))
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([5, 6, 9], [5, 6, 9]),
        ([-3, -2, 0], [-3, -2, 0]),
        ([2, 4, 3, 6, 5], [2, 3, 4, 5, 6]),
        ([0, 10, 10, 20], [0, 10, 11, 20]),
        ([0, 10, 20, 0, 10, 20], [0, 10, 20, 30, 40, 50]),
        ([0, NO_STAMP, 20], [0, 20, 40]),
        ([NO_STAMP, NO_STAMP], [0, 7]),
    ],
)
def test_times_rise(given, wanted):
    assert rising(given, usual=7) == wanted


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("case", "count"),
    [("late-start", 40), ("mts", 40), ("odd-size", 40), ("rotated-phone", 40), ("vfr", 40), ("webm-live", 40)],
)
@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_real_recordings(data_root, tmp_path, case, count, ending):
    folder = data_root / "real_files" / f"video-{case}"
    (path,) = [path for path in folder.iterdir() if path.suffix.lower() in (".mp4", ".mkv", ".webm", ".mts", ".avi")]
    out = tmp_path / f"out.{ending}"
    outcome = run(job(path, out, lossless=ending == "mkv"))
    assert (outcome.frames, outcome.skipped, outcome.left_out) == (count, [], [])
    source, made = Video(path), Video(out)
    for number in (39, 0, 33):
        frame = made.frame(number)[: source.height, : source.width]
        wanted = 255 - source.frame(number)
        assert np.abs(frame.astype(int) - wanted).max() == 0 if ending == "mkv" else True
        assert np.abs(frame.astype(int) - wanted).mean() < 5
    first, last = times(path), times(out)
    with av.open(str(out)) as read:
        unit = read.streams.video[0].time_base
    assert max(abs(a - b) for a, b in zip(first, last, strict=True)) <= unit / 2
    assert json.dumps(outcome.skipped) == "[]"
