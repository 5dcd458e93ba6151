import math

import numpy as np
import pytest
import torch

from wardpose.shared.anonymize.generators import (
    BITS,
    CodeDecoder,
    CodeEncoder,
    CoverGenerator,
    PartConfig,
    PartGenerator,
    RecoverableGenerator,
    enlarge,
    round_symbols,
)
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer import objectives
from wardpose.simulation.anonymizer.discriminators import PatchDiscriminator
from wardpose.simulation.anonymizer.light_pose import LightPose


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_part_map_shows_each_limb_in_its_colour():
    joints, visibility = torch.zeros(1, 14, 2), torch.zeros(1, 14)
    for joint, place in {
        "right_hip": (40, 100),
        "right_knee": (40, 160),
        "neck": (100, 60),
        "head_top": (100, 20),
    }.items():
        joints[0, LSP14.index(joint)], visibility[0, LSP14.index(joint)] = torch.tensor(place, dtype=torch.float), 2
    parts = objectives.part_target(joints, visibility, (256, 192))
    assert parts.shape == (1, 3, 32, 24)
    red, green, blue = parts[0]
    assert red[16, 5] == 1  # half way down the right thigh
    assert green[5, 12] == 1
    assert blue.max() == 0
    assert red[16, 12] == 0


def test_unlabelled_joints_draw_nothing():
    joints = torch.rand(2, 14, 2) * 190
    assert objectives.part_target(joints, torch.zeros(2, 14), (256, 192)).max() == 0


def test_ssim_and_psnr_agree_with_their_definitions():
    a = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(objectives.ssim(a, a), torch.ones(2))
    b = (a + 0.1).clamp(0, 1)
    expected = -10 * math.log10(float((a[0] - b[0]).square().mean()))
    assert float(objectives.psnr(a, b)[0]) == pytest.approx(expected, rel=1e-5)
    noise = torch.rand(2, 3, 32, 32)
    assert float(objectives.ssim(a, noise).max()) < 0.2


def test_linkage_is_free_of_charge_at_chance_only():
    same = torch.eye(8)
    assert float(objectives.linkage_penalty(same, same)) > 1.5
    assert float(objectives.linkage_penalty(torch.ones(8, 8), same)) == pytest.approx(0, abs=1e-6)


def test_the_quantised_view_has_its_levels_and_passes_a_gradient():
    generator = PartGenerator(PartConfig(encoder="light", levels=3))
    image = torch.rand(2, 3, 64, 64)
    parts = generator(image)
    assert set(np.unique(parts.detach().numpy())) <= {0.0, 0.5, 1.0}
    parts.sum().backward()
    assert generator.decoder.out.weight.grad.abs().sum() > 0


def test_the_cover_gets_its_gradient_from_guidance_and_parts_alone():
    """The original reaches the cover only through the quantised part map."""
    generator = RecoverableGenerator(4)
    torch.nn.init.normal_(generator.cover.out.weight)
    image, other, guidance = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    mask = torch.ones(1, 1, 64, 64)
    generator.eval()
    generator.parts.forward = lambda _: torch.full((1, 3, 8, 8), 0.5)
    first, second = generator(image, guidance, mask)[0], generator(other, guidance, mask)[0]
    torch.testing.assert_close(first, second)
    kept = generator(image, guidance, 0 * mask)[0]
    torch.testing.assert_close(kept, image)


def test_the_code_starts_as_a_transform_that_loses_little():
    y, x = torch.meshgrid(torch.arange(64) / 64, torch.arange(96) / 96, indexing="ij")
    image = torch.stack([x, y, (x + y) / 2])[None]
    symbols = round_symbols(CodeEncoder()(image))
    assert symbols.shape == (1, len(BITS), 16, 24)
    assert float(objectives.psnr(CodeDecoder()(symbols), image)) > 30


def test_symbols_take_exactly_their_bits():
    symbols = round_symbols(torch.rand(1, len(BITS), 40, 40) * 2 - 1)
    for s, bits in enumerate(BITS):
        assert len(symbols[0, s].unique()) <= 2**bits
    torch.testing.assert_close(round_symbols(symbols), symbols)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_the_networks_work_at_any_multiple_of_32(size):
    image = torch.rand(2, 3, *size)
    assert PatchDiscriminator()(image).shape == (2, 1, size[0] // 16, size[1] // 16)
    parts = PartGenerator(PartConfig(encoder="trunk"))(image)
    assert enlarge(parts).shape == image.shape
    assert CoverGenerator()(image, parts).shape == image.shape
    logits_x, logits_y = LightPose(14, size)(image)
    assert logits_x.shape == (2, 14, 2 * size[1])
    assert logits_y.shape == (2, 14, 2 * size[0])


def test_no_batch_statistics_move_in_the_pretrained_encoder():
    generator = PartGenerator(PartConfig(encoder="trunk")).train()
    before = {name: value.clone() for name, value in generator.encoder.named_buffers()}
    generator(torch.rand(2, 3, 64, 64))
    for name, value in generator.encoder.named_buffers():
        torch.testing.assert_close(value, before[name])
