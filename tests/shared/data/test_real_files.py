"""Files in the shape of public bug reports, each with its right value."""

from pathlib import Path

import numpy as np
import pytest

from wardpose.shared.data.coco import read_coco
from wardpose.shared.data.dataset import ListDataset
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.video import read_video
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import COCO17, LSP14

pytestmark = pytest.mark.realdata


@pytest.fixture
def files(data_root: Path) -> Path:
    return data_root / "real_files"


def coco(folder: Path, **options: object) -> ListDataset:
    return read_coco(folder / "keypoints.json", images=folder / "images", skeleton=LSP14, **options)  # type: ignore[arg-type]


def ids(dataset: ListDataset) -> list[str]:
    return [dataset.record(i).record_id for i in range(len(dataset))]


def said(dataset: ListDataset) -> str:
    return " ".join(dataset.notes)


@pytest.mark.parametrize("name", ["coco-backslash", "coco-bom", "coco-string-ids", "coco-two-person-ids"])
def test_everybody_is_read(files: Path, name: str) -> None:
    dataset = coco(files / name)
    assert ids(dataset) == ["1", "2", "3"]
    for i in range(3):
        frame, record = dataset.frame(i), dataset.record(i)
        assert frame.shape == (120, 160, 3)
        assert (record.visibility > 0).sum() == 13
        x, y = record.joints[LSP14.index("left_shoulder")].astype(int)
        assert frame[y + 8, x - 5, 2] > 120 > frame[y + 8, x - 5, 0]  # a blue shirt: the joints lie on the person


def test_an_empty_track_is_left_out_and_said(files: Path) -> None:
    dataset = coco(files / "coco-cvat-empty-track")
    assert ids(dataset) == ["1", "3"]
    assert "1 people without labelled joints left out" in said(dataset)


def test_a_phone_held_upside_down(files: Path) -> None:
    dataset = coco(files / "exif-3-viewer-coords")
    upright = coco(files / "coco-bom")
    for i in range(3):
        difference = np.abs(dataset.frame(i).astype(int) - upright.frame(i))
        assert difference.mean() < 8  # noise; the upside-down one is 17 away
        assert np.abs(dataset.frame(i)[::-1, ::-1].astype(int) - upright.frame(i)).mean() > 14
    assert "3 pictures carry an EXIF orientation" in said(dataset)


def test_labels_of_stored_pixels_are_refused_where_their_size_tells(files: Path) -> None:
    folder = files / "exif-anonymize-then-read"
    with pytest.raises(DataError, match=r"record 2: frame_002\.jpg is stored with 160 x 120 .*turned to 120 x 160"):
        coco(folder)
    assert ids(coco(folder, on_bad_record="skip")) == ["1"]
    assert read_picture(folder / "images" / "frame_002.jpg").shape == (160, 120, 3)


def test_sixteen_bits_are_not_white(files: Path) -> None:
    dataset = coco(files / "png-16bit")
    for i in range(3):
        frame = dataset.frame(i)
        assert 105 < frame.mean() < 112
        assert 15 < frame.std() < 25
        assert (frame[..., 0].min(), frame[..., 0].max()) == (15420 // 256, 48573 // 256)


def test_one_patient_in_four_spellings(files: Path) -> None:
    folder = files / "patients-trailing-space"
    path = folder / "patients.csv"
    with pytest.raises(DataError, match=r"patients\.csv: row 2 and row 4: patients 'P017' and 'p017'"):
        coco(folder, patients=PatientRule(file=path))
    dataset = coco(folder, patients=PatientRule(file=path, ids="fold"))
    assert {dataset.record(i).patient_id for i in range(len(dataset))} == {"P017"}


@pytest.mark.parametrize("labels", ["labels.csv", "labels_semicolon.csv"])
def test_frames_without_an_ending(files: Path, labels: str) -> None:
    folder = files / "labels-csv-excel"
    dataset = read_video(folder / "frames", folder / labels)
    assert [dataset.record(i).record_id for i in range(len(dataset))] == ["0001:0", "0002:0"]
    assert dataset.skeleton is COCO17
    assert dataset.frame(0).shape == (120, 160, 3)
    assert dataset.patients_named
