"""Pictures of a folder are changed together, and become what each becomes alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.films import card, film

from wardpose.client.anonymize import folder as folders
from wardpose.client.anonymize.apply import Job, run
from wardpose.client.anonymize.request import anonymize, choose_method
from wardpose.shared.data.crops import crop_record
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import DataError

SIZES = [(96, 128), (128, 96), (71, 40), (96, 128), (300, 500), (33, 31), (96, 128)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Landscape and portrait, odd, small and large, one turned by EXIF, one of two pages, and a film between them."""
    folder = tmp_path / "in"
    folder.mkdir()
    ward = Image.fromarray(WardDataset("north", patients=1, frames_per_patient=1, seed=3).frame(0))
    for n, (height, width) in enumerate(SIZES):
        ward.resize((width, height)).save(folder / f"{n}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    ward.resize((128, 96)).save(folder / "2b.jpg", exif=turned)
    ward.resize((64, 48)).save(folder / "3b.tif", save_all=True, append_images=[ward.resize((48, 64))])
    film(folder / "4b.mp4", count=3)
    return folder


class Counting:
    """Black out a half, and remember what came together."""

    def __init__(self) -> None:
        self.together: list[list[tuple[int, ...]]] = []
        self.names: list[str] = []

    def one(self, frame: np.ndarray, name: str) -> np.ndarray:
        if "bad" in name:
            raise DataError(f"{name}: cannot be changed")
        out = frame.copy()
        out[: len(out) // 2] = 0
        return out

    def many(self, frames: list[np.ndarray], names: list[str]) -> list[np.ndarray]:
        self.together.append([frame.shape for frame in frames])
        self.names += names
        return [self.one(frame, name) for frame, name in zip(frames, names, strict=True)]

    def job(self, source: Path, destination: Path, **more) -> Job:
        return Job(
            source=source, destination=destination, change=self.one, change_many=self.many, identity="half", **more
        )


def test_each_picture_becomes_what_it_becomes_alone(pictures: Path, tmp_path: Path) -> None:
    scene = WardDataset("north", patients=2, frames_per_patient=1, seed=3)
    for n, (height, width) in enumerate([(256, 192), (192, 256), (255, 191), (256, 192), (400, 300)]):
        person = crop_record(scene, n % 2, (256, 192)).image
        Image.fromarray(person).resize((width, height)).save(pictures / f"person{n}.png")
    method = choose_method("public-view")
    outcome = anonymize(pictures, tmp_path / "out", method)
    assert outcome.frames == len(SIZES) + 1 + 2 + 3 + 5
    lit = 0
    for source in sorted(pictures.glob("*.[pj][np]g")):
        anonymize(source, tmp_path / "alone.png", method, force=True)
        together = read_picture(tmp_path / "out" / f"{source.stem}.png").astype(int)
        alone = read_picture(tmp_path / "alone.png").astype(int)
        assert together.shape == alone.shape
        assert abs(together - alone).max() <= 1, source.name  # a rounding of another batch's arithmetic
        lit += bool(alone.max() > 0)
    assert lit >= 3  # not everything is black
    assert read_picture(tmp_path / "out" / "2b.png").shape[:2] == (128, 96)


def test_they_come_in_their_order_and_no_more_than_fit(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "BATCH", 4)
    monkeypatch.setattr(folders, "BATCH_BYTES", 50_000)
    counting, steps = Counting(), []
    outcome = run(counting.job(pictures, tmp_path / "out", lossless=False, progress=lambda *at: steps.append(at)))
    # As many as have 50,000 bytes, the last one over it; before the film what waits; the film; and the rest.
    assert [len(shapes) for shapes in counting.together] == [2, 3, 3, 3, 2]
    assert len(counting.names) == outcome.frames
    assert [source.name for source, _ in outcome.made] == sorted(
        [*(f"{n}.png" for n in range(7)), "2b.jpg", "3b.tif", "3b.tif", "4b.mp4"]
    )
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (10_000, 10_000)


@pytest.mark.parametrize("name", ["3bad.png", "3broken.png"])
def test_what_comes_before_a_bad_picture_is_kept_and_the_rest_goes_on_where_that_is_wanted(
    pictures: Path, tmp_path: Path, name: str
) -> None:
    if name == "3bad.png":
        Image.fromarray(card(1)).save(pictures / name)
    else:
        (pictures / name).write_bytes((pictures / "0.png").read_bytes()[:300])
    with pytest.raises(DataError, match=name):
        run(Counting().job(pictures, tmp_path / "out", lossless=False))
    done = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert done == ["0.png", "1.png", "2.png", "2b.png", "3.png", "3b-0001.png", "3b-0002.png"][: len(done)]
    assert len(done) >= 5
    outcome = run(Counting().job(pictures, tmp_path / "out", lossless=False, on_bad="skip"))
    assert outcome.resumed == len(done)
    assert outcome.frames + outcome.resumed == len(SIZES) + 1 + 2 + 3
    assert len(outcome.skipped) == 1
    assert name in outcome.skipped[0]
