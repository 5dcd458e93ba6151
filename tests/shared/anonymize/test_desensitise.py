import numpy as np
import pytest
from pydantic import ValidationError

from wardpose.shared.anonymize.desensitise import Desensitise, person_mask


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 256, (96, 72, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["blur", "mosaic", "noise", "edges"])
def test_a_change_keeps_the_size_changes_pixels_and_is_deterministic(frame, kind):
    change = Desensitise(kind=kind)
    first = change.apply(frame)
    assert first.shape == frame.shape
    assert first.dtype == np.uint8
    assert (first != frame).mean() > 0.5
    np.testing.assert_array_equal(first, change.apply(frame.copy()))


def test_mosaic_blocks_hold_one_colour(frame):
    hidden = Desensitise(kind="mosaic", strength=8).apply(frame)
    blocks = hidden.reshape(12, 8, 9, 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_noise_differs_between_frames(frame):
    other = frame.copy()
    other[0, 0, 0] ^= 1
    change = Desensitise(kind="noise", strength=20)
    noise = change.apply(frame).astype(int) - frame
    noise_of_other = change.apply(other).astype(int) - other
    assert (noise != noise_of_other).mean() > 0.5


def test_the_mask_covers_the_person_and_keeps_the_context(frame):
    box = np.array([20, 30, 20, 40], np.float32)
    joints = np.zeros((14, 2), np.float32)
    visibility = np.zeros(14, np.uint8)
    joints[6], visibility[6] = (60, 20), 2  # a wrist outside the box
    mask = person_mask((96, 72), box=box, joints=joints, visibility=visibility)
    assert mask[30:70, 20:40].min() == 1
    assert mask[20, 60] == 1
    assert mask[90, 5] == 0
    assert 0 < mask[:, 12].max() < 1 or 0 < mask[24, :].max() <= 1
    hidden = Desensitise(kind="blur", strength=4).apply(frame, mask)
    np.testing.assert_array_equal(hidden[mask == 0], frame[mask == 0])
    assert (hidden[mask == 1] != frame[mask == 1]).mean() > 0.5


def test_body_leaves_the_corner_of_the_box_visible():
    box = np.array([10, 10, 60, 80], np.float32)
    joints = np.full((14, 2), 40, np.float32)
    mask = person_mask((96, 72), box=box, joints=joints, region="body")
    assert mask[40, 40] == 1
    assert mask[12, 12] == 0


def test_a_strength_out_of_range_is_refused():
    with pytest.raises(ValidationError, match="outside"):
        Desensitise(kind="blur", strength=0.1)
