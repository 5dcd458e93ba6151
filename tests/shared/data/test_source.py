import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from wardpose.shared.data.records import PoseRecord
from wardpose.shared.data.source import DataSource, find_data_root, open_source
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.skeleton import COCO17, LSP14

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataSource)


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "dicom", "path": "x"},
        {"path": "x"},
        {"kind": "lsp", "path": "x"},
        {"kind": "lsp", "path": "x", "split": "secret"},
        {"kind": "lsp", "path": "x", "split": "val", "colour": "red"},
        {"kind": "coco", "annotations": "x"},
        {"kind": "coco", "annotations": "x", "images": "y", "on_bad_record": "ignore"},
        {"kind": "ward", "hospital": "north", "patients": 0, "frames_per_patient": 1},
    ],
)
def test_bad_sources_are_refused(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(source)


def test_a_source_survives_json() -> None:
    source = ADAPTER.validate_python(
        {"kind": "video", "path": "v.mp4", "labels": "l.csv", "patients": {"pattern": "(.)"}, "records": "r.json"}
    )
    assert ADAPTER.validate_json(source.model_dump_json()) == source


@pytest.mark.realdata
def test_records_cut_a_set_into_hospitals(data_root: Path, tmp_path: Path) -> None:
    whole = ADAPTER.validate_python({"kind": "lsp", "path": str(data_root / "lspet"), "split": "val"})
    dataset = open_source(whole, skeleton=LSP14)
    ids = [dataset.record(i).record_id for i in (7, 3)]
    listing = tmp_path / "records.json"
    listing.write_text(json.dumps(ids))
    part = open_source(whole.model_copy(update={"records": listing}), skeleton=LSP14)
    assert [part.record(i).record_id for i in range(len(part))] == ids
    np.testing.assert_array_equal(part.frame(1), dataset.frame(3))
    assert part.identity() != dataset.identity()
    for text, message in (("[]", "no list"), ("{}", "no list"), ('["lspet_x"]', "not in"), ("[", "malformed")):
        listing.write_text(text)
        with pytest.raises(DataError, match=rf"records\.json: .*{message}"):
            open_source(whole.model_copy(update={"records": listing}), skeleton=LSP14)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("source", "count"),
    [
        (
            {
                "kind": "coco",
                "annotations": "coco_sample/annotations/person_keypoints_train2017.json",
                "images": "coco_sample/images",
            },
            None,
        ),
        ({"kind": "mpii", "annotations": "mpii_sample/mpii_sample.json", "images": "mpii_sample/images"}, 5),
        ({"kind": "lsp", "path": "lspet", "split": "test"}, 400),
    ],
)
def test_every_kind_opens_in_the_skeleton_asked_for(data_root: Path, source: dict[str, str], count: int | None) -> None:
    paths = {key: str(data_root / value) for key, value in source.items() if key in ("annotations", "images", "path")}
    for skeleton in (LSP14, COCO17):
        dataset = open_source(ADAPTER.validate_python({**source, **paths}), skeleton=skeleton)
        assert dataset.skeleton is skeleton
        assert dataset.record(0).joints.shape == (len(skeleton), 2)
        assert count is None or len(dataset) == count


def test_ward_scenes_open_lazily(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class WardDataset:
        def __init__(self, hospital: str, *, patients: int, frames_per_patient: int, seed: int) -> None:
            self.name, self.skeleton, self.notes = hospital, LSP14, []
            self.size, self.seed = patients * frames_per_patient, seed

        def __len__(self) -> int:
            return self.size

        def record(self, index: int) -> PoseRecord:
            return PoseRecord(
                record_id=f"{self.seed}-{index}",
                patient_id="p",
                joints=np.ones((14, 2), np.float32),
                visibility=np.full(14, 2, np.uint8),
                box=np.array([0, 0, 9, 9], np.float32),
                scale=9.0,
                head_size=None,
                area=9.0,
            )

        def frame(self, index: int) -> Any:
            return np.full((9, 9, 3), index, np.uint8)

        def identity(self) -> str:
            return str(self.seed)

    module: Any = ModuleType("ward")
    module.WardDataset = WardDataset
    monkeypatch.setitem(sys.modules, "wardpose.shared.data.ward", module)
    listing = tmp_path / "r.json"
    listing.write_text('["9-4", "9-1"]')
    plain = {"kind": "ward", "hospital": "north", "patients": 3, "frames_per_patient": 2, "seed": 9}
    assert len(open_source(ADAPTER.validate_python(plain), skeleton=LSP14)) == 6
    source = ADAPTER.validate_python({**plain, "records": str(listing)})
    dataset = open_source(source, skeleton=LSP14)
    assert [int(dataset.frame(i)[0, 0, 0]) for i in range(2)] == [4, 1]
    assert open_source(source, skeleton=COCO17).record(0).joints.shape == (17, 2)


def test_the_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WARDPOSE_DATA", str(tmp_path))
    assert find_data_root() == tmp_path
    monkeypatch.setenv("WARDPOSE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere: no such folder"):
        find_data_root()
    monkeypatch.delenv("WARDPOSE_DATA")
    monkeypatch.setattr("wardpose.shared.data.source._REPOSITORY", tmp_path / "house")
    with pytest.raises(ConfigError, match="real data is not here"):
        find_data_root()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert find_data_root() == tmp_path / "shared" / "data"
