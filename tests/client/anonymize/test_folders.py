"""Of a folder nothing is left out in silence."""

import json
import os
import shutil
from pathlib import Path

import pytest
import typer
from PIL import Image
from support.films import card, film, number_of
from typer.testing import CliRunner

from wardpose.client.anonymize.apply import Job, run
from wardpose.client.anonymize.request import anonymize, choose_method
from wardpose.client.commands import anonymize as command
from wardpose.client.commands import vault
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.video import Video
from wardpose.shared.errors import ConfigError, DataError


def job(source, destination, change=None, **more):
    return Job(source=source, destination=destination, change=change or negative, identity="negative", **more)


def negative(frame, name):
    return 255 - frame


def pages_of(path, count, **options):
    """Write a file of `count` pages, cards 0, 1, ...; a palette or DCT may change their pixels a little."""
    first, *rest = (Image.fromarray(card(n)) for n in range(count))
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def everything(folder):
    """Every name of a folder, as `left_out` and `made` together must give it."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(folder)) for path in found)


@pytest.fixture
def mixed(tmp_path):
    """What a hospital's folder holds after a few years."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("IMG_1.JPG", "IMG_2.jfif", "b.png", "sub/c.bmp", "x.webp", "noending"):
        Image.fromarray(card(len(name))).save(folder / name, format=None if "." in name else "PNG")
    pages_of(folder / "series.tif", 4)
    pages_of(folder / "loop.gif", 3)
    pages_of(folder / "sub" / "anim.webp", 3, lossless=True)
    pages_of(folder / "anim.png", 2, default_image=False)
    film(folder / "clip.MOV", count=6, b_frames=2)
    film(folder / "00001.MTS", count=6, container="mpegts")
    (folder / "slice.dcm").write_bytes(bytes(128) + b"DICM")
    (folder / "broken.MOV").write_bytes(bytes(64))
    (folder / "letter.docx").write_bytes(b"PK\x03\x04 patient")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "labels.json").write_text("{}")
    (folder / ".hidden").write_text("x")
    (folder / "empty").write_bytes(b"")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe")
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(card(1)).save(outside / "d.png")
    (folder / "linked").symlink_to(outside)
    return folder


def test_every_file_is_done_or_named_with_its_reason(mixed, tmp_path):
    outcome = run(job(mixed, tmp_path / "out"))
    made = {str(source.relative_to(mixed)) for source, _ in outcome.made}
    left = {entry.name: entry.reason for entry in outcome.left_out}
    assert sorted([*made, *left]) == everything(mixed)
    assert not made & left.keys()
    readable = {"IMG_1.JPG", "IMG_2.jfif", "b.png", "sub/c.bmp", "x.webp", "noending", "series.tif", "loop.gif"}
    assert made >= readable | {"sub/anim.webp", "anim.png", "clip.MOV", "00001.MTS"}
    assert left["gone.jpg"] == "a link to nothing"
    assert left["linked"] == "a link to a folder is not followed"
    assert left["pipe"] == "neither a file nor a folder"
    assert "is no video that can be read" in left["broken.MOV"]
    assert all(left.values())
    assert outcome.frames == 6 + 4 + 3 + 3 + 2 + 6 + 6
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {
        ".wardpose-manifest.jsonl", "IMG_1.png", "IMG_2.png", "b.png", "sub/c.png", "x.png", "noending.png",
        *(f"series-{n:04d}.png" for n in range(1, 5)), *(f"anim-{n:04d}.png" for n in range(1, 3)),
        *(f"loop-{n:04d}.png" for n in range(1, 4)), *(f"sub/anim-{n:04d}.png" for n in range(1, 4)),
        "clip.mkv", "00001.mkv",
    }  # fmt: skip


def test_a_second_run_finds_everything_done(mixed, tmp_path):
    first = run(job(mixed, tmp_path / "out"))
    again = run(job(mixed, tmp_path / "out"))
    assert (again.frames, again.resumed) == (0, first.frames)
    assert again.left_out == first.left_out
    assert again.made == first.made


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("series.tif", {}),
        ("series.tiff", {"compression": "tiff_lzw"}),
        ("anim.webp", {"lossless": True}),
        ("anim.png", {}),
        ("anim.gif", {}),
    ],
)
def test_every_page_is_written_from_a_folder_and_a_single_file_of_several_is_refused(tmp_path, name, options):
    folder = tmp_path / "in"
    folder.mkdir()
    path = pages_of(folder / name, 4, **options)
    names = []
    outcome = run(job(folder, tmp_path / "out", lambda frame, name: names.append(name) or 255 - frame))
    assert outcome.frames == 4
    assert names == [f"{name}#{page}" for page in range(4)]
    stem = name.split(".")[0]
    for page in range(4):
        assert number_of(255 - read_picture(tmp_path / "out" / f"{stem}-{page + 1:04d}.png")) == page
    with pytest.raises(DataError, match=rf"{name}: has 4 pages"):
        run(job(path, tmp_path / "one.png"))
    assert not (tmp_path / "one.png").exists()


def test_pages_that_are_half_done_are_done_again(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    pages_of(folder / "series.tif", 4)

    def stop(frame, name):
        if name.endswith("#2"):
            raise KeyboardInterrupt
        return 255 - frame

    with pytest.raises(KeyboardInterrupt):
        run(job(folder, out, stop))
    assert (run(job(folder, out)).frames, run(job(folder, out)).resumed) == (4, 4)
    (out / "series-0003.png").unlink()
    assert run(job(folder, out)).frames == 4
    pages_of(folder / "series.tif", 2)  # another content under the name
    assert (run(job(folder, out)).frames, run(job(folder, out)).resumed) == (2, 2)


@pytest.mark.parametrize(
    "names", [("bed.jpg", "bed.png"), ("bed.JPG", "bed.bmp"), ("sub/x.gif", "sub/x.tif"), ("clip.mov", "clip.MTS")]
)
def test_two_files_that_would_become_one_are_both_named(tmp_path, names):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in names:
        if name.startswith("clip"):
            film(folder / name, count=12, container="mpegts" if name.endswith("MTS") else None)
        else:
            Image.fromarray(card(1)).save(folder / name)
    with pytest.raises(DataError) as caught:
        run(job(folder, tmp_path / "out"))
    for name in names:
        assert f" {name} " in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_page_that_would_take_the_place_of_a_picture_is_named_before_it_does(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pages_of(folder / "a.tif", 3)
    Image.fromarray(card(9)).save(folder / "a-0002.jpg")
    with pytest.raises(DataError, match=r"a-0002\.jpg and a\.tif would both become .*a-0002\.png"):
        run(job(folder, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("a-000[13].png"))


def test_dots_in_names_are_no_endings(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("frame.0001", "frame.0002", "v1.2 bed.jpg"):
        Image.fromarray(card(1)).save(folder / name, format="PNG")
    run(job(folder, tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {
        "frame.0001.png", "frame.0002.png", "v1.2 bed.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("IMG_3.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)),
        ("IMG_4.avif", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(40)),
        ("raw.dng", b"II*\0" + bytes(60)),
        ("report.dcm", bytes(128) + b"DICM" + bytes(40)),
        ("IM000001", bytes(128) + b"DICM" + bytes(40)),
    ],
)
def test_whatever_can_be_read_here_no_name_is_lost(tmp_path, name, content):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(content)
    Image.fromarray(card(1)).save(folder / "good.png")
    outcome = run(job(folder, tmp_path / "out", on_bad="skip"))
    assert outcome.frames == 1
    assert [left.name for left in outcome.left_out] == [name] or name in "".join(outcome.skipped)
    if content[128:132] == b"DICM":  # a report, perhaps: not read, and no reason to stop
        assert [left.name for left in run(job(folder, tmp_path / "out")).left_out] == [name]


def test_a_photo_and_its_film_of_one_name_go_side_by_side(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(card(1)).save(folder / "IMG_1.JPG")
    film(folder / "IMG_1.MOV", count=3)
    assert run(job(folder, tmp_path / "out")).frames == 4
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {"IMG_1.png", "IMG_1.mkv"}


def test_bad_files_stop_or_are_listed_and_foreign_ones_are_kept(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(card(1)).save(folder / "good.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    whole = film(tmp_path / "whole.mkv", count=20)
    (folder / "cut.mkv").write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        run(job(folder, out))
    outcome = run(job(folder, out, on_bad="skip"))
    assert ["cut.jpg" in line for line in outcome.skipped] == [True]
    assert [(left.name, "cut off" in left.reason) for left in outcome.left_out] == [("cut.mkv", True)]
    assert {path.name for path in out.glob("[!.]*")} == {"good.png", "cut.mkv"}
    again = run(job(folder, out, on_bad="skip"))
    assert (again.frames, again.resumed) == (0, outcome.frames)
    assert (again.left_out, again.skipped) == (outcome.left_out, outcome.skipped)
    other = tmp_path / "other"
    other.mkdir()
    (other / "cut.mkv").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"cut\.mkv: exists already"):
        run(job(folder, other, on_bad="skip"))
    assert (other / "cut.mkv").read_bytes() == b"precious"


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_film_that_is_not_all_there_is_named_each_time_and_no_success_of_a_stricter_run(tmp_path, damage):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    path = film(folder / "film.mkv", "ffv1", count=8, pixels="bgr0", options={"slicecrc": "1", "level": "3"})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-500])

    def change(frame, name):
        if damage == "changed" and name.endswith("#3"):
            raise DataError("no box")
        return 255 - frame

    first = run(job(folder, out, change, on_bad="skip"))
    again = run(job(folder, out, change, on_bad="skip"))
    assert again.resumed > again.frames == 0
    assert (again.skipped, again.left_out) == (first.skipped, first.left_out)
    assert len(again.skipped + again.left_out) == 1
    with pytest.raises(DataError, match=r"film\.mkv: .*(cut off|frame 3 of 8 cannot be used)"):
        run(job(folder, out, change))
    assert (out / "film.mkv").exists()


def test_a_file_that_may_not_be_read_is_a_bad_file(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(card(1)).save(folder / "a.png")
    Image.fromarray(card(2)).save(folder / "b.png")
    whole = Path.open

    def closed(path, *arguments, **more):
        if path.name == "a.png" and path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(Permission denied\)"):
        run(job(folder, tmp_path / "out"))
    outcome = run(job(folder, tmp_path / "out", on_bad="skip"))
    assert (outcome.frames, len(outcome.skipped)) == (1, 1)


def test_an_interrupted_folder_with_a_film_goes_on_within_the_film(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(card(1)).save(folder / "a.png")
    film(folder / "clip.mov", count=20)

    def stop(frame, name):
        if name == "clip.mov#12":
            raise KeyboardInterrupt
        return 255 - frame

    with pytest.raises(KeyboardInterrupt):
        run(job(folder, out, stop))
    outcome = run(job(folder, out))
    assert (outcome.resumed, outcome.frames) == (1 + 12, 8)
    assert sorted(path.name for path in out.iterdir()) == [".wardpose-manifest.jsonl", "a.png", "clip.mkv"]
    assert run(job(folder, out)).resumed == 21


def test_what_is_begun_is_no_source_of_the_next_step(tmp_path):
    """Recovering a folder that is not finished takes what is, and neither its manifest nor a film's segments."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(card(1)).save(folder / "a.png")
    film(folder / "clip.mov", count=20)

    def stop(frame, name):
        if name == "clip.mov#12":
            raise KeyboardInterrupt
        return 255 - frame

    with pytest.raises(KeyboardInterrupt):
        run(job(folder, out, stop))
    outcome = run(job(out, tmp_path / "back"))
    assert (outcome.frames, outcome.left_out) == (1, [])


def test_a_manifest_of_an_earlier_version_is_understood(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(card(1)).save(folder / "a.jpg")
    run(job(folder, out))
    manifest = out / ".wardpose-manifest.jsonl"
    entry = json.loads(manifest.read_text())
    kept = {key: entry[key] for key in ("name", "source", "target", "identity")}
    manifest.write_text("\n" + json.dumps(kept))
    assert run(job(folder, out)).resumed == 1


def test_a_folder_of_nothing_that_can_be_read_says_what_is_there(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(DataError, match=r"in: no picture or video in this folder can be read$"):
        run(job(folder, tmp_path / "out"))
    (folder / "letter.txt").write_text("x")
    with pytest.raises(DataError, match=r"in: no picture or video .* \(letter\.txt: .+\)$"):
        run(job(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_progress_rises_to_the_end(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(card(1)).save(folder / "a.png")
    film(folder / "clip.mov", count=6)
    seen = []
    run(job(folder, tmp_path / "out", progress=lambda done, total: seen.append(done / total)))
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(seen) > 6


@pytest.fixture
def wardpose():
    app = typer.Typer()
    for module in (command, vault):
        module.register(app)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_the_command_says_last_what_was_left_out(wardpose, mixed, tmp_path):
    shown = wardpose("anonymize", mixed, tmp_path / "a", "--method", "blur")
    content = json.loads(wardpose("anonymize", mixed, tmp_path / "a", "--method", "blur", "--json"))
    assert content["resumed"] == 30
    last = shown.splitlines()[-1]
    assert last.startswith("left out: ")
    for entry in content["left_out"]:
        assert entry["name"] in last
        assert entry["reason"] in last
    assert len(content["left_out"]) == 10
    Image.fromarray(card(1)).save(tmp_path / "one.png")
    assert wardpose("anonymize", tmp_path / "one.png", tmp_path / "two.png", "--method", "blur").splitlines()[-1] == (
        "left out: nothing"
    )


def test_a_notebook_calls_what_the_command_calls(mixed, tmp_path):
    outcome = anonymize(mixed, tmp_path / "out", choose_method("mosaic", strength=8))
    assert (outcome.frames, len(outcome.left_out)) == (30, 10)
    assert (tmp_path / "out" / "clip.mp4").exists()
    with pytest.raises(ConfigError, match="smudge"):
        choose_method("smudge")


def test_boxes_are_found_by_file_and_by_frame(tmp_path):
    path = film(tmp_path / "clip.mkv", "ffv1", count=3, pixels="bgr0")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"clip.mkv": [[90, 60, 20, 20]], "clip.mkv#1": [[10, 60, 20, 20]]}))
    anonymize(path, tmp_path / "out.mkv", choose_method("blur"), boxes=boxes)
    out = Video(tmp_path / "out.mkv")
    changed = [(out.frame(n) != card(n)).any(axis=2) for n in range(3)]
    assert [bool(where[60:80, 10:30].mean() > 0.5) for where in changed] == [False, True, False]
    assert [bool(where[60:80, 90:110].mean() > 0.5) for where in changed] == [True, False, True]


@pytest.mark.realdata
@pytest.mark.parametrize("case", ["anon-mixed-folder", "anon-gps"])
def test_real_folders_lose_nothing_in_silence(data_root, tmp_path, wardpose, case):
    source = data_root / "real_files" / case / "in"
    said = json.loads(wardpose("anonymize", source, tmp_path / "out", "--method", "blur", "--json"))
    left = {entry["name"]: entry["reason"] for entry in said["left_out"]}
    made = {path.stem: path for path in (tmp_path / "out").glob("*.png")}
    assert {Path(name).stem for name in left} ^ made.keys() == {path.stem for path in source.iterdir()}
    assert {"IMG_0001", "p"} & made.keys()
    assert all(left.values())
    for path in made.values():
        assert not Image.open(path).getexif()
        assert b"GPS" not in path.read_bytes()


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["series.tif", "anim.webp", "anim.png"])
def test_real_pictures_of_several_pages(data_root, tmp_path, wardpose, name):
    path = data_root / "real_files" / "anon-multipage" / "in" / name
    with pytest.raises(DataError, match=rf"{name}: has 4 pages"):
        wardpose("anonymize", path, tmp_path / "a.png", "--method", "blur")
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(path, folder)
    assert json.loads(wardpose("anonymize", folder, tmp_path / "out", "--method", "blur", "--json"))["frames"] == 4
    assert len(list((tmp_path / "out").glob("*-000[1-4].png"))) == 4


@pytest.mark.realdata
def test_two_real_files_of_one_name_are_both_named(data_root, tmp_path, wardpose):
    with pytest.raises(DataError, match=r"bed\.jpg and bed\.png would both become"):
        wardpose("anonymize", data_root / "real_files" / "anon-same-stem" / "in", tmp_path / "a", "--method", "blur")
