"""The audit: real steps, known canaries, and whether it tells a broken engine from an intact one."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from wardpose.shared.allocator import tune_allocator
from wardpose.shared.errors import ConfigError, WardposeError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.clipping import MARGIN
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.simulation.auditing.audit import Audit, run_audit
from wardpose.simulation.auditing.bench import Bench
from wardpose.simulation.auditing.canaries import (
    KnownGradients,
    Table,
    block_means,
    make_orthogonal,
    make_table,
    most_independent,
    small_model,
)
from wardpose.simulation.auditing.plan import AuditPlan, Break, Name
from wardpose.simulation.cli import app

SEED = 11


@pytest.fixture(scope="module", autouse=True)
def _one_table_of_a_kind() -> Iterator[None]:
    """Canaries of one seed are the same whatever is audited, and drawing them takes most of a short audit's time.

    Pictures are not chosen among many here, which only makes those that are planted as they are interfere more.
    """
    tune_allocator()
    tables: dict[tuple[object, ...], Table] = {}

    def make(model: PoseModel, *arguments: Any, **options: Any) -> Table:
        options["candidates"] = 1
        key = (*arguments, *options.items())
        if key not in tables:
            tables[key] = make_table(model, *arguments, **options)
        return tables[key]

    with patch("wardpose.simulation.auditing.bench.make_table", make):
        yield


@lru_cache(maxsize=32)
def audited(mechanism: Name, canaries: int, broken: Break | None = None, rate: float | None = None) -> Audit:
    return run_audit(
        AuditPlan(mechanism=mechanism, canaries=canaries, broken=broken, sample_rate=rate, seed=SEED),
    )


def gap(result: Audit) -> float:
    guessed = np.isfinite(result.scores)
    first, second = (result.scores[guessed & chosen].mean() for chosen in (result.included, ~result.included))
    return float(first - second)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("dp-sgd", 1.0),
        ("dp-sgd", 0.5),
        ("feature", 0.5),
        ("projected", 1.0),
        ("feature-projective", 0.5),
        ("label-ridge", 1.0),
    ],
)
def test_steps_with_looked_up_gradients_are_steps_with_differentiated_ones(name: Name, rate: float) -> None:
    bench = Bench(AuditPlan(mechanism=name, canaries=8, per_run=8, sample_rate=rate, pictures=True, seed=SEED))
    bits = np.array([True, False, True, True, False, False, True, False])
    known, computed = (bench.release(bits, bench.claimed, seeded_streams(5), known=known) for known in (True, False))
    # Coins and noise are the same, so the difference is rounding, far below one canary's share C.
    assert float((known - computed).norm()) < 1e-2 * bench.claimed.max_grad_norm
    other = bench.release(bits, bench.claimed, seeded_streams(6))
    assert float((known - other).norm()) > bench.claimed.max_grad_norm


@pytest.mark.parametrize("name", ["dp-sgd", "projected"])
def test_a_step_in_which_every_canary_is_out_is_noise(name: Name) -> None:
    bench = Bench(AuditPlan(mechanism=name, canaries=8, per_run=8, sample_rate=1.0, seed=SEED))
    nobody = np.zeros(8, bool)
    assert float(bench.release(nobody, bench.claimed, seeded_streams(1)).norm()) > 0
    quiet = bench.claimed.model_copy(update={"noise_multiplier": 0.0})
    assert float(bench.release(nobody, quiet, seeded_streams(1)).norm()) == 0


def test_variants_of_a_canary_have_one_public_view_and_labels() -> None:
    table = make_table(small_model(1), 4, 1, pairs=True)
    first, second = np.arange(4), np.arange(4, 8)
    np.testing.assert_array_equal(table.public_views(first), table.public_views(second))
    np.testing.assert_array_equal(table.rows.joints[first], table.rows.joints[second])
    assert not np.array_equal(table.rows.inputs[first], table.rows.inputs[second])
    crops = np.arange(2 * 16 * 8 * 3).reshape(2, 16, 8, 3)
    np.testing.assert_allclose(block_means(crops)[1, 0, 0], crops[1, :8].mean(axis=(0, 1)))


def test_independent_vectors_are_chosen() -> None:
    vectors = torch.tensor([[1.0, 0, 0], [5, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 0.2]])
    chosen = vectors[torch.from_numpy(most_independent(vectors, 3))]
    assert float(torch.linalg.det(torch.nn.functional.normalize(chosen, dim=1)).abs()) > 0.98


def test_a_table_that_disagrees_with_the_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = KnownGradients.padded

    def wrong(self: KnownGradients, *arguments: Any, **options: Any) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
        for gradients, count in honest(self, *arguments, **options):
            yield {name: 1.5 * value if "bias" in name else value for name, value in gradients.items()}, count

    monkeypatch.setattr(KnownGradients, "padded", wrong)
    with pytest.raises(WardposeError, match="differ"):
        Bench(AuditPlan(canaries=8, per_run=8, seed=SEED))


def contributed(bench: Bench, canary: int) -> torch.Tensor:
    """What one canary adds to a noiseless step's sum: its variant x less x', halved, or its presence."""
    quiet = bench.claimed.model_copy(update={"noise_multiplier": 0.0})
    first, second = (np.arange(8) == canary, np.zeros(8, bool))
    moved = bench.release(first, quiet, seeded_streams(1)) - bench.release(second, quiet, seeded_streams(1))
    return moved / (2 if bench.claimed.adjacency == "replace-one" else 1)


@pytest.mark.parametrize("name", ["dp-sgd", "projected", "feature", "feature-projective", "label-ridge"])
def test_canaries_are_orthogonal_and_move_what_is_released_by_a_clip_norm(name: Name) -> None:
    """Through the whole engine: gradients, projection, clipping; `feature*` by exchanging variants, 2 C apart."""
    bench = Bench(AuditPlan(mechanism=name, canaries=8, per_run=8, sample_rate=1.0, seed=SEED))
    moved = torch.stack([contributed(bench, canary) for canary in range(8)]) / (bench.claimed.max_grad_norm * MARGIN)
    torch.testing.assert_close(moved @ moved.T, torch.eye(8, dtype=torch.float64), atol=1e-4, rtol=0)
    assert bench.efficiency == pytest.approx(1, abs=1e-3)


def test_pictures_interfere_in_a_basis() -> None:
    bench = Bench(
        AuditPlan(mechanism="feature-projective", canaries=8, sample_rate=1.0, pictures=True, per_run=8, seed=SEED)
    )
    assert 0.5 < bench.efficiency < 0.95


def test_canaries_are_three_clip_norms_strong() -> None:
    for pictures, least in ((False, 0.999), (True, 0.8)):
        bench = Bench(AuditPlan(canaries=16, pictures=pictures, seed=SEED))
        norms = torch.stack([value[:16].flatten(1).square().sum(1) for value in bench.table.gradients.values()])
        assert float(norms.sum(0).sqrt().min()) == pytest.approx(3 * bench.claimed.max_grad_norm, rel=1e-4)
        assert bench.efficiency > least


def rows(table: Table) -> list[torch.Tensor]:
    """Gradients of x, x' and their public views, (n, p) each."""
    flat = torch.cat([value.flatten(1) for value in table.gradients.values()], dim=1).double()
    return list(flat[: 3 * table.canaries].reshape(3, table.canaries, -1))


def test_gradients_are_made_orthogonal_with_little_change() -> None:
    pictures = make_table(small_model(1), 6, 1, pairs=True)
    (x, other, public), (old, old_other, _) = rows(make_orthogonal(pictures, pairs=True)), rows(pictures)
    directions = torch.nn.functional.normalize(torch.cat([x - public, public]), dim=1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(12, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(x - public, public - other, atol=1e-4, rtol=0)
    assert float(torch.cosine_similarity(x - other, old - old_other).min()) > 0.8


MECHANISMS: tuple[Name, ...] = ("dp-sgd", "projected", "feature", "feature-projective", "label-ridge")
RIDGE = pytest.param("label-ridge", marks=[pytest.mark.slow, pytest.mark.guard])  # whose noise is audited every time


def noise_seen(result: Audit) -> float:
    """Standard deviation of the scores around what they would be without noise, in deviations of the claimed noise."""
    signal = 2.0 * result.included - 1 if result.plan.by_replacement else result.included.astype(float)
    claimed = result.claimed.noise_multiplier / result.efficiency
    return float((result.scores - signal).std()) / claimed


@pytest.mark.parametrize("name", MECHANISMS)
def test_scores_carry_the_noise_that_is_claimed_and_half_of_it_is_found(name: Name) -> None:
    """In R^p and on the grid."""
    intact, halved = audited(name, 480, None, 1.0), audited(name, 3200, "halved-noise", 1.0)
    assert noise_seen(intact) == pytest.approx(1, abs=0.15)
    assert noise_seen(halved) == pytest.approx(0.5, abs=0.05)
    assert not intact.violated
    assert halved.violated


@pytest.mark.parametrize("name", [*MECHANISMS[:-1], RIDGE])
def test_skipped_clip_is_found(name: Name) -> None:
    result = audited(name, 1600, "skipped-clip", 1.0)
    assert result.violated
    # Canaries are three clip norms strong at least. As many of them on both sides: of fewer the mean is too rough.
    assert gap(result) > 2.5 * gap(audited(name, 1600, None, 1.0)) > 0


def test_a_shared_batch_betrays_who_took_part() -> None:
    """The auditor sees who is in the public batch: with the private batch in its place, that is who took part."""
    apart, shared = (audited("feature", 4800, broken) for broken in (None, "shared-batch"))
    assert gap(shared) > 1.3 > gap(apart)  # 2 where everybody guessed is in, 0.2 at the rate of the private batch
    assert shared.violated
    assert not apart.violated
    assert shared.epsilon_claimed == pytest.approx(apart.epsilon_claimed)


def test_intact_dp_sgd_is_shown_to_lose_most_of_its_claim_and_no_more() -> None:
    result = audited("dp-sgd", 12_800)
    assert result.epsilon_claimed == pytest.approx(2.254, abs=0.01)
    assert 0.7 * result.epsilon_claimed < result.result.epsilon_lower < result.epsilon_claimed
    assert gap(result) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("name", MECHANISMS[1:])
def test_intact_engine_is_shown_to_lose_most_of_its_claim_and_no_more(name: Name) -> None:
    result = audited(name, 12_800, None, 1.0)
    assert 0.6 * result.epsilon_claimed < result.result.epsilon_lower < result.epsilon_claimed


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    ("name", "rate"), [*((name, 0.5) for name in MECHANISMS), ("feature", None), ("feature-projective", None)]
)
def test_intact_engine_that_samples_stays_below_its_claim(name: Name, rate: float | None) -> None:
    assert not audited(name, 12_800, None, rate).violated


def test_only_feature_mechanisms_have_a_batch_to_share() -> None:
    with pytest.raises(ConfigError, match="shared-batch"):
        AuditPlan(mechanism="dp-sgd", broken="shared-batch")


def test_command_says_what_is_broken_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    opened: list[str] = []
    monkeypatch.setattr("sqlite3.connect", lambda path, *_, **__: opened.append(str(path)))
    arguments = ["audit", "--break", "skipped-clip", "--canaries", "1600", "--seed", str(SEED), "--json"]
    outcome = CliRunner().invoke(app, [*arguments, "--png", str(tmp_path / "audit.png")])
    assert outcome.exit_code == 0, outcome.output
    values = json.loads(outcome.stdout)
    assert values["epsilon_lower"] == max(values["epsilon_lower_by"].values())
    assert values["broken"] == "skipped-clip"
    assert values["epsilon_lower"] > values["epsilon_claimed"]
    assert {"canaries", "mechanism", "delta", "confidence"} <= set(values)
    assert "BROKEN ENGINE" in outcome.stderr
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert not opened
    assert not list(work.iterdir())
    assert not list(home.rglob("*.sqlite*"))


def test_command_refuses_unknown_names() -> None:
    outcome = CliRunner().invoke(app, ["audit", "--break", "everything"])
    assert isinstance(outcome.exception, ConfigError)
    assert "shared-batch" in str(outcome.exception)
