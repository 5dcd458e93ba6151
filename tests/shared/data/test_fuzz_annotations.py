"""Damaged annotations of every kind: an error of one line that names the file, or a data set; never a traceback."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.coco_files import content

from wardpose.shared.data.coco import read_coco
from wardpose.shared.data.dataset import ListDataset
from wardpose.shared.data.lsp import read_lsp
from wardpose.shared.data.mpii import read_mpii
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.video import read_video
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14

pytestmark = pytest.mark.timeout(120)

SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), 1 << 63, 0.5, 1e300, -1e300, float("nan"), float("inf")]),
    st.text(max_size=6),
    st.sampled_from(["7.png", "../7.png", "/7.png", "\ud800", "a\0b", "0001", "1e9", "2024-01-01"]),
    st.lists(st.integers(-2, 99), max_size=4),
    st.just({}),
    st.just([[[]]]),
    st.dictionaries(st.sampled_from(["counts", "size", "id", "x"]), st.text(max_size=4), max_size=2),
)


def person(frame: str) -> dict[str, Any]:
    joints = [[20 + i, 30 + i, 2] for i in range(14)]
    return {"frame": frame, "joints": joints, "patient": "P1", "also": ["P2"], "box": [5, 5, 50, 50], "head_size": 4}


def mpii_person() -> dict[str, Any]:
    joints = [[21.0 + i, 31.0 + i] for i in range(16)]
    return {
        "image": "7.png", "center": [40, 35], "scale": 0.2, "joints": joints, "joints_vis": [1] * 16,
        "headbox": [1, 1, 5, 5],
    }  # fmt: skip


def lsp_content() -> dict[str, Any]:
    someone = {
        "id": 1, "image_id": 7, "bbox": [5, 5, 50, 50], "area": 90.0, "lsp14": [20, 30, 2] * 14, "head_size": 3.0,
        "torso_angle_deg": 3.0,
    }  # fmt: skip
    return {"images": [{"id": 7, "file_name": "7.png", "width": 80, "height": 70}], "annotations": [someone]}


def coco_content() -> dict[str, Any]:
    document = content()
    document["annotations"][0] |= {"segmentation": [[5, 5, 25, 5, 25, 25]], "num_keypoints": 17, "attributes": {"a": 1}}
    del document["annotations"][0]["area"]
    document["annotations"][1] |= {"segmentation": {"counts": [5600], "size": [70, 80]}, "iscrowd": 0}
    return document


Read = Callable[[Path, Any], ListDataset]
READERS: dict[str, tuple[Callable[[], Any], str, Read]] = {
    "coco": (coco_content, "a.json", lambda path, bad: read_coco(path, images=path.parent, on_bad_record=bad)),
    "mpii": (
        lambda: [mpii_person()],
        "a.json",
        lambda path, bad: read_mpii(path, images=path.parent, on_bad_record=bad),
    ),
    "lsp": (
        lsp_content,
        "annotations/val_coco17.json",
        lambda path, bad: read_lsp(path.parents[1], split="val", on_bad_record=bad),
    ),
    "video": (
        lambda: {"skeleton": "lsp14", "records": [person("7.png"), person("8")]},
        "a.json",
        lambda path, bad: read_video(path.parent, path, on_bad_record=bad),
    ),
    "patients": (
        lambda: {"1": "P1", "7.png": ["P2", "P1"], "8.png": "P3"},
        "p.json",
        lambda path, bad: coco_with(path, bad),
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("7.png", "8.png"):
        Image.new("RGB", (80, 70)).save(tmp_path / name)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images" / "val").mkdir(parents=True)
    Image.new("RGB", (80, 70)).save(tmp_path / "images" / "val" / "7.png")
    (tmp_path / "people.json").write_text(json.dumps(content()))
    return tmp_path


def coco_with(patients: Path, bad: Any) -> ListDataset:
    folder = patients.parent
    return read_coco(folder / "people.json", images=folder, patients=PatientRule(file=patients), on_bad_record=bad)


def outcome(read: Read, path: Path) -> list[ListDataset | DataError]:
    """Read with both answers to a bad record; an error is one line that names a file."""
    found: list[ListDataset | DataError] = []
    for bad in ("error", "skip"):
        try:
            found.append(read(path, bad))
        except DataError as error:
            found.append(error)
    for item in found:
        if isinstance(item, DataError):
            text = str(item)
            assert str(path.parent) in text or str(path.parents[1]) in text
            assert "\n" not in text.replace("\\n", "")
        else:
            for i in range(len(item)):
                record = item.record(i)
                assert np.isfinite(record.joints).all()
                assert np.isfinite(record.box).all()
                assert record.box[2:].min() > 0
                assert record.patient_id
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in places(item, (*path, key)))]


@pytest.mark.parametrize("kind", READERS)
def test_a_whole_file_is_read(folder: Path, kind: str) -> None:
    make, name, read = READERS[kind]
    (folder / name).write_text(json.dumps(make()))
    assert all(isinstance(found, ListDataset) for found in outcome(read, folder / name))


@pytest.mark.parametrize("kind", READERS)
def test_any_value_in_any_place(folder: Path, kind: str) -> None:
    make, name, read = READERS[kind]
    whole = make()

    @SETTINGS
    @given(st.lists(st.tuples(st.sampled_from(places(whole)), VALUES, st.booleans()), min_size=1, max_size=3))
    def change(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
        document = copy.deepcopy(whole)
        for place, shared, remove in changes:
            value = copy.deepcopy(shared)
            target = document
            try:
                for key in place[:-1]:
                    target = target[key]
                if not place:
                    document = value
                elif remove:
                    del target[place[-1]]
                else:
                    target[place[-1]] = value
            except (TypeError, KeyError, IndexError):
                continue  # an earlier change took the place away
        (folder / name).write_text(json.dumps(document))
        outcome(read, folder / name)

    change()


@pytest.mark.parametrize("kind", READERS)
def test_a_cut_json_is_an_error_and_flipped_bytes_are_no_traceback(folder: Path, kind: str) -> None:
    make, name, read = READERS[kind]
    text = json.dumps(make()).encode()
    place = st.integers(0, len(text) - 1)

    @SETTINGS
    @given(
        place,
        st.lists(st.tuples(place, st.integers(0, 255)), max_size=4),
    )
    def damage(length: int, changes: list[tuple[int, int]]) -> None:
        (folder / name).write_bytes(text[:length])
        assert all(isinstance(found, DataError) for found in outcome(read, folder / name))
        changed = bytearray(text)
        for at, value in changes:
            changed[at] = value
        (folder / name).write_bytes(changed)
        outcome(read, folder / name)

    damage()


def csv_labels() -> str:
    columns = ["frame", "patient", "also", *(f"{joint}_{part}" for joint in LSP14.joints for part in "xyv")]
    rows = [[name, "P1", "P2;P3", *(v for i in range(14) for v in (20 + i, 30 + i, 2))] for name in ("7.png", "8")]
    return "".join(",".join(map(str, cells)) + "\n" for cells in (columns, *rows))


TABLES: dict[str, tuple[Callable[[], str], Read]] = {
    "labels": (csv_labels, lambda path, bad: read_video(path.parent, path, on_bad_record=bad)),
    "patients": (lambda: "record,patient,also\n1,P1,P2\n7.png,P2,\n8.png,P3,P1;P2\n", coco_with),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("kind", TABLES)
def test_damaged_tables(folder: Path, kind: str, encoding: str) -> None:
    make, read = TABLES[kind]
    whole = make().encode(encoding)
    path = folder / "t.csv"
    path.write_bytes(whole)
    (complete, _) = outcome(read, path)
    assert isinstance(complete, ListDataset)
    place = st.integers(0, len(whole) - 1)

    @SETTINGS
    @given(place, st.lists(st.tuples(place, st.sampled_from(b',;"\n\r\t\0\xff\xa0x19#=-')), max_size=4))
    def damage(length: int, changes: list[tuple[int, int]]) -> None:
        path.write_bytes(whole[:length])
        outcome(read, path)  # cut between rows, or within the last name, nothing can tell
        changed = bytearray(whole)
        for at, value in changes:
            changed[at] = value
        path.write_bytes(changed)
        outcome(read, path)

    damage()


def test_labels_that_are_cut_within_a_row_are_an_error(folder: Path) -> None:
    whole = csv_labels()
    last = whole.rstrip("\n").rfind("\n") + 1
    path = folder / "t.csv"
    for length in range(last + 1, len(whole) - 1):
        path.write_text(whole[:length])
        with pytest.raises(DataError, match=r"t\.csv: "):
            read_video(folder, path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_matlab_files(folder: Path, compressed: bool) -> None:
    path = folder / "m.mat"
    point = {"x": 30.0, "y": 40.0, "id": 2, "is_visible": "1"}
    someone = {"annopoints": {"point": point}, "scale": 0.3, "objpos": {"x": 40.0, "y": 35.0}, "x1": 1.0, "x2": 9.0}
    entry = {"image": {"name": "7.png"}, "annorect": someone | {"y1": 1.0, "y2": 8.0}}
    scipy.io.savemat(path, {"RELEASE": {"annolist": entry, "img_train": 1}}, do_compression=compressed)
    whole = path.read_bytes()

    def read(at: Path, bad: Any) -> ListDataset:
        return read_mpii(at, images=folder, on_bad_record=bad)

    assert all(isinstance(found, ListDataset) for found in outcome(read, path))
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert all(isinstance(found, DataError) for found in outcome(read, path))
    random = np.random.default_rng(0)
    for _ in range(3):
        changed = bytearray(whole)
        for at in random.integers(128, len(whole), 3):
            changed[at] = random.integers(256)
        path.write_bytes(changed)
        outcome(read, path)


def test_a_matlab_file_that_crashes_the_library_is_an_error(folder: Path) -> None:
    path = folder / "m.mat"
    scipy.io.savemat(path, {"RELEASE": {"annolist": 1, "img_train": 1}})
    content = bytearray(path.read_bytes())
    content[144] = 5  # the first variable says that it is a sparse matrix
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"m\.mat: is no MATLAB file that can be read: it crashes the reader"):
        read_mpii(path, images=folder)
