"""COCO keypoints as annotation tools really export them, and whose pixels their labels are of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.coco_files import Content, content, edit, write

from wardpose.shared.data.coco import read_coco
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import PatientError
from wardpose.shared.skeleton import COCO17


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("7", "8"):
        Image.fromarray(np.full((70, 80, 3), int(name), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def people(folder: Path, document: Content, **options: Any) -> Any:
    return read_coco(write(folder, document), images=folder, **options)


def ids(dataset: Any) -> list[str]:
    return [dataset.record(i).record_id for i in range(len(dataset))]


def spelled(joint: str, between: str) -> str:
    first, *words = joint.split("_")
    return between.join([first, *(word.title() for word in words)])


ROOT = {"id": 0, "name": "ward-Qg7R", "supercategory": "none"}
SKELETONS = {
    "merged export": [{"id": 2, "name": "person", "keypoints": list(COCO17.joints)}],
    "another name": [{"id": 2, "name": "patient", "keypoints": list(COCO17.joints)}],
    "Label Studio": [{"id": 2, "name": "default", "supercategory": "default", "keypoints": list(COCO17.joints)}],
    "Roboflow": [ROOT, {"id": 2, "name": "person", "supercategory": "ward-Qg7R", "keypoints": list(COCO17.joints)}],
    "a root called person": [
        {"id": 0, "name": "person", "supercategory": "none"},
        {"id": 2, "name": "person", "supercategory": "person", "keypoints": list(COCO17.joints)},
    ],
    "names with blanks": [{"id": 2, "name": "Person", "keypoints": [spelled(j, " ") for j in COCO17.joints]}],
    "names in camel case": [{"id": 2, "name": "x", "keypoints": [spelled(j, "") for j in COCO17.joints]}],
}  # fmt: skip


@pytest.mark.parametrize("case", SKELETONS)
def test_every_category_of_people_is_read(folder: Path, case: str) -> None:
    document = content()
    document["categories"] += SKELETONS[case]
    document["annotations"][2]["category_id"] = 2
    dataset = people(folder, document)
    assert ids(dataset) == ["1", "2", "3"]
    np.testing.assert_allclose(dataset.record(2).joints[3], [16, 23])


def test_joints_in_another_order_are_told_by_name(folder: Path) -> None:
    plain = people(folder, content())
    document = content()
    order = np.random.default_rng(0).permutation(17)
    document["categories"][0]["keypoints"] = [COCO17.joints[i] for i in order]
    for person in document["annotations"]:
        person["keypoints"] = np.reshape(person["keypoints"], (17, 3))[order].ravel().tolist()
    np.testing.assert_array_equal(people(folder, document).record(1).joints, plain.record(1).joints)


def test_other_categories_are_counted_by_name(folder: Path) -> None:
    document = content()
    document["categories"] += [ROOT, {"id": 5, "name": "hand", "keypoints": ["thumb"]}]
    boxes = [{"id": 10 + i, "image_id": 7, "category_id": c, "bbox": [1, 1, 5, 5]} for i, c in enumerate((0, 0, 5, 77))]
    document["annotations"] += boxes
    dataset = people(folder, document)
    assert ids(dataset) == ["1", "2", "3"]
    (note,) = [note for note in dataset.notes if "other categories" in note]
    assert "4 annotations of other categories (hand: 1, of id 77: 1, ward-Qg7R: 2) left out" in note


@pytest.mark.parametrize(
    "empty",
    [
        {"keypoints": [], "num_keypoints": 0, "bbox": [0, 0, 0, 0], "area": 0},
        {"keypoints": []},
        {"keypoints": None, "num_keypoints": 0},
        {"num_keypoints": 0, "keypoints": KeyError},
        {"keypoints": [0] * 51, "num_keypoints": 0},
        {"keypoints": [5, 5, 0] * 17},
    ],
)
def test_a_person_without_joints_is_left_out_however_it_is_written(folder: Path, empty: dict[str, Any]) -> None:
    document = content()
    for key, value in empty.items():
        edit(["annotations", 1, key], value)(document)
    dataset = people(folder, document)
    assert ids(dataset) == ["1", "3"]
    assert any("1 people without labelled joints" in note for note in dataset.notes)


def test_joints_that_are_counted_but_missing_are_an_error(folder: Path) -> None:
    document = content()
    document["annotations"][1] |= {"keypoints": [], "num_keypoints": 17}
    with pytest.raises(DataError, match=r"record 2: num_keypoints is 17, but keypoints is empty"):
        people(folder, document)


@pytest.mark.parametrize("written", [str, float, lambda number: f" {number}.0"[:-2]])
def test_ids_are_numbers_or_texts(folder: Path, written: Callable[[int], Any]) -> None:
    document = content()
    for person in document["annotations"]:
        person["image_id"], person["id"] = written(person["image_id"]), written(person["id"])
    for image in document["images"]:
        image["width"], image["height"] = str(image["width"]), float(image["height"])
    document["annotations"][0]["category_id"] = "1"
    dataset = people(folder, document)
    assert ids(dataset) == ["1", "2", "3"]
    assert int(dataset.frame(2)[0, 0, 0]) == 8


def test_ids_may_be_names(folder: Path) -> None:
    document = content()
    document["images"][0]["id"] = document["annotations"][0]["image_id"] = document["annotations"][1]["image_id"] = (
        "ab-7"
    )
    document["annotations"][0]["id"] = "f3c1"
    assert ids(people(folder, document)) == ["f3c1", "2", "3"]


@pytest.mark.parametrize("mark", [1, "1", 1.0, True, "true"])
@pytest.mark.parametrize("clear", [0, "0", False, None, "", "0.0"])
def test_a_crowd_is_a_crowd_however_it_is_written(folder: Path, mark: Any, clear: Any) -> None:
    document = content()
    document["annotations"][0]["iscrowd"] = mark
    document["annotations"][1]["iscrowd"] = clear
    dataset = people(folder, document)
    assert ids(dataset) == ["2", "3"]
    assert any("1 crowd boxes" in note for note in dataset.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_every_encoding_of_json(folder: Path, encoding: str) -> None:
    path = folder / "people.json"
    (folder / "7.png").rename(folder / "Bett Ä.png")
    document = content()
    document["images"][0]["file_name"] = "Bett Ä.png"
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))
    assert len(read_coco(path, images=folder)) == 3


def test_a_key_that_appears_twice_is_not_half_forgotten(folder: Path) -> None:
    text = json.dumps(content())
    with pytest.raises(DataError, match='key "annotations" appears twice'):
        people(folder, text[:-1] + ', "annotations": []}')  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [{"width": None, "height": None}, {"width": 0, "height": 0}, {"width": KeyError}])
def test_a_size_that_is_not_stated_is_not_compared(folder: Path, size: dict[str, Any]) -> None:
    document = content()
    for key, value in size.items():
        edit(["images", 0, key], value)(document)
    del document["annotations"][0]["area"]
    document["annotations"][0]["segmentation"] = [[5, 5, 25, 5, 25, 25, 5, 25]]
    dataset = people(folder, document)
    assert len(dataset) == 3
    assert dataset.record(0).area == pytest.approx(400, rel=0.2)


def test_an_annotation_that_repeats_another_one_is_no_second_person(folder: Path) -> None:
    document = content()
    document["annotations"].append({**document["annotations"][1], "id": 44})
    dataset = people(folder, document)
    assert ids(dataset) == ["1", "2", "3"]
    assert any("1 annotations that repeat another one" in note for note in dataset.notes)


@pytest.mark.parametrize("name", ["7.png", "./7.png"])
def test_a_picture_that_is_listed_twice_has_each_person_once(folder: Path, name: str) -> None:
    document = content()
    document["images"].append({**document["images"][0], "id": 70, "file_name": name})
    again = {**document["annotations"][1], "id": 44, "image_id": 70}
    other = {**again, "id": 45, "keypoints": [value + (i % 3 == 0) for i, value in enumerate(again["keypoints"])]}
    document["annotations"] += [again, other]
    dataset = people(folder, document)
    assert ids(dataset) == ["1", "2", "3", "45"]
    assert any("1 annotations that repeat another one" in note for note in dataset.notes)
    again["patient"] = "ada"
    with pytest.raises(DataError, match=r"record 44: it repeats an annotation of 7\.png, but names other patients"):
        people(folder, document)


@pytest.mark.parametrize("empty", [[None, None, 0], [float("nan"), 3, 0], [None, None, None]])
def test_a_joint_that_is_not_labelled_needs_no_place(folder: Path, empty: list[Any]) -> None:
    document = content()
    document["annotations"][1]["keypoints"][:3] = empty
    assert people(folder, document).record(1).visibility.tolist() == [0] + [2] * 16


@pytest.mark.parametrize("blank", ["", " ", "\u00a0\u200b", None])
def test_a_patient_of_blanks_is_none(folder: Path, blank: str | None) -> None:
    document = content()
    for person in document["annotations"]:
        person["attributes"] = {"patient": blank}
    assert not people(folder, document).patients_named


def test_patients_in_the_annotations_count(folder: Path) -> None:
    document = content()
    document["annotations"][0]["attributes"] = {"occluded": False, "patient": "P1 "}
    document["annotations"][1]["patient"] = "P2"
    document["annotations"][1]["also"] = ["P1"]
    document["annotations"][2]["attributes"] = {"patient": 17}
    dataset = people(folder, document)
    assert dataset.patients_named
    assert [dataset.record(i).patient_id for i in range(3)] == ["P1", "P2", "17"]
    assert dataset.record(1).also_patients == ("P1",)
    assert not any("own patient" in note for note in dataset.notes)
    document["annotations"][2]["attributes"] = {"patient": "p1"}
    with pytest.raises(DataError, match="record 1 and record 3: patients 'P1' and 'p1'"):
        people(folder, document, on_bad_record="skip")
    folded = people(folder, document, patients=PatientRule(ids="fold"))
    assert [folded.record(i).patient_id for i in range(3)] == ["P1", "P2", "P1"]
    del document["annotations"][2]["attributes"]
    partly = people(folder, document)
    assert not partly.patients_named
    assert any("1 records name no patient (3 ...)" in note for note in partly.notes)
    assert not people(folder, content()).patients_named


def test_an_unused_row_of_a_patients_file_is_said(folder: Path) -> None:
    (folder / "p.csv").write_text("record,patient\n7.png,ada\n8.png,bob\n9.png,eve\n")
    dataset = people(folder, content(), patients=PatientRule(file=folder / "p.csv"))
    assert dataset.patients_named
    assert any('1 rows name no record here (row 4 "9.png")' in note for note in dataset.notes)
    (folder / "p.csv").write_text("record,patient\n7.png,ada\n")
    assert ids(people(folder, content(), patients=PatientRule(file=folder / "p.csv"), on_bad_record="skip")) == [
        "1",
        "2",
    ]


def test_an_uncertain_patient_is_an_error_even_where_bad_records_are_skipped(folder: Path) -> None:
    document = content()
    for number, image in enumerate(document["images"]):
        (folder / f"bed{number}").mkdir()
        (folder / image["file_name"]).rename(folder / f"bed{number}" / "0001.png")
        image["file_name"] = f"bed{number}/0001.png"
    (folder / "p.csv").write_text("record,patient\n0001.png,ada\n")
    with pytest.raises(PatientError, match=r"record 3: .*row 2 fits frames"):
        people(folder, document, patients=PatientRule(file=folder / "p.csv"), on_bad_record="skip")


def test_pictures_that_are_not_listed_or_not_there_are_said(folder: Path) -> None:
    document = content()
    document["images"].append({"id": 9, "file_name": "gone.png", "width": 80, "height": 70})
    Image.new("RGB", (4, 4)).save(folder / "extra.png")
    notes = " ".join(people(folder, document).notes)
    assert "1 pictures are not listed (extra.png)" in notes
    assert "1 pictures without a person are missing (gone.png)" in notes


@pytest.mark.parametrize("margin", [0.0, 0.12])
def test_a_box_that_was_computed_from_the_joints_says_so(folder: Path, margin: float) -> None:
    document = content()
    more = margin * 16
    document["annotations"][1]["bbox"] = [12 - more, 20 - more, 16 + 2 * more, 16 + 2 * more]
    dataset = people(folder, document)
    assert [dataset.record(i).box_source for i in range(3)] == ["given", "joints", "given"]
    assert any("1 boxes were computed from the joints" in note for note in dataset.notes)


# EXIF orientation


def photograph(folder: Path, name: str, orientation: int, size: tuple[int, int] = (80, 70)) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(folder / name, exif=exif)


def photographed(folder: Path, orientation: int, stated: tuple[int, int], size: tuple[int, int] = (80, 70)) -> Content:
    photograph(folder, "7.jpg", orientation, size)
    document = content()
    document["images"][0] |= {"file_name": "7.jpg", "width": stated[0], "height": stated[1]}
    return document


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_are_of_the_upright_picture(folder: Path, orientation: int) -> None:
    turned = orientation >= 5
    dataset = people(folder, photographed(folder, orientation, (70, 80) if turned else (80, 70)))
    assert dataset.frame(0).shape[:2] == ((80, 70) if turned else (70, 80))
    said = [note for note in dataset.notes if "EXIF orientation" in note]
    assert len(said) == (1 if 2 <= orientation <= 4 else 0)  # sizes agree either way, so that nothing tells
    assert all(f"7.jpg: {orientation}" in note for note in said)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_labels_of_the_stored_picture_are_refused_with_what_to_do(folder: Path, orientation: int) -> None:
    document = photographed(folder, orientation, (80, 70))
    with pytest.raises(
        DataError, match=rf"record 1: 7\.jpg is stored with 80 x 70 .*orientation {orientation}"
    ) as caught:
        people(folder, document)
    assert "exiftool" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ids(people(folder, document, on_bad_record="skip")) == ["3"]
    with pytest.raises(DataError, match="image is 70 x 80 pixels, the annotation says 60 x 60"):
        people(folder, photographed(folder, orientation, (60, 60)))


def test_a_square_or_unstated_size_cannot_tell_and_is_said(folder: Path) -> None:
    square = people(folder, photographed(folder, 6, (80, 80), size=(80, 80)))
    unstated = people(folder, photographed(folder, 6, (0, 0)))
    for dataset in (square, unstated):
        assert any("1 pictures carry an EXIF orientation" in note for note in dataset.notes)
