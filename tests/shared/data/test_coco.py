import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks
from support.coco_files import content, edit, write

from wardpose.shared.data.coco import read_coco
from wardpose.shared.data.coco_masks import segmentation_mask
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import COCO17, LSP14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("7", "8"):
        Image.fromarray(np.full((70, 80, 3), int(name), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_several_people_share_a_frame(folder: Path) -> None:
    dataset = read_coco(write(folder, content()), images=folder)
    assert [dataset.record(i).record_id for i in range(3)] == ["1", "2", "3"]
    assert [int(dataset.frame(i)[0, 0, 0]) for i in range(3)] == [7, 7, 8]
    assert dataset.record(0).patient_id == "1"
    assert "own patient" in dataset.notes[-1]
    np.testing.assert_allclose(dataset.record(1).joints[3], [15, 23])


BAD_RECORDS = {
    "box outside": (edit(["annotations", 1, "bbox"], [60, 5, 50, 60]), r"box \[60.*outside the frame of 80 x 70"),
    "box far outside": (edit(["annotations", 1, "bbox"], [900, 900, 50, 60]), "outside the frame"),
    "box empty": (edit(["annotations", 1, "bbox"], [5, 5, 0, 60]), "above 0"),
    "box short": (edit(["annotations", 1, "bbox"], [5, 5, 10]), r"bbox has 3 numbers \(allowed: 4\)"),
    "box missing": (edit(["annotations", 1, "bbox"], KeyError), "bbox is missing"),
    "joints missing": (edit(["annotations", 1, "keypoints"], KeyError), "keypoints is missing"),
    "joint count": (edit(["annotations", 1, "keypoints"], [1, 1, 2] * 16), r"48 numbers \(allowed: 51\)"),
    "joint nan": (edit(["annotations", 1, "keypoints", 3], float("nan")), "nan"),
    "joint infinite": (edit(["annotations", 1, "keypoints", 3], float("inf")), "inf"),
    "joint text": (edit(["annotations", 1, "keypoints", 3], "x"), "51 numbers"),
    "all joints outside": (edit(["annotations", 1, "keypoints"], [500, 500, 2] * 17), "no labelled joint lies"),
    "visibility": (edit(["annotations", 1, "keypoints", 5], 3), "visibility 3"),
    "duplicate id": (edit(["annotations", 1, "id"], 1), 'duplicate record id "1"'),
    "id empty": (edit(["annotations", 1, "id"], " "), "id is empty"),
    "shares": (
        edit(["annotations", 1, "keypoints"], [0.4, 0.9, 2] * 17),
        "17 labelled joints lie within the first pixel",
    ),
    "others of nobody": (edit(["annotations", 1, "also"], ["ada"]), r"also is \['ada'\], but patient is missing"),
    "id type": (edit(["annotations", 1, "id"], [1]), "id is"),
    "no such image": (edit(["annotations", 1, "image_id"], 99), "image_id 99 is not among"),
    "missing image": (edit(["images", 1, "file_name"], "9.png"), "9.png: image is missing"),
    "another size": (edit(["images", 1, "width"], 81), "the annotation says 81 x 70"),
    "area": (edit(["annotations", 1, "area"], -4), "area is -4"),
    "no object": (edit(["annotations", 1], 5), "entry is 5"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_one_clear_error_or_a_listed_skip(folder: Path, case: str) -> None:
    apply, message = BAD_RECORDS[case]
    document = content()
    apply(document)
    path = write(folder, document)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path, images=folder)
    assert str(path) in str(caught.value)
    assert "record " in str(caught.value)
    assert "\n" not in str(caught.value)
    dataset = read_coco(path, images=folder, on_bad_record="skip")
    assert len(dataset) == 2
    assert len(dataset.skipped) == 1
    assert any("1 bad records skipped" in note for note in dataset.notes)


BAD_FILES = {
    "malformed": ("{", "malformed JSON"),
    "a list": ([], "allowed: an object"),
    "no annotations": ({"images": [], "categories": content()["categories"]}, "annotations is missing"),
    "no people": ({**content(), "annotations": []}, "set is empty"),
    "no person": ({**content(), "categories": []}, "no person"),
    "twice": ({**content(), "images": content()["images"] * 2}, "image id 7 appears twice"),
    "other joints": ({**content(), "categories": [{"id": 1, "name": "person", "keypoints": ["nose"]}]}, "nose"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_a_bad_file_is_an_error_either_way(folder: Path, case: str, on_bad_record: Any) -> None:
    value, message = BAD_FILES[case]
    path = write(folder, value)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path, images=folder, on_bad_record=on_bad_record)
    assert str(path) in str(caught.value)


def test_a_missing_folder_is_named(folder: Path) -> None:
    path = write(folder, content())
    for images in (folder / "nowhere", path):
        with pytest.raises(DataError, match=rf"{images.name}: is no folder \(allowed: the folder of the pictures"):
            read_coco(path, images=images, on_bad_record="skip")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: file is missing"):
        read_coco(tmp_path / "nowhere.json", images=tmp_path)


def test_all_skipped_is_an_empty_set(folder: Path) -> None:
    document = content()
    for person in document["annotations"]:
        person["bbox"] = [900, 0, 5, 5]
    with pytest.raises(DataError, match=r"set is empty .*3 bad records"):
        read_coco(write(folder, document), images=folder, on_bad_record="skip")


def test_a_truncated_image_fails_when_read_or_when_all_are_decoded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8)
    document = content()
    for image in document["images"]:
        image["file_name"] = f"{image['id']}.jpg"
        Image.fromarray(noise).save(tmp_path / image["file_name"])
    broken = tmp_path / "8.jpg"
    broken.write_bytes(broken.read_bytes()[:3000])
    path = write(tmp_path, document)
    dataset = read_coco(path, images=tmp_path)
    with pytest.raises(DataError, match=r"8\.jpg: image is broken"):
        dataset.frame(2)
    with pytest.raises(DataError, match=r"record 3: .*8\.jpg: image is broken"):
        read_coco(path, images=tmp_path, check_images="decode")
    assert len(read_coco(path, images=tmp_path, check_images="decode", on_bad_record="skip")) == 2
    broken.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"8\.jpg: image is broken"):
        read_coco(path, images=tmp_path)


def test_crowds_and_people_without_joints_are_left_out_and_said(folder: Path) -> None:
    document = content()
    document["annotations"][0]["iscrowd"] = 1
    document["annotations"][1]["keypoints"] = [0] * 51
    dataset = read_coco(write(folder, document), images=folder)
    assert len(dataset) == 1
    assert any("1 crowd boxes" in note for note in dataset.notes)
    assert any("1 people without" in note for note in dataset.notes)


def test_a_joint_outside_the_frame_is_not_labelled_and_said(folder: Path) -> None:
    document = content()
    document["annotations"][0]["keypoints"][0] = 300
    dataset = read_coco(write(folder, document), images=folder)
    assert dataset.record(0).visibility[0] == 0
    assert any("1 joints outside" in note for note in dataset.notes)


def test_another_skeleton_is_mapped_by_name(folder: Path) -> None:
    document = content()
    plain = read_coco(write(folder, copy.deepcopy(document)), images=folder)
    mapped = read_coco(write(folder, document), images=folder, skeleton=LSP14)
    knee = mapped.record(0).joints[LSP14.index("left_knee")]
    np.testing.assert_array_equal(knee, plain.record(0).joints[COCO17.index("left_knee")])
    assert mapped.record(0).visibility[LSP14.index("head_top")] == 0


def test_people_without_a_joint_of_the_layout_are_left_out_and_said(folder: Path) -> None:
    document = content()
    document["annotations"][0]["keypoints"][15:] = [0] * 36  # a face alone
    path = write(folder, document)
    assert len(read_coco(path, images=folder)) == 3
    mapped = read_coco(path, images=folder, skeleton=LSP14)
    assert [mapped.record(i).record_id for i in range(len(mapped))] == ["2", "3"]
    assert any("1 people without a labelled joint of lsp14" in note for note in mapped.notes)


@pytest.mark.realdata
def test_the_real_sample(data_root: Path) -> None:
    root = data_root / "coco_sample"
    path = root / "annotations" / "person_keypoints_train2017.json"
    dataset = read_coco(path, images=root / "images")
    assert len(dataset) == 77
    assert any("5 crowd boxes" in note for note in dataset.notes)
    assert any("48 people without" in note for note in dataset.notes)
    names = {image["id"]: image["file_name"] for image in json.loads(path.read_text())["images"]}
    assert len(names) == 20
    for index in range(0, 77, 8):
        frame, record = dataset.frame(index), dataset.record(index)
        assert frame.shape[:2] == dataset.frame_size(index)
        assert record.area < record.box[2] * record.box[3] * 1.01


@pytest.mark.realdata
def test_real_masks_have_their_stated_area(data_root: Path) -> None:
    path = data_root / "coco_sample" / "annotations" / "person_keypoints_train2017.json"
    document = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    kinds = set()
    for person in document["annotations"]:
        mask = segmentation_mask(person["segmentation"], sizes[person["image_id"]])
        assert mask.shape == sizes[person["image_id"]]
        assert mask.sum() == pytest.approx(person["area"], rel=0.15, abs=60)
        kinds.add(type(person["segmentation"]))
        packed = masks.encode(np.asfortranarray(mask))
        packed = {"size": [*mask.shape], "counts": packed["counts"].decode()}
        np.testing.assert_array_equal(segmentation_mask(packed, mask.shape), mask)
    assert kinds == {dict, list}
    for bad in (
        {"counts": "nonsense"},
        {"counts": "nonsense", "size": [10, 10]},
        {"counts": [50, 60], "size": [10, 10]},
        {"counts": [-1, 101], "size": [10, 10]},
        {"counts": [50, 50], "size": [99999, 99999]},
        {"counts": "\x7f" * 5, "size": [10, 10]},
        {"counts": "o" * 50, "size": [10, 10]},
        [[1, 2]],
        [[1, 1, 5, 1, 5, 1e9]],
        [[1, 1, 5, 1, 5, float("nan")]],
        [],
        5,
    ):
        with pytest.raises(DataError, match="segmentation"):
            segmentation_mask(bad, (10, 10))
