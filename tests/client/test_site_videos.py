"""A site decodes a video once from end to end, not once a round: every round is a process of its own."""

import json

import pytest
from support.films import film, number_of

from wardpose.client.check import check_site
from wardpose.client.site import _open_data, open_cohort_data
from wardpose.shared.data import video_index

SITE = """
site: ward
cohort:
  name: ward-1
  declared_patients: 4
  data: {kind: video, path: clip.ts, labels: labels.json}
policy: {minimum_declared_patients: 1}
"""


@pytest.fixture
def site(tmp_path):
    film(tmp_path / "clip.ts", count=30, b_frames=2)
    joints = [[20 + i, 20 + i, 2] for i in range(14)]
    entries = [{"frame": n, "joints": joints, "patient": f"p{n % 4}"} for n in (29, 3, 17, 8)]
    (tmp_path / "labels.json").write_text(json.dumps({"skeleton": "lsp14", "records": entries}))
    (tmp_path / "site.yaml").write_text(SITE)
    return tmp_path / "site.yaml"


def test_the_index_of_a_video_outlives_the_round(site, monkeypatch):
    made, make = [], video_index.make_index
    monkeypatch.setattr(video_index, "make_index", lambda path: made.append(path) or make(path))
    for _ in range(3):
        video_index._read_index.cache_clear()  # as in another process
        _open_data.cache_clear()
        data = open_cohort_data(site, "lsp14")
        assert [number_of(data.frame(i)) for i in range(4)] == [29, 3, 17, 8]
    assert len(made) == 1
    assert [path.parent for path in site.parent.rglob("*.npz")] == [site.parent / "state" / "videos"]


def test_a_check_keeps_no_index(site):
    assert [finding.text for finding in check_site(site) if finding.name == "data" and "decoded" in finding.text]
    assert not list(site.parent.rglob("*.npz"))
