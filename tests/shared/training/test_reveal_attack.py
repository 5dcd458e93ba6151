"""Least squares over the public gradients on one released update: who was in the batch?

Everybody knows phi(D), the weights and the released update. When the un-noised public gradient is the mean over the
private batch, the update is a subset sum over known vectors and gives the batch away, and with it amplification by
subsampling. An independent public draw leaves what the accountant charges for.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import rankdata
from support.engine import public_part
from torch import Tensor

from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.privacy.sampling import poisson_sample
from wardpose.shared.training.cohort import CohortData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.step import StepGradient
from wardpose.shared.vectors import flatten

UNITS, RATE, SIGMA = 256, 0.125, 0.5


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Probability that a member's score is above a non-member's."""
    ranks, count = rankdata(scores), int(members.sum())
    return float((ranks[members].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def attack(update: Tensor, public_gradients: Tensor, batch: np.ndarray) -> float:
    """Minimum-norm solution of `update = sum_i x_i g(phi_i)`; x is the membership score."""
    gram = public_gradients @ public_gradients.T
    scores = torch.linalg.lstsq(gram, (public_gradients @ update)[:, None], driver="gelsd").solution
    members = np.zeros(UNITS, bool)
    members[batch] = True
    return auc(scores[:, 0].numpy(), members)


def test_the_step_hides_its_batch_and_the_same_batch_variant_does_not(
    small_model: Callable[..., PoseModel], cohort: Callable[..., CohortData]
) -> None:
    engine = UnitGradients(small_model(torch.float64), "head", micro_batch=64)
    probe = Mechanism(name="feature", unit="frame")
    data = cohort(probe, (1,) * UNITS)
    # Trunk features as a trained network gives them: frames differ, and phi keeps most of a frame.
    generator = np.random.default_rng(0)
    shown = generator.standard_normal((UNITS, 320, 2, 1))
    seen = shown + 0.3 * generator.standard_normal(shown.shape)
    data = replace(data, private=replace(data.private, inputs=seen), public=replace(data.public, inputs=shown))
    everybody = np.arange(UNITS)[:, None]
    parameters = engine.parameters()

    def matrix(rows: object) -> Tensor:
        bags = load_bags(engine, rows, everybody)
        return torch.cat(
            [
                torch.cat([value.flatten(1) for value in part.values()], dim=1)
                for part in engine.per_unit(parameters, bags)
            ]
        )

    public_gradients = matrix(data.public)
    differences = matrix(data.private) - public_gradients
    chosen = Mechanism(
        name="feature",
        unit="frame",
        sample_rate=RATE,
        noise_multiplier=SIGMA,
        max_grad_norm=float(differences.norm(dim=1).median()),
    )
    ours, same_batch = [], []
    for seed in range(6):
        batch = poisson_sample(UNITS, RATE, seeded_streams(seed).sampling)
        step, again = (
            StepGradient(engine, data, chosen, streams=seeded_streams(seed), declared_units=UNITS) for _ in range(2)
        )
        released = flatten(step(parameters))
        ours.append(attack(released, public_gradients, batch))
        private = released - public_part(again, parameters)
        same_batch.append(attack(private + public_gradients[batch].mean(dim=0), public_gradients, batch))
    assert 0.35 < np.mean(ours) < 0.65, ours
    assert np.mean(same_batch) > 0.9, same_batch
