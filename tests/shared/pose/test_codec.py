import pytest
import torch

from wardpose.shared.pose.codec import SimCC

CODECS = [
    SimCC(input_size=(256, 192)),
    SimCC(input_size=(64, 96), split_ratio=3.0, label_sigma=2.0),
    SimCC(input_size=(32, 32), split_ratio=1.0, label_sigma=1.0),
]


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip_is_finer_than_a_bin_everywhere_in_the_crop(codec: SimCC) -> None:
    height, width = codec.input_size
    joints = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([width - 1.0, height - 1.0])
    joints[:4] = torch.tensor([[0, 0], [width - 1, height - 1], [0.3, height - 1.2], [width - 1, 0.1]])
    targets = codec.encode(joints, torch.ones(500))
    decoded, scores = codec.decode(targets.log_x, targets.log_y)
    assert (decoded - joints).abs().max() < 0.02
    assert scores.min() > 0.85  # half a bin beside the peak of the narrowest label


def test_labels_are_distributions_with_the_configured_width() -> None:
    codec = CODECS[0]
    targets = codec.encode(torch.tensor([[100.0, 90.0], [0.0, 255.0]]), torch.ones(2))
    assert torch.allclose(targets.log_x.exp().sum(-1), torch.ones(2), atol=1e-5)
    assert torch.allclose(targets.log_y.exp().sum(-1), torch.ones(2), atol=1e-5)
    bins = torch.arange(384)
    label = targets.log_x[0].exp()
    assert label.argmax() == 200
    assert ((label * (bins - 200) ** 2).sum() ** 0.5).item() == pytest.approx(4.0, abs=1e-3)


def test_only_labelled_finite_joints_inside_the_crop_count() -> None:
    joints = torch.tensor(
        [[10.0, 10], [10, 10], [-0.4, 0], [-0.6, 0], [5, 255.6], [191.4, 3], [torch.nan, 3], [3, 1e30]]
    )
    visibility = torch.tensor([1, 0, 2, 2, 2, 2, 2, 2])
    targets = CODECS[0].encode(joints, visibility)
    assert targets.weight.tolist() == [1, 0, 1, 0, 0, 1, 0, 0]
    assert torch.isfinite(targets.log_x).all()
    assert torch.isfinite(targets.log_y).all()


def test_vmap_gives_what_the_batch_gives() -> None:
    codec = CODECS[1]
    joints = torch.rand(6, 14, 2) * 60
    visibility = torch.randint(0, 3, (6, 14))
    for batch, mapped in zip(
        codec.encode(joints, visibility), torch.vmap(codec.encode)(joints, visibility), strict=True
    ):
        assert torch.equal(batch, mapped)


def test_decode_of_flat_or_single_spike_logits_stays_in_the_crop() -> None:
    codec = CODECS[0]
    spike = torch.full((1, 2, 384), -50.0)
    spike[0, 0, 383], spike[0, 1, 77] = 50.0, 50.0
    joints, scores = codec.decode(spike, torch.zeros(1, 2, 512))
    assert joints[0, :, 0].tolist() == pytest.approx([191.5, 38.5], abs=1.0)
    assert ((joints >= 0) & (joints <= 255.5)).all()
    assert scores.max() < 0.05  # the flat y axis knows nothing
