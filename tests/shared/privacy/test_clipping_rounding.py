"""Roundings that clipping may make: contributions and sums *as computed*, against exact rational numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wardpose.shared.privacy.clipping import GRID, MARGIN, ClipSum, unit_norms

NORM_ERROR = Fraction(31, 10**6)  # of float32 gradients, as the module says


def square_norm(values: NDArray[np.floating]) -> Fraction:
    """Sum of squares, exactly."""
    mantissas, exponents = np.frexp(values.astype(np.float64))
    integers = (mantissas * 2.0**53).astype(np.int64).tolist()
    lowest = int(exponents.min())
    total = sum((number << int(power) - lowest) ** 2 for number, power in zip(integers, exponents, strict=True))
    return total * Fraction(2) ** (2 * (lowest - 53))


def contribution(vector: NDArray[np.float32], clip: float, *, discrete: bool = False) -> NDArray[np.float64]:
    like = {"w": torch.zeros(len(vector))}
    total = ClipSum(clip, like, discrete)({"w": torch.from_numpy(vector)[None]})["w"].numpy()
    return total.astype(np.float64)


# Float32 loses these squares one by one, drops them as too small, or rounds all of them the same way.
SHAPES = {
    "one beside many that are lost": lambda n, rng: np.r_[1.0, np.full(n - 1, 2.0**-12.5)],
    "many that are lost, then one": lambda n, rng: np.r_[np.full(n - 1, 2.0**-12.5), 1.0],
    "one in every block": lambda n, rng: np.where(np.arange(n) % 1024 == 0, 1.0, 2.0**-12.5),
    "all alike, squares rounded down": lambda n, rng: np.full(n, 1 + 2.0**-12 + 2.0**-23),
    "growing": lambda n, rng: np.exp2(np.linspace(-30, 0, n)),
    "shrinking": lambda n, rng: np.exp2(-np.linspace(0, 30, n)),
    "normal": lambda n, rng: rng.standard_normal(n),
    "heavy tails": lambda n, rng: rng.standard_cauchy(n).clip(-1e9, 1e9),
    "sparse": lambda n, rng: rng.standard_normal(n) * (rng.random(n) < 0.01),
    "one only": lambda n, rng: np.r_[np.zeros(n - 1), 1.0],
}


def vector(shape: str, size: int, power: int, seed: int) -> NDArray[np.float32]:
    values = SHAPES[shape](size, np.random.default_rng(seed)) * 2.0**power
    return np.clip(values, -3.4e38, 3.4e38).astype(np.float32)


hostile = given(
    shape=st.sampled_from(sorted(SHAPES)),
    size=st.sampled_from([1, 2, 1023, 1024, 1025, 3000]),
    power=st.one_of(st.integers(-149, 127), st.sampled_from([-63, -33, -32, -31, 49, 50, 51, 63, 64])),
    near=st.sampled_from([1e-6, 0.5, 1 - 2.0**-14, 1 - 2.0**-15, 1 - 2.0**-20, 1.0, 1 + 2.0**-15, 3.0]),
    seed=st.integers(0, 2**16),
)


@hostile
@settings(max_examples=250, deadline=None)
def test_no_contribution_is_longer_than_the_clip_norm(
    shape: str, size: int, power: int, near: float, seed: int
) -> None:
    """C around the vector's own norm, where a norm that is too small would do the most harm; also on the grid."""
    values = vector(shape, size, power, seed)
    exact = square_norm(values)
    computed = Fraction(float(unit_norms({"w": torch.from_numpy(values)[None]})[0]))
    if exact:
        assert (1 - NORM_ERROR) ** 2 <= computed**2 / exact <= (1 + NORM_ERROR) ** 2
    else:
        assert computed == 0
    clip = float(np.linalg.norm(values.astype(np.float64))) * near or 1.0
    assert square_norm(contribution(values, clip)) <= Fraction(clip) ** 2
    assert square_norm(contribution(values, clip, discrete=True)) <= GRID**2


@contextmanager
def subnormal_numbers_are_zero() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("power", [-140, -120, -80, -64, -63, -40, -33, -32, -31])
def test_a_processor_that_drops_small_numbers_lengthens_nothing(power: int) -> None:
    """With subnormal numbers flushed to zero, squares below 2^-126 are lost in silence."""
    for shape in SHAPES:
        values = vector(shape, 3000, power, 0)
        clip = float(np.linalg.norm(values.astype(np.float64))) or 1.0
        with subnormal_numbers_are_zero():
            alone = contribution(values, clip)
        assert square_norm(alone) <= Fraction(clip) ** 2


@pytest.mark.parametrize("ones", [slice(None, None, 1024), slice(64)])  # in every block; in every lane of a processor
def test_a_long_vector_of_many_parameters_stays_within_the_clip_norm(ones: slice) -> None:
    """Two million coordinates in parameters of a network's sizes, all of which a float32 sum would lose."""
    sizes = [1, 320, 490, 102_400, 307_200, 409_600, 1_228_800]
    gradients = {str(size): torch.full((1, size), 2.0**-12.5) for size in sizes}
    for value in gradients.values():
        value[0, ones] = 1.0
    whole = np.concatenate([value[0].numpy() for value in gradients.values()]).astype(np.float64)
    exact = square_norm(whole)
    assert abs(Fraction(float(unit_norms(gradients)[0])) ** 2 / exact - 1) <= 2 * NORM_ERROR
    clip = float(exact) ** 0.5 * 0.75
    query = ClipSum(clip, {name: value[0] for name, value in gradients.items()})
    total = np.concatenate([value.numpy() for value in query(gradients).values()])
    assert (Fraction(clip) * Fraction(MARGIN) * (1 - NORM_ERROR)) ** 2 <= square_norm(total) <= Fraction(clip) ** 2


@pytest.mark.parametrize("size", [1, 7, 64])
def test_sums_of_neighbours_as_computed_differ_by_at_most_the_clip_norm(size: int) -> None:
    """All others pull one way, so that every addition rounds as far as it can, and all places change."""
    count, clip = 2000, 0.3
    rng = np.random.default_rng(size)
    rows = (1 + 0.01 * rng.random((count, 3))).astype(np.float32)
    query = ClipSum(clip, {"w": torch.zeros(3)})

    def summed(units: NDArray[np.float32]) -> NDArray[np.float64]:
        total = query.zero()
        for start in range(0, len(units), size):
            part = units[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            query.add(total, {"w": torch.from_numpy(padded)}, len(part))
        return total["w"].numpy()

    together = summed(rows)
    for unit in (0, count // 2, count - 1):
        without = summed(np.delete(rows, unit, axis=0))
        apart = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(together.tolist(), without.tolist(), strict=True))
        assert (Fraction(clip) * Fraction(999, 1000)) ** 2 <= apart <= Fraction(clip) ** 2


def test_a_unit_does_not_depend_on_those_beside_it() -> None:
    """Norms of every magnitude side by side: whichever way each is taken, the others do not see it."""
    powers = [-149, -100, -63, -33, -32, -31, 0, 49, 50, 51, 100, 126]
    rows = np.stack([vector("normal", 3000, power, power + 200) for power in powers])
    rows[3, 5], rows[7, 0] = np.nan, np.inf
    together = unit_norms({"w": torch.from_numpy(rows)})
    alone = [unit_norms({"w": torch.from_numpy(row)[None]})[0] for row in rows]
    np.testing.assert_array_equal(together.numpy(), np.array(alone))
    finite = [float(norm) for norm in together if np.isfinite(float(norm))]
    assert len(finite) == len(powers) - 2
    assert all(a < b for a, b in pairwise(finite))
