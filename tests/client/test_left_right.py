import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.figures import Discs, joints_in, scene
from typer.testing import CliRunner

from wardpose.client.left_right import swapped_sides
from wardpose.shared.data.dataset import ListDataset
from wardpose.shared.data.source import VideoSource, open_source
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.cli import app

ORDER = LSP14.flip_order


def labelled(folder: Path, changes: dict[int, object]) -> VideoSource:
    """Six pictures of figures; `changes` maps a picture to what happens to its joints."""
    records = []
    for n in range(6):
        box = (20 + 5 * n, 15, 40, 80)
        Image.fromarray(scene([box])).save(folder / f"{n}.png")
        joints = joints_in(box)
        joints = changes[n](joints) if n in changes else joints
        records.append({"frame": f"{n}.png", "joints": [[x, y, 2] for x, y in joints.tolist()], "box": list(box)})
    (folder / "labels.json").write_text(json.dumps({"skeleton": "lsp14", "records": records}))
    return VideoSource(kind="video", path=folder, labels=folder / "labels.json")


def shoulders_swapped(joints):
    out = joints.copy()
    out[[8, 9]] = out[[9, 8]]
    return out


def everything_swapped(joints):
    return joints[ORDER]


def lying(joints):
    """The same person, lying: turned by a quarter, nothing swapped."""
    middle = joints.mean(axis=0)
    return (joints - middle) @ np.array([[0, 1], [-1, 0]]) * 0.5 + middle


def test_a_crossed_trunk_is_found_and_a_lying_person_is_not(tmp_path: Path) -> None:
    source = labelled(tmp_path, {1: shoulders_swapped, 3: lying, 4: everything_swapped})
    found = swapped_sides(open_source(source, skeleton=LSP14))
    assert list(found) == [1]  # of one who is swapped all over the labels alone cannot tell


def test_a_model_sees_who_is_swapped_all_over(tmp_path: Path) -> None:
    dataset = open_source(labelled(tmp_path, {1: shoulders_swapped, 4: everything_swapped}), skeleton=LSP14)
    assert isinstance(dataset, ListDataset)
    assert list(swapped_sides(dataset, Discs())) == [1, 4]


def test_the_sheet_shows_doubtful_records_first(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    labelled(data, {2: shoulders_swapped})
    sheet = tmp_path / "sheet.png"
    args = ["data", "check", "--kind", "video", "--path", str(data), "--labels", str(data / "labels.json")]
    done = CliRunner().invoke(app, [*args, "--sheet", str(sheet), "--json"])
    assert done.exit_code == 0, done.output
    found = {item["name"]: item for item in json.loads(done.stdout)["findings"]}
    assert found["left and right"]["status"] == "warning"
    assert "2.png:0" in found["left and right"]["examples"][0]
    pixels = np.array(Image.open(sheet))
    assert pixels.shape == (198, 6 * 180, 3)
    assert (pixels[0, :180] == (220, 40, 40)).all()  # framed in red
    assert not (pixels[0, 180:] == (220, 40, 40)).all(axis=-1).any()
    assert sheet.stat().st_mode & 0o077 == 0  # it shows patients
    again = CliRunner().invoke(app, [*args, "--sheet", str(sheet)])
    assert "exists already" in str(again.exception)


@pytest.mark.parametrize("name", ["sheet.pdf", "sheet"])
def test_a_sheet_is_a_picture(tmp_path: Path, name: str) -> None:
    source = labelled(tmp_path, {})
    args = ["data", "check", "--kind", "video", "--path", str(tmp_path), "--labels", str(source.labels)]
    done = CliRunner().invoke(app, [*args, "--sheet", str(tmp_path / name)])
    assert "no picture's name" in str(done.exception)
