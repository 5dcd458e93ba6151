import numpy as np
import torch
from scipy.special import log_softmax, rel_entr
from torch import Tensor
from torch.func import grad, vmap

from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss

CODEC = SimCC(input_size=(64, 32))


def _batch(n: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    joints = torch.rand(n, 14, 2, generator=generator) * torch.tensor([36.0, 70.0]) - 2  # some fall outside
    visibility = torch.randint(0, 3, (n, 14), generator=generator)
    x, y = (3 * torch.randn(n, 14, bins, generator=generator) for bins in (64, 128))
    return x, y, joints, visibility


def test_agrees_with_a_plain_float64_divergence() -> None:
    x, y, joints, visibility = _batch()
    ours = simcc_loss(x, y, joints, visibility, CODEC).numpy()
    for b in range(5):
        total, count = 0.0, 0
        for j in range(14):
            px, py = joints[b, j].double().numpy()
            if not (visibility[b, j] and -0.5 <= px <= 31.5 and -0.5 <= py <= 63.5):
                continue
            count += 1
            for logits, place, bins in ((x[b, j], px, 64), (y[b, j], py, 128)):
                label = np.exp(-((np.arange(bins) - 2 * place) ** 2) / (2 * 4.0**2))
                prediction = np.exp(log_softmax(logits.double().numpy()))
                total += rel_entr(label / label.sum(), prediction).sum()
        assert 0 < count < 14
        np.testing.assert_allclose(ours[b], total / count, rtol=1e-5)


def test_another_record_changes_nothing_not_even_a_bit() -> None:
    x, y, joints, visibility = _batch()
    before = simcc_loss(x, y, joints, visibility, CODEC)
    visibility[0] = 0
    joints[0] = 1e6
    x[0] *= 100
    after = simcc_loss(x, y, joints, visibility, CODEC)
    assert torch.equal(before[1:], after[1:])
    assert after[0] == 0 != before[0]


def test_no_visible_joint_is_exactly_zero_with_zero_gradient() -> None:
    x, y, joints, visibility = _batch(2)
    joints[0] = torch.nan
    visibility[0] = 0
    x.requires_grad_()
    y.requires_grad_()
    loss = simcc_loss(x, y, joints, visibility, CODEC)
    loss.sum().backward()
    assert loss[0].item() == 0.0
    for axis in (x, y):
        assert axis.grad is not None
        assert torch.equal(axis.grad[0], torch.zeros_like(axis.grad[0]))
        assert axis.grad[1].abs().sum() > 0


def test_vmapped_gradient_is_the_loop_of_gradients() -> None:
    x, y, joints, visibility = (t.double() for t in _batch())

    def one(x: Tensor, y: Tensor, joints: Tensor, visibility: Tensor) -> Tensor:
        return simcc_loss(x, y, joints, visibility, CODEC)

    mapped = vmap(grad(one))(x, y, joints, visibility)
    for b in range(5):
        alone = x[b].clone().requires_grad_()
        one(alone, y[b], joints[b], visibility[b]).backward()
        torch.testing.assert_close(mapped[b], alone.grad, rtol=1e-12, atol=1e-15)


def test_perfect_logits_give_zero_and_extreme_ones_stay_finite() -> None:
    x, y, joints, visibility = _batch()
    targets = CODEC.encode(joints, visibility)
    assert simcc_loss(targets.log_x, targets.log_y, joints, visibility, CODEC).abs().max() < 1e-5
    huge = torch.full_like(x, -3e38)
    huge[..., 5] = 3e38
    huge.requires_grad_()
    loss = simcc_loss(huge, y, joints, visibility, CODEC)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert huge.grad is not None
    assert torch.isfinite(huge.grad).all()
