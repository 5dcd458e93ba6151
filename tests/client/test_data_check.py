"""What is wrong with a data set is said before it trains anything, and nothing is written."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter
from support.coco_files import content
from support.untouched import untouched
from typer.testing import CliRunner

from wardpose.client.data_check import DataReport, check_data
from wardpose.shared.data.source import DataSource
from wardpose.shared.errors import ConfigError
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.cli import app


def noise(seed: int, size: tuple[int, int] = (80, 70)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (7, 8):
        noise(name).save(tmp_path / f"{name}.png")
    write(tmp_path, content())
    (tmp_path / "patients.csv").write_text("record,patient,also\n1,ada,bob\n2,bob,ada\n3,ada,\n")
    return tmp_path


def write(folder: Path, document: Any) -> None:
    (folder / "people.json").write_text(json.dumps(document))


def check(folder: Path, **more: Any) -> DataReport:
    source = {"kind": "coco", "annotations": folder / "people.json", "images": folder, **more}
    if "patients" not in more:
        source["patients"] = {"file": folder / "patients.csv"}
    with untouched(folder):
        return check_data(TypeAdapter(DataSource).validate_python(source), skeleton=LSP14)


def failures(report: DataReport) -> dict[str, str]:
    found = {
        item.name: f"{item.text} | {' | '.join(item.examples)}" for item in report.findings if item.status == "failure"
    }
    assert report.ok == (not found)
    return found


def test_a_good_set_is_ok_and_counted(folder: Path) -> None:
    report = check(folder)
    assert failures(report) == {}
    assert (report.records, report.pictures, report.patients) == (3, 2, 2)
    texts = {item.name: item.text for item in report.findings}
    assert "2 patients with 1 to 2 records, median 1.5" in texts["patients"]
    assert texts["several people"] == "1 pictures show several annotated people"
    assert "never labelled: head_top" in texts["skeleton"]
    assert texts["boxes"] == "3 given"


def test_a_cut_picture_is_named(folder: Path) -> None:
    path = folder / "8.png"
    path.write_bytes(path.read_bytes()[:-400])
    assert "8.png: image is broken: the file is cut" in failures(check(folder))["unreadable"]


def test_a_missing_picture_is_named_with_its_record(folder: Path) -> None:
    (folder / "8.png").unlink()
    assert "1 pictures cannot be read | 3: " in failures(check(folder))["unreadable"]


def test_an_empty_picture_is_named(folder: Path) -> None:
    Image.new("RGB", (80, 70), (9, 9, 9)).save(folder / "8.png")
    assert failures(check(folder)) == {"empty": "1 pictures are of one colour all over | 8.png"}


def test_people_outside_their_picture_and_other_bad_records_are_named(folder: Path) -> None:
    document = content()
    document["annotations"][0]["bbox"] = [500, 5, 20, 20]
    document["annotations"][2]["keypoints"] = [1, 2]
    write(folder, document)
    found = failures(check(folder))
    assert "1 records lie outside their picture | 1: box" in found["out of frame"]
    assert "1 records cannot be used | 3: keypoints has 2 numbers" in found["bad records"]
    document["annotations"][0] |= {"bbox": [5, 5, 50, 60]}
    document["annotations"][0]["keypoints"][0] = 700
    write(folder, document)
    assert any("1 joints outside their frame" in item.text for item in check(folder).findings)


def test_one_picture_under_two_names_is_wrong_where_it_has_two_owners(folder: Path) -> None:
    noise(7).save(folder / "8.png")
    assert "1 pictures are there several times, 1 of them for different patients | 7.png = 8.png" in failures(
        check(folder)
    ).get("duplicates", "")
    (folder / "patients.csv").write_text("record,patient\n1,ada\n2,ada\n3,ada\n")
    report = check(folder)
    assert failures(report) == {}
    assert [item.status for item in report.findings if item.name == "duplicates"] == ["warning"]


def test_one_person_annotated_twice_is_wrong(folder: Path) -> None:
    labels = folder / "labels.csv"
    columns = ["frame", "person", "patient", *(f"{joint}_{part}" for joint in LSP14.joints for part in "xyv")]
    row = [value for i in range(14) for value in (20 + i, 30 + i, 2)]
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([columns, ["7", 0, "ada", *row], ["7", 1, "bob", *row], ["8", 0, "eve", *row]])
    source = TypeAdapter(DataSource).validate_python({"kind": "video", "path": folder, "labels": labels})
    report = check_data(source, skeleton=LSP14)
    assert failures(report) == {"repeated": "1 people are annotated several times | 7:0 = 7:1"}


def test_several_patients_in_a_picture_that_do_not_name_each_other_are_said(folder: Path) -> None:
    (folder / "patients.csv").write_text("record,patient\n1,ada\n2,bob\n3,ada\n")
    (found,) = [item for item in check(folder).findings if item.name == "several people"]
    assert (found.status, found.examples) == ("warning", ("7.png",))


def test_missing_owners(folder: Path) -> None:
    report = check(folder, patients=None)
    assert failures(report) == {}
    assert any(item.name == "patients" and item.status == "warning" for item in report.findings)
    document = content()
    document["annotations"][0]["patient"] = "ada"
    write(folder, document)
    assert "2 records name no patient, others do | 2 | 3" in failures(check(folder, patients=None))["patients"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("people.json", "{", "people.json: malformed JSON"),
        ("people.json", "[]", "people.json: entry is []"),
        ("people.json", json.dumps({**content(), "annotations": []}), "people.json: the set is empty"),
        ("patients.csv", "record,patient\n1,P1\n2,p1\n3,x\n", "patients.csv: row 2 and row 3: patients 'P1' and 'p1'"),
        ("patients.csv", "record,name\n1,P1\n", "patients.csv: columns are"),
    ],
)
def test_a_source_that_cannot_be_opened_is_one_line(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    report = check(folder)
    (found,) = report.findings
    assert found.status == "failure"
    assert message in found.text
    assert "\n" not in found.text


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def test_the_command_takes_options_or_a_site(folder: Path) -> None:
    options = ("--kind", "coco", "--annotations", folder / "people.json", "--images", folder)
    plain = command(*options, "--patients", folder / "patients.csv")
    assert plain.exit_code == 0, plain.output
    assert "people: 3 records in 2 pictures of 2 patients, nothing is wrong" in plain.stdout
    (folder / "8.png").write_bytes(b"")
    shown = command(*options, "--json")
    report = json.loads(shown.stdout)
    assert shown.exit_code == 1
    assert (report["ok"], report["records"], report["patients"]) == (False, 2, 2)
    assert any("8.png" in example for item in report["findings"] for example in item["examples"])
    site = folder / "site.yaml"
    cohort = {
        "name": "ward",
        "declared_patients": 20,
        "data": {"kind": "coco", "annotations": "people.json", "images": "."},
    }
    site.write_text(yaml.safe_dump({"site": "north", "cohort": cohort}))
    with untouched(folder):
        assert json.loads(command(site, "--json").stdout)["records"] == 2


def test_the_command_takes_a_data_set_that_says_what_it_is(folder: Path) -> None:
    with untouched(folder):
        for what in (folder, folder / "people.json"):
            report = json.loads(command(what, "--json").stdout)
            assert (report["records"], report["patients"]) == (3, 2)  # patients.csv lies beside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a site.yaml, a data set"),
        (("--images", "x"), "a site.yaml, a data set"),
        (("site.yaml", "--kind", "coco"), "a site.yaml, a data set"),
        (("site.yaml", "--patients", "p.csv"), "a site.yaml, a data set"),
        (("people.json", "--kind", "coco"), "a site.yaml, a data set"),
        (("no-such-folder",), "no-such-folder: does not exist"),
        (("--kind", "dicom"), "dicom"),
        (("--kind", "coco"), "coco.annotations: missing"),
        (("--kind", "lsp", "--path", "x", "--split", "all"), "split"),
        (("--kind", "coco", "--annotations", "a", "--images", "b", "--ids", "lower"), "lower"),
        (("--kind", "coco", "--annotations", "a", "--images", "b", "--pattern", "("), "regular expression"),
    ],
)
def test_wrong_options_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = command(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
