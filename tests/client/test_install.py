"""A hospital's archive meets what hospitals have: each kind of data is known, and nothing is ever half done."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from support.figures import joints_in, scene, ward
from typer.testing import CliRunner

from wardpose.client.commands.site import app
from wardpose.client.found_data import find_data
from wardpose.client.install import install_site, look_at, round_number
from wardpose.client.joints.people import Person
from wardpose.client.labels import formats
from wardpose.client.labels.formats import Drafted
from wardpose.server.provision.archives import provision
from wardpose.server.provision.plan import load_plan
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.files import OTHERS
from wardpose.shared.kits.archive import KitError, KitFile
from wardpose.shared.kits.seal import Kit, open_kit
from wardpose.shared.site_config import load_site
from wardpose.shared.skeleton import LSP14

COUNT = 6


def box(n: int) -> tuple[int, int, int, int]:
    return (20 + 5 * n, 15, 40, 80)


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for n in range(COUNT):
        Image.fromarray(scene([box(n)])).save(folder / f"{n:04d}.png")
    return folder


def owners(folder: Path) -> None:
    rows = "".join(f"{n:04d}.png,p{n % 3}\n" for n in range(COUNT))
    (folder / "patients.csv").write_text(f"record,patient\n{rows}")


def people() -> list[Drafted]:
    ones = np.ones(len(LSP14), np.float32)
    joints = [joints_in(box(n)).astype(np.float32) for n in range(COUNT)]
    found = [Person(number=0, box=box(n), joints=joints[n], scores=ones) for n in range(COUNT)]
    return [Drafted(name=f"{n:04d}.png", size=(120, 160), people=(found[n],)) for n in range(COUNT)]


def coco(folder: Path) -> Path:
    pictures(folder / "images")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "person_keypoints.json").write_text(formats.coco(people(), LSP14, least=0.1))
    return folder


def cvat(folder: Path) -> Path:
    pictures(folder / "images")
    (folder / "annotations.xml").write_text(formats.cvat(people(), LSP14, least=0.1))
    return folder


def label_studio(folder: Path) -> Path:
    pictures(folder / "images")
    written = formats.label_studio(people(), LSP14, least=0.1, prefix="/data/local-files/?d=ward/", model="discs")
    tasks = json.loads(written)
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": task["predictions"][0]["result"]}]
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder


def mpii(folder: Path) -> Path:
    pictures(folder / "images")
    entries = [
        {
            "image": f"{n:04d}.png", "center": [40 + 5 * n, 55], "scale": 0.5, "joints_vis": [1] * 16,
            "joints": [[30 + n + i, 20 + 4 * i] for i in range(16)],
        }
        for n in range(COUNT)
    ]  # fmt: skip
    (folder / "mpii_train.json").write_text(json.dumps(entries))
    return folder


def lsp(folder: Path) -> Path:
    for part, numbers in (("train", (0, 1, 2)), ("extra", (3, 4, 5)), ("val", ())):
        pictures(folder / "images" / part)
        images = [{"id": n, "file_name": f"{n:04d}.png", "width": 160, "height": 120} for n in numbers]
        entries = [
            {
                "id": n, "image_id": n, "bbox": list(box(n)), "area": 900.0, "torso_angle_deg": 170.0, "head_size": 9.0,
                "lsp14": [[*xy, 2] for xy in joints_in(box(n)).tolist()],
            }
            for n in numbers
        ]  # fmt: skip
        path = folder / "annotations" / f"{part}_coco17.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": entries}))
    return folder


def records(frame: Callable[[int], Any], **more: Any) -> str:
    joints = [[[*xy, 2] for xy in joints_in(box(n)).tolist()] for n in range(COUNT)]
    entries = [{"frame": frame(n), "joints": joints[n], **more} for n in range(COUNT)]
    return json.dumps({"skeleton": LSP14.name, "records": entries})


def video(folder: Path) -> Path:
    folder.mkdir(parents=True)
    ward(folder / "walk.mkv", lambda n: [box(n)], COUNT)
    (folder / "walk.json").write_text(records(lambda n: n, patient="p 7"))
    return folder


def frames(folder: Path) -> Path:
    pictures(folder / "frames")
    (folder / "labels.json").write_text(records(lambda n: f"{n:04d}.png"))
    return folder


def table(folder: Path) -> Path:
    pictures(folder / "frames")
    columns = [f"{joint}_{axis}" for joint in LSP14.joints for axis in "xyv"]
    lines = [";".join(["frame", *columns])]
    for n in range(COUNT):
        values = [str(round(value)) for xy in joints_in(box(n)).tolist() for value in (*xy, 2)]
        lines.append(";".join([f"{n:04d}.png", *values]))
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


KINDS = {
    "coco": coco, "cvat": cvat, "label-studio": label_studio, "mpii": mpii, "lsp": lsp, "video": video,
    "frames": frames, "table": table,
}  # fmt: skip


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("federation")
    plan = {
        "name": "study", "rounds": 2, "sites": ["north", "south"], "mechanism": {"sample_rate": 0.1},
        "deployment": {"address": "127.0.0.1"},
    }  # fmt: skip
    (folder / "federation.yaml").write_text(yaml.safe_dump(plan))
    made = provision(load_plan(folder / "federation.yaml"), folder / "kits")
    return open_kit(made.archives["north"], role="site")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_data_is_known_by_what_is_in_it(tmp_path: Path, kind: str) -> None:
    folder = KINDS[kind](tmp_path / "data")
    found = look_at(folder)
    assert found.source.kind == {"frames": "video", "table": "video"}.get(kind, kind)
    assert found.records == COUNT
    assert found.named is (kind == "video")  # its labels name them
    if kind != "video":
        owners(folder)
        found = look_at(folder)
        assert (found.named, found.patients) == (True, 3)


def test_one_file_of_several_may_be_named_and_the_others_are_listed(tmp_path: Path) -> None:
    folder = coco(tmp_path / "data")
    (first,) = (folder / "annotations").iterdir()
    shutil.copyfile(first, first.with_name("person_keypoints_val.json"))
    (folder / "annotations" / "notes.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds 2 data sets: .*person_keypoints\.json \(COCO\), .*name one"):
        find_data(folder)
    assert find_data(first).source.kind == "coco"


def _many_owners(folder: Path) -> None:
    frames(folder)
    owners(folder)
    (folder / "owners.json").write_text("{}")


def _no_pictures(folder: Path) -> None:
    shutil.rmtree(coco(folder) / "images")


def _no_video(folder: Path) -> None:
    (video(folder) / "walk.mkv").unlink()


def _entities(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')


NOTHING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda folder: None, "does not exist"),
    "an empty folder": (lambda folder: folder.mkdir(), "is nothing that Wardpose reads"),
    "pictures alone": (lambda folder: pictures(folder), "wardpose label draft"),
    "letters": (lambda folder: (folder.mkdir(), (folder / "a.json").write_text("dear sir")), "is nothing"),
    "a bomb": (_entities, "is nothing"),
    "labels without pictures": (_no_pictures, "put them into images/"),
    "labels without video": (_no_video, "neither their video"),
    "two side files": (_many_owners, "--patients FILE"),
}


@pytest.mark.parametrize("what", NOTHING)
def test_what_is_no_data_is_refused_and_nothing_is_written(tmp_path: Path, kit: Kit, what: str) -> None:
    make, says = NOTHING[what]
    make(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=says):
        install_site(kit, tmp_path / "data", home=tmp_path / "home", unit="record")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_home_is_filled_in_from_the_data_and_is_its_owners_alone(tmp_path: Path, kit: Kit) -> None:
    folder = frames(tmp_path / "Ward 7 (east)")
    owners(folder)
    done = install_site(kit, folder, home=tmp_path / "home", declared=60)
    site = load_site(tmp_path / "home" / "site.yaml")
    assert (site.site, site.cohort.name, site.cohort.declared_patients) == ("north", "north-Ward-7-east", 60)
    assert (site.policy.unit, site.policy.mechanisms, site.policy.epsilon) == ("patient", ("dp-sgd",), 4.0)
    assert site.node_key == tmp_path / "home" / "keys" / "node.key"
    assert [found.text for found in done.findings if found.status == "failure"] == []
    everything = [tmp_path / "home", *(tmp_path / "home").rglob("*")]
    assert [path for path in everything if path.stat().st_mode & OTHERS] == []


@pytest.mark.parametrize(
    ("said", "taken"), [(1e-3, 1e-3), ("1e-3", 1e-3), (0.5, 1e-5), (-1.0, 1e-5), (float("nan"), 1e-5), ("x", 1e-5)]
)
def test_sites_count_at_the_plans_delta_where_it_protects_them(
    tmp_path: Path, kit: Kit, said: object, taken: float
) -> None:
    folder = frames(tmp_path / "data")
    owners(folder)
    plan = yaml.safe_load(kit.files["federation.yaml"].content) | {"privacy": {"delta": said}}
    files = {**kit.files, "federation.yaml": KitFile(content=yaml.safe_dump(plan).encode())}
    install_site(replace(kit, files=files), folder, home=tmp_path / "home", declared=60)
    assert load_site(tmp_path / "home" / "site.yaml").policy.delta == taken


def test_a_site_yaml_that_is_there_stays_and_what_differs_is_said(tmp_path: Path, kit: Kit) -> None:
    folder, home = frames(tmp_path / "data"), tmp_path / "home"
    owners(folder)
    install_site(kit, folder, home=home, declared=60)
    path = home / "site.yaml"
    path.write_text(path.read_text().replace("epsilon: 4.0", "epsilon: 1.5"))
    mine = path.read_bytes()
    done = install_site(kit, folder, home=home, declared=80)
    assert path.read_bytes() == mine
    assert done.differs == (
        "cohort.declared_patients: is 60, would be 80", "policy.epsilon: is 1.5, would be 4.0",
    )  # fmt: skip
    assert install_site(kit, None, home=home).cohort is None  # an upgrade needs no data
    path.write_text("site: [north")
    assert [each.name for each in install_site(kit, folder, home=home).findings] == ["configuration"]
    path.write_bytes(mine)
    assert path.read_bytes() == mine
    assert not list(home.glob("*.new"))


def test_who_is_who_must_be_said(tmp_path: Path, kit: Kit) -> None:
    folder = frames(tmp_path / "data")
    for unit in (None, "patient"):
        with pytest.raises(ConfigError, match=r"nobody says whose .*--patients FILE.*--unit record"):
            install_site(kit, folder, home=tmp_path / "home", unit=unit)
    assert not (tmp_path / "home").exists()
    (tmp_path / "who.csv").write_text("record,patient\n0000.png,p1\n")
    who = tmp_path / "who.csv"
    with pytest.raises(DataError, match="--skip-bad-records"):  # the others are nobody's
        install_site(kit, folder, home=tmp_path / "home", patients=who)
    assert not (tmp_path / "home").exists()
    assert look_at(folder, patients=who, skip_bad=True).records == 1
    install_site(kit, folder, home=tmp_path / "home", unit="record")
    assert load_site(tmp_path / "home" / "site.yaml").policy.unit == "record"


def test_a_wrong_archive_or_a_home_of_somebody_else_leaves_everything_as_it_was(tmp_path: Path, kit: Kit) -> None:
    folder = frames(tmp_path / "data")
    home = tmp_path / "home"
    home.mkdir()
    (home / "diary.txt").write_text("mine")
    with pytest.raises(KitError, match=r"diary\.txt"):
        install_site(kit, folder, home=home, unit="record")
    assert [path.name for path in home.iterdir()] == ["diary.txt"]
    with pytest.raises(ConfigError, match="--data: is needed"):
        install_site(kit, None, home=tmp_path / "new")
    with pytest.raises(ConfigError, match="--unit"):
        install_site(kit, folder, home=tmp_path / "new", unit="person")
    assert not (tmp_path / "new").exists()


def test_the_command_prints_one_summary_and_what_comes_next(tmp_path: Path, kit: Kit) -> None:
    folder = frames(tmp_path / "data")
    owners(folder)
    where = ["--home", str(tmp_path / "home"), "--fingerprint", kit.fingerprint]
    asked = ["install", str(kit.where), "--data", str(folder), *where]
    result = CliRunner().invoke(app, [*asked, "--declared-patients", "60"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, (result.output, result.exception)
    assert "folder of frames with labels: 6 records of 3 patients" in result.output
    assert f"next: wardpose site check --connect --home {tmp_path / 'home'}" in result.output
    again = CliRunner().invoke(app, [*asked, "--json"])
    content = json.loads(again.stdout)
    assert (again.exit_code, content["ok"], content["site_yaml"]) == (0, True, "kept")
    few = ["--home", str(tmp_path / "few"), "--fingerprint", kit.fingerprint, "--json"]
    result = CliRunner().invoke(app, ["install", str(kit.where), "--data", str(folder), *few])
    assert result.exit_code == 1  # three patients are too few for the policy, and the line says so
    assert "minimum_declared_patients" in result.stdout
    wrong = CliRunner().invoke(app, ["install", str(kit.where), "--data", str(folder), "--fingerprint", "00" * 32])
    assert isinstance(wrong.exception, KitError)


def test_a_declared_number_is_round_and_near() -> None:
    assert [round_number(n) for n in (1, 2, 7, 9, 10, 12, 14, 23, 99, 101, 137, 4711)] == [
        1, 2, 6, 8, 10, 10, 15, 20, 100, 100, 150, 5000,
    ]  # fmt: skip
    for count in range(1, 3000):
        assert 0.5 <= count / round_number(count) <= 2  # beyond that a site check warns, and the server doubts
    with pytest.raises(ConfigError):
        round_number(0)


def test_cvat_tracks_take_the_video_beside_them(tmp_path: Path) -> None:
    folder = video(tmp_path / "data")
    (folder / "walk.json").unlink()
    points = "".join(
        f'<points label="{joint}" outside="0" occluded="0" points="{20 + i},{30 + i}"/>'
        for i, joint in enumerate(LSP14.joints)
    )
    skeleton = f'<skeleton frame="0" outside="0" keyframe="1" occluded="0">{points}</skeleton>'
    text = f'<annotations><version>1.1</version><track id="0" label="person">{skeleton}</track></annotations>'
    (folder / "annotations.xml").write_text(text)
    ElementTree.fromstring(text)
    found = look_at(folder)
    assert (found.source.kind, found.records) == ("cvat", 1)
