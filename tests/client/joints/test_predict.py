import csv
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.figures import GROUND, Discs, joints_in, scene, ward
from support.films import film, times, truth, turned

from wardpose.client.joints.predict import Outcome, Request, predict
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.skeleton import LSP14


def walking(n):
    return [(20 + 2 * n, 20, 40, 80)]


def two(n):
    return [(120 - n, 15, 30, 70), (5 + n, 30, 30, 70)]


def run(sources, *outputs, **options) -> Outcome:
    sources = (sources,) if isinstance(sources, Path) else tuple(sources)
    return predict(Request(sources=sources, outputs=outputs, **{"estimator": Discs(), **options}))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def worst(table, boxes):
    """Largest distance of a joint in a table from where it was drawn; person k is in `boxes(n)[k]`."""
    drawn = [joints_in(boxes(int(row["frame"] or 0))[int(row["person"])])[LSP14.index(row["joint"])] for row in table]
    found = [(float(row["x"]), float(row["y"])) for row in table]
    return np.abs(np.array(drawn) - np.array(found)).max()


def boxes_csv(path, name, boxes, count):
    lines = [f"{name},{n},{','.join(map(str, box))}" for n in range(count) for box in boxes(n)]
    path.write_text("file,frame,x,y,width,height\n" + "\n".join(lines) + "\n")
    return path


def test_one_patient_is_found_and_followed_without_boxes(tmp_path: Path) -> None:
    source = ward(tmp_path / "a.mkv", walking, 40)
    discs = Discs()
    outcome = run(source, tmp_path / "a.csv", estimator=discs)
    table = rows(tmp_path / "a.csv")
    assert (outcome.frames, outcome.people, outcome.outputs) == (40, 1, [tmp_path / "a.csv"])
    assert [int(row["frame"]) for row in table] == [n for n in range(40) for _ in LSP14.joints]
    assert worst(table, walking) < 1.5
    assert [float(row["time_s"]) for row in table[:: len(LSP14)]] == pytest.approx([float(t) for t in times(source)])
    assert discs.crops < 2 * 40 + 50  # following costs a crop a frame, and few are cut in vain
    assert discs.calls < 40


def test_a_patient_who_jumps_is_searched_for_again(tmp_path: Path) -> None:
    def jumping(n):
        return [(10, 10, 40, 90)] if n < 10 else [(110, 20, 45, 95)]

    run(ward(tmp_path / "a.mkv", jumping, 20), tmp_path / "a.csv")
    assert worst(rows(tmp_path / "a.csv"), jumping) < 2


def test_nobody_is_nobody(tmp_path: Path) -> None:
    empty = ward(tmp_path / "a.mkv", lambda n: [], 12)
    outcome = run(empty, tmp_path / "a.csv", tmp_path / "a.json", tmp_path / "a.trc", tmp_path / "a")
    assert (outcome.frames, outcome.people) == (12, 0)
    assert rows(tmp_path / "a.csv") == []
    assert json.loads((tmp_path / "a.json").read_text()) == []
    frames = [json.loads(path.read_text()) for path in sorted((tmp_path / "a").iterdir())]
    assert [frame["people"] for frame in frames] == [[]] * 12
    assert len((tmp_path / "a.trc").read_text().splitlines()) == 5 + 12


def test_two_people_keep_their_columns_when_boxes_come_in_any_order(tmp_path: Path) -> None:
    def shuffled(n):
        return two(n)[:: 1 if n % 3 else -1]

    source = ward(tmp_path / "a.mkv", two, 20)
    boxes = boxes_csv(tmp_path / "boxes.csv", "a.mkv", shuffled, 20)
    outcome = run(source, tmp_path / "a.csv", tmp_path / "a.trc", tmp_path / "op", boxes=boxes)
    assert outcome.people == 2
    first = shuffled(0)

    def in_columns(n):
        return two(n) if first == two(0) else two(n)[::-1]

    assert worst(rows(tmp_path / "a.csv"), in_columns) < 1.5
    header = (tmp_path / "a.trc").read_text().splitlines()[3].split("\t")
    assert header[2] == "person0_right_ankle"
    assert "person1_head_top_confidence" in header
    last = json.loads((tmp_path / "op" / "a_000000000019_keypoints.json").read_text())["people"]
    assert [person["person_id"] for person in last] == [[0], [1]]
    nose, neck = last[1]["pose_keypoints_2d"][:3], last[1]["pose_keypoints_2d"][3:6]
    assert nose == [0, 0, 0]  # LSP has none, and none is made up
    assert neck[:2] == pytest.approx(joints_in(in_columns(19)[1])[LSP14.index("neck")], abs=1.5)


def test_who_leaves_keeps_the_place_and_comes_back_to_it(tmp_path: Path) -> None:
    def leaving(n):
        both = [(10, 20, 40, 90), (100, 20, 40, 90)]
        return both[1:] if 5 <= n < 10 else both

    source = ward(tmp_path / "a.mkv", leaving, 15)
    boxes = boxes_csv(tmp_path / "boxes.csv", "a.mkv", leaving, 15)
    run(source, tmp_path / "a.trc", tmp_path / "op", boxes=boxes)
    lines = [line.split("\t") for line in (tmp_path / "a.trc").read_text().splitlines()[5:]]
    marker = 2 + 6 * LSP14.index("head_top")
    assert [line[marker] == "" for line in lines] == [False] * 5 + [True] * 5 + [False] * 5
    away = json.loads((tmp_path / "op" / "a_000000000007_keypoints.json").read_text())["people"]
    assert not any(away[0]["pose_keypoints_2d"])
    assert away[1]["pose_keypoints_2d"][3] == pytest.approx(120, abs=1.5)


def test_a_trc_is_what_opensim_reads(tmp_path: Path) -> None:
    """Header as OpenSim's TRCFileAdapter takes it apart: five lines, tabs, a name and two empty cells a marker."""
    run(ward(tmp_path / "a.mkv", walking, 6), tmp_path / "a.trc", metres_per_pixel=0.01)
    lines = [line.split("\t") for line in (tmp_path / "a.trc").read_text().split("\n")[:-1]]
    assert lines[0] == ["PathFileType", "4", "(X/Y/Z)", "a.trc"]
    facts = dict(zip(lines[1], lines[2], strict=True))
    assert facts == {
        "DataRate": "30", "CameraRate": "30", "NumFrames": "6", "NumMarkers": "28", "Units": "m", "OrigDataRate": "30",
        "OrigDataStartFrame": "1", "OrigNumFrames": "6",
    }  # fmt: skip
    assert lines[3][:2] == ["Frame#", "Time"]
    markers = lines[3][2::3]
    assert len(markers) == 28
    assert set(lines[3]) - set(markers) == {"Frame#", "Time", ""}
    assert lines[4][2:] == [f"{axis}{i}" for i in range(1, 29) for axis in "XYZ"]
    for n, line in enumerate(lines[5:]):
        assert line[0] == str(n + 1)
        values = np.array(line[2:], float).reshape(28, 3)
        drawn = joints_in(walking(n)[0])
        assert values[::2, 0] * 100 == pytest.approx(drawn[:, 0], abs=1.5)
        assert 119 - values[::2, 1] * 100 == pytest.approx(drawn[:, 1], abs=1.5)  # y goes up
        assert (values[1::2, 0] > 0.3).all()  # confidence


def test_variable_frame_rates_and_late_starts_keep_their_times(tmp_path: Path) -> None:
    stamps = [6000, 7000, 9000, 9500, 15000, 15900]
    source = ward(tmp_path / "a.mkv", walking, 6, stamps=stamps, unit=Fraction(1, 3000))
    run(source, tmp_path / "a.csv", tmp_path / "a.mp4")
    shown = [float(row["time_s"]) for row in rows(tmp_path / "a.csv")[:: len(LSP14)]]
    assert shown == pytest.approx([stamp / 3000 for stamp in stamps], abs=1e-3)
    assert [float(t) for t in times(tmp_path / "a.mp4")] == pytest.approx(shown, abs=1e-3)


def test_a_turned_video_gives_joints_of_the_upright_frame(tmp_path: Path) -> None:
    def box(n):
        return [(40, 30, 30, 70)]

    turned_scene = np.rot90(scene(box(0), 160, 120))  # stored lying, shown turned clockwise
    source = film(
        tmp_path / "a.mp4", count=3, height=120, width=160, picture=lambda n: turned_scene, options={"qp": "1"}
    )
    run(turned(source, 90), tmp_path / "a.csv")
    assert worst(rows(tmp_path / "a.csv"), box) < 2.5


def test_a_drawn_video_has_the_frames_of_its_source(tmp_path: Path) -> None:
    source = ward(tmp_path / "a.mkv", walking, 40, height=121, width=161)  # odd sides
    run(source, tmp_path / "a.mkv.mp4", tmp_path / "drawn.mkv")
    drawn = truth(tmp_path / "drawn.mkv")
    assert len(drawn) == 40
    for n, frame in enumerate(drawn):
        changed = np.abs(frame.astype(int) - scene(walking(n), 121, 161)).max(axis=-1) > 40
        hip = joints_in(walking(n)[0])[2:4].mean(axis=0).round().astype(int)  # between the hips is a limb
        assert changed[hip[1], hip[0]], n
        assert not changed[:, : max(0, walking(n)[0][0] - 8)].any()
    assert len(truth(tmp_path / "a.mkv.mp4")) == 40


def test_over_the_public_view_nothing_of_the_scene_is_left(tmp_path: Path) -> None:
    from wardpose.client.anonymize.request import choose_method

    frame = scene([(60, 20, 40, 80)])
    Image.fromarray(frame).save(tmp_path / "a.png")
    run(tmp_path / "a.png", tmp_path / "b.png", over=choose_method("public-view"))
    shown = np.array(Image.open(tmp_path / "b.png"))
    assert not (shown == GROUND).all(axis=-1).any()
    assert (shown[:, :15] == 0).all()
    assert shown.any()


def test_pictures_stand_alone_and_a_rate_makes_them_a_film(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    names = ["10.png", "9 ü;=1.png", "sub/=cmd.png"]
    for n, name in enumerate(names):
        Image.fromarray(scene(walking(10 * n))).save(folder / name)
    (folder / "notes.txt").write_text("x")
    outcome = run(
        folder, tmp_path / "a.csv", tmp_path / "a.json", tmp_path / "drawn", formats=("csv", "coco", "pictures")
    )
    assert (outcome.frames, outcome.people) == (3, 3)
    assert [left.name for left in outcome.left_out] == ["notes.txt"]
    table = rows(tmp_path / "a.csv")
    assert [row["file"] for row in table[:: len(LSP14)]] == names
    for n, name in enumerate(names):
        assert worst([{**row, "frame": n} for row in table if row["file"] == name], lambda n: walking(10 * n)) < 1.5
    assert [entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())] == [10, "9 ü;=1", "sub/=cmd"]
    assert sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.png")) == names
    with pytest.raises(ConfigError, match="no frame rate"):
        run(folder, tmp_path / "a.trc")
    outcome = run(folder, tmp_path / "a.trc", rate=2.0)
    assert outcome.people == 1
    assert [line.split("\t")[1] for line in (tmp_path / "a.trc").read_text().splitlines()[5:]] == [
        "0.000000", "0.500000", "1.000000",
    ]  # fmt: skip


def test_every_page_is_a_frame(tmp_path: Path) -> None:
    pages = [Image.fromarray(scene(walking(10 * n))) for n in range(3)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    outcome = run(tmp_path / "scan.tif", tmp_path / "a.csv")
    assert outcome.frames == 3
    assert worst(rows(tmp_path / "a.csv"), lambda n: walking(10 * n)) < 1.5


def test_what_cannot_be_read_stops_or_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(3):
        Image.fromarray(scene(walking(10 * n))).save(folder / f"{n}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-60])
    with pytest.raises(DataError, match=r"1\.png.*--on-bad skip"):
        run(folder, tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()
    outcome = run(folder, tmp_path / "a.csv", on_bad="skip")
    assert outcome.frames == 3
    assert len(outcome.skipped) == 1
    assert {row["file"] for row in rows(tmp_path / "a.csv")} == {"0.png", "2.png"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_cut_video_is_refused_or_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    source = ward(tmp_path / "a.mkv", walking, 30)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match="a whole video"):
        run(source, tmp_path / "a.csv")
    outcome = run(source, tmp_path / "a.csv", on_bad="skip")
    assert 5 < outcome.frames < 30
    assert outcome.left_out[0].name == "a.mkv"


class Breaking(Discs):
    """Stops after so many calls, as a power cut does."""

    def __init__(self, calls):
        super().__init__()
        self._left = calls

    def __call__(self, crops):
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().__call__(crops)


@pytest.mark.parametrize("smooth", [None, 5.0])
def test_interrupted_anywhere_and_resumed_gives_the_same_files(tmp_path: Path, smooth: float | None) -> None:
    source = ward(tmp_path / "a.mkv", walking, 70)
    names = ("a.csv", "a.json", "a.trc", "a.mp4")

    def outputs(folder):
        return [tmp_path / folder / name for name in names]

    whole = run(source, *outputs("whole"), smooth=smooth)
    assert whole.resumed == 0
    resumed = set()
    for calls in (2, 12, 1000):
        try:
            outcome = run(source, *outputs("parts"), smooth=smooth, estimator=Breaking(calls))
        except KeyboardInterrupt:
            assert not any(path.exists() for path in outputs("parts"))
            continue
        resumed.add(outcome.resumed)
    assert max(resumed) in (32, 64)
    for ours, theirs in zip(outputs("whole"), outputs("parts"), strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours.name
    assert {path.name for path in (tmp_path / "parts").iterdir()} == set(names)


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(scene(walking(0))).save(source)
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        run(source, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "mine"
    run(source, tmp_path / "a.csv", force=True)
    assert len(rows(tmp_path / "a.csv")) == len(LSP14)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (["a.xlsx"], {}, "is of no format"),
        (["a.csv"], {"formats": ("excel",)}, 'format "excel" is not allowed'),
        (["a.csv", "b.csv"], {"formats": ("csv",)}, "as often"),
        (["a.csv", "./a.csv"], {}, "named twice"),
        (["a.mp4"], {}, "is no video"),
        (["in.png"], {}, "is a source itself"),
        (["a.csv"], {"smooth": -1.0, "rate": 5.0}, "smooth"),
        (["a.csv"], {"batch_size": 0}, "batch"),
        (["a.csv"], {"least": 1.0}, "min-confidence"),
        (["a.csv"], {"rate": float("nan")}, "rate"),
        (["a.csv"], {"over": object()}, "--over"),
        ([], {}, "--out"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_before_any_work(tmp_path, outputs, options, message) -> None:
    Image.fromarray(scene(walking(0))).save(tmp_path / "in.png")
    before = (tmp_path / "in.png").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "in.png", *(tmp_path / name for name in outputs), **options)
    assert (tmp_path / "in.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_coco_results_are_scored_by_pycocotools_as_they_are(tmp_path: Path) -> None:
    from wardpose.shared.pose.metrics import oks_ap_of_coco
    from wardpose.shared.skeleton import COCO17, convert

    folder = tmp_path / "in"
    folder.mkdir()
    annotations = []
    for n in range(3):
        box = walking(10 * n)[0]
        Image.fromarray(scene([box])).save(folder / f"{n:012d}.png")
        joints, visible = convert(joints_in(box), np.full(14, 2, np.uint8), source=LSP14, target=COCO17)
        keypoints = np.concatenate([joints, visible[:, None]], axis=1).ravel().tolist()
        annotations.append({"image_id": n, "category_id": 1, "keypoints": keypoints, "bbox": list(box), "area": 9000})
    run(folder, tmp_path / "a.json")
    scores = oks_ap_of_coco({"annotations": annotations}, json.loads((tmp_path / "a.json").read_text()), COCO17)
    assert scores["AP"] == pytest.approx(1.0)


def test_smoothing_takes_noise_away_and_leaves_movement(tmp_path: Path) -> None:
    from wardpose.client.joints.people import Found, Person
    from wardpose.client.joints.smoothing import smoothed

    noise = np.random.default_rng(0)
    for stamps in (np.arange(100) / 25, np.cumsum(noise.uniform(0.02, 0.06, 100))):
        path = 100 + 40 * np.sin(2 * np.pi * 0.5 * stamps)
        shaky = path + noise.normal(0, 2, 100)
        found = [
            Found(
                source="a", number=n, time=Fraction(float(t)), size=(9, 9),
                people=(Person(number=0, box=(0, 0, 1, 1), joints=np.full((2, 2), x, np.float32), scores=np.ones(2)),),
            )
            for n, (t, x) in enumerate(zip(stamps, shaky, strict=True))
        ]  # fmt: skip
        smooth = np.array([frame.people[0].joints[0, 0] for frame in smoothed(found, 3.0, rate=25.0)])
        assert np.abs(smooth - path)[5:-5].mean() < 0.6 * np.abs(shaky - path)[5:-5].mean()
    gap = [*found[:8], Found(source="a", number=8, time=found[8].time, size=(9, 9)), *found[9:12]]
    kept = smoothed(gap, 3.0, rate=25.0)
    assert [frame.people[0].joints[0, 0] if frame.people else None for frame in kept] == [
        frame.people[0].joints[0, 0] if frame.people else None for frame in gap
    ]  # too short to be filtered


def test_boxes_are_read_as_tools_write_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(scene([(10, 20, 40, 80), (100, 20, 40, 80)])).save(folder / "7.png")
    coco = {
        "images": [{"id": "x", "file_name": "sub\\7.png"}, {"id": 2, "file_name": "7.png"}],
        "annotations": [
            {"image_id": 2, "bbox": [100, 20, 40, 80]},
            {"image_id": 2, "bbox": [0, 0, 160, 120], "iscrowd": 1},
        ],
    }
    forms = {
        "coco.json": json.dumps(coco),
        "results.json": json.dumps([{"image_id": 7, "bbox": [100, 20, 40, 80], "score": 0.9}]),
        "anonymize.json": json.dumps({"7.png": [[100, 20, 40, 80]]}),
        "excel.csv": "\ufeffFile;X;Y;Width;Height\r\n7.png;100,0;20,0;40,0;80,0\r\n",
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        outcome = run(folder, tmp_path / f"{name}.out.csv", boxes=tmp_path / name)
        assert outcome.people == 1, name
        assert worst(rows(tmp_path / f"{name}.out.csv"), lambda n: [(100, 20, 40, 80)]) < 1.5, name
        assert not outcome.left_out, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,x,y,width\n7.png,1,2,3\n", "height is missing"),
        ("file,x,y,width,height\n7.png,1,2,0,4\n", "row 2.*width and height above 0"),
        ("file,x,y,width,height\n7.png,1,2,nan,4\n", "row 2"),
        ("file,x,y,width,height\n8.png,1,2,3,4\n", "names none of the frames"),
        ("file,frame,x,y,width,height\n7.png,one,1,2,3,4\n", "row 2.*frame"),
    ],
)
def test_a_file_of_boxes_that_says_nothing_is_refused_by_row(tmp_path: Path, content: str, message: str) -> None:
    Image.fromarray(scene(walking(0))).save(tmp_path / "7.png")
    (tmp_path / "b.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "7.png", tmp_path / "a.csv", boxes=tmp_path / "b.csv")


def test_a_box_outside_its_frame_is_refused(tmp_path: Path) -> None:
    Image.fromarray(scene(walking(0))).save(tmp_path / "7.png")
    (tmp_path / "b.csv").write_text("file,x,y,width,height\n7.png,500,2,3,4\n")
    with pytest.raises(DataError, match=r"500.*160 x 120"):
        run(tmp_path / "7.png", tmp_path / "a.csv", boxes=tmp_path / "b.csv")


def test_several_sources_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    a, b = ward(tmp_path / "a.mkv", walking, 5), ward(tmp_path / "n" / "b.mkv", walking, 4)
    Image.fromarray(scene(walking(0))).save(tmp_path / "c.png")
    run((a, b, tmp_path / "c.png"), tmp_path / "all.csv", tmp_path / "op")
    table = rows(tmp_path / "all.csv")
    assert list(dict.fromkeys(row["file"] for row in table)) == ["a.mkv", "b.mkv", "c.png"]
    assert [len(list((tmp_path / "op" / f"{name}_json").iterdir())) for name in "abc"] == [5, 4, 1]
    run((a, b), tmp_path / "trc", formats=("trc",))
    assert sorted(path.name for path in (tmp_path / "trc").iterdir()) == ["a.trc", "b.trc"]
    with pytest.raises(ConfigError, match="a folder"):
        run((a, b), tmp_path / "one.trc")
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match="two sources"):
        run((a, ward(tmp_path / "m" / "a.mkv", walking, 3)), tmp_path / "x.csv")
