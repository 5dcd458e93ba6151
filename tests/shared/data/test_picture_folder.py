"""Which file does a label mean?"""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from wardpose.shared.data.picture_folder import PictureFolder
from wardpose.shared.errors import DataError

FILES = ["bed.jpg", "sub/Bed 2.PNG", "0007.png", "images/chair.jpg", "0042", "Zimmer Ä.jpg"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, format="PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._bed.jpg").write_bytes(b"\0\5\x16\7")
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_a_name_is_taken_as_it_is(root: Path, name: str) -> None:
    folder = PictureFolder(root)
    assert folder.find(name).name == folder.find(f"./{name}").name == name
    assert not any("names are not those" in note for note in folder.notes())


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("pictures\\bed.jpg", "bed.jpg"),
        ("sub\\Bed 2.PNG", "sub/Bed 2.PNG"),
        (".\\sub\\Bed 2.PNG", "sub/Bed 2.PNG"),
        ("/home/annotator/export/bed.jpg", "bed.jpg"),
        ("C:\\Users\\x\\bed.jpg", "bed.jpg"),
        ("../../label-studio/data/media/upload/1/bed.jpg", "bed.jpg"),
        ("/data/local-files/?d=export/sub/Bed%202.PNG", "sub/Bed 2.PNG"),
        ("https://cvat.example/files/bed.jpg?size=full", "bed.jpg"),
        ("sub/Bed%202.PNG", "sub/Bed 2.PNG"),
        ("BED.JPG", "bed.jpg"),
        ("sub/bed 2.png", "sub/Bed 2.PNG"),
        ("bed", "bed.jpg"),
        ("bed.png", "bed.jpg"),  # its ending changed when it was anonymised
        ("0042.png", "0042"),
        ("7", "0007.png"),
        ("7.0", "0007.png"),
        ("42", "0042"),
        (" bed.jpg\u00a0", "bed.jpg"),
        (unicodedata.normalize("NFD", "Zimmer Ä.jpg"), "Zimmer Ä.jpg"),
    ],
)
def test_what_tools_make_of_a_name_is_undone_and_said(root: Path, stated: str, name: str) -> None:
    folder = PictureFolder(root)
    found = folder.find(stated)
    assert (found.name, found.load().shape) == (name, (4, 4, 3))
    (note,) = [note for note in folder.notes() if "names are not those" in note]
    assert name in note


@pytest.mark.parametrize(
    "stated",
    [
        "sub/bed.jpg",
        "other.jpg",
        "",
        "/",
        "..",
        "8",
        "images/bed.jpg",
        "notes",
        "http://[",
        "a\0b",
        "x" * 300,
        "\ud800",
    ],
)
def test_what_is_not_there_is_missing(root: Path, stated: str) -> None:
    # A folder that is there is not dropped: the picture is missing in it, and the one outside is another one.
    with pytest.raises(DataError, match="image is missing"):
        PictureFolder(root).find(stated)


def test_no_name_leads_out_of_the_folder(root: Path) -> None:
    outside = root.parent / "secret.png"
    Image.new("RGB", (4, 4)).save(outside)
    for stated in (str(outside), "../secret.png", "sub/../../secret.png", "..\\secret.png"):
        with pytest.raises(DataError, match="image is missing"):
            PictureFolder(root).find(stated)


def test_a_guess_that_fits_several_files_is_refused(root: Path) -> None:
    Image.new("RGB", (4, 4)).save(root / "007.png")
    with pytest.raises(DataError, match=r'"7" fits 0007\.png, 007\.png'):
        PictureFolder(root).find("7")
    Image.new("RGB", (4, 4)).save(root / "bed.png")
    with pytest.raises(DataError, match=r'"bed" fits bed\.jpg, bed\.png'):
        PictureFolder(root).find("bed")


@pytest.mark.parametrize("names", [("bed.jpg", "x\\bed.jpg"), ("a/bed.jpg", "b/bed.jpg"), ("a/bed.jpg", "bed.jpg")])
def test_two_names_do_not_mean_one_picture(root: Path, names: tuple[str, str]) -> None:
    folder = PictureFolder(root)
    folder.find(names[0])
    with pytest.raises(DataError, match="both mean this picture"):
        folder.find(names[1])


def test_pictures_without_a_label_and_listed_ones_that_are_missing_are_said(root: Path) -> None:
    folder = PictureFolder(root)
    folder.find("bed.jpg")
    folder.mention("0007.png")
    folder.mention("gone.png")
    assert folder.unnamed() == ["0042", "Zimmer Ä.jpg", "images/chair.jpg", "sub/Bed 2.PNG"]
    notes = " ".join(folder.notes())
    assert "1 pictures without a person are missing (gone.png)" in notes
    assert "4 pictures are not listed (0042, Zimmer Ä.jpg, images/chair.jpg, ...)" in notes
