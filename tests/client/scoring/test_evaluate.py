import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.figures import Discs, joints_in, scene

from wardpose.client.scoring.data import source_of
from wardpose.client.scoring.evaluate import LEAVES, STAYS, evaluate
from wardpose.client.scoring.groups import groups_of
from wardpose.client.scoring.page import write_page
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.pose.estimators import Estimates
from wardpose.shared.skeleton import LSP14


class Off(Discs):
    """Puts every joint of the right arm aside."""

    name = "off"

    def __call__(self, crops):
        found = super().__call__(crops)
        joints = found.joints.copy()
        joints[:, 6:9, 0] += 60
        return Estimates(joints, found.scores / 2)


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """Twelve pictures of four patients with labels, and a file of groups."""
    folder = tmp_path_factory.mktemp("ward")
    records = []
    for n in range(12):
        box = (20 + 3 * n, 15, 40, 80)
        Image.fromarray(scene([box])).save(folder / f"{n}.png")
        joints = [[x, y, 2] for x, y in joints_in(box).tolist()]
        patient = f"<p{n % 4}>"
        records.append({"frame": f"{n}.png", "joints": joints, "patient": patient, "box": list(box), "head_size": 12.0})
    (folder / "labels.json").write_text(json.dumps({"skeleton": "lsp14", "records": records}))
    (folder / "data.yaml").write_text("kind: video\npath: .\nlabels: labels.json\n")
    lines = [f"{n}.png;{'lying' if n < 6 else 'sitting'};{n % 2}" for n in range(12)]
    (folder / "groups.csv").write_text("\ufeffPicture;Position;Camera\r\n" + "\r\n".join(lines) + "\r\n")
    return folder


def opened(ward):
    return open_source(source_of(ward / "data.yaml"), skeleton=LSP14)


def test_figures_of_patients_stay_and_say_so(ward: Path, tmp_path: Path) -> None:
    dataset = opened(ward)
    records = [dataset.record(i) for i in range(len(dataset))]
    groups = groups_of(records, ward / "groups.csv")
    measured = evaluate(Off(), dataset, public=False, groups=groups, against=Discs(), shown=3)
    report = measured.report
    assert (report.records, report.patients) == (12, 4)
    assert report.scores["pck@0.2"].value == pytest.approx(11 / 14)
    assert report.per_joint["right_wrist"].value == 0
    assert report.per_joint["left_wrist"].value == 1
    assert report.difference["pck@0.2"].high < -0.15
    assert {name: part["records"] for name, part in report.groups["position"].items()} == {"lying": 6, "sitting": 6}
    assert set(report.groups) == {"position", "camera"}
    (calibrated,) = {round(part.confidence, 2) for part in report.calibration} or {None}
    assert calibrated == 0.5  # says half, and is right more often
    assert report.calibration_error == pytest.approx(11 / 14 - 0.5, abs=0.02)
    assert not report.may_leave
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert content["why"] == STAYS
    assert "rough guide" in " ".join(content["notes"])
    write_page(tmp_path / "page.html", measured, dataset)
    page = (tmp_path / "page.html").read_text()
    assert "may not leave the site" in page
    assert page.count("data:image/jpeg;base64,") == 6
    assert "&lt;p0&gt;" in page
    assert "<p0>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_figures_of_public_data_may_leave(ward: Path) -> None:
    report = evaluate(Discs(), opened(ward), public=True).report
    assert report.may_leave
    assert report.why == LEAVES
    assert report.scores["oks_ap"].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("position,camera\nlying,1\n", [], "allowed: one of record, picture, file, patient"),
        ("picture,position\n0.png,lying\n", ["ward"], "no column ward"),
        ("picture,position\n0.png,lying\n0.png,sitting\n", [], "in two groups"),
        ("picture,position\nx.png,lying\n", [], "names none of the 12 records"),
        ("picture\n0.png\n", [], "no column of groups"),
    ],
)
def test_a_side_file_that_fits_nothing_is_refused(ward, tmp_path, content, columns, message) -> None:
    (tmp_path / "g.csv").write_text(content)
    dataset = opened(ward)
    records = [dataset.record(i) for i in range(len(dataset))]
    with pytest.raises(DataError, match=message):
        groups_of(records, tmp_path / "g.csv", columns)


def test_data_is_a_site_a_source_or_coco(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        source_of(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("kind: ward\nhospital: north\npatients: 0\nframes_per_patient: 1\n")
    with pytest.raises(ConfigError, match="patients"):
        source_of(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("cohort: {}\n")
    with pytest.raises(ConfigError):
        source_of(tmp_path / "b.yaml")
    (tmp_path / "c.json").write_text("{}")
    assert source_of(tmp_path / "c.json").kind == "coco"


def test_the_command_prints_one_object(ward: Path, tmp_path: Path) -> None:
    """The whole way, with a network of random weights."""
    from typer.testing import CliRunner

    from wardpose.shared.pose.model import ModelConfig, build_model
    from wardpose.shared.pose.weights import save_model
    from wardpose.simulation.cli import app

    small = ModelConfig(weights="random", input_size=(64, 64))
    save_model(build_model(small), tmp_path / "m.safetensors")
    args = [str(tmp_path / "m.safetensors"), str(ward / "data.yaml"), "--groups", str(ward / "groups.csv")]
    done = CliRunner().invoke(app, ["evaluate", *args, "--by", "camera", "--html", str(tmp_path / "p.html"), "--json"])
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["records"] == 12
    assert list(content["groups"]) == ["camera"]
    assert not content["may_leave"]
    assert np.isfinite(content["scores"]["pck@0.2"]["low"])
    assert Path(content["html"]).is_file()
    shown = CliRunner().invoke(app, ["evaluate", *args])
    assert "may not leave the site" in shown.stdout
