import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wardpose.shared.data.dataset import ImageFile, ListDataset, concatenate
from wardpose.shared.data.records import Frame, PoseDataset, PoseRecord, patients_named
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import COCO17, LSP14, Skeleton


def record(name: str, patient: str = "p", x: float = 5.0) -> PoseRecord:
    return PoseRecord(
        record_id=name,
        patient_id=patient,
        joints=np.full((14, 2), x, np.float32),
        visibility=np.full(14, 2, np.uint8),
        box=np.array([1, 1, 20, 20], np.float32),
        scale=20.0,
        head_size=3.0,
        area=200.0,
    )


def dataset(root: Path, records: list[PoseRecord], name: str = "set") -> ListDataset:
    root.mkdir(exist_ok=True)
    for i in range(len(records)):
        Image.new("RGB", (30, 30), (i, 0, 0)).save(root / f"{i}.png")
    frames = [ImageFile(root=root, name=f"{i}.png") for i in range(len(records))]
    return ListDataset(name=name, skeleton=LSP14, records=records, frames=frames, notes=["said"])


class Rendered:
    """A data set that makes its frames itself."""

    def __init__(self) -> None:
        self.name, self.skeleton, self.notes = "rendered", LSP14, ["said"]

    def __len__(self) -> int:
        return 2

    def record(self, index: int) -> PoseRecord:
        return record(f"r{index}")

    def frame(self, index: int) -> Frame:
        return np.full((30, 30, 3), 100 + index, np.uint8)

    def identity(self) -> str:
        return "rendered"


def test_it_is_a_pose_dataset(tmp_path: Path) -> None:
    assert isinstance(dataset(tmp_path, [record("a")]), PoseDataset)


def test_frames_are_read_when_asked_for(tmp_path: Path) -> None:
    data = dataset(tmp_path, [record("a"), record("b")])
    (tmp_path / "1.png").unlink()
    assert data.record(1).record_id == "b"
    assert data.frame(0).shape == (30, 30, 3)
    with pytest.raises(DataError, match=r"1\.png: image is missing"):
        data.frame(1)


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (7, 5)).save(tmp_path / "x.png")
        frame = ImageFile(root=tmp_path, name="x.png").load()
        assert (frame.shape, frame.dtype) == ((5, 7, 3), np.uint8)


def test_frames_are_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    image.paste((255, 255, 255), (0, 0, 40, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # "turn me"
    image.save(tmp_path / "x.jpg", exif=exif)
    source = ImageFile(root=tmp_path, name="x.jpg")
    frame = source.load()
    assert frame.shape[:2] == source.size() == (40, 20)
    assert frame[:, 15].min() > 200 > 50 > frame[:, 5].max()
    assert source.header().stored == (20, 40)


def test_identity_is_of_annotations_and_files_not_of_the_place(tmp_path: Path) -> None:
    records = [record("a"), record("b")]
    first = dataset(tmp_path / "one", records)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    moved = ListDataset(
        name="set",
        skeleton=LSP14,
        records=records,
        frames=[ImageFile(root=tmp_path / "two", name=f"{i}.png") for i in range(2)],
    )
    assert len(first.identity()) == 64
    assert first.identity() == moved.identity()
    others = [
        first.select([1, 0]),
        first.select([0]),
        dataset(tmp_path / "one", [record("a"), record("b", x=5.5)]),
        dataset(tmp_path / "one", [record("a"), record("b", patient="q")]),
    ]
    assert len({first.identity(), *(other.identity() for other in others)}) == 5
    os.truncate(tmp_path / "two" / "1.png", 20)
    assert first.identity() != moved.identity()


def test_selecting(tmp_path: Path) -> None:
    data = dataset(tmp_path, [record("a", "p"), record("b", "q"), record("c", "p")])
    chosen = data.only_patients({"p"})
    assert [chosen.record(i).record_id for i in range(len(chosen))] == ["a", "c"]
    assert [int(chosen.frame(i)[0, 0, 0]) for i in range(2)] == [0, 2]
    assert chosen.notes == ["said"]
    with pytest.raises(DataError, match='patient "z" has no record'):
        data.only_patients({"p", "z"})
    ordered = data.only_records(["c", "a"], listed_in=tmp_path / "ids.json")
    assert int(ordered.frame(0)[0, 0, 0]) == 2
    with pytest.raises(DataError, match=r'ids\.json: record "z" is not in set'):
        data.only_records(["z"], listed_in=tmp_path / "ids.json")
    with pytest.raises(DataError, match="listed twice"):
        data.only_records(["a", "a"], listed_in=tmp_path / "ids.json")


def test_concatenate(tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", [record("a"), record("b")], "one")
    joined = concatenate([one, Rendered()])
    assert [joined.record(i).record_id for i in range(4)] == ["a", "b", "r0", "r1"]
    assert [int(joined.frame(i)[0, 0, 0]) for i in range(4)] == [0, 1, 100, 101]
    assert joined.notes == ["said"]
    assert joined.identity() == concatenate([one, Rendered()]).identity()
    assert concatenate([one]) is one


def test_whether_patients_are_named_is_kept(tmp_path: Path) -> None:
    named = dataset(tmp_path / "one", [record("a"), record("b")], "one")
    invented = ListDataset(
        name="two",
        skeleton=LSP14,
        records=[record("c")],
        frames=[ImageFile(root=tmp_path / "one", name="0.png")],
        patients_named=False,
    )
    assert patients_named(named)
    assert patients_named(Rendered())  # it made its people itself
    assert not patients_named(invented)
    assert not patients_named(invented.select([0]))
    assert not patients_named(invented.in_skeleton(COCO17))
    assert not patients_named(concatenate([named, invented]))
    assert patients_named(concatenate([named, Rendered()]))


def test_equal_ids_of_different_sets_are_different_people(tmp_path: Path) -> None:
    one = dataset(tmp_path / "one", [record("a")], "one")
    joined = concatenate([one, dataset(tmp_path / "two", [record("a")], "two")])
    assert len({joined.record(i).record_id for i in range(2)}) == 2
    assert len({joined.record(i).patient_id for i in range(2)}) == 2


def test_concatenate_refuses_nothing_and_mixed_skeletons(tmp_path: Path) -> None:
    class Other(Rendered):
        def __init__(self, skeleton: Skeleton) -> None:
            super().__init__()
            self.skeleton = skeleton

    with pytest.raises(DataError, match="no data set"):
        concatenate([])
    with pytest.raises(DataError, match="skeletons differ"):
        concatenate([dataset(tmp_path, [record("a")]), Other(COCO17)])
