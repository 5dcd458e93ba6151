import itertools
import math

import numpy as np
import pytest

from wardpose.shared.errors import ConfigError
from wardpose.simulation.auditing.steps import WEIGHTS, evidence, gains
from wardpose.simulation.auditing.tradeoff import Family

FAMILY = Family(sample_rate=1.0, adjacency="add-remove")


def test_gains_by_hand() -> None:
    likelihoods = np.array([[0.5, -0.5, 2.0, math.nan], [0.0, -3.0, -0.1, 0.1]])
    included = np.array([[True, True, False, True], [True, False, False, False]])
    np.testing.assert_allclose(gains(likelihoods, included, 1.0), [(1 - 1 - 1) / 4, (1 + 1 - 1) / 4])
    np.testing.assert_allclose(gains(likelihoods, included, 2.0), [-2 / 4, 1 / 4])
    with pytest.raises(ConfigError, match="weight"):
        gains(likelihoods, included, 0.5)
    with pytest.raises(ConfigError, match="bits"):
        gains(likelihoods[:1], included, 1.0)


def test_e_values_have_mean_one_at_most() -> None:
    """Exact, over all outcomes of three steps whose gains are just what is allowed on average, and the most uneven."""
    weight, divergence = 1.5, 0.2
    chance = (divergence + weight) / (1 + weight)  # of 1, else -w: mean equals the divergence
    mean = 0.0
    for outcome in itertools.product((1.0, -weight), repeat=3):
        probability = math.prod(chance if value == 1 else 1 - chance for value in outcome)
        mean += probability * math.exp(evidence([outcome], [weight], [divergence]))
    assert mean == pytest.approx(1)


def test_evidence_falls_as_more_is_allowed() -> None:
    generator = np.random.default_rng(1)
    found = generator.uniform(-1, 1, (1, 50))
    values = [evidence(found, [1.0], [allowed]) for allowed in np.linspace(0, 1, 21)]
    assert (np.diff(values) < 0).all()


def test_evidence_tells_noise_from_half_of_it() -> None:
    generator = np.random.default_rng(4)
    included = generator.random((400, 16)) < 0.5
    for noise, expected in ((2.0, False), (1.0, True)):
        scores = included + generator.normal(0, noise, included.shape)
        likelihoods = (scores - 0.5) / 4
        gained = np.stack([gains(likelihoods, included, weight) for weight in WEIGHTS])
        assert (evidence(gained, WEIGHTS, FAMILY.divergences(2.0, WEIGHTS)) > math.log(20)) is expected
