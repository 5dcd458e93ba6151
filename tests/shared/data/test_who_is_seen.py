"""Who is in a picture: also whoever gives no record of their own, and under whichever name the picture is listed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wardpose.shared.data.coco import read_coco
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.video import read_video
from wardpose.shared.skeleton import COCO17
from wardpose.shared.training.cohort import index_units

Json = dict[str, Any]
NAMES = ("a.png", "b.png", "c.png")
RULE = PatientRule(ids="exact")


def person(number: int, image: int, patient: str, **more: Any) -> Json:
    places = np.random.default_rng(number).integers(10, 90, (17, 2))
    keypoints = [float(value) for x, y in places for value in (x, y, 2)]
    return {
        "id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "patient": patient, "keypoints": keypoints,
        "num_keypoints": 17, "bbox": [5, 5, 90, 90], "area": 100.0,
    } | more  # fmt: skip


def write(folder: Path, *others: Json) -> Path:
    """Ann in a.png, Bob in b.png, Cleo in c.png, and whoever else."""
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 255, (100, 100, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), pixels)
    people = [person(number, number, patient) for number, patient in enumerate(("ann", "bob", "cleo"), start=1)]
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 100, "height": 100} for number, name in enumerate(NAMES, start=1)
        ],
        "annotations": [*people, *others],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints)}],
    }
    (folder / "people.json").write_text(json.dumps(content))
    return folder / "people.json"


def units(folder: Path, **options: Any) -> tuple[str, ...]:
    return index_units(read_coco(folder / "people.json", images=folder, patients=RULE, **options)).names


@pytest.mark.parametrize(
    "other",
    [
        {"keypoints": [500.0, 500.0, 2] * 17},
        {"keypoints": [50.0, 50.0, 9] * 17},
        {"keypoints": [50.0, 50.0, 2] * 3},
        {"keypoints": "none"},
        {"bbox": [5, 5, -3, 4]},
        {"area": -1.0},
        {"iscrowd": 1},
        {"keypoints": [0, 0, 0] * 17, "num_keypoints": 0},
        {"keypoints": person(1, 1, "")["keypoints"]},
        {"id": 2},
    ],
    ids=lambda other: "-".join(other),
)
def test_whoever_gives_no_record_is_seen_in_the_picture(tmp_path: Path, other: Json) -> None:
    write(tmp_path, person(9, 1, "dan", **other))
    found = units(tmp_path, on_bad_record="skip")
    assert "ann" not in found
    assert "cleo" in found


def test_an_id_that_comes_twice_is_nobodys(tmp_path: Path) -> None:
    """Were the first one kept, the second would come in when the first one goes: two units would move."""
    write(tmp_path, person(9, 3, "dan", id=1))
    (tmp_path / "d.png").write_bytes((tmp_path / "c.png").read_bytes() + b"\0")
    content = json.loads((tmp_path / "people.json").read_text())
    content["images"].append({"id": 4, "file_name": "d.png", "width": 100, "height": 100})
    content["annotations"][-1]["image_id"] = 4
    (tmp_path / "people.json").write_text(json.dumps(content))
    dataset = read_coco(tmp_path / "people.json", images=tmp_path, patients=RULE, on_bad_record="skip")
    assert index_units(dataset).names == ("bob", "cleo")
    assert [skip.record for skip in dataset.skipped] == ["1", "1"]


def copied(folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / "b.png")


def linked(folder: Path) -> None:
    (folder / "b.png").unlink()
    os.link(folder / "a.png", folder / "b.png")


def pointed(folder: Path) -> None:
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to("a.png")


@pytest.mark.parametrize("make", [copied, linked, pointed])
def test_a_picture_under_two_names_shows_everybody_of_both(tmp_path: Path, make: Callable[[Path], None]) -> None:
    write(tmp_path)
    assert units(tmp_path) == ("ann", "bob", "cleo")
    make(tmp_path)
    assert units(tmp_path) == ("cleo",)
    dataset = read_coco(tmp_path / "people.json", images=tmp_path, patients=RULE)
    assert len(index_units(dataset, unit="frame")) == 2


def test_pictures_of_one_size_are_told_apart_by_their_content(tmp_path: Path) -> None:
    write(tmp_path)
    data = bytearray((tmp_path / "a.png").read_bytes())
    for name, place in (("b.png", 60), ("c.png", len(data) // 2)):  # outside of the sample, and in it
        changed = bytearray(data)
        changed[place] ^= 1
        (tmp_path / name).write_bytes(changed)
    assert units(tmp_path) == ("ann", "bob", "cleo")


def test_whoever_gives_no_record_is_seen_in_a_frame_of_labels(tmp_path: Path) -> None:
    write(tmp_path)
    joints = np.asarray(person(1, 1, "")["keypoints"]).reshape(-1, 3).tolist()
    records = [
        {"frame": name, "joints": joints, "patient": patient}
        for name, patient in zip(NAMES, ("ann", "bob", "cleo"), strict=True)
    ]
    for bad in ([[5.0, 5.0, 7]] * 17, [[900.0, 900.0, 2]] * 17):
        other = {"frame": "a.png", "person": 1, "joints": bad, "patient": "dan"}
        (tmp_path / "labels.json").write_text(json.dumps({"skeleton": "coco17", "records": [*records, other]}))
        dataset = read_video(tmp_path, labels=tmp_path / "labels.json", on_bad_record="skip", patients=RULE)
        assert index_units(dataset).names == ("bob", "cleo")
