import dataclasses
import json

import numpy as np
import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from wardpose.shared.anonymize import certificate
from wardpose.shared.anonymize.certificate import CertificatePolicy, Thresholds
from wardpose.shared.anonymize.public_view import Geometry, PublicViewConfig, open_public_view
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import ConfigError, PolicyViolation
from wardpose.simulation.anonymizer import certify, measuring
from wardpose.simulation.anonymizer.certify_config import CertifyConfig
from wardpose.simulation.anonymizer.feed import sample
from wardpose.simulation.anonymizer.skeleton_view import skeleton_and_box
from wardpose.simulation.commands import anonymizer as commands

WARD = {"kind": "ward", "hospital": "public", "patients": 12, "frames_per_patient": 1}


@pytest.fixture
def config(recoverable_weights, monkeypatch):
    monkeypatch.setattr(measuring, "WARD", {"train": (71, 6), "test": (72, 4)})
    return {
        "view": {"kind": "edges", "geometry": {"height": 128, "width": 128}},
        "recoverable": str(recoverable_weights),
        "compare": [{"kind": "mosaic", "strength": 8}],
        "attacked": [],
        "train": [{"source": WARD | {"seed": 1}}],
        "test": WARD | {"seed": 2},
        "people": 10,
        "crop": [128, 128],
        "attack_steps": 2,
        "relink": {"steps": 2, "check_every": 1, "batch_size": 4},
        "relink_people": [WARD | {"seed": 3}],
        "growth": [12],
    }


@pytest.mark.parametrize("geometry", [{"height": 256, "width": 192}, {"height": 128, "width": 128, "padding": 2.0}])
def test_a_view_is_certified_at_its_own_geometry_alone(config, geometry):
    """What attackers get out of small crops says nothing of large ones."""
    other = config | {"view": {"kind": "edges", "geometry": geometry}}
    with pytest.raises(
        ConfigError, match=r"crop is \[128, 128\], and view.geometry .* certified at the geometry at which"
    ):
        certify.measure(CertifyConfig.model_validate(other))


def test_the_table_has_a_row_a_method_and_says_what_was_not_measured(config, tmp_path):
    absent = {"reidentification": str(tmp_path / "osnet.onnx")}
    said = []
    table = certify.measure(CertifyConfig.model_validate(config | {"models": absent}), say=said.append)
    assert any("osnet.onnx: no such file" in line for line in said)
    rows = {row["name"]: row for row in table.rows}
    recoveries = ["recoverable, right key", "recoverable, wrong key", "recoverable, no key"]
    assert list(rows) == ["untouched", "mosaic(8)", "recoverable", *recoveries, "skeleton and box", "public-view"]
    assert all(set(row) >= {"name", *measuring.COLUMNS} for row in table.rows)
    assert rows["untouched"]["ssim"] == pytest.approx(1)
    assert rows["recoverable"]["psnr_right_key"] > 28
    for key in ("wrong", "no"):
        assert rows["recoverable"][f"psnr_{key}_key"] == rows[f"recoverable, {key} key"]["psnr"] < 15
    assert rows["public-view"]["face_match"] is None  # no model was configured
    assert rows["public-view"]["linkage_rank1"] is None  # the configured one is absent
    assert rows["public-view"]["identity_rank1"] is not None  # the built-in attacker always runs
    assert rows["mosaic(8)"]["identity_rank1"] is None
    assert set(table.certificate.setting["models"].values()) == {None}
    shown = table.certificate.setting["view"]
    assert (shown["level"], shown["geometry"]["padding"]) == ("standard", 1.25)
    assert rows["mosaic(8)"]["relink_rank1"] is None  # only views and their floor are relinked


def test_the_certificate_states_each_figure_beside_its_floor(config):
    table = certify.measure(CertifyConfig.model_validate(config))
    rows = {row["name"]: row for row in table.rows}
    stated, setting = table.certificate.figures, table.certificate.setting
    assert set(stated) == {"relink_rank1", "relink_rank5", "identity_rank1"}  # no outside model, no pictures of faces
    for name, figure in stated.items():
        assert figure.value == rows["public-view"][name]
        assert figure.floor == rows["skeleton and box"][name]
        assert figure.low <= figure.value <= figure.high
    relinked = stated["relink_rank1"]
    assert (relinked.pairs, relinked.trials, relinked.chance) == (24, 10, pytest.approx(0.1))
    assert [network.split(",")[0] for network in relinked.networks] == ["convolution", "mixer"]
    assert (stated["identity_rank1"].pairs, stated["identity_rank1"].trials) == (18, 4)
    assert list(setting["relink_data"]) == ["0 ward/public"]
    over = table.certificate.measures["relink_rank1_over_floor"]
    assert over == pytest.approx(relinked.value - relinked.floor)
    for name in ("public-view", "skeleton and box"):
        assert [step["people"] for step in rows[name]["growth"]] == [12]


def test_the_floor_shows_the_skeleton_and_the_box_and_nothing_of_the_pixels():
    dataset = WardDataset("public", patients=1, frames_per_patient=1, seed=5)
    one = sample(dataset, 0, (128, 96))
    shown = skeleton_and_box(one)
    dark = dataclasses.replace(one, image=np.zeros_like(one.image))
    np.testing.assert_array_equal(skeleton_and_box(dark), shown)
    for joint in one.joints[one.visibility > 0]:
        x, y = np.round(joint).astype(int)
        assert shown[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() > 60
    moved = dataclasses.replace(one, joints=one.joints + 9)
    assert (skeleton_and_box(moved) != shown).any()
    unseen = dataclasses.replace(one, visibility=np.zeros_like(one.visibility))
    corner = np.round(one.box[:2]).astype(int)
    assert skeleton_and_box(unseen)[corner[1], corner[0]].max() > 0
    assert skeleton_and_box(unseen).max() <= 70


def test_an_interrupted_measurement_goes_on_and_another_one_is_refused(config, tmp_path):
    begun = []

    def stop(text):
        begun.append(text)
        if text.startswith("recoverable"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify.measure(CertifyConfig.model_validate(config), work=tmp_path / "work", say=stop)
    again = []
    table = certify.measure(CertifyConfig.model_validate(config), work=tmp_path / "work", say=again.append)
    assert any(text.startswith("public-view") for text in begun)
    assert not any(text.startswith(("untouched", "public-view")) for text in again)
    assert len(table.rows) == len(table.pictures) == 8
    more = config | {"compare": [*config["compare"], {"kind": "blur", "strength": 8}]}
    begun.clear()
    table = certify.measure(CertifyConfig.model_validate(more), work=tmp_path / "work", say=begun.append)
    assert begun == ["blur(8): fixed attackers"]
    assert table.rows[-1]["name"] == "public-view"
    with pytest.raises(ConfigError, match="another configuration"):
        certify.measure(CertifyConfig.model_validate(config | {"seed": 1}), work=tmp_path / "work")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"test": WARD | {"hospital": "north", "seed": 2}}, "private"),
        ({"test": {"kind": "lsp", "path": ".", "split": "private"}}, "private"),
        ({"test": WARD | {"seed": 1}}, "same people"),
        ({"attacked": ["mosaic(9)"]}, "mosaic"),
        ({"relink_people": [WARD | {"seed": 2}]}, "same people"),
        ({"relink_people": [WARD | {"seed": 1}]}, "twice"),
        ({"relink_people": [WARD | {"hospital": "north"}]}, "private"),
        ({"growth": [24, 12]}, "growth"),
    ],
)
def test_people_who_may_not_be_shown_or_who_taught_the_attacker_are_refused(config, change, word):
    with pytest.raises(ValidationError, match=word):
        CertifyConfig.model_validate(config | change)


def test_a_certificate_from_the_command_line_is_signed_and_judged(config, tmp_path):
    app = typer.Typer()
    commands.register(app)
    path, key, out = tmp_path / "certify.yaml", tmp_path / "signer.key", tmp_path / "out"
    path.write_text(json.dumps(config))
    public = certificate.new_signing_key(key)
    result = CliRunner().invoke(
        app, ["anonymizer", "certify", str(path), "--out", str(out), "--signing-key", str(key), "--json"]
    )
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["signer"] == public
    assert "face_match was not measured" in said["fails_default_thresholds"]
    assert "data:image/jpeg;base64" in (out / "certificate.html").read_text()
    declared = PublicViewConfig(
        kind="edges", geometry=Geometry(height=128, width=128), certificate=out / "certificate.json"
    )
    with pytest.raises(PolicyViolation, match="face_match was not measured"):
        open_public_view(declared, CertificatePolicy(trusted_signers=(public,)))
    lenient = Thresholds(
        linkage_rank1=None, linkage_rank1_after_attack=None, face_match=None, identity_rank1_over_chance=1,
        relink_rank1_over_floor=1,
    )  # fmt: skip
    accepting = CertificatePolicy(trusted_signers=(public,), thresholds=lenient, least_pairs=24)
    open_public_view(declared, accepting)
    with pytest.raises(PolicyViolation, match=r"learned from 24 pairs only \(least_pairs = 4000\)"):
        open_public_view(declared, CertificatePolicy(trusted_signers=(public,), thresholds=lenient))
