"""The weights that come with the package, on real photographs that they never saw."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from wardpose.shared.anonymize import key_exchange
from wardpose.shared.anonymize.certificate import CertificatePolicy
from wardpose.shared.anonymize.figures import parse
from wardpose.shared.anonymize.frame_methods import RecoverableMethod, Recoverer
from wardpose.shared.anonymize.generators import PartConfig
from wardpose.shared.anonymize.public_view import PublicViewConfig, open_public_view
from wardpose.shared.anonymize.tensors import to_unit
from wardpose.shared.anonymize.weights_file import bundled, load_public_view, read_info
from wardpose.shared.data.lsp import read_lsp
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.skeleton import LSP14
from wardpose.simulation import benchmarks
from wardpose.simulation.anonymizer import objectives
from wardpose.simulation.anonymizer.attacks import AttackModels, FaceMatcher, Reidentification, exposed_faces, linkage
from wardpose.simulation.anonymizer.feed import sample
from wardpose.simulation.benchmarks import hardening


@pytest.fixture(scope="module")
def people(data_root):
    dataset = read_lsp(data_root / "lspet", split="test", skeleton=LSP14)
    return [sample(dataset, i, (256, 192)).image for i in range(24)]


@pytest.fixture(scope="module")
def view():
    return open_public_view(PublicViewConfig())


def test_both_kinds_are_small_and_say_that_rendered_people_made_them():
    infos = [read_info(bundled(kind)) for kind in ("public-view", "recoverable")]
    assert sum(info.path.stat().st_size for info in infos) <= 6_000_000
    assert {name: infos[0].config[name] for name in ("levels", "cell")} == {"levels": 2, "cell": 16}
    for info in infos:
        assert list(info.data) == ["ward/public"]
        assert info.command.startswith("wardpose anonymizer train simulation/configs/anonymizer_ward_")


def test_the_view_of_a_rendered_patient_shows_where_the_limbs_are():
    """The part map is nearer to the patient's own perfect map than to another patient's."""
    dataset = WardDataset("public", patients=8, frames_per_patient=1, seed=4242)
    samples = [sample(dataset, i, (256, 192)) for i in range(len(dataset))]
    network = load_public_view(bundled("public-view"))
    joints = torch.from_numpy(np.stack([one.joints for one in samples]))
    visibility = torch.from_numpy(np.stack([one.visibility for one in samples]))
    targets = objectives.part_target(joints, visibility, (256, 192)).flatten(1)
    with torch.inference_mode():
        shown = network(to_unit(np.stack([one.image for one in samples]))).flatten(1)
    similarity = torch.nn.functional.cosine_similarity(shown[:, None], targets[None], dim=2)
    assert (similarity.argmax(1) == torch.arange(8)).float().mean() >= 0.75


def test_the_bundled_view_is_the_one_that_was_relinked_and_less_than_the_one_before_it(view):
    found = json.loads((Path(benchmarks.__file__).parent / "results" / "relinking.json").read_text())
    assert found["setting"]["views"]["public-view"] == view.identity()
    stated = parse(found["figures"]["public-view"])
    assert set(stated) == {"relink_rank1", "relink_rank5"}
    for figure in stated.values():
        assert figure.pairs >= CertificatePolicy().least_pairs
        assert figure.floor is not None
    assert stated["relink_rank1"].high < 0.95  # of 8 levels on cells of 8 pixels: 0.98 [0.95, 0.99]


def test_the_hardened_level_is_the_shape_whose_interval_meets_that_of_its_floor():
    found = json.loads((Path(benchmarks.__file__).parent / "results" / "hardening.json").read_text())
    assert found["setting"]["view"] == read_info(bundled("public-view")).sha256
    assert found["setting"]["pairs"] >= CertificatePolicy().least_pairs
    rows = {row["name"]: row for row in found["rows"]}
    floor, standard, hardened = (
        rows[name] for name in ("skeleton and box", "standard: 2 levels, 16 px", "2 levels, 32 px, from 0.3")
    )
    assert PartConfig(**hardening.SHAPES["2 levels, 32 px, from 0.3"]) == PartConfig().hardened()
    assert floor["low1"] <= hardened["low1"] <= floor["high1"] < standard["low1"]
    assert hardened["above_floor"] <= CertificatePolicy().thresholds.relink_rank1_over_floor < standard["above_floor"]
    assert rows["nothing"]["pose"] < hardened["pose"] < standard["pose"]


@pytest.mark.realdata
def test_the_view_cannot_be_linked_and_shows_no_face(people, view, data_root):
    models = AttackModels.in_folder(data_root / "weights")
    embed = Reidentification(models.reidentification)
    rank1, _ = linkage(embed([view(person) for person in people]), embed(people))
    assert rank1 <= 3 / len(people)  # chance is 1 / 24
    matcher = FaceMatcher(models.face_detector, models.face_matcher)
    frames = [read_picture(path) for path in sorted((data_root / "lab_frames").glob("*.jpg"))[::4]]
    assert exposed_faces(matcher, frames, [view(frame) for frame in frames]) == 0


@pytest.mark.realdata
def test_the_key_recovers_and_a_wrong_key_does_not(people):
    key = key_exchange.generate()
    path = bundled("recoverable")
    hide, recover = RecoverableMethod(path, key_exchange.public_of(key)), Recoverer(path.read_bytes())
    hidden = [hide(person) for person in people[:8]]
    originals = to_unit(np.stack(people[:8]))
    right = to_unit(np.stack([recover(frame, key) for frame in hidden]))
    wrong = to_unit(np.stack([recover.with_wrong_key(frame) for frame in hidden]))
    assert float(objectives.psnr(right, originals).mean()) >= 28
    assert float(objectives.ssim(right, originals).mean()) >= 0.90
    assert float(objectives.psnr(wrong, originals).mean()) < 15
    assert float(objectives.ssim(wrong, originals).mean()) < 0.2
