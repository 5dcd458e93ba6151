"""Coarser views from the same network, and the table by which they are compared."""

import hashlib
import json

import numpy as np
import pytest
import torch
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from wardpose.shared.anonymize.generator_view import GeneratorView
from wardpose.shared.anonymize.generators import PartConfig, PartGenerator, enlarge
from wardpose.shared.anonymize.public_view import PublicViewConfig, open_public_view
from wardpose.shared.anonymize.tensors import to_frame, to_unit
from wardpose.shared.anonymize.weights_file import load_public_view, read_info
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.errors import ConfigError
from wardpose.simulation.anonymizer import measuring, relink_report
from wardpose.simulation.anonymizer.certify_config import CertifyConfig
from wardpose.simulation.anonymizer.coarsen import coarsen
from wardpose.simulation.benchmarks import hardening
from wardpose.simulation.commands import anonymizer as commands

WARD = {"kind": "ward", "hospital": "public", "patients": 12, "frames_per_patient": 1}


@pytest.fixture
def crop():
    return np.random.default_rng(0).integers(0, 256, (128, 96, 3), dtype=np.uint8)


def test_coarser_weights_show_fewer_levels_on_larger_cells(view_weights, crop, tmp_path):
    path = tmp_path / "coarse.safetensors"
    coarsen(view_weights, path, levels=2, cell=32, command="coarsened")
    shown, before = GeneratorView(path)(crop), GeneratorView(view_weights)(crop)
    assert (shown != before).any()
    info = read_info(path)
    assert (info.config["levels"], info.config["cell"]) == (2, 32)
    assert info.command == "test; coarsened"
    assert info.data == read_info(view_weights).data
    assert GeneratorView(path).identity() != GeneratorView(view_weights).identity()


@pytest.mark.parametrize("cell", [8, 16, 32])
def test_nothing_but_the_rounded_mean_of_a_cell_is_left_of_a_part_map(cell):
    network = PartGenerator(PartConfig(encoder="light", levels=3, cell=cell))
    raw = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    side = cell // 8
    cells = raw.unfold(2, side, side).unfold(3, side, side)  # (2, 3, rows, columns, side, side)
    turned = cells.flip(4, 5).permute(0, 1, 2, 4, 3, 5).reshape(raw.shape)
    torch.testing.assert_close(network.quantised(turned), network.quantised(raw))
    means = network.quantised(cells.mean((4, 5)).repeat_interleave(side, 2).repeat_interleave(side, 3))
    torch.testing.assert_close(means, network.quantised(raw))
    assert network.quantised(raw).shape == raw.shape
    if side > 1:
        assert not torch.equal(turned, raw)


@pytest.mark.parametrize(("levels", "cell"), [(4, 8), (8, 16), (2, 4), (1, 16), (2, 24)])
def test_what_is_no_coarser_is_refused(view_weights, tmp_path, levels, cell):
    with pytest.raises(ConfigError, match=f"{levels} levels on cells of {cell} pixels"):
        coarsen(view_weights, tmp_path / "out.safetensors", levels=levels, cell=cell, command="")
    assert not (tmp_path / "out.safetensors").exists()


def test_with_two_levels_a_cell_is_drawn_from_its_threshold_on_and_learns():
    network = PartGenerator(PartConfig(encoder="light", levels=2, cell=16, threshold=0.3))
    raw = torch.full((1, 3, 4, 4), 0.29)
    raw[:, :, :2, :2] = 0.31
    raw.requires_grad_()
    shown = network.quantised(raw)
    assert set(torch.nn.functional.avg_pool2d(shown, 1)[0, 0, ::3, ::3].flatten().tolist()) == {0.0, 1.0}
    assert shown[0, 0, 0, 0].item() == 1
    torch.autograd.backward(shown.sum())
    assert (raw.grad > 0).all()
    with pytest.raises(ValidationError, match=r"threshold 0\.3 is for 2 levels, not for 4"):
        PartConfig(levels=4, threshold=0.3)


def test_the_hardened_level_is_another_view_and_the_standard_one_is_still_itself(view_weights, crop, tmp_path):
    old, hardened = (
        open_public_view(PublicViewConfig(weights=view_weights, level=level)) for level in ("standard", "hardened")
    )
    # A certificate from before there were levels names the same view as today's standard one.
    before = hashlib.sha256(f"generator {read_info(view_weights).sha256} version 1".encode()).hexdigest()
    assert old.map.identity() == before
    assert hardened.identity() != old.identity()
    assert hardened.name == "generator(view.safetensors, hardened)"
    cells = hardened(crop).reshape(4, 32, 3, 32, 3)[:, 15:17, :, 15:17]  # middles, where no neighbour shines in
    assert hardened(crop).shape == crop.shape
    assert len(np.unique(cells.max((1, 3)) > 127)) <= 2
    many = hardened.map.many([crop, crop[::-1].copy()])
    assert (many[0] == hardened(crop)).all()
    for kind in ("blur", "edges"):
        with pytest.raises(ValidationError, match="level hardened belongs to kind generator"):
            PublicViewConfig(kind=kind, level="hardened")


def test_shapes_are_attacked_and_read_beside_their_floor(view_weights, tmp_path):
    config = CertifyConfig.model_validate({
        "train": [{"source": WARD | {"seed": 1}}], "test": WARD | {"seed": 2}, "people": 10, "crop": [128, 64],
        "relink": {"kinds": ["convolution"], "steps": 2, "check_every": 1, "batch_size": 4},
    })  # fmt: skip
    shapes = {"fine": {"levels": 4, "cell": 8}, "nearly all": {"levels": 2, "cell": 32, "threshold": 0.001}}
    found = hardening.measure_hardening(config, weights=view_weights, shapes=shapes, steps=2)
    assert [row["name"] for row in found["rows"]] == ["skeleton and box", "fine", "nearly all", "frame", "nothing"]
    for row in found["rows"][:3]:
        assert row["low1"] <= row["rank1"] <= row["high1"]
        assert row["above_floor"] == pytest.approx(row["rank1"] - found["rows"][0]["rank1"], abs=1e-3)
    assert all(0 <= row["pose"] <= 1 for row in found["rows"])
    hardening.draw(found, tmp_path / "a" / "curve.png")
    assert read_picture(tmp_path / "a" / "curve.png").shape == (600, 1200, 3)


def test_what_is_swept_is_what_the_views_show(view_weights, crop):
    """Half-precision maps and the network's own path end in the same picture, but for cells at their very limit."""
    network = load_public_view(view_weights)
    maps = network.raw(to_unit(crop[None])).half().float()
    network.config = network.config.hardened()
    swept = to_frame(enlarge(network.quantised(maps))[0])
    shown = open_public_view(PublicViewConfig(weights=view_weights, level="hardened"))(crop)
    assert (swept != shown).mean() < 0.01


def test_views_are_coarsened_and_relinked_from_the_command_line(view_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "WARD", {"train": (71, 2), "test": (72, 2)})
    app = typer.Typer()
    commands.register(app)
    coarse = tmp_path / "coarse.safetensors"
    options = ["--levels", "2", "--cell", "16", "--json"]
    made = CliRunner().invoke(app, ["anonymizer", "coarsen", str(view_weights), str(coarse), *options])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["command"] == "test; wardpose anonymizer coarsen --levels 2 --cell 16"
    config = {
        "view": {"kind": "generator", "weights": str(coarse)},
        "others": [{"kind": "generator", "weights": str(view_weights)}],
        "train": [{"source": WARD | {"seed": 1}}],
        "test": WARD | {"seed": 2},
        "people": 10,
        "crop": [128, 64],
        "relink": {"steps": 2, "check_every": 1, "batch_size": 4},
        "growth": [8],
    }
    path, results = tmp_path / "relink.yaml", tmp_path / "relinking.json"
    path.write_text(json.dumps(config))
    shown = CliRunner().invoke(app, ["anonymizer", "relink", str(path), "--results", str(results)])
    assert shown.exit_code == 0, shown.output
    found = json.loads(results.read_text())
    other = "generator(view.safetensors)"
    assert [row["name"] for row in found["rows"]] == ["untouched", "skeleton and box", "public-view", other]
    assert set(found["figures"]) == {"public-view", other}
    floors = {name: part["relink_rank1"]["floor"] for name, part in found["figures"].items()}
    assert floors["public-view"] == floors[other] == found["rows"][1]["relink_rank1"]
    figures, curves = relink_report.tables(found)
    assert [line[0] for line in figures[1:]] == ["public-view"] * 2 + [other] * 2
    assert [line[:2] for line in curves[1:3]] == [["skeleton and box", "8"], ["skeleton and box", "12"]]


def test_an_interrupted_comparison_goes_on(view_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "WARD", {"train": (71, 2), "test": (72, 2)})
    config = CertifyConfig.model_validate({
        "view": {"kind": "edges"}, "train": [{"source": WARD | {"seed": 1}}], "test": WARD | {"seed": 2},
        "people": 10, "crop": [64, 64], "relink": {"steps": 1, "batch_size": 4},
    })  # fmt: skip
    first = relink_report.measure(config, command="a", work=tmp_path)
    begun = []
    again = relink_report.measure(config, command="a", work=tmp_path, say=begun.append)
    assert begun == []
    assert again["rows"] == first["rows"]
