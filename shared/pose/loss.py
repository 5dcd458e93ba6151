"""The training loss, one number per record and nothing shared between records.

Privacy rests on this: a unit's gradient may depend on that unit alone. A mean over the batch's visible joints (as in
published code) would let one person's visibility rescale everybody else's gradient.
"""

import torch
from torch import Tensor

from wardpose.shared.pose.codec import SimCC

_LOWEST_LOG = -1e30
"""Keeps 0 · log 0 at 0 for logits so far apart that a probability underflows to log 0."""


def simcc_loss(logits_x: Tensor, logits_y: Tensor, joints: Tensor, visibility: Tensor, codec: SimCC) -> Tensor:
    """Kullback-Leibler divergence of the predicted from the labelled distributions, per record.

        loss_b = Σ_j v_bj [KL(label_x ‖ softmax logits_x) + KL(label_y ‖ softmax logits_y)]_bj / max(1, Σ_j v_bj)

    Summed over bins (in nats), summed over both axes, averaged over the record's own visible joints.

    Args:
        logits_x: (..., J, W · split_ratio).
        logits_y: (..., J, H · split_ratio).
        joints: (..., J, 2) crop pixels.
        visibility: (..., J), counts where above 0 and inside the crop.
        codec: makes the labels.

    Returns:
        (...,) losses, at least 0; exactly 0, with zero gradient, for a record without a visible joint. Finite inputs
        give finite losses. Works under `torch.vmap` and `torch.func.grad`.

    """
    log_x, log_y, weight = codec.encode(joints.to(logits_x.dtype), visibility)
    divergence = _divergence(log_x, logits_x) + _divergence(log_y, logits_y)  # (..., J)
    return (divergence * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1.0)


def _divergence(log_label: Tensor, logits: Tensor) -> Tensor:
    predicted = torch.log_softmax(logits, dim=-1).clamp(min=_LOWEST_LOG)
    return (log_label.exp() * (log_label - predicted)).sum(dim=-1)
