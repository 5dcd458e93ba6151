import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from wardpose.shared.privacy import noise
from wardpose.shared.privacy.noise import (
    NoiseTestError,
    SecureStream,
    SeededStream,
    Streams,
    quantise_to_grid,
    secure_streams,
    seeded_streams,
    self_test,
)

ALPHA = 1e-3  # at fixed seeds: a pass stays a pass


def discrete_pmf(sigma: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    support = np.arange(-reach, reach + 1)
    weight = np.exp(-(support.astype(float) ** 2) / (2 * sigma**2))
    return support, weight / weight.sum()


def test_aes_counter_mode_known_answer() -> None:
    """First block of AES-256 over the zero counter under the zero key (FIPS 197 test of the zero vector)."""
    stream = noise._AesStream(bytes(32))
    assert stream.uint64(2).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_words_are_uniform() -> None:
    words = SeededStream(3).uint64(200_000)
    assert stats.kstest(words * 2.0**-64, "uniform").pvalue > ALPHA
    for shift in (0, 20, 56):
        counts = np.bincount((words >> np.uint64(shift)).astype(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > ALPHA


@pytest.mark.parametrize("n", [0, 1, 7, 65_537])
def test_gaussian_has_the_asked_length(n: int) -> None:
    assert SeededStream(1).gaussian(n, 1.0).shape == (n,)
    assert SeededStream(1).discrete_gaussian(n, 5.0).shape == (n,)


def test_gaussian_is_normal() -> None:
    draws = SeededStream(5).gaussian(300_001, 2.5)
    assert stats.kstest(draws / 2.5, "norm").pvalue > ALPHA
    assert abs(draws.mean()) < 4 * 2.5 / math.sqrt(len(draws))
    assert draws.var() / 2.5**2 == pytest.approx(1, abs=4 * math.sqrt(2 / len(draws)))
    assert stats.kurtosis(draws) == pytest.approx(0, abs=4 * math.sqrt(24 / len(draws)))
    # The two halves of Box-Muller, and neighbours, are independent.
    assert abs(np.corrcoef(draws[:32768], draws[32768:65536])[0, 1]) < 4 / math.sqrt(32768)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / math.sqrt(len(draws))


def test_gaussian_with_zero_sigma_is_zero_and_nonsense_is_refused() -> None:
    assert not SeededStream(1).gaussian(10, 0.0).any()
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma"):
            SeededStream(1).gaussian(10, sigma)
    for sigma in (0.0, 2.0**29, float("nan")):
        with pytest.raises(ValueError, match="sigma"):
            SeededStream(1).discrete_gaussian(10, sigma)


@pytest.mark.parametrize("sigma", [1, 2, 3, 10, 37])
def test_discrete_gaussian_has_the_exact_probabilities(sigma: int) -> None:
    draws = SeededStream(sigma).discrete_gaussian(400_000, sigma)
    support, probabilities = discrete_pmf(sigma, 12 * sigma)
    expected = probabilities * len(draws)
    common = expected >= 10
    counts = np.array([(draws == x).sum() for x in support])
    observed = np.append(counts[common], counts[~common].sum())
    assert stats.chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > ALPHA


@pytest.mark.parametrize("sigma", [2**20, 1.5 * 2**20, 2**28])
def test_wide_discrete_gaussian_looks_normal(sigma: float) -> None:
    draws = SeededStream(11).discrete_gaussian(200_000, sigma)
    assert stats.kstest(draws / sigma, "norm").pvalue > ALPHA
    assert draws.var() / sigma**2 == pytest.approx(1, abs=4 * math.sqrt(2 / len(draws)))
    assert stats.chisquare(np.bincount(draws & 15, minlength=16)).pvalue > ALPHA  # lowest bits carry nothing


def test_fractional_sigma_is_rounded_up() -> None:
    same = SeededStream(1).discrete_gaussian(1000, 4.0)
    assert (SeededStream(1).discrete_gaussian(1000, 3.2) == same).all()


def test_exact_comparison_agrees_with_the_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deciding every acceptance in 140-digit arithmetic changes no decision of the float comparison."""
    stream = SeededStream(2)
    numerators = np.concatenate([[0, 1], (stream.uint64(400) >> np.uint64(4)).astype(np.int64)])
    words = stream.uint64(len(numerators)).copy()
    words[0] = 2**64 - 1
    fast = stream._bernoulli_exp(numerators, 2**59, words)
    monkeypatch.setattr(noise, "_MARGIN", 2.0**65)
    exact = stream._bernoulli_exp(numerators, 2**59, words)
    assert exact[0]  # exp(0) is 1: no word is high enough to reject it
    assert (fast[1:] == exact[1:]).all()
    assert 0 < exact.sum() < len(exact)


def test_level_ties_are_decided_by_further_bits() -> None:
    exact, table = noise._level_thresholds()
    assert exact[0] / 2**320 == pytest.approx(1 / sum(math.exp(-k * k / 2) for k in range(40)), rel=1e-15)
    levels = np.concatenate([SeededStream(seed)._levels(table[:1]) for seed in range(64)])
    share = 1 - (exact[0] & (2**256 - 1)) / 2**256  # further bits above the threshold's: the next level
    assert set(levels) <= {0, 1}
    assert stats.binomtest(int(levels.sum()), 64, share).pvalue > ALPHA


def test_seeded_streams_repeat_and_differ_and_are_not_private() -> None:
    streams, again, other = seeded_streams(1), seeded_streams(1), seeded_streams(2)
    draws = [stream.uint64(4).tolist() for stream in (streams.sampling, streams.noise, streams.public)]
    assert draws == [stream.uint64(4).tolist() for stream in (again.sampling, again.noise, again.public)]
    assert len({tuple(draw) for draw in [*draws, other.noise.uint64(4).tolist()]}) == 4
    assert not streams.secure
    assert secure_streams().secure
    assert not Streams(SecureStream(), SeededStream(1), SecureStream()).secure


def test_secure_streams_never_repeat_not_even_after_a_fork() -> None:
    assert SecureStream().uint64(4).tolist() != SecureStream().uint64(4).tolist()
    stream = SecureStream()
    stream.uint64(1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, stream.uint64(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 32) != stream.uint64(4).tobytes()


def test_self_test_passes_on_good_streams() -> None:
    self_test(secure_streams())
    for seed in range(20):
        self_test(seeded_streams(seed))


class _Broken(SeededStream):
    def __init__(self, defect: str) -> None:
        super().__init__(1, defect)
        self.defect = defect

    def uint64(self, n: int) -> np.ndarray:
        words = super().uint64(n)
        return words | np.uint64(2**63) if self.defect == "uniform" else words

    def gaussian(self, n: int, sigma: float) -> np.ndarray:
        return super().gaussian(n, sigma) * (0.9 if self.defect == "gaussian" else 1.0)

    def discrete_gaussian(self, n: int, sigma: float) -> np.ndarray:
        return super().discrete_gaussian(n, sigma / 2 if self.defect == "discrete gaussian" else sigma)


@pytest.mark.parametrize("defect", ["uniform", "gaussian", "discrete gaussian"])
def test_self_test_finds_a_broken_source(defect: str) -> None:
    good = seeded_streams(1)
    with pytest.raises(NoiseTestError, match=f"noise stream: {defect} draws"):
        self_test(Streams(good.sampling, _Broken(defect), good.public))


def test_self_test_finds_shared_streams() -> None:
    with pytest.raises(NoiseTestError, match="same draws"):
        self_test(Streams(SeededStream(1), SeededStream(1), SeededStream(2)))


@settings(max_examples=200, deadline=None)
@given(
    vector=hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-50, 50, width=32)),
    clip=st.floats(0.01, 100),
    fineness=st.floats(1, 2**30),
)
def test_grid_rounding_never_raises_the_norm(vector: np.ndarray, clip: float, fineness: float) -> None:
    grid = clip / fineness
    if not 1 <= clip / grid <= 2**30:
        return
    norm = np.linalg.norm(vector.astype(np.float64))
    clipped = vector.astype(np.float64) * min(1.0, clip / norm) if norm else vector
    integers = quantise_to_grid(clipped, clip, grid)
    assert math.isqrt(sum(int(x) ** 2 for x in integers)) <= clip / grid
    assert sum(int(x) ** 2 for x in integers) <= (clip / grid) ** 2 * (1 + 1e-12)
    assert (np.abs(integers * grid) <= np.abs(clipped) * (1 + 1e-12)).all()
    assert (np.abs(integers * grid - clipped) <= grid * (1 + 1e-6) + clip * 1e-6).all()


def test_grid_rounding_shortens_what_is_too_long() -> None:
    integers = quantise_to_grid(np.array([3.0, 4.0]) * 1.001, 5.0, 5.0 / 2**20)
    assert int(integers @ integers) <= 2**40
    assert integers[1] / integers[0] == pytest.approx(4 / 3, rel=1e-5)
    with pytest.raises(ValueError, match="not finite"):
        quantise_to_grid(np.array([float("nan")]), 1.0, 0.1)
    with pytest.raises(ValueError, match="grid"):
        quantise_to_grid(np.array([1.0]), 1.0, 2.0)
