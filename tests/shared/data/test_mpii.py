import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from wardpose.shared.data.mpii import read_mpii
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14, MPII16


def person(**changes: Any) -> dict[str, Any]:
    joints = [[11.0 + 5 * i, 21.0 + 3 * i] for i in range(16)]
    return {
        "image": "a.png",
        "center": [60.0, 50.0],
        "scale": 0.4,
        "joints": joints,
        "joints_vis": [1] * 16,
        **changes,
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (120, 100)).save(tmp_path / name)
    return tmp_path


def write(images: Path, value: Any) -> Path:
    path = images / "mpii.json"
    path.write_text(json.dumps(value))
    return path


def test_json_people_have_joints_box_and_head(images: Path) -> None:
    second = person(joints=[[5.0 + i, 50.0] for i in range(16)], headbox=[10, 10, 40, 50])
    dataset = read_mpii(write(images, [person(), second]), images=images)
    assert [dataset.record(i).record_id for i in (0, 1)] == ["a:0", "a:1"]
    np.testing.assert_allclose(dataset.record(0).joints[2], [20, 26])  # 1-based in the file
    np.testing.assert_allclose(dataset.record(0).box, [19, 15, 80, 80])
    assert dataset.record(0).head_size is None
    assert dataset.record(1).head_size == pytest.approx(0.6 * 50)
    based = read_mpii(write(images, [person()]), images=images, index_base=0)
    np.testing.assert_allclose(based.record(0).joints[2], [21, 27])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": [[1, 1]] * 15}, r"joints has 30 numbers \(allowed: 32\)"),
        ({"joints_vis": [1] * 15}, "joints_vis has 15"),
        ({"joints_vis": [2] * 16}, "joints_vis holds 2"),
        ({"joints": [[i / 20, 0.5] for i in range(16)]}, "16 labelled joints lie within the first pixel"),
        ({"joints": [[None, None]] * 16}, "joints holds nan"),
        ({"center": [float("nan"), 1]}, "center holds nan"),
        ({"center": [500, 50]}, "centre outside the frame of 120 x 100"),
        ({"scale": -1.0}, "scale is -1"),
        ({"scale": "big"}, "scale is 'big'"),
        ({"image": "no.png"}, "no.png: image is missing"),
        ({}, "listed twice"),
    ],
)
def test_bad_people(images: Path, changes: dict[str, Any], message: str) -> None:
    first = person() if not changes else person(joints=[[30.0 + i, 40.0] for i in range(16)])
    path = write(images, [first, person(**changes)])
    with pytest.raises(DataError, match=message) as caught:
        read_mpii(path, images=images)
    assert str(path) in str(caught.value)
    dataset = read_mpii(path, images=images, on_bad_record="skip")
    assert (len(dataset), len(dataset.skipped)) == (1, 1)


def test_bad_files(images: Path) -> None:
    with pytest.raises(DataError, match="holds a dict"):
        read_mpii(write(images, {}), images=images)
    with pytest.raises(DataError, match="set is empty"):
        read_mpii(write(images, []), images=images)
    (images / "broken.mat").write_bytes(b"MATLAB 5.0 nonsense")
    with pytest.raises(DataError, match="no MATLAB file"):
        read_mpii(images / "broken.mat", images=images)
    with pytest.raises(DataError, match="missing"):
        read_mpii(images / "nowhere.mat", images=images)
    scipy.io.savemat(images / "other.mat", {"RELEASE": {"annolist": 1}})
    with pytest.raises(DataError, match="img_train is missing"):
        read_mpii(images / "other.mat", images=images)


def points(joints: list[tuple[int, float, float, Any]]) -> np.ndarray:
    fields = [("x", object), ("y", object), ("id", object), ("is_visible", object)]
    array = np.zeros((1, len(joints)), fields)
    for i, (joint, x, y, visible) in enumerate(joints):
        array[0, i] = (x, y, joint, np.zeros((0, 0)) if visible is None else visible)
    return array


def rectangle(joints: list[tuple[int, float, float, Any]] | None, **head: float) -> dict[str, Any]:
    return {
        **head,
        "annopoints": np.zeros((0, 0)) if joints is None else {"point": points(joints)},
        "scale": 0.4,
        "objpos": {"x": 60.0, "y": 50.0},
    }


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    names = list(dict.fromkeys(name for row in rows for name in row))
    array = np.zeros((1, len(rows)), [(name, object) for name in names])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.get(name, np.zeros((0, 0))) for name in names)
    return array


JOINTS = [(i, 11.0 + 5 * i, 21.0 + 3 * i, "0" if i == 3 else "1") for i in range(16) if i not in (5, 8, 9)]
HEAD = [(8, 51.0, 45.0, None), (9, 56.0, 48.0, None)]


def release(images: Path, first: list[dict[str, Any]]) -> Path:
    """Write the official layout: RELEASE.annolist(i).image.name, .annorect(k).annopoints.point(j), img_train ..."""
    other = rectangle([(0, 30.0, 30.0, 1), (1, 40.0, 40.0, 0)], x1=1.0, y1=1.0, x2=4.0, y2=5.0)
    annolist = structs(
        [
            {"image": {"name": "a.png"}, "annorect": structs(first), "frame_sec": np.zeros((0, 0)), "vididx": 1},
            {"image": {"name": "b.png"}, "annorect": structs([other]), "frame_sec": 4, "vididx": 1},
            {"image": {"name": "c.png"}, "annorect": np.zeros((0, 0)), "frame_sec": 4, "vididx": 2},
            {"image": {"name": "a.png"}, "annorect": structs([rectangle(None)]), "frame_sec": 4, "vididx": 2},
        ]
    )
    content = {
        "annolist": annolist,
        "img_train": np.array([[1, 1, 1, 0]], np.uint8),
        "version": "12",
        "single_person": np.zeros((4, 1)),
        "act": structs([{"act_name": "walking", "cat_name": "walking", "act_id": 1}] * 4),
        "video_list": np.zeros((1, 0)),
    }
    path = images / "mpii_human_pose_v1_u12_1.mat"
    scipy.io.savemat(path, {"RELEASE": content})
    return path


def test_the_official_mat(images: Path) -> None:
    whole = rectangle(JOINTS + HEAD, x1=10.0, y1=10.0, x2=40.0, y2=50.0)
    unlabelled = rectangle(None, x1=1.0, y1=1.0, x2=4.0, y2=5.0)
    dataset = read_mpii(release(images, [whole, unlabelled]), images=images)
    assert [dataset.record(i).record_id for i in range(len(dataset))] == ["a:0", "b:0"]
    record = dataset.record(0)
    np.testing.assert_allclose(record.joints[4], [30, 32])
    assert record.visibility[3] == 1  # hidden
    assert record.visibility[4] == 2
    assert record.visibility[5] == 0  # not in the file
    assert (record.visibility[[8, 9]] == 2).all()
    assert record.head_size == pytest.approx(0.6 * 50)
    np.testing.assert_allclose(record.box, [19, 15, 80, 80])
    assert list(dataset.record(1).visibility[:3]) == [2, 1, 0]
    assert dataset.record(1).head_size == pytest.approx(0.6 * 5)
    assert any("1 test images" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        ([(16, 1.0, 1.0, 1)], "id is 16"),
        ([(3, 9.0, 9.0, 1), (3, 9.0, 9.0, 1)], "3 appears twice"),
        ([(3, float("nan"), 9.0, 1)], "x is nan"),
    ],
)
def test_a_bad_person_of_the_mat(images: Path, joints: list[Any], message: str) -> None:
    path = release(images, [rectangle(JOINTS), rectangle(joints)])
    with pytest.raises(DataError, match=rf"annolist\(1\).annorect\(2\) a.png: .*{message}"):
        read_mpii(path, images=images)
    assert len(read_mpii(path, images=images, on_bad_record="skip").skipped) == 1


@pytest.mark.parametrize(
    ("mark", "visible"),
    [("0", 1), (0, 1), (0.0, 1), ("0.0", 1), (False, 1), (np.uint8(0), 1), ("1", 2), (1.0, 2), (None, 2), ("", 2)],
)
def test_a_hidden_joint_is_hidden_however_it_is_written(images: Path, mark: Any, visible: int) -> None:
    path = release(images, [rectangle([(2, 30.0, 40.0, mark), (3, 50.0, 60.0, 1)])])
    assert read_mpii(path, images=images).record(0).visibility[2] == visible


def test_another_mark_of_visibility_is_an_error(images: Path) -> None:
    with pytest.raises(DataError, match=r"is_visible is 7.*allowed: 0, 1"):
        read_mpii(release(images, [rectangle([(2, 30.0, 40.0, 7), (3, 50.0, 60.0, 1)])]), images=images)


@pytest.mark.parametrize("name", ["MPII.MAT", "mpii.Mat", "mpii"])
def test_a_matlab_file_is_told_by_its_content(images: Path, name: str) -> None:
    path = release(images, [rectangle(JOINTS)]).rename(images / name)
    assert len(read_mpii(path, images=images)) == 2
    new = images / f"7.3 {name}"
    new.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match=r"version 7\.3"):
        read_mpii(new, images=images)
    new.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match=r"version 7\.3"):
        read_mpii(new, images=images)


def test_people_without_joints_in_the_mat_are_counted(images: Path) -> None:
    dataset = read_mpii(release(images, [rectangle(JOINTS), rectangle(None), rectangle(None)]), images=images)
    assert any("2 people without labelled joints" in note for note in dataset.notes)


def test_people_without_joints_in_the_json_are_counted(images: Path) -> None:
    nobody = person(joints=[[None, None]] * 16, joints_vis=[0] * 16, headbox=None)
    half = person(joints=[[None, None]] * 8 + [[20.0 + i, 40.0] for i in range(8)], joints_vis=[0] * 8 + [1] * 8)
    dataset = read_mpii(write(images, [nobody, half, nobody]), images=images)
    assert [dataset.record(i).record_id for i in range(len(dataset))] == ["a:1"]
    assert dataset.record(0).visibility.tolist() == [0] * 8 + [2] * 8
    assert any("2 people without labelled joints left out" in note for note in dataset.notes)


def test_json_of_windows(images: Path) -> None:
    path = images / "mpii.json"
    people = [person(image="images\\a.png"), person(image="B.PNG")]
    path.write_bytes(json.dumps(people).encode("utf-8-sig"))
    dataset = read_mpii(path, images=images)
    assert [dataset.record(i).record_id for i in (0, 1)] == ["a:0", "b:0"]
    assert any("2 names are not those of the files" in note for note in dataset.notes)
    assert any("1 pictures are not listed (c.png)" in note for note in dataset.notes)


@pytest.mark.realdata
def test_the_real_sample(data_root: Path) -> None:
    root = data_root / "mpii_sample"
    dataset = read_mpii(root / "mpii_sample.json", images=root / "images")
    assert len(dataset) == 5
    assert dataset.skeleton is MPII16
    for index in range(5):
        record = dataset.record(index)
        height, width = dataset.frame(index).shape[:2]
        joints = record.joints[record.visibility > 0]
        assert (joints >= 0).all()
        assert (joints <= [width, height]).all()


@pytest.mark.realdata
def test_both_files_of_the_same_people_agree(data_root: Path) -> None:
    from wardpose.shared.data.lsp import read_lsp

    lsp = read_lsp(data_root / "lspet", split="val")
    mpii = read_mpii(
        data_root / "lspet" / "annotations" / "val_mpii16.json",
        images=data_root / "lspet" / "images" / "val",
        index_base=0,
        skeleton=LSP14,
    )
    assert len(lsp) == len(mpii) == 200
    for index in range(200):
        np.testing.assert_array_equal(lsp.record(index).visibility, mpii.record(index).visibility)
        np.testing.assert_allclose(lsp.record(index).joints, mpii.record(index).joints, atol=0.02)
        assert lsp.record(index).head_size == mpii.record(index).head_size
