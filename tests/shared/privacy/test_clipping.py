"""Bounded sums: agreement with a plain loop, sensitivity under adversarial units, exactness on the grid, noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wardpose.shared.privacy.clipping import GRID, MARGIN, ClipSum, ProjectClipSum, add_noise, clip_factors, unit_norms
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.vectors import Vector, flatten

SHAPES = {"a": (3, 4), "b": (7,), "c": (2, 2, 2)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def vectors(rows: torch.Tensor) -> Vector:
    parts = rows.split([math.prod(shape) for shape in SHAPES.values()], dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def like(dtype: torch.dtype) -> Vector:
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}


def as_numbers(total: Vector, clip: float, *, discrete: bool) -> np.ndarray:
    flat = flatten(total).double().numpy()
    return flat * (clip / GRID) if discrete else flat


def loop(rows: torch.Tensor, clip: float) -> np.ndarray:
    total = np.zeros(rows.shape[1])
    for row in rows.double().numpy():
        norm = math.sqrt(math.fsum(value * value for value in row))
        if math.isfinite(norm):
            total += row * min(1.0, MARGIN * clip / norm) if norm else 0.0
    return total


@given(
    units=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
    clip=st.floats(1e-3, 1e3),
    spread=st.floats(0.0, 6.0),
)
@settings(max_examples=60, deadline=None)
def test_sum_equals_a_loop(units: int, seed: int, clip: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(units, SIZE, generator=generator, dtype=torch.float64)
    rows *= 10.0 ** (spread * torch.randn(units, 1, generator=generator, dtype=torch.float64))
    expected = loop(rows, clip)
    exact = as_numbers(ClipSum(clip, like(torch.float64))(vectors(rows)), clip, discrete=False)
    np.testing.assert_allclose(exact, expected, rtol=1e-10, atol=1e-12 * clip)
    grid = as_numbers(ClipSum(clip, like(torch.float64), discrete=True)(vectors(rows)), clip, discrete=True)
    np.testing.assert_allclose(grid, expected, atol=1.01 * units * clip / GRID + 1e-12)


HOSTILE = [0.0, 1.0, -1e30, 1e300, 1e-300, 5e-324, float("inf"), float("-inf"), float("nan"), 1e19, -3.7]


@given(
    values=st.lists(st.sampled_from(HOSTILE), min_size=SIZE, max_size=SIZE),
    clip=st.sampled_from([1e-6, 1.0, 37.5, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    discrete=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_unit_moves_the_sum_by_more_than_the_clip_norm(
    values: list[float], clip: float, dtype: torch.dtype, discrete: bool
) -> None:
    query = ClipSum(clip, like(dtype), discrete)
    alone = flatten(query(vectors(torch.tensor([values], dtype=dtype))))
    if discrete:
        assert sum(int(value) ** 2 for value in alone.tolist()) <= GRID**2
    else:
        assert math.sqrt(math.fsum(value**2 for value in alone.double().tolist())) <= clip
    others = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    without = flatten(query(vectors(others)))
    together = flatten(query(vectors(torch.cat([others, torch.tensor([values], dtype=dtype)]))))
    assert bool(torch.isfinite(together).all())
    assert float((together - without).double().norm()) <= clip * (GRID / clip if discrete else 1 + 1e-9)


MAGNITUDES = [0.0, *(10.0**power for power in range(-45, 39, 3)), float(np.finfo(np.float32).max)]


@given(
    magnitudes=st.lists(st.sampled_from(MAGNITUDES), min_size=3, max_size=3),
    clip=st.sampled_from([1e-40, 1e-12, 1e-3, 1.0, 1e6, 1e38]),
    kind=st.sampled_from(["plain", "grid", "projected", "projected, clip before"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=300, deadline=None)
def test_no_magnitude_switches_the_clip_off(
    magnitudes: list[float], clip: float, kind: str, dtype: torch.dtype, seed: int
) -> None:
    """Squares that underflow had no norm, and a factor that rounds up in float32 doubled a contribution."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(3, SIZE, generator=generator, dtype=torch.float64).clamp(-3, 3)
    largest = 3.3e38 if dtype == torch.float32 else 1e300
    rows = (directions / 3 * torch.tensor(magnitudes, dtype=torch.float64)[:, None]).clamp(-largest, largest).to(dtype)
    grid = kind != "plain"
    query: ClipSum | ProjectClipSum = ClipSum(clip, like(dtype), grid)
    if kind.startswith("projected"):
        query = ProjectClipSum(clip, lambda found: found["a"].flatten(1), 12, before="before" in kind)
    for unit in range(3):
        alone = flatten(query(vectors(rows[unit : unit + 1]))).numpy()
        rest = torch.cat([rows[:unit], rows[unit + 1 :]])
        moved = flatten(query(vectors(rows))).numpy() - flatten(query(vectors(rest))).numpy()
        if grid:
            assert sum(int(value) ** 2 for value in alone) <= GRID**2
            assert moved.tolist() == alone.tolist()  # integers: removing a unit removes just what it contributed
        else:
            assert np.linalg.norm(alone / clip) <= 1
            assert np.linalg.norm(moved / clip) <= 1 + 1e-9
    norms = unit_norms(vectors(rows)).numpy()
    exact = [math.sqrt(math.fsum((value / 1e-30) ** 2 for value in row)) * 1e-30 for row in rows.double().tolist()]
    if max(magnitudes) < 1e30:
        np.testing.assert_allclose(norms, exact, rtol=3.1e-5 if dtype == torch.float32 else 1e-12)


def test_a_padded_row_is_no_unit() -> None:
    rows = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for query in (
        ClipSum(1.0, like(torch.float64)),
        ProjectClipSum(1.0, lambda found: found["a"].flatten(1), 12),
    ):
        assert torch.equal(flatten(query(vectors(rows), 3)), flatten(query(vectors(rows[:3]))))


def test_non_finite_units_contribute_exactly_nothing() -> None:
    rows = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    for poison in (float("nan"), float("inf"), float("-inf")):
        hostile = torch.cat([rows, torch.full((1, SIZE), 0.1)])
        hostile[3, 5] = poison
        query = ClipSum(1.0, like(torch.float32))
        assert torch.equal(flatten(query(vectors(hostile))), flatten(query(vectors(rows))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clipped_sums_are_not_formed_in_half_precision(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="float32 or float64"):
        ClipSum(1.0, like(dtype))(vectors(torch.ones(2, SIZE, dtype=dtype)))


def test_float32_norms_do_not_exceed_the_bound_on_large_vectors() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = {"w": torch.randn(4, 400_000, generator=generator) * 3}
    query = ClipSum(0.01, {"w": torch.zeros(400_000)})
    for unit in range(4):
        total = query({"w": rows["w"][unit : unit + 1]})["w"].double()
        assert float(total.norm()) <= 0.01
        assert float(total.norm()) == pytest.approx(0.01 * MARGIN, rel=3.1e-5)


def test_sensitivity_doubles_when_a_unit_is_replaced() -> None:
    clip = ClipSum(0.7, like(torch.float32))
    unit = torch.randn(1, SIZE, dtype=torch.float64) * 100
    apart = flatten(clip(vectors(unit))) - flatten(clip(vectors(-unit)))
    assert float(apart.norm()) == pytest.approx(1.4 * MARGIN)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_projection_clips_on_the_side_it_says(before: bool, discrete: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(SIZE, 4, generator=generator, dtype=torch.float64)).Q
    rows = torch.randn(5, SIZE, generator=generator, dtype=torch.float64) * torch.tensor([0.01, 1, 2, 3, 4])[:, None]

    def encode(vector: Vector) -> torch.Tensor:
        return torch.cat([value.flatten(1) for value in vector.values()], dim=1) @ basis

    expected = torch.zeros(4, dtype=torch.float64)
    for row in rows:
        if before:
            row = row * min(1.0, MARGIN * 1.5 / float(row.norm()))
        coefficients = basis.T @ row
        expected += coefficients * min(1.0, MARGIN * 1.5 / float(coefficients.norm()))
    query = ProjectClipSum(1.5, encode, 4, before=before, discrete=discrete)
    total = query(vectors(rows))["coefficients"].double() * (1.5 / GRID if discrete else 1.0)
    np.testing.assert_allclose(total, expected, atol=5 * 1.5 / GRID if discrete else 1e-10)
    assert torch.equal(query.zero()["coefficients"], torch.zeros(4, dtype=query.zero()["coefficients"].dtype))


def test_a_basis_that_is_not_orthonormal_does_not_break_the_bound() -> None:
    def encode(vector: Vector) -> torch.Tensor:
        return torch.cat([value.flatten(1) for value in vector.values()], dim=1)[:, :4] * 1e6

    for before in (False, True):
        query = ProjectClipSum(2.0, encode, 4, before=before, discrete=False)
        total = query(vectors(torch.randn(1, SIZE, generator=torch.Generator().manual_seed(0))))
        assert float(total["coefficients"].norm()) <= 2.0


@pytest.mark.parametrize("discrete", [False, True])
def test_noise_has_the_stated_deviation(discrete: bool) -> None:
    size = 20_000
    query = ClipSum(0.5, {"w": torch.zeros(size // 100, 100)}, discrete)
    noised = add_noise(query.zero(), query, 3.0, seeded_streams(7).noise)["w"].flatten().numpy()
    assert noised.dtype == np.float64
    # 4.5 standard errors: mean 0 +- s/sqrt(n), deviation s +- s/sqrt(2n)
    assert abs(noised.mean()) < 4.5 * 1.5 / math.sqrt(size)
    assert abs(noised.std() / 1.5 - 1) < 4.5 / math.sqrt(2 * size)
    if discrete:
        np.testing.assert_array_equal(noised / (0.5 / GRID), np.round(noised / (0.5 / GRID)))


def test_no_noise_multiplier_adds_nothing_and_infinite_bound_clips_nothing() -> None:
    rows = torch.randn(2, SIZE, dtype=torch.float64) * 1e6
    query = ClipSum(float("inf"), like(torch.float64))
    total = add_noise(query(vectors(rows)), query, 0.0, seeded_streams(0).noise)
    torch.testing.assert_close(flatten(total), rows.sum(dim=0))


def test_factors_are_those_of_the_definition() -> None:
    norms = torch.tensor([0.0, 0.5, 1.0, 4.0, float("inf"), float("nan")], dtype=torch.float64)
    factors = clip_factors(norms, 1.0)
    np.testing.assert_allclose(factors, [1, 1, MARGIN, 0.25 * MARGIN, 0, 0], rtol=1e-12)
    assert unit_norms({"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[12.0]])}).tolist() == [13.0]
