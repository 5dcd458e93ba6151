import csv
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.video import Video, read_video
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14

COUNT = 9


def entry(frame: int | str, **changes: Any) -> dict[str, Any]:
    return {"frame": frame, "joints": [[20 + i, 30 + i, 2] for i in range(14)], **changes}


def write(folder: Path, entries: list[Any], **top: Any) -> Path:
    path = folder / "labels.json"
    path.write_text(json.dumps({"skeleton": "lsp14", "records": entries, **top}))
    return path


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Frame n is grey of 20 n: which frame was decoded can be seen."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (96, 80))
    assert writer.isOpened()
    for number in range(COUNT):
        writer.write(np.full((80, 96, 3), 20 * number, np.uint8))
    writer.release()
    return path


def damage(film: Path, number: int) -> None:
    """Overwrite one frame's JPEG data with noise."""
    content = bytearray(film.read_bytes())
    start = -1
    for _ in range(number + 1):
        start = content.index(b"\xff\xd8\xff", start + 1)
    end = content.index(b"\xff\xd9", start)
    content[start:end] = bytes(end - start)
    film.write_bytes(content)


def test_frames_come_in_any_order(film: Path) -> None:
    video = Video(film)
    assert (video.frame_count, video.height, video.width) == (COUNT, 80, 96)
    for number in (5, 6, 7, 2, 8, 0, 0, 1):
        assert abs(int(video.frame(number).mean()) - 20 * number) <= 3


def test_frames_come_to_any_thread_and_process(film: Path) -> None:
    video = pickle.loads(pickle.dumps(Video(film)))
    numbers = [7, 1, 5, 3, 0, 8] * 4
    with ThreadPoolExecutor(4) as pool:
        means = list(pool.map(lambda number: int(video.frame(number).mean()), numbers))
    assert all(abs(mean - 20 * number) <= 3 for mean, number in zip(means, numbers, strict=True))


def test_labels_of_a_video(film: Path, tmp_path: Path) -> None:
    entries = [
        entry(4, patient="p1", also=["nurse"], box=[10, 20, 40, 50], head_size=7.5, group="lying"),
        entry(4, patient="p2", person="1"),
        entry(2, patient="p1"),
    ]
    dataset = read_video(film, write(tmp_path, entries))
    first = dataset.record(0)
    assert (first.record_id, first.patient_id, first.also_patients) == ("4:0", "p1", ("nurse",))
    assert (first.head_size, first.group, first.scale) == (7.5, "lying", 50)
    np.testing.assert_allclose(dataset.record(1).box, [20 - 1.56, 30 - 1.56, 13 + 3.12, 13 + 3.12], atol=1e-4)
    assert [round(dataset.frame(i).mean() / 20) for i in range(3)] == [4, 4, 2]
    assert not any("own patient" in note for note in dataset.notes)
    ruled = read_video(film, tmp_path / "labels.json", patients=PatientRule(pattern=r"^(\d+):"))
    assert ruled.record(0).patient_id == "4"


@pytest.mark.parametrize("frame", [4, "4", 4.0, "0004", " 4 "])
def test_a_frame_number_is_a_number_however_it_is_written(film: Path, tmp_path: Path, frame: Any) -> None:
    dataset = read_video(film, write(tmp_path, [entry(frame)]))
    assert dataset.record(0).record_id == "4:0"


@pytest.mark.parametrize("empty", [[None, None, 0], [float("nan"), 3, 0], [None, None, None], [float("nan")] * 3])
def test_a_joint_that_is_not_labelled_needs_no_place(film: Path, tmp_path: Path, empty: list[Any]) -> None:
    joints = [[20 + i, 30, 2] for i in range(14)]
    record = read_video(film, write(tmp_path, [entry(4, joints=[empty, *joints[1:]])])).record(0)
    assert record.visibility.tolist() == [0] + [2] * 13
    assert record.joints[0].tolist() == [0, 0]


def test_a_corrupt_frame_names_file_and_number(film: Path, tmp_path: Path) -> None:
    damage(film, 3)
    labels = write(tmp_path, [entry(number) for number in range(COUNT)])
    dataset = read_video(film, labels)
    with pytest.raises(DataError, match=r"film\.avi: frame 3 is corrupt"):
        dataset.frame(3)
    for number in (8, 5, 4, 2, 7):  # a seek past the damage is not a frame short
        assert abs(int(dataset.frame(number).mean()) - 20 * number) <= 3
    with pytest.raises(DataError, match=r"record #3 \(frame 3\): .*frame 3 is corrupt"):
        read_video(film, labels, check_images="decode")
    skipped = read_video(film, labels, check_images="decode", on_bad_record="skip")
    assert (len(skipped), len(skipped.skipped)) == (COUNT - 1, 1)


def test_a_folder_of_frames_and_csv_labels(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (96, 80), (200, 10, 10)).save(folder / "bed_01.png")
    columns = ["frame", "patient", "also", *(f"{joint}_{part}" for joint in LSP14.joints for part in "xyv")]
    row = ["bed_01.png", "p9", "a;b", *(value for i in range(14) for value in (20 + i, 30.5, 2))]
    row[-3:] = ["", "", ""]  # head top is not labelled
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, row])
    dataset = read_video(folder, path)
    record = dataset.record(0)
    assert dataset.skeleton is LSP14
    assert (record.record_id, record.patient_id, record.also_patients) == ("bed_01.png:0", "p9", ("a", "b"))
    assert record.visibility.tolist() == [2] * 13 + [0]
    np.testing.assert_allclose(record.joints[3], [23, 30.5])
    assert dataset.frame(0)[0, 0].tolist() == [200, 10, 10]
    path.write_text("frame,nose_x\nbed_01.png,3\n")
    with pytest.raises(DataError, match=r"labels\.csv: columns .* do not fit"):
        read_video(folder, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": COUNT}, "frame is 9 \\(allowed: 0 to 8\\)"),
        ({"frame": -1}, "frame is -1"),
        ({"frame": "four"}, r"frame is 'four' \(allowed: 0 to 8\)"),
        ({"frame": 4.5}, "frame is 4.5"),
        ({"joints": [[0.1 + i / 20, 0.5, 2] for i in range(14)]}, "14 labelled joints lie within the first pixel"),
        ({"joints": [[None, None, 2]] * 14}, "joints holds nan"),
        ({"patient": " \u00a0"}, "patient is ' "),
        ({"also": ["p1"]}, r"also is \['p1'\], but patient is missing"),
        ({"frame": True}, "frame is True"),
        ({"joints": [[1, 1, 2]] * 13}, "joints has 39 numbers \\(allowed: 42\\)"),
        ({"joints": [[float("nan"), 1, 2]] * 14}, "joints holds nan"),
        ({"joints": [[1, 1, 7]] * 14}, "visibility 7"),
        ({"box": [90, 10, 50, 50]}, "outside the frame of 96 x 80"),
        ({"patient": ""}, "patient is ''"),
        ({"name": "Ada"}, 'key "name" is unknown'),
        ({"frame": 0}, 'duplicate record id "0:0"'),
    ],
)
def test_bad_labels(film: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    labels = write(tmp_path, [entry(0), {**entry(1), **changes}])
    with pytest.raises(DataError, match=message) as caught:
        read_video(film, labels)
    assert str(labels) in str(caught.value)
    assert len(read_video(film, labels, on_bad_record="skip").skipped) == 1


def test_bad_files(film: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, [entry(0)])
    with pytest.raises(DataError, match=r"nowhere\.mp4: is missing"):
        read_video(tmp_path / "nowhere.mp4", labels)
    with pytest.raises(DataError, match=r"labels\.json: is no video"):
        read_video(labels, labels)
    with pytest.raises(DataError, match=r"nowhere\.csv: file is missing"):
        read_video(film, tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r'skeleton "lsp99" is unknown \(allowed: coco17'):
        read_video(film, write(tmp_path, [entry(0)], skeleton="lsp99"))
    with pytest.raises(DataError, match="set is empty"):
        read_video(film, write(tmp_path, []))


@pytest.mark.realdata
@pytest.mark.parametrize("ending", ["avi", "mp4"])
def test_a_film_of_real_frames(data_root: Path, tmp_path: Path, ending: str) -> None:
    frames = [cv2.imread(str(path)) for path in sorted((data_root / "lab_frames").glob("lab_cam01_*.jpg"))]
    assert len(frames) == 9
    path = tmp_path / f"lab.{ending}"
    code = cv2.VideoWriter_fourcc(*("MJPG" if ending == "avi" else "mp4v"))
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), code, 30, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    dataset = read_video(path, write(tmp_path, [entry(number, patient="participant") for number in range(9)]))
    for number in (8, 0, 3, 4, 1):
        wanted = frames[number][..., ::-1].astype(float)
        errors = [np.abs(dataset.frame(number) - other[..., ::-1].astype(float)).mean() for other in frames]
        assert int(np.argmin(errors)) == number
        assert np.abs(dataset.frame(number) - wanted).mean() < 5


@pytest.mark.realdata
def test_a_folder_of_real_frames(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "lab_frames"
    names = sorted(path.name for path in folder.glob("*.jpg"))
    rule = PatientRule(pattern=r"^(?P<patient>lab|walk)_")
    dataset = read_video(folder, write(tmp_path, [entry(name) for name in names]), patients=rule)
    assert len(dataset) == 26
    assert {dataset.record(i).patient_id for i in range(26)} == {"lab", "walk"}
    assert dataset.frame(0).shape == (*dataset.frame_size(0), 3)
