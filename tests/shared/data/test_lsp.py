import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wardpose.shared.data.lsp import read_lsp, torso_group
from wardpose.shared.errors import DataError


def folder_of(root: Path, angles: dict[str, list[float | None]]) -> Path:
    number = 0
    for part, values in angles.items():
        (root / "images" / part).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        images, people = [], []
        for angle in values:
            number += 1
            name = f"lspet_{number:05}.jpg"
            Image.new("RGB", (60, 50)).save(root / "images" / part / name)
            images.append({"id": number, "file_name": name, "width": 60, "height": 50})
            people.append(
                {
                    "id": number,
                    "image_id": number,
                    "bbox": [5, 5, 40, 40],
                    "area": 800.0,
                    "lsp14": [20, 20, 2] * 14,
                    "head_size": 8.0,
                    "torso_angle_deg": angle,
                }
            )
        content = {"images": images, "annotations": people}
        (root / "annotations" / f"{part}_coco17.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("angle", "group"),
    [
        (0, "upright"),
        (45, "upright"),
        (-45, "upright"),
        (45.1, "leaning"),
        (-134.9, "leaning"),
        (135, "inverted"),
        (-180, "inverted"),
        (None, "unknown"),
    ],
)
def test_groups(angle: float | None, group: str) -> None:
    assert torso_group(angle) == group


def test_people_of_unknown_direction_are_private(tmp_path: Path) -> None:
    root = folder_of(
        tmp_path, {"train": [10.0, None, -45.0, 90.0], "extra": [0.0, None], "val": [0.0], "test": [170.0]}
    )

    def ids(split: Any) -> list[str]:
        dataset = read_lsp(root, split=split)
        return [dataset.record(i).record_id[-1] for i in range(len(dataset))]

    assert ids("public") == ["1", "3"]
    assert ids("private") == ["2", "4", "5", "6"]
    assert ids("val") == ["7"]
    assert ids("test") == ["8"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lsp14", [1, 1, 2] * 13, r"lsp14 has 39 numbers \(allowed: 42\)"),
        ("lsp14", [float("nan"), 1, 2] * 14, "lsp14 holds nan"),
        ("lsp14", [1, 1, 5] * 14, "visibility 5"),
        ("bbox", [50, 5, 40, 40], "outside the frame of 60 x 50"),
        ("torso_angle_deg", "up", "torso_angle_deg is 'up'"),
        ("head_size", -2, "head_size is -2"),
    ],
)
def test_bad_records(tmp_path: Path, key: str, value: Any, message: str) -> None:
    root = folder_of(tmp_path, {"val": [0.0, 0.0]})
    path = root / "annotations" / "val_coco17.json"
    content = json.loads(path.read_text())
    content["annotations"][1][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"val_coco17.json: record 2: .*{message}"):
        read_lsp(root, split="val")
    assert len(read_lsp(root, split="val", on_bad_record="skip").skipped) == 1


def test_no_such_split_or_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"secret.*allowed: public, private, val, test"):
        read_lsp(tmp_path, split="secret")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"test_coco17\.json: file is missing"):
        read_lsp(tmp_path, split="test")


@pytest.mark.realdata
def test_the_named_splits_of_the_real_set(data_root: Path) -> None:
    ids: dict[str, set[str]] = {}
    groups: dict[str, Counter[str]] = {}
    for split in ("public", "private", "val", "test"):
        dataset = read_lsp(data_root / "lspet", split=split)  # type: ignore[arg-type]
        records = [dataset.record(i) for i in range(len(dataset))]
        ids[split] = {record.record_id for record in records}
        groups[split] = Counter(record.group for record in records)
        assert not dataset.skipped
    assert {split: len(names) for split, names in ids.items()} == {
        "public": 783,
        "private": 4691,
        "val": 200,
        "test": 400,
    }
    assert len(set.union(*ids.values())) == 783 + 4691 + 200 + 400
    assert groups["public"] == {"upright": 783}
    assert groups["test"] == {"upright": 215, "leaning": 114, "inverted": 71}
    assert groups["private"]["unknown"] == 1226


@pytest.mark.realdata
def test_real_frames_and_joints_fit(data_root: Path) -> None:
    dataset = read_lsp(data_root / "lspet", split="test")
    for index in range(0, 400, 20):
        frame, record = dataset.frame(index), dataset.record(index)
        assert frame.dtype == np.uint8
        assert (record.visibility == 2).all()
        assert (record.joints <= [frame.shape[1], frame.shape[0]]).all()
        neck_to_top = np.linalg.norm(record.joints[12] - record.joints[13])
        assert record.head_size == pytest.approx(neck_to_top, abs=0.05)


def test_ids_and_names_of_other_tools_are_read_and_marks_are_checked(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"val": [0.0, 0.0]})
    path = root / "annotations" / "val_coco17.json"
    content = json.loads(path.read_text())
    content["images"][0] |= {"id": "1", "file_name": "images\\val\\lspet_00001.jpg", "width": "60"}
    content["annotations"][1]["image_id"] = 2.0
    path.write_bytes(json.dumps(content).encode("utf-8-sig"))
    dataset = read_lsp(root, split="val")
    assert [dataset.record(i).record_id for i in range(2)] == ["lspet_00001", "lspet_00002"]
    for mark in (0.5, -1, 3):
        content["annotations"][0]["lsp14"][2] = mark
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"record 1: lsp14 have visibility {mark}"):
            read_lsp(root, split="val")


@pytest.mark.realdata
def test_boxes_of_the_real_set_are_known_to_come_from_the_joints(data_root: Path) -> None:
    dataset = read_lsp(data_root / "lspet", split="val")
    assert {dataset.record(i).box_source for i in range(len(dataset))} == {"joints"}
    assert not dataset.patients_named
