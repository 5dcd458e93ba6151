"""Average precision of files as people's tools write them, against pycocotools on its own."""

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from wardpose.shared.errors import DataError
from wardpose.shared.pose import metrics
from wardpose.shared.skeleton import COCO17

File = dict[str, Any]


def people(count: int = 30, images: int = 12, seed: int = 0) -> File:
    """People with hidden joints, in crowds, without labels; several in an image."""
    generator = np.random.default_rng(seed)
    annotations = []
    for number in range(1, count + 1):
        corner, size = generator.uniform(0, 200, 2), generator.uniform(20, 250)
        points = corner + generator.uniform(0, size, (17, 2))
        marks = generator.integers(0, 3, 17) * (generator.random() > 0.15)
        points[marks == 0] = 0
        annotations.append({
            "id": number, "image_id": int(generator.integers(1, images + 1)), "category_id": 1,
            "keypoints": np.column_stack([points, marks]).ravel().tolist(), "num_keypoints": int((marks > 0).sum()),
            "bbox": [*corner, size, size], "area": size * size * 0.6, "iscrowd": int(generator.random() < 0.1),
        })  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO17.joints)}]
    return {"images": [{"id": i} for i in range(1, images + 1)], "categories": categories, "annotations": annotations}


def guesses(truth: File, error: float = 6.0, seed: int = 1) -> list[File]:
    generator = np.random.default_rng(seed)
    found = []
    for entry in truth["annotations"]:
        triples = np.array(entry["keypoints"]).reshape(-1, 3)
        triples[:, :2] += generator.normal(0, error, (17, 2))
        triples[:, 2] = 1
        score = float(generator.random())
        found.append(
            {"image_id": entry["image_id"], "category_id": 1, "keypoints": triples.ravel().tolist(), "score": score}
        )
    return found


def pycocotools(truth: File, results: list[File]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(COCO17.oks_sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[:6]]


def ours(truth: File, results: list[File]) -> list[float]:
    before = copy.deepcopy((truth, results))
    values = list(metrics.oks_ap_of_coco(truth, results, COCO17).values())
    assert repr((truth, results)) == repr(before)  # what is handed in stays as it was
    return values


@pytest.mark.parametrize("seed", range(6))
def test_what_pycocotools_takes_scores_the_same(seed: int) -> None:
    truth = people(seed=seed)
    results = guesses(truth, error=2.0 + seed)
    for index in (0, 5, 9):  # detections of nobody
        results.append({**results[index], "image_id": results[-1]["image_id"], "score": 0.4})
    assert 0.05 < ours(truth, results)[0] < 0.95
    assert ours(truth, results) == pycocotools(truth, results)
    for entry in results:
        entry["bbox"] = [0.0, 0.0, 60.0, 90.0]
    assert ours(truth, results) == pycocotools(truth, results)


def renumbered(start: int, step: int = 1) -> Callable[[File, list[File]], None]:
    def change(truth: File, results: list[File]) -> None:
        for index, entry in enumerate(truth["annotations"]):
            entry["id"] = start + index * step

    return change


def as_text(entry: File) -> str:
    return str(entry["image_id"])


def as_float(entry: File) -> float:
    return float(entry["image_id"])


def everywhere(
    key: str, value: Callable[[File], Any], *, images: bool = False, truth: bool = True, results: bool = True
):  # type: ignore[no-untyped-def]
    def change(file: File, found: list[File]) -> None:
        for entry in [*(file["annotations"] if truth else []), *(found if results else [])]:
            entry[key] = value(entry)
        for entry in file["images"] if images else []:
            entry["id"] = value({"image_id": entry["id"]})

    return change


def without(key: str, *, truth: bool = False) -> Callable[[File, list[File]], None]:
    def change(file: File, found: list[File]) -> None:
        for entry in file["annotations"] if truth else found:
            del entry[key]

    return change


def named_by_file(file: File, found: list[File]) -> None:
    for entry in file["images"]:
        entry["file_name"] = f"ward\\day 1\\frame_{entry['id']:03d}.jpg"
    for entry in found:
        entry["image_id"] = f"frame_{entry['image_id']:03d}"


def triples(entry: File) -> list[list[float]]:
    return [entry["keypoints"][place : place + 3] for place in range(0, 51, 3)]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(renumbered(0), id="ids from 0"),
        pytest.param(renumbered(7, 0), id="one id for all"),
        pytest.param(renumbered(-5), id="negative ids"),
        pytest.param(without("id", truth=True), id="no ids"),
        pytest.param(without("num_keypoints", truth=True), id="num_keypoints missing"),
        pytest.param(everywhere("num_keypoints", lambda entry: 0, results=False), id="num_keypoints wrong"),
        pytest.param(everywhere("image_id", as_text, images=True), id="names as strings"),
        pytest.param(everywhere("image_id", as_text, truth=False), id="strings in results"),
        pytest.param(everywhere("image_id", as_float, truth=False), id="floats in results"),
        pytest.param(named_by_file, id="file names in results"),
        pytest.param(everywhere("keypoints", triples), id="triples"),
        pytest.param(without("category_id"), id="no category in results"),
        pytest.param(everywhere("category_id", lambda entry: 0, truth=False), id="category 0 in results"),
        pytest.param(everywhere("category_id", lambda entry: "person"), id="category by name"),
        pytest.param(lambda file, found: file.pop("categories"), id="no categories"),
        pytest.param(lambda file, found: file.pop("images"), id="no images"),
        pytest.param(everywhere("iscrowd", lambda entry: str(entry["iscrowd"]), results=False), id="crowd as text"),
        pytest.param(everywhere("iscrowd", lambda entry: f"{entry['iscrowd'] > 0}", results=False), id="crowd: True"),
        pytest.param(everywhere("iscrowd", lambda entry: float(entry["iscrowd"]), results=False), id="crowd as 1.0"),
    ],
)  # fmt: skip
def test_what_can_only_mean_one_thing_is_understood(change: Callable[[File, list[File]], None]) -> None:
    truth = people()
    results = guesses(truth)
    expected = pycocotools(truth, results)
    change(truth, results)
    assert ours(truth, results) == expected


def test_missing_crowd_area_and_box_have_conventions() -> None:
    truth = people(seed=3)
    for entry in truth["annotations"]:
        entry["iscrowd"], entry["area"] = 0, 0.53 * entry["bbox"][2] * entry["bbox"][3]
    results = guesses(truth)
    expected = pycocotools(truth, results)
    without("iscrowd", truth=True)(truth, results)
    without("area", truth=True)(truth, results)
    assert ours(truth, results) == expected
    without("bbox", truth=True)(truth, results)
    assert 0 < ours(truth, results)[0] <= 1


def test_nothing_may_be_missing_null_or_empty() -> None:
    truth = people()
    results = guesses(truth)
    plain = copy.deepcopy(truth)
    for entry in plain["annotations"]:
        del entry["area"], entry["bbox"]
    expected = ours(plain, results)
    for nothing in (None, []):
        for entry in truth["annotations"]:
            entry["area"], entry["bbox"] = None, nothing
        assert ours(truth, results) == expected


@pytest.mark.parametrize("empty", [{"keypoints": [], "num_keypoints": 0}, {"keypoints": None}, {"keypoints": [0] * 51}])
def test_a_track_without_joints_is_nobody(empty: File) -> None:
    truth = people()
    truth["annotations"][3] |= {"keypoints": [0.0] * 51, "num_keypoints": 0}
    results = guesses(truth)
    expected = ours(truth, results)
    truth["annotations"][3].pop("num_keypoints")
    truth["annotations"][3] |= empty
    assert ours(truth, results) == expected
    truth["annotations"][3] |= {"keypoints": [], "num_keypoints": 17}
    with pytest.raises(DataError, match=r"entry 3: keypoints is \[\]"):
        ours(truth, results)


def test_detections_without_scores_are_equally_sure_and_of_other_things_are_left_out() -> None:
    truth = people()
    results = guesses(truth)
    for entry in results:
        entry["score"] = 0.5
    expected = pycocotools(truth, results)
    dogs = [{**entry, "category_id": 18, "score": 0.5} for entry in results[:4]]
    assert ours(truth, [*dogs, *results]) == expected
    without("score")(truth, results)
    assert ours(truth, results) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("joints", [17, 9, 1])
def test_joints_that_are_no_numbers_are_wrong(bad: float, joints: int) -> None:
    truth = people(seed=2)
    for entry in truth["annotations"]:
        entry["iscrowd"] = 0
        for place in range(17):
            entry["keypoints"][3 * place + 2] = 2
    results = guesses(truth, error=0.0)
    assert ours(truth, results)[:3] == [1.0, 1.0, 1.0]
    for entry in results:
        for place in range(joints):
            entry["keypoints"][3 * place + place % 2] = bad  # one coordinate of the two
    found = ours(truth, results)
    if joints == 17:
        assert found == [0.0] * 6
    else:  # OKS is the share of the joints that are right: 16 and 8 of 17
        assert found[1] == (1.0 if joints == 1 else 0.0)
        assert found[0] == pytest.approx(
            sum(t <= 16 / 17 for t in np.linspace(0.5, 0.95, 10)) / 10 if joints == 1 else 0
        )


def test_nothing_predicted_finds_nobody_and_nobody_labelled_is_no_score() -> None:
    truth = people()
    assert ours(truth, []) == [0.0] * 6
    for entry in truth["annotations"]:
        entry["keypoints"][2::3] = [0] * 17
    assert ours(truth, guesses(truth)) == [-1.0] * 6
    assert ours(truth, []) == [-1.0] * 6
    assert ours({"annotations": []}, []) == [-1.0] * 6


def test_an_area_of_nothing_forgives_nothing() -> None:
    truth = people()
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["num_keypoints"]]
    for entry in truth["annotations"]:
        entry["area"], entry["iscrowd"] = 0, 0
    assert ours(truth, guesses(truth, error=0.0))[0] == pytest.approx(1.0)
    assert ours(truth, guesses(truth, error=1.0))[0] == 0.0


@pytest.mark.parametrize(
    ("place", "key", "value", "words"),
    [
        ("truth", "keypoints", [1.0] * 50, "annotations: entry 3: keypoints is"),
        ("truth", "keypoints", "wrist", "51 numbers"),
        ("truth", "keypoints", [math.nan, 0.0, 2.0] * 17, "labelled joint that is not finite"),
        ("truth", "area", math.nan, "annotations: entry 3: area is nan"),
        ("truth", "area", -1, "at least 0"),
        ("truth", "bbox", [1, 2, 3], "annotations: entry 3: bbox is"),
        ("truth", "iscrowd", "maybe", "annotations: entry 3: iscrowd is 'maybe' (allowed: 0 or 1)"),
        ("truth", "iscrowd", 2, "annotations: entry 3: iscrowd is 2"),
        ("truth", "image_id", None, "annotations: entry 3: image_id is None"),
        ("truth", "category_id", [1], "annotations: entry 3: category_id is"),
        ("results", "score", math.nan, "results: entry 3: score is nan"),
        ("results", "score", "0.9", "results: entry 3: score is '0.9'"),
        ("results", "keypoints", [[1.0, 2.0]] * 17, "results: entry 3: keypoints is"),
        ("results", "keypoints", None, "results: entry 3: keypoints is None"),
        ("results", "image_id", 4711, "results: entry 3: image_id 4711 is no image"),
        ("results", "image_id", True, "image_id is True"),
        ("results", "bbox", "box", "results: entry 3: bbox"),
    ],
)
def test_what_means_nothing_is_refused_by_name(place: str, key: str, value: object, words: str) -> None:
    truth = people()
    results = guesses(truth)
    for entry in results:
        entry["bbox"] = [0.0, 0.0, 1.0, 1.0]
    (truth["annotations"] if place == "truth" else results)[3][key] = value
    with pytest.raises(DataError) as caught:
        ours(truth, results)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scores_in_some_entries_only_are_refused() -> None:
    truth = people()
    results = guesses(truth)
    del results[4]["score"]
    with pytest.raises(DataError, match="results: entry 4: score is missing"):
        ours(truth, results)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=JSON, place=st.sampled_from(["annotations", "images", "results"]), data=st.data())
def test_any_json_scores_or_is_refused_on_one_line(value: object, place: str, data: st.DataObject) -> None:
    truth = people(6, 3)
    results = guesses(truth)
    rows = results if place == "results" else truth[place]
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from([*rows[0], "bbox", "iscrowd", "file_name"]))
        rows[data.draw(st.integers(0, len(rows) - 1))][key] = value
    elif place == "results":
        results = value  # type: ignore[assignment]
    else:
        truth[place] = value
    refused = ""
    try:
        found = metrics.oks_ap_of_coco(truth, results, COCO17)
    except DataError as error:
        found, refused = {}, str(error)
    assert "\n" not in refused
    assert len(refused) < 400
    assert all(-1 <= number <= 1 for number in found.values())


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["ids_from_0", "ids_from_1"])
def test_perfect_predictions_of_a_real_file(name: str, data_root: Path) -> None:
    truth = json.loads((data_root / "real_files" / "metrics-id-0" / f"{name}.json").read_text())
    results = [
        {**{k: a[k] for k in ("image_id", "category_id", "keypoints")}, "score": 0.9} for a in truth["annotations"]
    ]
    assert ours(truth, results)[0] == pytest.approx(1.0)
    for entry in truth["annotations"]:
        entry["id"] = 1
        del entry["num_keypoints"]
    assert ours(truth, results)[0] == pytest.approx(1.0)
