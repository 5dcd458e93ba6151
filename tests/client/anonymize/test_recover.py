"""Films and pages come back from a vault as single pictures do."""

import json

import numpy as np
import pytest
import typer
from PIL import Image
from support.films import film, number_of, times
from typer.testing import CliRunner

from wardpose.client.commands import anonymize, vault
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.video import Video
from wardpose.shared.errors import RecoveryError


def smooth(number):
    """A picture with a number that survives a learned code."""
    rows, columns = np.mgrid[:96, :128]
    picture = np.stack([128 + 60 * np.sin(columns / 19), 128 + 60 * np.cos(rows / 17), 0 * rows + 90], axis=2)
    for block in range(8):
        picture[:32, block * 16 : (block + 1) * 16] = 220 if number >> block & 1 else 30
    return picture.astype(np.uint8)


@pytest.fixture
def wardpose():
    app = typer.Typer()
    for module in (anonymize, vault):
        module.register(app)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    return call


@pytest.fixture
def locked(wardpose, tmp_path, recoverable_weights):
    secret = tmp_path / "ada.txt"
    secret.write_text("correct horse battery\n")
    wardpose(
        "vault", "create", tmp_path / "vault", "--person", "ada", "--weights", recoverable_weights,
        "--passphrase-file", f"ada={secret}",
    )  # fmt: skip
    return tmp_path / "vault"


def test_a_folder_with_films_and_pages_comes_back(wardpose, locked, recoverable_weights, tmp_path):
    folder, hidden, back = tmp_path / "in", tmp_path / "hidden", tmp_path / "back"
    folder.mkdir()
    Image.fromarray(smooth(5)).save(folder / "bed#3.png")  # no frame's number
    first, *rest = (Image.fromarray(smooth(n)) for n in range(3))
    first.save(folder / "scan.tif", save_all=True, append_images=rest)
    stamps = [1000 * n + (45_000 if n > 4 else 0) for n in range(8)]
    film(folder / "clip.mkv", "ffv1", count=8, pixels="bgr0", stamps=stamps, picture=smooth)
    vaulted = ("--vault", locked, "--weights", recoverable_weights, "--keep-originals")
    said = wardpose("anonymize", folder, hidden, *vaulted, "--json")
    assert (said["frames"], said["left_out"]) == (12, [])
    ada = ("--vault", locked, "--person", "ada", "--passphrase-file", f"ada={tmp_path / 'ada.txt'}", "--why", "round")
    said = wardpose("recover", hidden, back, *ada, "--json")
    assert (said["frames"], said["left_out"]) == (12, [])
    assert number_of(read_picture(back / "bed#3.png")) == 5
    assert [number_of(read_picture(back / f"scan-{n + 1:04d}.png")) for n in range(3)] == [0, 1, 2]
    video = Video(back / "clip.mkv")
    assert [number_of(video.frame(n)) for n in range(8)] == list(range(8))
    assert times(back / "clip.mkv") == times(hidden / "clip.mkv") == times(folder / "clip.mkv")
    assert all(path.stat().st_mode & 0o077 == 0 for path in back.glob("[!.]*"))
    logged = [entry["what"].split(" ")[0] for entry in wardpose("vault", "log", "--vault", locked, "--json")["entries"]]
    assert sorted(logged[1:]) == ["bed#3.png", "clip.mkv", *(f"scan-{n:04d}.png" for n in (1, 2, 3))]
    for name, source in {"clip.mkv": "clip.mkv", "scan-0002.png": "scan.tif"}.items():
        exact = tmp_path / f"exact-{name}"
        wardpose("recover", hidden / name, exact, *ada, "--original")
        assert exact.read_bytes() == (folder / source).read_bytes()


def test_a_film_with_a_black_frame_comes_back_but_for_that_frame(wardpose, locked, recoverable_weights, tmp_path):
    path = film(tmp_path / "clip.avi", "mjpeg", count=6, pixels="yuvj420p", picture=smooth)
    content = path.read_bytes()
    at = -1
    for _ in range(3):
        at = content.index(b"\xff\xd8\xff", at + 1)
    end = content.index(b"\xff\xd9", at)
    path.write_bytes(content[:at] + bytes(end - at) + content[end:])
    hidden, back = tmp_path / "hidden.mkv", tmp_path / "back.mkv"
    vaulted = ("--vault", locked, "--weights", recoverable_weights)
    assert len(wardpose("anonymize", path, hidden, *vaulted, "--on-bad", "skip", "--json")["skipped"]) == 1
    ada = ("--vault", locked, "--person", "ada", "--passphrase-file", f"ada={tmp_path / 'ada.txt'}", "--why", "round")
    with pytest.raises(RecoveryError, match=r"hidden\.mkv: frame 2 of 6 cannot be used .*carries no recoverable code"):
        wardpose("recover", hidden, back, *ada)
    assert not back.exists()
    said = wardpose("recover", hidden, back, *ada, "--on-bad", "skip", "--json")
    assert ["frame 2 of 6" in line for line in said["skipped"]] == [True]
    assert [number_of(Video(back).frame(n)) for n in (0, 1, 3, 4, 5)] == [0, 1, 3, 4, 5]
    assert not Video(back).frame(2).any()
