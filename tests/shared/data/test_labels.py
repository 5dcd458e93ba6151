"""CSV labels as spreadsheets leave them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wardpose.shared.data.labels import read_labels
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.video import read_video
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14

COLUMNS = ["frame", "patient", *(f"{joint}_{part}" for joint in LSP14.joints for part in "xyv")]


def table(*rows: list[str], separator: str = ",") -> str:
    return "\r\n".join(separator.join(cells) for cells in (COLUMNS, *rows)) + "\r\n"


def entry(frame: str, patient: str = "P1", first: str = "20") -> list[str]:
    values = [str(value) for i in range(14) for value in (20 + i, 30 + i, 2)]
    return [frame, patient, first, *values[1:]]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (1, 2, 10):
        Image.new("RGB", (96, 80), (number * 20, 0, 0)).save(folder / f"{number:04}.png")
    return folder


def read(frames: Path, text: str | bytes, **options: Any) -> Any:
    path = frames.parent / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_video(frames, path, **options)


@pytest.mark.parametrize("written", ["0002", "2", "2.0", "0002.png", "0002.PNG", "C:\\export\\0002.png", "2.0E+00"])
def test_a_frame_is_found_whatever_became_of_its_name(frames: Path, written: str) -> None:
    dataset = read(frames, table(entry(written)))
    assert int(dataset.frame(0)[0, 0, 0]) == 40


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_every_export_of_a_spreadsheet_is_read(frames: Path, separator: str, encoding: str) -> None:
    decimal = "20.5" if separator == "," else "20,5"
    text = table(entry("0001", "Müller", decimal), [""] * len(COLUMNS), separator=separator)
    dataset = read(frames, text.encode(encoding))
    assert len(dataset) == 1
    assert dataset.record(0).patient_id == "Müller"
    np.testing.assert_allclose(dataset.record(0).joints[0], [20.5, 30])
    assert dataset.patients_named


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("0009"), r"row 3 \(frame 0009\): .*0009: image is missing"),
        (entry("0002", first="12. Mrz"), r"row 3 \(frame 0002\): joints holds '12. Mrz' \(allowed: 42 numbers\)"),
        (entry("0002", first="20,5"), "more cells than the header"),
        (entry("0002", first="#REF!"), "row 3 .*joints holds '#REF!'"),
        (entry("0002", patient="#N/A"), 'patient "#N/A" is an error that a spreadsheet left'),
        (entry("0002", patient="p1"), "record 0001:0 and record 0002:0: patients 'P1' and 'p1'"),
        (entry("1"), '"0001" and "1" both mean this picture'),
    ],
)
def test_what_a_spreadsheet_spoilt_is_named_with_its_row(frames: Path, bad: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(frames, table(entry("0001"), bad))
    assert "labels.csv" in str(caught.value)


def test_a_frame_in_which_nothing_is_labelled_is_left_out_and_said(frames: Path) -> None:
    empty = ["0002", "P2", *[""] * 42]
    zeros = ["0010", "P3", *["0"] * 42]
    dataset = read(frames, table(entry("0001"), empty, zeros))
    assert [dataset.record(i).record_id for i in range(len(dataset))] == ["0001:0"]
    assert any("2 people without labelled joints left out" in note for note in dataset.notes)
    (frames.parent / "p.csv").write_text("record,patient\n0001,ada\n")
    known = read(frames, table(entry("0001"), empty), patients=PatientRule(file=frames.parent / "p.csv"))
    assert known.record(0).patient_id == "ada"


def test_ids_of_labels_can_be_settled(frames: Path) -> None:
    text = table(entry("0001", "P1"), entry("0002", "p1"), entry("0010", "P1 "))
    folded = read(frames, text, patients=PatientRule(ids="fold"))
    assert [folded.record(i).patient_id for i in range(3)] == ["P1"] * 3
    exact = read(frames, text, patients=PatientRule(ids="exact"))
    assert [exact.record(i).patient_id for i in range(3)] == ["P1", "p1", "P1"]


def test_frames_of_a_video_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(table(entry("0012"), entry("12.0"), entry("1.2E+01")))
    entries, skeleton = read_labels(path, None, numbered=True)
    assert [found["frame"] for found in entries] == [12, 12, 12]
    assert skeleton is LSP14


def test_a_box_from_the_joints_says_so_and_stays_in_the_frame(frames: Path) -> None:
    dataset = read(frames, table(entry("0001", first="94")))
    record = dataset.record(0)
    assert record.box_source == "joints"
    assert record.box[0] + record.box[2] <= 96
    boxed = table(entry("0001")).replace("frame,", "frame,box_x,box_y,box_width,box_height,")
    assert read(frames, boxed.replace("0001,", "0001,5,5,60,60,")).record(0).box_source == "given"
