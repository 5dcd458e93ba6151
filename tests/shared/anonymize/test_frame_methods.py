import numpy as np
import pytest
import torch

from wardpose.shared.anonymize import key_exchange
from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.anonymize.frame_methods import (
    RecoverableMethod,
    Recoverer,
    ViewMethod,
)
from wardpose.shared.anonymize.generator_view import GeneratorView
from wardpose.shared.anonymize.public_view import DesensitisedCrop
from wardpose.shared.errors import RecoveryError


def psnr(a, b):
    return -10 * np.log10(np.mean((a.astype(float) - b) ** 2) / 255**2)


@pytest.fixture(scope="module")
def recoverer(recoverable_weights):
    return Recoverer(recoverable_weights.read_bytes())


@pytest.fixture(scope="module")
def method(recoverable_weights, key):
    return RecoverableMethod(recoverable_weights, key_exchange.public_of(key))


def test_the_key_gives_the_picture_back_and_without_it_there_is_the_mosaic(method, recoverer, key, picture):
    hidden = method(picture)
    assert hidden.shape == picture.shape
    assert psnr(recoverer(hidden, key), picture) > 28
    mosaic = Desensitise(kind="mosaic", strength=8).apply(picture)
    assert psnr(hidden, mosaic) > 30
    assert psnr(hidden, picture) < psnr(mosaic, picture) + 0.5


def test_a_wrong_key_is_refused_and_gives_nothing_when_forced(method, recoverer, picture):
    hidden = method(picture)
    with pytest.raises(RecoveryError, match="wrong key"):
        recoverer(hidden, key_exchange.generate())
    for forced in (recoverer.with_wrong_key(hidden), recoverer.without_key(hidden)):
        assert psnr(forced, picture) < 15
        assert abs(np.corrcoef(forced.ravel(), picture.ravel())[0, 1]) < 0.1


def test_the_cover_depends_on_the_guidance_and_on_few_bits_alone(method, picture):
    """What is below the mosaic's blocks and beside the part map cannot be in the cover."""
    shuffled = picture.copy()
    blocks = shuffled[:88, :120].reshape(11, 8, 15, 8, 3)
    shuffled[:88, :120] = blocks[:, ::-1, :, ::-1].reshape(88, 120, 3)  # each block keeps its mean
    one = Desensitise(kind="mosaic", strength=8).apply(picture[:88, :120])
    other = Desensitise(kind="mosaic", strength=8).apply(shuffled[:88, :120])
    np.testing.assert_array_equal(one, other)
    network = method._network
    guidance = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        parts = network.parts(torch.rand(1, 3, 64, 64))
    assert parts.shape == (1, 3, 8, 8)
    assert set(np.unique((parts * 3).round(decimals=4))) <= {0.0, 1.0, 2.0, 3.0}
    with torch.inference_mode():
        assert network.cover(guidance, parts).shape == guidance.shape


def test_only_the_persons_change_where_there_are_boxes(method, recoverer, key):
    frame = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    hidden = method(frame, [(100, 60, 60, 120)])
    same = (hidden >> 2) == (frame >> 2)
    assert same[:20].all()
    assert same[:, :40].all()
    assert same[90:150, 110:150].mean() < 0.3
    assert recoverer(hidden, key).shape == frame.shape


def test_a_large_face_is_hidden_as_well_as_a_small_one():
    frame = np.random.default_rng(2).integers(0, 256, (1024, 768, 3), dtype=np.uint8)
    method = ViewMethod(DesensitisedCrop(Desensitise(kind="mosaic", strength=8)))
    hidden = method(frame).astype(int)
    # 8 pixels of a person 256 long are 32 of one 1024 long: hardly anything changes inside a block of 8.
    assert np.abs(np.diff(hidden[:, 8:16], axis=1)).mean() < 3


def test_the_view_has_few_levels_is_smooth_and_deterministic(view_weights, picture):
    view = GeneratorView(view_weights)
    first = view(picture)
    assert first.shape == picture.shape
    np.testing.assert_array_equal(first, view(picture.copy()))
    assert np.abs(np.diff(first.astype(int), axis=0)).max() <= 255 / 8 + 2
    assert view.identity() == GeneratorView(view_weights).identity()


def test_the_view_of_a_frame_keeps_nothing_of_the_scene(view_weights):
    frame = np.full((240, 320, 3), 200, np.uint8)
    shown = ViewMethod(GeneratorView(view_weights))(frame, [(100, 60, 60, 120)])
    assert shown[:20].max() == 0
    assert shown[:, :40].max() == 0
    assert shown[90:150, 110:150].max() > 0
