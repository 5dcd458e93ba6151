"""Drafts go out as CVAT and Label Studio import them, and come back as these export them."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from support.figures import Discs, joints_in, scene, ward

from wardpose.client.data_check import check_data
from wardpose.client.labels.draft import DraftRequest, draft
from wardpose.client.labels.hard import hardest
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.source import CocoSource, CvatSource, LabelStudioSource, open_source
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.skeleton import COCO17, LSP14, convert

ODD = 'p<&>"ü'


def box(n):
    return (20 + 5 * n, 15, 40, 80)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    (folder / "sub dir").mkdir(parents=True)
    for n in range(4):
        Image.fromarray(scene([box(n)])).save(folder / (f"{n}.png" if n < 3 else "sub dir/3 ü&1.png"))
    names = ["0.png", "1.png", "2.png", "sub dir/3 ü&1.png"]
    owners = "".join(f"{name},{ODD if n % 2 else 'p0'}\n".replace('"', "") for n, name in enumerate(names))
    (tmp_path / "patients.csv").write_text(f"record,patient\n{owners}")
    return folder


def drafted(frames, out, **options):
    return draft(DraftRequest(sources=(frames,), out=out, **{"estimator": Discs(), "format": "coco", **options}))


def as_cvat_exports_it(draft_xml: str) -> str:
    """What CVAT adds and changes: meta with dates and owners, elements in another order, its own sources."""
    root = ElementTree.fromstring(draft_xml)
    meta = ElementTree.fromstring(
        "<meta><job><id>7</id><size>4</size><mode>annotation</mode><labels><label><name>person</name>"
        "<type>skeleton</type><attributes/></label></labels></job><dumped>2026-11-30 10:00:00+00:00</dumped></meta>"
    )
    root.insert(1, meta)
    for skeleton in root.iter("skeleton"):
        points = skeleton.findall("points")
        for point in points:
            skeleton.remove(point)
            point.set("source", "manual")
        skeleton.extend(sorted(points, key=lambda point: point.get("label")))
        skeleton.set("source", "manual")
    return ElementTree.tostring(root, encoding="unicode")


def as_label_studio_exports_it(draft_json: str) -> str:
    """The annotation that somebody submitted after accepting the prediction, with ids of its own, in another order."""
    tasks = json.loads(draft_json)
    for number, task in enumerate(tasks, start=41):
        result = [
            {**{key: value for key, value in region.items() if key != "score"}, "origin": "prediction"}
            for region in task["predictions"][0]["result"][::-1]
        ]
        task["id"] = number
        task["annotations"] = [
            {"id": 1, "was_cancelled": True, "result": []},
            {"id": 2, "was_cancelled": False, "ground_truth": False, "result": result, "lead_time": 12.5},
        ]
        task["file_upload"] = "1a2b3c4d-0.png"
    tasks.append({"id": 99, "data": {"image": "/data/local-files/?d=0.png"}, "annotations": [], "predictions": []})
    return json.dumps(tasks)


def as_coco_annotator_exports_it(draft_json: str) -> str:
    """COCO Annotator: boxes and areas of zeros for people that were only given keypoints, paths beside names."""
    content = json.loads(draft_json)
    for image in content["images"]:
        image |= {"path": f"/datasets/ward/{image['file_name']}", "dataset_id": 1, "deleted": False, "annotated": False}
    for entry in content["annotations"]:
        entry |= {
            "bbox": [0, 0, 0, 0],
            "area": 0,
            "isbbox": False,
            "iscrowd": False,
            "color": "#a1b2c3",
            "metadata": {},
        }
    content["categories"][0] |= {"color": "#ff0000", "metadata": {}, "keypoint_colors": []}
    return json.dumps(content)


def check_round_trip(source, skeleton, patients):
    dataset = open_source(source, skeleton=skeleton)
    assert len(dataset) == 4
    found = [dataset.record(i) for i in range(4)]
    records = sorted(found, key=lambda record: float(record.joints[record.visibility > 0][:, 0].mean()))
    for n, record in enumerate(records):
        wanted, visible = convert(
            joints_in(box(n)).astype(np.float32), np.full(14, 2, np.uint8), source=LSP14, target=skeleton
        )
        assert (record.visibility > 0).tolist() == (visible > 0).tolist()
        assert record.joints[visible > 0] == pytest.approx(wanted[visible > 0], abs=1.5)
    assert len({record.patient_id for record in records}) == patients
    report = check_data(source, skeleton=skeleton)
    assert report.ok, [found for found in report.findings if found.status == "failure"]


@pytest.mark.parametrize("tool", ["cvat", "label-studio", "coco", "coco-annotator"])
def test_drafts_come_back_with_nothing_lost_but_what_the_format_cannot_hold(frames, tmp_path, tool) -> None:
    format_ = "coco" if tool == "coco-annotator" else tool
    out = tmp_path / "draft"
    outcome = drafted(frames, out, format=format_, patients=PatientRule(file=tmp_path / "patients.csv"))
    assert (outcome.frames, outcome.people, outcome.looked_at) == (4, 4, 4)
    assert outcome.lost == (["neck", "head_top"] if format_ == "coco" else [])
    change = {
        "cvat": as_cvat_exports_it, "label-studio": as_label_studio_exports_it,
        "coco-annotator": as_coco_annotator_exports_it, "coco": str,
    }[tool]  # fmt: skip
    back = tmp_path / "export.json"
    back.write_text(change(out.read_text()), encoding="utf-8")
    kinds = {"cvat": CvatSource, "label-studio": LabelStudioSource}
    source = kinds.get(tool, CocoSource)(kind=format_, annotations=back, images=frames)
    check_round_trip(source, COCO17 if format_ == "coco" else LSP14, patients=2)


def test_a_video_is_labelled_as_pictures(tmp_path: Path) -> None:
    film = ward(tmp_path / "a.mkv", lambda n: [box(n % 4)], 8)
    with pytest.raises(ConfigError, match="frames-to"):
        drafted(film, tmp_path / "d.xml", format="cvat")
    outcome = drafted(film, tmp_path / "d.xml", format="cvat", every=2, frames_to=tmp_path / "pictures")
    assert outcome.frames == 4
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"a_{n:06d}.png" for n in (0, 2, 4, 6)]
    source = CvatSource(kind="cvat", annotations=tmp_path / "d.xml", images=tmp_path / "pictures")
    assert len(open_source(source, skeleton=LSP14)) == 4


def test_a_draft_that_was_interrupted_is_gone_on_with_and_becomes_the_same_file(tmp_path: Path) -> None:
    film = ward(tmp_path / "a.mkv", lambda n: [box(n % 5)], 40)
    options = {"format": "cvat", "every": 2, "hard": 7}
    drafted(film, tmp_path / "whole.xml", frames_to=tmp_path / "whole", **options)
    resumed = []
    for stop in (2, 13, 99):

        def progress(done: int, total: int, stop: int = stop) -> None:
            assert (done <= total) == (total == 20)
            if done > stop:
                raise KeyboardInterrupt

        try:
            parts = drafted(film, tmp_path / "parts.xml", frames_to=tmp_path / "parts", progress=progress, **options)
        except KeyboardInterrupt:
            assert not (tmp_path / "parts.xml").exists()
            assert not (tmp_path / "parts").exists()
        else:
            resumed.append(parts.resumed)
    assert resumed == [16]
    assert (tmp_path / "parts.xml").read_bytes() == (tmp_path / "whole.xml").read_bytes()
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()} == whole
    assert not list(tmp_path.glob(".*"))


def test_what_was_seen_in_other_frames_or_with_another_model_is_not_gone_on_with(frames: Path, tmp_path: Path) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drafted(frames, tmp_path / "d.json", progress=interrupted)
    Image.fromarray(scene([box(9)])).save(frames / "0.png")
    assert drafted(frames, tmp_path / "d.json").resumed == 0
    with pytest.raises(KeyboardInterrupt):
        drafted(frames, tmp_path / "e.json", progress=interrupted)
    other = Discs()
    other.identity = lambda: "another"
    assert drafted(frames, tmp_path / "e.json", estimator=other).resumed == 0


def test_a_picture_that_somebody_else_wrote_is_no_frame_of_a_video(tmp_path: Path) -> None:
    film = ward(tmp_path / "a.mkv", lambda n: [box(n % 4)], 3)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a_000001.png").write_text("mine")
    with pytest.raises(ConfigError, match="another picture"):
        drafted(film, tmp_path / "d.xml", format="cvat", frames_to=tmp_path / "to")
    assert (tmp_path / "to" / "a_000001.png").read_text() == "mine"
    assert drafted(film, tmp_path / "d.xml", format="cvat", frames_to=tmp_path / "to", force=True).resumed == 3


def test_cvat_tracks_of_a_video_are_read(tmp_path: Path) -> None:
    ward(tmp_path / "a.mkv", lambda n: [box(n)], 4)

    def skeleton(n, outside):
        points = "".join(
            f'<points label="{joint}" outside="0" occluded="{int(joint == "neck")}" keyframe="1" '
            f'points="{x:.2f},{y:.2f}"></points>'
            for joint, (x, y) in zip(LSP14.joints, joints_in(box(n)), strict=True)
        )
        return f'<skeleton frame="{n}" keyframe="1" outside="{outside}" z_order="0">{points}</skeleton>'

    tracks = (
        f'<track id="3" label="person" source="manual">{"".join(skeleton(n, int(n == 3)) for n in range(4))}</track>'
    )
    (tmp_path / "a.xml").write_text(f"<annotations><version>1.1</version>{tracks}</annotations>")
    dataset = open_source(
        CvatSource(kind="cvat", annotations=tmp_path / "a.xml", images=tmp_path / "a.mkv"), skeleton=LSP14
    )
    assert [dataset.record(i).record_id for i in range(len(dataset))] == ["0:3", "1:3", "2:3"]
    assert dataset.record(2).joints == pytest.approx(joints_in(box(2)), abs=0.01)
    assert dataset.record(0).visibility[LSP14.index("neck")] == 1
    assert (dataset.frame(1) == scene([box(1)])).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotations><image name='0.png'></image></annotations>", "holds no skeleton"),
        ("<annotations", "is no XML"),
        ("<coco/>", "begins with <coco>"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>", "declares entities"),
        (
            "<annotations><image name='0.png'><skeleton><points label='tail' points='1,2'/></skeleton></image>"
            "</annotations>",
            'joint "tail" is not in',
        ),
        (
            "<annotations><image name='0.png'><skeleton><points label='neck' points='1;2'/></skeleton></image>"
            "</annotations>",
            "points of neck",
        ),
        (
            "<annotations><image name='none.png'><skeleton><points label='neck' points='1,2'/></skeleton>"
            "</image></annotations>",
            "none.png",
        ),
    ],
)
def test_xml_that_is_no_export_is_refused_by_name(frames: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(DataError, match=message):
        open_source(CvatSource(kind="cvat", annotations=tmp_path / "a.xml", images=frames), skeleton=LSP14)


def label_studio(regions, address="/data/upload/7/1a2b3c4d-0.png"):
    return json.dumps([{"id": 1, "data": {"img": address}, "annotations": [{"result": regions}]}])


def keypoint(label, x=50.0, y=50.0, **more):
    value = {"x": x, "y": y, "width": 0.4, "keypointlabels": [label]}
    return {"type": "keypointlabels", "original_width": 160, "original_height": 120, "value": value, **more}


def test_uploads_and_free_keypoints_of_label_studio_are_read(frames: Path, tmp_path: Path) -> None:
    regions = [keypoint("Left Wrist", 25, 50, id="a"), keypoint("Neck", 50, 25, id="b", meta={"text": ["hidden"]})]
    (tmp_path / "a.json").write_text(label_studio(regions))
    source = LabelStudioSource(kind="label-studio", annotations=tmp_path / "a.json", images=frames)
    record = open_source(source, skeleton=LSP14).record(0)
    assert record.joints[LSP14.index("left_wrist")].tolist() == [40, 60]
    assert record.visibility[LSP14.index("neck")] == 1
    assert record.box_source == "joints"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "a list of tasks"),
        ("[]", "holds no keypoints"),
        (label_studio([keypoint("neck"), keypoint("neck")]), "there twice"),
        (label_studio([keypoint("neck", image_rotation=90)]), "image_rotation"),
        (label_studio([keypoint("neck", x="far")]), "x is"),
        (label_studio([keypoint("neck")], "/data/upload/7/1a2b3c4d-none.png"), "none.png"),
        (
            label_studio(
                [
                    keypoint("neck", parentID="zz"),
                    {"type": "rectanglelabels", "id": "r", "original_width": 160, "original_height": 120,
                     "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "rectanglelabels": ["person"]}},
                ]
            ),
            "is of no rectangle",
        ),
    ],
)  # fmt: skip
def test_tasks_that_cannot_be_labels_are_refused(frames: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    source = LabelStudioSource(kind="label-studio", annotations=tmp_path / "a.json", images=frames)
    with pytest.raises(DataError, match=message):
        open_source(source, skeleton=LSP14)


def test_the_hardest_frames_are_chosen_one_a_patient_first(frames: Path, tmp_path: Path) -> None:
    dark = np.array(Image.open(frames / "1.png"))
    dark[60:] = 96  # the legs cannot be seen
    Image.fromarray(dark).save(frames / "1.png")
    outcome = drafted(frames, tmp_path / "d.json", hard=1)
    assert [name for name, _ in outcome.chosen] == ["1.png"]
    content = json.loads((tmp_path / "d.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["1.png"]
    assert hardest([0.9, 0.8, 0.3, 0.2], ["a", "a", "b", "c"], 3) == [0, 2, 3]
    assert hardest([0.9, 0.8, 0.3, 0.2], ["a", "a", "b", "c"], 9) == [0, 2, 3, 1]


def test_nothing_is_overwritten_and_options_are_checked(frames: Path, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        drafted(frames, tmp_path / "d.json")
    for options, message in (
        ({"format": "xml"}, "format"),
        ({"hard": 0}, "hard"),
        ({"every": 0}, "every"),
        ({"least": 2.0}, "hidden-below"),
    ):
        with pytest.raises(ConfigError, match=message):
            drafted(frames, tmp_path / "new.json", **options)
    assert not re.search("new", str(list(tmp_path.iterdir())))
