import numpy as np
import pytest
import torch

from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.errors import DataError
from wardpose.simulation.anonymizer import trained_attacks
from wardpose.simulation.anonymizer.attacks import (
    AttackModels,
    FaceMatcher,
    MoveNet,
    Reidentification,
    exposed_faces,
    face_match_rate,
    linkage,
    unit,
)
from wardpose.simulation.anonymizer.trained_attacks import Pairs


def test_linkage_counts_ranks_and_puts_a_constant_at_chance():
    gallery = unit(np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32))
    assert linkage(gallery, gallery) == (1.0, 1.0)
    assert linkage(np.roll(gallery, 1, axis=0), gallery)[0] < 0.1
    constant = np.ones((40, 16), np.float32)
    assert linkage(constant, np.ones((40, 16), np.float32)) == (0.0, 0.0)
    shifted = gallery.copy()
    shifted[:10] = gallery[10:20]
    assert linkage(shifted, gallery)[0] == 0.75


def test_a_model_that_is_absent_is_named(tmp_path):
    with pytest.raises(DataError, match="absent"):
        Reidentification(tmp_path / "absent.onnx")
    assert AttackModels.in_folder(tmp_path).reidentification is None


def _frames(count, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [np.repeat(np.repeat(frame, 8, 0), 8, 1) for frame in coarse]


def test_the_reconstruction_attacker_learns_to_undo_what_can_be_undone():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def negative(frame):
        return 255 - frame

    def pairs_of(frames):
        return Pairs(frames, [negative(frame) for frame in frames])

    pairs, held_out = pairs_of(_frames(24, 1)), pairs_of(_frames(8, 2))
    network = trained_attacks.train_reconstruction(pairs, steps=60, generator=generator, batch_size=8)
    with torch.inference_mode():
        error = (network(held_out.view) - held_out.original).abs().mean()
    naive = (held_out.view - held_out.original).abs().mean()
    assert error < 0.6 * naive


def test_the_identity_attacker_finds_patients_by_their_colour_and_not_in_a_black_view():
    torch.manual_seed(0)

    def people(seed, count):
        rng = np.random.default_rng(seed)
        frames, owners = [], []
        for patient in range(count):
            colour = rng.integers(0, 256, 3)
            for _ in range(2):
                noise = rng.integers(-8, 8, (64, 64, 3))
                frames.append(np.clip(colour + noise, 0, 255).astype(np.uint8))
                owners.append(f"{seed}-{patient}")
        return frames, owners

    def attack(view):
        train, test = people(1, 24), people(2, 10)
        return trained_attacks.identity_linkage(
            (Pairs(train[0], [view(frame) for frame in train[0]]), train[1]),
            (Pairs(test[0], [view(frame) for frame in test[0]]), test[1]),
            steps=60,
            generator=torch.Generator().manual_seed(0),
            batch_size=12,
        )

    assert attack(lambda frame: frame) > 0.4  # chance is 1 / 19
    assert attack(np.zeros_like) < 0.2


@pytest.mark.realdata
def test_the_fixed_attackers_know_people_and_faces(data_root):
    models = AttackModels.in_folder(data_root / "weights")
    paths = sorted((data_root / "lspet" / "images" / "test").glob("*.jpg"))[:12]
    crops = [read_picture(path) for path in paths]
    embed = Reidentification(models.reidentification)
    gallery = embed(crops)
    assert linkage(embed([crop[:, ::-1].copy() for crop in crops]), gallery)[0] >= 0.9
    edges = [Desensitise(kind="edges").apply(crop) for crop in crops]
    assert linkage(embed(edges), gallery)[0] <= 0.5
    paths = sorted((data_root / "faces_orl").glob("s0[1-4]/*.png"))
    faces, subjects = [read_picture(path) for path in paths], [path.parent.name for path in paths]
    matcher = FaceMatcher(models.face_detector, models.face_matcher)
    assert face_match_rate(matcher, faces, faces, subjects) > 0.8
    assert face_match_rate(matcher, faces, [np.zeros_like(face) for face in faces], subjects) == 0
    blank = [np.full_like(face, 128) for face in faces]
    assert exposed_faces(matcher, faces, faces) == len(faces)
    assert exposed_faces(matcher, faces, blank) == 0
    assert MoveNet(models.pose)(crops[0]).shape == (17, 2)
