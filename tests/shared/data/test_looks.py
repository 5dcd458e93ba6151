"""What is laid over and before public people changes pixels and nothing else, and never a private person."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from wardpose.shared.data.crops import Augmentation, Crop, crop_record
from wardpose.shared.data.looks import Looks, change_looks
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.skeleton import LSP14
from wardpose.shared.training.settings import LocalTraining

ALL = Looks(occlusion=1.0, blanket=1.0, colour=1.0)


@pytest.fixture(scope="module")
def batch() -> list[Crop]:
    ward = WardDataset("public", patients=4, frames_per_patient=1, seed=3)
    turn, generator = Augmentation(rotation=180, rotation_probability=1.0), np.random.default_rng(0)
    return [crop_record(ward, row, (96, 64), augmentation=turn, generator=generator) for row in range(4)]


def images(crops: list[Crop]) -> np.ndarray:
    return np.stack([crop.image for crop in crops])


@pytest.mark.parametrize("name", ["occlusion", "blanket", "colour"])
def test_pixels_change_and_joints_do_not(batch: list[Crop], name: str) -> None:
    before = images(batch).copy()
    changed = change_looks(batch, LSP14, Looks.model_validate({name: 1.0}), seed=(1, 2))
    assert changed[0].image.dtype == np.uint8
    assert images(changed).shape == before.shape
    for old, new in zip(batch, changed, strict=True):
        assert (old.image != new.image).any()
        assert new.joints.tobytes() == old.joints.tobytes()
        assert new.visibility.tobytes() == old.visibility.tobytes()
    np.testing.assert_array_equal(images(batch), before)  # the batch itself is left alone


def test_off_is_the_very_batch(batch: list[Crop]) -> None:
    assert all(new is old for new, old in zip(change_looks(batch, LSP14, Looks(), seed=(1,)), batch, strict=True))


def test_the_seed_decides_and_places_differ(batch: list[Crop]) -> None:
    def made(seed: int) -> bytes:
        return images(change_looks(batch, LSP14, ALL, seed=(seed,))).tobytes()

    assert made(5) == made(5)
    assert made(5) != made(6)
    twins = change_looks([batch[0]] * 2, LSP14, Looks(blanket=1.0), seed=(5,))
    assert (twins[0].image != twins[1].image).any()


def test_a_blanket_covers_the_legs_more_than_the_head(batch: list[Crop]) -> None:
    hidden = {"head_top": 0, "ankle": 0}
    for seed in range(40):
        for old, new in zip(batch, change_looks(batch, LSP14, Looks(blanket=1.0), seed=(seed,)), strict=True):
            covered = (old.image != new.image).any(axis=-1)
            for joint in ("head_top", "left_ankle", "right_ankle"):
                row = LSP14.index(joint)
                if old.visibility[row]:
                    x, y = np.clip(np.round(old.joints[row]).astype(int), 0, (63, 95))
                    hidden[joint.split("_")[-1] if "ankle" in joint else joint] += int(covered[y, x])
    assert hidden["ankle"] > 4 * hidden["head_top"]
    assert hidden["ankle"] > 40


def test_what_stands_in_front_is_a_piece_of_another_or_noise(batch: list[Crop]) -> None:
    flat = [replace(crop, image=np.full_like(crop.image, 10 * (place + 1))) for place, crop in enumerate(batch)]
    seen = set()
    for seed in range(60):
        for place, new in enumerate(change_looks(flat, LSP14, Looks(occlusion=1.0), seed=(seed,))):
            found = set(np.unique(new.image)) - {10 * (place + 1)}
            assert found
            seen.add(next(iter(found)) // 10 if len(found) == 1 else "noise")
    assert seen == {1, 2, 3, 4, "noise"}
    (alone,) = change_looks(flat[:1], LSP14, Looks(occlusion=1.0), seed=(0,))
    assert len(np.unique(alone.image)) > 20


def test_grey_stays_grey_and_nothing_wraps_around(batch: list[Crop]) -> None:
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 96, axis=0).repeat(3, axis=2)
    for seed in range(40):
        (new,) = change_looks([replace(batch[0], image=ramp)], LSP14, Looks(colour=1.0), seed=(seed,))
        assert (new.image == new.image[..., :1]).all()
        assert (np.diff(new.image[0, :, 0].astype(int)) >= 0).all()  # brighter stays brighter


def test_people_whose_torso_is_unknown_or_a_point_are_covered_too(batch: list[Crop]) -> None:
    unknown = replace(batch[0], visibility=np.zeros_like(batch[0].visibility), joints=np.zeros_like(batch[0].joints))
    point = replace(batch[0], visibility=np.full_like(batch[0].visibility, 2), joints=np.zeros_like(batch[0].joints))
    for crop in (unknown, point):
        made = [change_looks([crop], LSP14, ALL, seed=(seed,))[0] for seed in range(10)]
        assert all((new.image != crop.image).any() for new in made)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_probabilities_are_probabilities(value: float) -> None:
    with pytest.raises(ValidationError):
        Looks(blanket=value)


def test_private_training_has_no_looks() -> None:
    with pytest.raises(ValidationError, match="looks is for public people"):
        LocalTraining.model_validate({"looks": {"occlusion": 0.1}})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LocalTraining.model_validate({"augmentation": {"occlusion": 0.1}})
