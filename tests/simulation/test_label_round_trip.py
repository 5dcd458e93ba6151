"""Frames without labels -> a draft -> what CVAT sends back -> a check -> a federation that trains on it."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from support.figures import Discs, scene

from wardpose.client.data_check import check_data
from wardpose.client.labels.draft import DraftRequest, draft
from wardpose.shared.config import FederationConfig
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.source import CvatSource
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.run import simulate


@pytest.mark.slow
def test_a_hospital_without_labels_comes_to_train(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for n in range(12):
        Image.fromarray(scene([(20 + 5 * n, 15, 40, 80)])).save(frames / f"p{n % 6}-{n}.png")
    out = tmp_path / "draft.xml"
    rule = PatientRule(pattern=r"^(p\d)-")
    draft(DraftRequest(sources=(frames,), out=out, format="cvat", estimator=Discs(), patients=rule))
    root = ElementTree.fromstring(out.read_text())
    root.insert(1, ElementTree.fromstring("<meta><dumped>2026-11-30</dumped></meta>"))
    (tmp_path / "back.xml").write_text(ElementTree.tostring(root, encoding="unicode"))
    source = CvatSource(
        kind="cvat", annotations=tmp_path / "back.xml", images=frames, patients=PatientRule(ids="exact")
    )
    report = check_data(source, skeleton=LSP14)
    assert report.ok
    assert (report.records, report.patients) == (12, 6)
    site = {"name": "north", "data": source.model_dump(mode="json", exclude_none=True)}
    plan = {
        "name": "labelled",
        "rounds": 1,
        "mechanism": {"name": "dp-sgd", "sample_rate": 0.5, "frames_per_unit": 2, "noise_multiplier": 3.0},
        "sites": [site],
        "model": {"input_size": [64, 64], "weights": "random"},
        "privacy": {"epsilon": 6.0, "delta": 1e-3},
        "training": {"strategy": "head", "steps": 1},
        "server": {"deadline_seconds": 600, "wait_seconds": 1},
    }
    summary = simulate(FederationConfig.model_validate(plan), tmp_path / "run", report=False)
    assert summary["status"] == "completed"
    assert [site["rounds_released"] for site in summary["sites"]] == [1]
    assert "Not measured" in (tmp_path / "run" / "model-card.md").read_text()
