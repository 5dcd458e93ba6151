"""Boxes say where a frame is changed: none is missed, mistyped or half understood in silence."""

import json

import numpy as np
import pytest
from PIL import Image
from support.films import card

from wardpose.client.anonymize.request import anonymize, choose_method
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(card(7)).save(tmp_path / "in" / name)
    return tmp_path / "in"


def run(folder, content, **more):
    boxes = folder.parent / "boxes.json"
    boxes.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    out = folder.parent / "out"
    return anonymize(folder, out, choose_method("blur", strength=8), boxes=boxes, **more), out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.png": [[float("nan"), 1, 20, 20]]}, r'"a\.png": a box holds nan'),
        ({"a.png": [[1, 1, 1e400, 20]]}, r'"a\.png": a box holds inf'),
        ({"a.png": [[1, 1, -20, 20]]}, r'"a\.png" has the box \[1, 1, -20, 20\] \(allowed: width and height above 0'),
        ({"a.png": [[0, 0, 0, 0]]}, r'"a\.png" has the box'),
        ({"a.png": [1, 2, 3, 4]}, r'"a\.png": a box has 1 numbers \(allowed: 4'),
        ({"a.png": [["x", 1, 2, 3]]}, r"\"a\.png\": a box holds 'x'"),
        ({"a.png": {"0": [1, 2, 3, 4]}}, r'"a\.png" has \{'),
        ({"a.png": None}, r'"a\.png" has None'),
        ([[1, 2, 3, 4]], "must map file names"),
        (b'{"a.png": [[1, 1, 9, 9]], "a.png": []}', 'key "a.png" appears twice'),
        (b"{", "malformed JSON"),
    ],
)
def test_what_is_no_box_is_one_line_and_nothing_is_written(folder, content, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(folder, content)
    assert str(caught.value).startswith(f"{folder.parent}/boxes.json: ")
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize("box", [[500, 1, 9, 9], [1, 96, 9, 9], [-30, 1, 30, 9], [128, 1, 5, 5]])
def test_a_box_that_misses_its_frame_lets_nobody_through(folder, box):
    with pytest.raises(DataError, match=r'boxes\.json: "sub/b\.png" has the box .*frame of 128 x 96'):
        run(folder, {"sub/b.png": [box]})
    assert not (folder.parent / "out" / "sub" / "b.png").exists()
    outcome, out = run(folder, {"sub/b.png": [box]}, on_bad="skip")
    assert (outcome.resumed, outcome.frames, len(outcome.skipped)) == (1, 0, 1)
    assert not (out / "sub" / "b.png").exists()


@pytest.mark.parametrize("content", [{}, {"a.png": [], "sub/b.png": []}])
def test_without_a_box_a_frame_is_changed_everywhere(folder, content):
    _, out = run(folder, content)
    for name in ("a.png", "sub/b.png"):
        assert (read_picture(out / name) != card(7))[40:].any(axis=2).mean() > 0.4


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_every_encoding_of_json(folder, encoding):
    _, out = run(folder, json.dumps({"a.png": [[90, 60, 20, 20]]}).encode(encoding))
    np.testing.assert_array_equal(read_picture(out / "a.png")[:40, :40], card(7)[:40, :40])


def test_names_that_fit_no_file_are_said(folder):
    outcome, _ = run(folder, {"A.PNG": [[1, 1, 9, 9]], "b.png#3": [[1, 1, 9, 9]], "a.png": [[1, 1, 9, 9]], "\0": []})
    assert [left.name for left in outcome.left_out] == ["A.PNG", "b.png#3", "\0"]
    assert all("boxes.json, but no file of" in left.reason for left in outcome.left_out)
    one = folder.parent / "one.png"
    for content, said in (({"a.png": [[1, 1, 9, 9]]}, []), ({"b.png": [[1, 1, 9, 9]]}, ["a.png"])):
        (folder.parent / "boxes.json").write_text(json.dumps(content))
        outcome = anonymize(
            folder / "a.png", one, choose_method("blur"), boxes=folder.parent / "boxes.json", force=True
        )
        assert [left.name for left in outcome.left_out] == said
