"""Whole steps and whole rounds: bounded influence, fixed denominators, noise on empty batches, independent draws."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.cache import Rows
from wardpose.shared.privacy.cohort import CohortData, PublicData
from wardpose.shared.privacy.gradients import UnitGradients, Vector, flatten
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import SeededStream, Streams, seeded_streams
from wardpose.shared.privacy.queries import GRID
from wardpose.shared.privacy.schedules import Schedule
from wardpose.shared.privacy.step import StepGradient, expected_batch_size
from wardpose.shared.privacy.training import OptimizerConfig, decode_update, local_update
from wardpose.shared.privacy.units import UnitIndex

PRIVATE = ("dp-sgd", "projected", "feature", "feature-projective")
CLIP = 0.25

ModelFactory = Callable[..., PoseModel]
CohortFactory = Callable[..., CohortData]
PublicFactory = Callable[..., PublicData]


def mechanism(name: str, **options: object) -> Mechanism:
    projection = ProjectionOptions(rank=4, frames=8, held_out=2, min_captured_energy=0.0)
    settings = {"frames_per_unit": 2, "sample_rate": 1.0, "max_grad_norm": CLIP, "projection": projection}
    return Mechanism.model_validate({"name": name, **settings, **options})


def private_sum(
    model: PoseModel,
    data: CohortData,
    chosen: Mechanism,
    public: PublicData | None,
    seed: int = 1,
    strategy: str = "head",
) -> Tensor:
    """Pre-noise sum of the private part, (p,), everything in front of it included."""
    engine = UnitGradients(model, strategy, micro_batch=4)
    feature = chosen.feature.model_copy(update={"weight": 0.0})
    step = StepGradient(
        engine,
        data,
        chosen.model_copy(update={"noise_multiplier": 0.0, "feature": feature}),
        streams=seeded_streams(seed),
        declared_units=1,
        public=public,
    )
    return flatten(step(engine.parameters())) * chosen.sample_rate


def with_unit(data: CohortData, rows: slice, change: Callable[[Rows], Rows]) -> CohortData:
    """The cohort with some rows' content changed, in the frames and in their public view."""
    return CohortData(
        private=change(data.private),
        public=change(data.public) if data.public is not None else None,
        units=data.units,
        views=data.views,
        frames_per_unit=data.frames_per_unit,
    )


def without_last_patient(data: CohortData, records: int) -> CohortData:
    """The neighbouring cohort: its last patient never was there."""
    keep = len(data.private) - records

    def cut(rows: Rows) -> Rows:
        return Rows(inputs=rows.inputs[:keep], joints=rows.joints[:keep], visibility=rows.visibility[:keep])

    owners = [(data.units.names[unit],) for unit in range(len(data.units) - 1) for _ in data.units.rows(unit)]
    return CohortData(
        private=cut(data.private),
        public=cut(data.public) if data.public is not None else None,
        units=UnitIndex(owners, unit=data.units.unit),
        views=1,
        frames_per_unit=data.frames_per_unit,
    )


def hostile(kind: str, seed: int) -> Callable[[Rows], Rows]:
    """Replace the last two rows by the worst that a unit may hold; rows are trunk features."""

    def change(rows: Rows) -> Rows:
        inputs, joints, visibility = rows.inputs.copy(), rows.joints.copy(), rows.visibility.copy()
        generator = np.random.default_rng(seed)
        noise = generator.standard_normal(inputs[-2:].shape).astype(inputs.dtype)
        inputs[-2:] = {
            "large": 1e6 * noise,
            "huge": 1e25 * noise,
            "nan": np.where(generator.random(noise.shape) < 0.01, np.nan, noise),
            "infinite": np.where(generator.random(noise.shape) < 0.01, np.inf, noise),
            "blank": np.zeros_like(noise),
            "unlabelled": noise,
            "outside": noise,
        }[kind]
        if kind == "unlabelled":
            visibility[-2:] = 0
        if kind == "outside":
            joints[-2:] = generator.choice([-1e9, 1e9, 0.0, np.nan], joints[-2:].shape)
            visibility[-2:] = 2
        return Rows(inputs=inputs, joints=joints, visibility=visibility)

    return change


@pytest.mark.parametrize("kind", ["large", "huge", "nan", "infinite", "blank", "unlabelled", "outside"])
@pytest.mark.parametrize("name", PRIVATE)
def test_no_patient_moves_the_sum_by_more_than_the_clip_norm(
    name: str, kind: str, small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    public = public_data(12, engine=engine)
    chosen = mechanism(name)
    # With F = 2 frames of patients who have 1 or 2, everybody's bag is the same whatever the coins are.
    data = cohort(chosen, (2, 1, 2), engine=engine)
    for seed in range(3):
        present = with_unit(data, slice(-2, None), hostile(kind, seed))
        with_them = private_sum(model, present, chosen, public)
        without = private_sum(model, without_last_patient(present, 2), chosen, public)
        assert bool(torch.isfinite(with_them).all())
        moved = float((with_them - without).norm())
        # Decoding by a basis kept in float32 is a rounding error away from an isometry.
        assert moved <= CLIP * (1 + 1e-4), (name, kind)
        if kind in ("nan", "infinite", "unlabelled") and not chosen.uses_difference:
            assert moved < 1e-7  # what is left: another batch shape rounds the others' gradients another way
        if kind == "large":
            assert moved > 0.5 * CLIP or chosen.uses_basis


def test_a_search_for_the_worst_frame_stays_within_the_clip_norm(
    small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    """Hill climbing over a patient's features, joints and visibility, through the whole step."""
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    public = public_data(12, engine=engine)
    generator = np.random.default_rng(0)
    for name in ("dp-sgd", "feature-projective"):
        chosen = mechanism(name)
        data = cohort(chosen, (2, 2), engine=engine)
        without = private_sum(model, without_last_patient(data, 2), chosen, public)
        best, found = data, 0.0
        for _ in range(25):

            def change(rows: Rows) -> Rows:
                inputs, joints, visibility = rows.inputs.copy(), rows.joints.copy(), rows.visibility.copy()
                inputs[-2:] += generator.standard_normal(inputs[-2:].shape) * 10 ** generator.uniform(-1, 3)
                joints[-2:] = generator.uniform(0, 31, joints[-2:].shape)
                visibility[-2:] = generator.integers(0, 2, visibility[-2:].shape)
                return Rows(inputs=inputs, joints=joints, visibility=visibility)

            candidate = with_unit(best, slice(-2, None), change)
            moved = float((private_sum(model, candidate, chosen, public) - without).norm())
            assert moved <= CLIP * (1 + 1e-4)
            if moved > found:
                best, found = candidate, moved
        assert found > 0.8 * CLIP  # the search gets near the bound, so a looser bound would be seen


def test_replacing_a_patient_moves_the_sum_by_at_most_twice_the_clip_norm(
    small_model: ModelFactory, cohort: CohortFactory
) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    chosen = mechanism("dp-sgd", adjacency="replace-one")
    data = cohort(chosen, (2, 2), engine=engine)
    sums = [
        private_sum(model, with_unit(data, slice(-2, None), hostile("large", seed)), chosen, None) for seed in range(4)
    ]
    distances = [float((a - b).norm()) for a in sums for b in sums]
    assert CLIP < max(distances) <= 2 * CLIP * (1 + 1e-5) == pytest.approx(chosen.sensitivity(), rel=1e-4)


@pytest.mark.parametrize("name", PRIVATE)
def test_empty_batches_take_a_noised_step(
    name: str, small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    chosen = mechanism(name, sample_rate=1e-12, noise_multiplier=2.0)
    update = local_update(
        model,
        cohort(chosen, engine=engine),
        chosen,
        strategy="head",
        steps=3,
        optimizer=OptimizerConfig(name="sgd", learning_rate=1.0),
        streams=seeded_streams(1),
        declared_units=4,
        public=public_data(12, engine=engine),
    )
    assert update.steps == 3
    # Nobody took part: what moved the weights is noise of deviation sigma C / (q N) in p or k numbers, three times.
    numbers = 4 if chosen.uses_basis else sum(value.numel() for value in update.update.values())
    expected = 2.0 * CLIP / (1e-12 * 4) * (3 * numbers) ** 0.5
    assert float(flatten(update.update).norm()) == pytest.approx(expected, rel=0.6 if numbers == 4 else 0.05)


def test_the_denominator_is_the_declared_one(small_model: ModelFactory, cohort: CohortFactory) -> None:
    model = small_model(torch.float64)
    engine = UnitGradients(model, "head")
    chosen = mechanism("dp-sgd")
    steps = [
        flatten(
            StepGradient(engine, cohort(chosen), chosen, streams=seeded_streams(1), declared_units=declared)(
                engine.parameters()
            )
        )
        for declared in (4, 8)
    ]
    torch.testing.assert_close(steps[0], 2 * steps[1])
    tiers = Mechanism(sample_rate=0.5, tiers={"careful": 0.1})
    assert expected_batch_size(tiers, {"": 10, "careful": 20}) == pytest.approx(7.0)
    for declared in (5, {"": 1, "other": 2}, {"": 0}):
        with pytest.raises(ConfigError, match="declared units"):
            expected_batch_size(tiers, declared)


class Recording:
    """A stream that remembers how much was asked of it."""

    def __init__(self, seed: int) -> None:
        self._inner = SeededStream(seed)
        self.secure = False
        self.asked: list[int] = []

    def uint64(self, n: int) -> np.ndarray:
        self.asked.append(n)
        return self._inner.uint64(n)

    def gaussian(self, n: int, sigma: float) -> np.ndarray:
        return self._inner.gaussian(n, sigma)

    def discrete_gaussian(self, n: int, sigma: float) -> np.ndarray:
        return self._inner.discrete_gaussian(n, sigma)


@pytest.mark.parametrize("draw", ["poisson", "cyclic", "once-per-round"])
def test_the_public_draw_knows_nothing_of_the_private_coins(
    draw: str, small_model: ModelFactory, cohort: CohortFactory
) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    chosen = mechanism("feature", sample_rate=0.5, feature=FeatureOptions(draw=draw, rate=0.5))
    data = cohort(chosen, (2, 1, 3, 1, 2), engine=engine)
    silent = CohortData(  # private frames without a label: the private gradient of l(x) vanishes
        private=Rows(
            inputs=data.private.inputs, joints=data.private.joints, visibility=np.zeros_like(data.private.visibility)
        ),
        public=data.public,
        units=data.units,
        views=1,
        frames_per_unit=2,
    )
    publics, privates = [], []
    for coins in (1, 2, 3):
        public = Recording(7)
        streams = Streams(SeededStream(coins), SeededStream(100 + coins), public)
        step = StepGradient(engine, silent, chosen, streams=streams, declared_units=5)
        gradients = [step._public(engine.parameters()) for _ in range(4)]
        publics.append((public.asked, [flatten(gradient) for gradient in gradients]))
        privates.append([flatten(step._private(engine.parameters())) for _ in range(4)])
    for asked, gradients in publics[1:]:
        assert asked == publics[0][0]
        for one, other in zip(gradients, publics[0][1], strict=True):
            assert torch.equal(one, other)
    assert not all(torch.equal(a, b) for a, b in zip(privates[0], privates[1], strict=True))


def test_cyclic_draws_visit_everybody(small_model: ModelFactory, cohort: CohortFactory) -> None:
    engine = UnitGradients(small_model(torch.float32), "head")
    chosen = mechanism("public-only", feature=FeatureOptions(draw="cyclic", rate=0.34))
    data = cohort(chosen, (1, 1, 1, 1, 1, 1), engine=engine)
    step = StepGradient(engine, data, chosen, streams=seeded_streams(3), declared_units=6)
    assert step._public is not None
    seen = [unit for _ in range(3) for unit in step._public._draw()]
    assert sorted(seen) == list(range(6))


def test_pseudo_labels_keep_keypoints_out_of_the_public_part(small_model: ModelFactory, cohort: CohortFactory) -> None:
    engine = UnitGradients(small_model(torch.float32), "head")
    for labels, same in (("pseudo", True), ("ground-truth", False)):
        chosen = mechanism("feature", feature=FeatureOptions(draw="once-per-round", labels=labels))
        data = cohort(chosen, engine=engine)

        def moved(rows: Rows) -> Rows:
            return Rows(inputs=rows.inputs, joints=31 - rows.joints, visibility=2 - rows.visibility)

        gradients = []
        for neighbour in (data, with_unit(data, slice(None), moved)):
            step = StepGradient(engine, neighbour, chosen, streams=seeded_streams(1), declared_units=4)
            assert step._public is not None
            gradients.append(flatten(step._public(engine.parameters())))
        assert torch.equal(*gradients) is same
        assert float(gradients[0].norm()) > 0


@pytest.mark.parametrize("name", ["none", "public-only", *PRIVATE])
def test_a_round_is_repeatable_and_leaves_the_model_alone(
    name: str, small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    model = small_model(torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen = mechanism(name, sample_rate=0.6, **({} if name in ("none", "public-only") else {"noise_multiplier": 0.5}))
    seen: list[tuple[int, int]] = []

    def run(seed: int, micro_batch: int | None) -> Vector:
        return local_update(
            model,
            cohort(chosen),
            chosen,
            strategy="last-stage",
            steps=2,
            optimizer=OptimizerConfig(name="sgd", learning_rate=1e-2),
            streams=seeded_streams(seed),
            declared_units=4,
            micro_batch=micro_batch,
            public=public_data(),
            progress=lambda done, total: seen.append((done, total)),
        ).update

    one, other = run(4, 2), run(4, 3)
    assert seen == [(1, 2), (2, 2)] * 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value.dtype == torch.float32 for value in one.values())
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-5)
    if name not in ("none", "public-only"):
        assert not torch.equal(flatten(run(5, 2)), flatten(one))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_update_is_where_the_optimiser_went(name: str, small_model: ModelFactory, cohort: CohortFactory) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    chosen = mechanism("dp-sgd", noise_multiplier=1.0)
    optimizer = OptimizerConfig(name=name, learning_rate=1e-2, momentum=0.5, weight_decay=0.1)
    data = cohort(chosen, engine=engine)
    update = local_update(
        model, data, chosen, strategy="head", steps=3, optimizer=optimizer, streams=seeded_streams(2), declared_units=4
    ).update
    step = StepGradient(engine, data, chosen, streams=seeded_streams(2), declared_units=4)
    leaves = engine.parameters()
    algorithm = {
        "adam": lambda values: torch.optim.Adam(values, lr=1e-2, weight_decay=0.1),
        "adamw": lambda values: torch.optim.AdamW(values, lr=1e-2, weight_decay=0.1),
        "sgd": lambda values: torch.optim.SGD(values, lr=1e-2, momentum=0.5, weight_decay=0.1),
    }[name](list(leaves.values()))
    for _ in range(3):
        for key, value in step(leaves).items():
            leaves[key].grad = value.float()
        algorithm.step()
    for key, start in engine.parameters().items():
        torch.testing.assert_close(update[key], leaves[key] - start)


def test_the_gate_falls_back_and_says_so(
    small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    results = {}
    for threshold in (0.0, 1.0):
        options = ProjectionOptions(rank=2, frames=8, held_out=4, min_captured_energy=threshold)
        chosen = mechanism("projected", noise_multiplier=1.0, projection=options)
        results[threshold] = local_update(
            model,
            cohort(chosen, engine=engine),
            chosen,
            strategy="head",
            steps=1,
            optimizer=OptimizerConfig(name="sgd", learning_rate=1.0),
            streams=seeded_streams(1),
            declared_units=1,
            public=public_data(12, engine=engine),
        )
    used, rejected = results[0.0].projection, results[1.0].projection
    assert used is not None
    assert rejected is not None
    assert (used.used, rejected.used, rejected.fallbacks) == (True, False, 1)
    assert "NOT projected" in str(rejected)
    assert used.captured_energy == rejected.captured_energy < 1.0
    # What was reserved as discrete noise stays discrete: the fallen-back sum lies on the grid.
    steps = flatten(results[1.0].update).double() / (CLIP / GRID)
    assert float(flatten(results[1.0].update).norm()) > 10 * float(flatten(results[0.0].update).norm())
    assert steps.numel() > 1000


def test_what_is_missing_is_said_before_anything_is_read(
    small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    data = cohort(mechanism("feature"), engine=engine)
    blind = CohortData(private=data.private, public=None, units=data.units, views=1, frames_per_unit=2)
    for name, cohort_data, public, message in (
        ("feature", blind, None, "public view"),
        ("projected", data, None, "needs public data"),
        ("projected", data, public_data(3, engine=engine), "at least 4 public frames"),
    ):
        with pytest.raises(ConfigError, match=message):
            StepGradient(
                engine, cohort_data, mechanism(name), streams=seeded_streams(0), declared_units=4, public=public
            )
    uplink = mechanism("projected", projection=ProjectionOptions(uplink="coefficients"))
    with pytest.raises(ConfigError, match='needs optimizer "sgd"'):
        local_update(
            model,
            data,
            uplink,
            strategy="head",
            steps=1,
            optimizer=OptimizerConfig(),
            streams=seeded_streams(0),
            declared_units=4,
            public=public_data(12, engine=engine),
        )


def test_coefficients_stand_for_the_whole_update(
    small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    model = small_model(torch.float64)
    engine = UnitGradients(model, "last-stage")
    options = ProjectionOptions(rank=5, frames=9, held_out=3, min_captured_energy=0.0, uplink="coefficients")
    chosen = mechanism("projected", noise_multiplier=0.3, projection=options)
    public = public_data(16, engine=engine)
    update = local_update(
        model,
        cohort(chosen, engine=engine),
        chosen,
        strategy="last-stage",
        steps=3,
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-3),
        streams=seeded_streams(1),
        declared_units=4,
        public=public,
    )
    assert update.coefficients is not None
    assert update.coefficients.shape == (9,)
    decoded = decode_update(model, public, chosen, update.coefficients, strategy="last-stage")
    full = flatten(update.update)
    assert float((flatten(decoded) - full).norm()) < 1e-5 * float(full.norm())
    with pytest.raises(ConfigError, match="coordinates"):
        decode_update(model, public, chosen, update.coefficients[:4], strategy="last-stage")


def test_tiers_are_drawn_at_their_own_rates(small_model: ModelFactory, cohort: CohortFactory) -> None:
    engine = UnitGradients(small_model(torch.float32), "head")
    chosen = mechanism("dp-sgd", sample_rate=0.5, tiers={"careful": 0.1})
    data = cohort(chosen, (1,) * 40, engine=engine)
    data.units.tiers = ("",) * 20 + ("careful",) * 20
    step = StepGradient(engine, data, chosen, streams=seeded_streams(1), declared_units={"": 20, "careful": 20})
    assert step._private is not None
    drawn = np.concatenate([step._private._sample() for _ in range(400)])
    plain, careful = (drawn < 20).mean() * len(drawn) / 8000, (drawn >= 20).mean() * len(drawn) / 8000
    assert plain == pytest.approx(0.5, abs=4 * (0.25 / 8000) ** 0.5)
    assert careful == pytest.approx(0.1, abs=4 * (0.09 / 8000) ** 0.5)


def test_a_schedule_changes_the_bound_from_step_to_step(small_model: ModelFactory, cohort: CohortFactory) -> None:
    engine = UnitGradients(small_model(torch.float32), "head")
    schedule = Schedule.geometric(
        steps=2, pieces=2, sample_rate=1.0, max_grad_norm=(1e-2, 1e-4), noise_multiplier=(1e-9, 1e-9)
    )
    chosen = mechanism("dp-sgd", schedule=schedule)
    for first, expected in ((0, [1e-2, 1e-4]), (1, [1e-4])):
        step = StepGradient(
            engine, cohort(chosen, (2,), engine=engine), chosen, streams=seeded_streams(0), declared_units=1,
            first_step=first,
        )  # fmt: skip
        norms = [float(flatten(step(engine.parameters())).norm()) for _ in expected]
        assert norms == pytest.approx(expected, rel=1e-3)
        with pytest.raises(ConfigError, match="schedule"):
            step(engine.parameters())


DECODE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import conftest
from wardpose.shared.privacy.cache import Rows
from wardpose.shared.privacy.cohort import PublicData
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.training import decode_update

torch.set_num_threads(2)
sent = torch.load(sys.argv[2], weights_only=False)
public = PublicData(rows=Rows(**sent["rows"]), identity=sent["identity"])
update = decode_update(
    conftest.make_model(torch.float32), public, Mechanism.model_validate_json(sent["mechanism"]), sent["coefficients"],
    strategy="head",
)
torch.save(update, sys.argv[3])
"""


def test_coefficients_are_decoded_by_another_process_with_other_threads(
    tmp_path: Path, small_model: ModelFactory, cohort: CohortFactory, public_data: PublicFactory
) -> None:
    model = small_model(torch.float32)
    engine = UnitGradients(model, "head")
    options = ProjectionOptions(rank=5, frames=9, held_out=3, min_captured_energy=0.0, uplink="coefficients")
    chosen = mechanism("projected", noise_multiplier=0.3, projection=options)
    public = public_data(16, engine=engine)
    update = local_update(
        model,
        cohort(chosen, engine=engine),
        chosen,
        strategy="head",
        steps=2,
        optimizer=OptimizerConfig(name="sgd", learning_rate=1.0),
        streams=seeded_streams(1),
        declared_units=4,
        public=public,
    )
    sent = {
        "rows": vars(public.rows),
        "identity": public.identity,
        "mechanism": chosen.model_dump_json(),
        "coefficients": update.coefficients,
    }
    torch.save(sent, tmp_path / "sent.pt")
    arguments = [str(Path(__file__).parent), str(tmp_path / "sent.pt"), str(tmp_path / "update.pt")]
    # Threads that spin while they wait would fight for the cores of a busy machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-c", DECODE, *arguments], check=True, env=environment, timeout=300)
    decoded, full = flatten(torch.load(tmp_path / "update.pt")), flatten(update.update)
    # The update is a difference of float32 weights: that rounding, not the decoding, is what is left.
    assert float((decoded - full).norm()) < 1e-4 * float(full.norm())
    assert update.coefficients is not None
    assert update.coefficients.numel() * 1000 < full.numel()
