"""The public subspace: what it spans and captures, how it is held, and whose frames it comes from."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.engine import head_engine, make_rows
from torch import Tensor

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import ProjectionOptions
from wardpose.shared.training import basis as basis_module
from wardpose.shared.training.basis import PublicBasis, build_basis, choose_frames
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients

FRAMES, HELD_OUT = 8, 4


@pytest.fixture(scope="module")
def engine() -> UnitGradients:
    return head_engine(torch.float64)


@pytest.fixture(scope="module")
def bags(engine: UnitGradients) -> tuple[Bags, Bags]:
    rows, _ = make_rows(FRAMES + HELD_OUT, 5)
    everything = load_bags(engine, rows, np.arange(FRAMES + HELD_OUT)[:, None])
    return everything.units(0, FRAMES), everything.units(FRAMES, FRAMES + HELD_OUT)


def matrix(engine: UnitGradients, bags: Bags) -> Tensor:
    parts = engine.per_unit(engine.parameters(), bags)
    return torch.cat([torch.cat([value.flatten(1) for value in part.values()], dim=1) for part in parts])


def build(engine: UnitGradients, bags: tuple[Bags, Bags], **options: object) -> PublicBasis:
    values = {"rank": 3, "energy": 1.0, **options}
    return build_basis(engine, engine.parameters(), *bags, ProjectionOptions.model_validate(values))


@pytest.mark.parametrize("storage", ["stored", "matrix-free"])
def test_captured_energy_is_that_of_held_out_frames(
    engine: UnitGradients, bags: tuple[Bags, Bags], storage: str
) -> None:
    V = torch.linalg.svd(matrix(engine, bags[0]), full_matrices=False).Vh[:3].T
    held = matrix(engine, bags[1])
    captured = build(engine, bags, storage=storage).captured
    mean = held.mean(dim=0)
    assert captured.mean == pytest.approx(float((V.T @ mean).square().sum() / mean.square().sum()), rel=1e-8)
    assert captured.per_sample == pytest.approx(float((held @ V).square().sum() / held.square().sum()), rel=1e-8)
    assert captured.mean < 0.99  # held out: its own frames a basis of rank m holds entirely
    own = build(engine, (bags[0], bags[0]), rank=FRAMES, storage=storage).captured
    assert (own.mean, own.per_sample) == pytest.approx((1.0, 1.0))


def test_the_rank_is_the_least_that_holds_the_energy(engine: UnitGradients, bags: tuple[Bags, Bags]) -> None:
    squares = torch.linalg.svdvals(matrix(engine, bags[0])).square()
    shares = squares.cumsum(0) / squares.sum()
    for energy in (0.3, 0.6, 0.9):
        expected = int((shares < energy).sum()) + 1
        assert build(engine, bags, rank=FRAMES, energy=energy).rank == expected
    assert build(engine, bags, rank=2, energy=1.0).rank == 2


def test_repeated_frames_add_no_direction(engine: UnitGradients) -> None:
    rows, _ = make_rows(FRAMES, 5)
    ids = np.array([0, 1, 2, 0, 1, 2, 0, 1])[:, None]
    held = load_bags(engine, rows, np.arange(3, 6)[:, None])
    assert build(engine, (load_bags(engine, rows, ids), held), rank=FRAMES).rank == 3


def test_both_storages_multiply_alike_and_coordinates_know_no_sign(
    engine: UnitGradients, bags: tuple[Bags, Bags]
) -> None:
    """Coefficients may differ by the eigensolver's signs, what they stand for and their coordinates may not."""
    stored, free = (build(engine, bags, storage=storage) for storage in ("stored", "matrix-free"))
    (vectors,) = engine.per_unit(engine.parameters(), bags[1])
    flat = torch.cat([value.flatten(1) for value in vectors.values()], dim=1)
    V = torch.linalg.svd(matrix(engine, bags[0]), full_matrices=False).Vh[:3].T
    decoded, coordinates = [], []
    for basis in (stored, free):
        (line, *_) = coefficients = basis.encode(vectors)
        assert coefficients.shape == (HELD_OUT, 3)
        decoded.append(torch.cat([value.reshape(-1) for value in basis.decode(line).values()]))
        coordinates.append(basis.coordinates(line))
    for result in decoded:
        torch.testing.assert_close(result, V @ (V.T @ flat[0]), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(coordinates[0], coordinates[1], rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(matrix(engine, bags[0]).T @ coordinates[0], decoded[0], rtol=1e-8, atol=1e-10)
    flipped = PublicBasis(_Flipped(stored), stored._left * torch.tensor([1.0, -1.0, 1.0]), stored.captured)
    assert not torch.allclose(flipped.encode(vectors), stored.encode(vectors))
    torch.testing.assert_close(flipped.coordinates(flipped.encode(vectors)[0]), coordinates[0])


class _Flipped:
    """The same subspace with another sign of the second direction, as another eigensolver might give."""

    storage = "stored"

    def __init__(self, basis: PublicBasis) -> None:
        self._basis = basis

    def encode(self, vectors: dict[str, Tensor]) -> Tensor:
        return self._basis.encode(vectors) * torch.tensor([1.0, -1.0, 1.0])

    def decode(self, coefficients: Tensor) -> dict[str, Tensor]:
        return self._basis.decode(coefficients * torch.tensor([1.0, -1.0, 1.0]))


def test_gradients_are_stored_only_where_they_fit(
    engine: UnitGradients, bags: tuple[Bags, Bags], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = (FRAMES + HELD_OUT) * sum(value.numel() * value.element_size() for value in engine.parameters().values())
    for free, storage in ((5.0 * needed, "stored"), (3.0 * needed, "matrix-free")):
        monkeypatch.setattr(basis_module, "available_bytes", lambda _, free=free: free)
        assert build(engine, bags, storage="auto").storage == storage


def test_a_matrix_summed_in_small_parts_is_the_same(
    engine: UnitGradients, bags: tuple[Bags, Bags], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(engine, bags, storage="matrix-free")
    size = sum(value.numel() * value.element_size() for value in engine.parameters().values())
    monkeypatch.setattr(basis_module, "_GRAM_BYTES", size * (FRAMES + HELD_OUT) / 50)
    parts = build(engine, bags, storage="matrix-free")
    assert parts.rank == whole.rank
    assert parts.captured.mean == pytest.approx(whole.captured.mean, rel=1e-9)
    assert parts.captured.per_sample == pytest.approx(whole.captured.per_sample, rel=1e-9)


def test_frames_without_a_gradient_span_nothing(engine: UnitGradients) -> None:
    rows, _ = make_rows(8, 5)
    rows.visibility[:] = 0
    blank = load_bags(engine, rows, np.arange(8)[:, None])
    with pytest.raises(ConfigError, match="span no basis"):
        build(engine, (blank.units(0, 6), blank.units(6, 8)))


@pytest.fixture
def chosen() -> Callable[[str, int], tuple[np.ndarray, int]]:
    options = ProjectionOptions(frames=6, held_out=3)
    return lambda identity, refresh: choose_frames(identity, 40, options, refresh)


def test_frames_follow_from_public_facts(chosen: Callable[[str, int], tuple[np.ndarray, int]]) -> None:
    rows, frames = chosen("public", 0)
    assert (len(rows), len(set(rows.tolist())), frames) == (9, 9, 6)
    assert rows.tolist() == chosen("public", 0)[0].tolist()
    assert rows.tolist() != chosen("another", 0)[0].tolist()
    assert rows.tolist() != chosen("public", 1)[0].tolist()
    few, frames = choose_frames("public", 8, ProjectionOptions(), 0)
    assert (len(few), frames) == (8, 6)


def test_the_pieces_of_a_summed_matrix_are_small_and_cover_every_entry_once(engine: UnitGradients) -> None:
    sizes = {name: value.numel() for name, value in engine.parameters().items()}
    most = max(sizes.values()) // 3
    groups = basis_module._groups(engine.parameters(), most)
    covered = {name: np.zeros(size, int) for name, size in sizes.items()}
    for group in groups:
        assert sum(piece.size for piece in group) <= most
        for piece in group:
            covered[piece.name][piece.start : piece.start + piece.size] += 1
    assert all((count == 1).all() for count in covered.values())
