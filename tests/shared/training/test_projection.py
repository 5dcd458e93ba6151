"""When a basis is used: its refresh, its gate, and what a rejected one costs and says."""

import pytest
import torch
from support.engine import (
    CLIP,
    Recording,
    head_engine,
    make_cohort,
    make_mechanism,
    make_public,
    make_step,
    private_sums,
)

from wardpose.shared.privacy.clipping import GRID
from wardpose.shared.privacy.mechanisms import Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import SeededStream, Streams, seeded_streams
from wardpose.shared.training import projection as projection_module
from wardpose.shared.training.basis import PublicBasis, build_basis
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.vectors import Vector, flatten


def projected(**options: object) -> Mechanism:
    values = {"rank": 3, "frames": 8, "held_out": 4, "min_captured_energy": 0.0, **options}
    return make_mechanism("projected", noise_multiplier=1.0, projection=ProjectionOptions.model_validate(values))


def test_the_gate_falls_back_to_the_unprojected_mechanism_and_says_so() -> None:
    engine = head_engine()
    public = make_public(12, engine=engine)
    reports, asked, updates = {}, {}, {}
    for threshold in (0.0, 1.0):
        chosen = projected(min_captured_energy=threshold)
        noise = Recording(3)
        update = local_update(
            engine._model,
            make_cohort(chosen, engine=engine),
            chosen,
            LocalTraining(strategy="head", steps=1, optimizer=OptimizerConfig(name="sgd", learning_rate=1.0)),
            streams=Streams(SeededStream(1), noise, SeededStream(2)),
            declared_units=1,
            public=public,
        )
        reports[threshold], updates[threshold] = update.projection, flatten(update.update).double()
        asked[threshold] = [request for request in noise.asked if request[0] != "words"]
    used, rejected = reports[0.0], reports[1.0]
    assert used is not None
    assert rejected is not None
    assert (used.used, rejected.used, rejected.fallbacks) == (True, False, 1)
    assert "NOT projected" in str(rejected)
    assert used.captured_energy == rejected.captured_energy < 1.0
    # What was reserved as discrete noise stays discrete: the sum of the rejected step is one in R^p, on the grid.
    assert asked == {0.0: [("discrete", 3)], 1.0: [("discrete", len(updates[1.0]))]}
    unprojected = make_mechanism("dp-sgd", exact_noise=True)
    streams = Streams(SeededStream(1), SeededStream(3), SeededStream(2))
    step = make_step(engine, make_cohort(unprojected, engine=engine), unprojected, streams=streams, declared_units=1)
    (query,) = private_sums(step, engine.parameters())
    noise_of_the_round = SeededStream(3).discrete_gaussian(len(updates[1.0]), float(GRID)) * (CLIP / GRID)
    expected = -(query.total + torch.from_numpy(noise_of_the_round))
    torch.testing.assert_close(updates[1.0], expected, rtol=0, atol=1e-6)
    # It costs what the projected step costs.
    assert projected().events(1)[0].noise_multiplier == unprojected.model_copy(
        update={"noise_multiplier": 1.0}
    ).events(1)[0].noise_multiplier  # fmt: skip


class Built:
    """Where and from which frames bases are made; `energies` overrides what each one captures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, energies: tuple[float, ...] = ()) -> None:
        self.points: list[torch.Tensor] = []
        self.frames: list[torch.Tensor] = []

        def build(engine: object, parameters: Vector, bags: object, *rest: object) -> PublicBasis:
            self.points.append(flatten(parameters).clone())
            self.frames.append(bags.joints)  # type: ignore[attr-defined]
            basis = build_basis(engine, parameters, bags, *rest)  # type: ignore[arg-type]
            if energies:
                share = energies[len(self.points) - 1]
                basis.captured = type(basis.captured)(mean=share, per_sample=share)
            return basis

        monkeypatch.setattr(projection_module, "build_basis", build)


@pytest.mark.parametrize(("refresh", "expected"), [(0, [0]), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (7, [0])])
def test_a_basis_is_made_anew_every_so_many_steps(
    refresh: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, built = head_engine(), Built(monkeypatch)
    chosen = projected(refresh_steps=refresh)
    data = make_cohort(chosen, (2, 2), engine=engine)
    step = make_step(engine, data, chosen, public=make_public(24, engine=engine))
    points = [{name: value + 0.01 * number for name, value in engine.parameters().items()} for number in range(5)]
    for point in points:
        step(point)
    assert len(built.points) == len(expected)
    for made_at, number in zip(built.points, expected, strict=True):
        assert torch.equal(made_at, flatten(points[number]))  # at the step's own weights
    # Every refresh looks at another choice of public frames.
    assert len({frames.sum().item() for frames in built.frames}) == len(expected)


def test_the_gate_decides_anew_at_every_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = head_engine()
    Built(monkeypatch, energies=(0.9, 0.1, 0.29, 0.3))
    chosen = projected(refresh_steps=1, min_captured_energy=0.3)
    step = make_step(engine, make_cohort(chosen, (2, 2), engine=engine), chosen, public=make_public(24, engine=engine))
    sizes, fallbacks = [], []
    for _ in range(4):
        (query,) = private_sums(step, engine.parameters())
        sizes.append(len(query.total))
        assert step.projection is not None
        fallbacks.append(step.projection.fallbacks)
    whole = len(flatten(engine.parameters()))
    assert sizes == [3, whole, whole, 3]
    assert fallbacks == [0, 1, 2, 2]


def test_a_rejected_basis_spends_no_more_than_the_two_queries_that_were_reserved() -> None:
    """With a residual query the round reserves both; the fallback asks the main one alone."""
    engine = head_engine()
    chosen = projected(min_captured_energy=1.0, residual={"max_grad_norm": 0.1, "noise_multiplier": 2.0})
    step = make_step(
        engine, make_cohort(chosen, (2, 2), engine=engine), chosen, streams=seeded_streams(1),
        public=make_public(12, engine=engine),
    )  # fmt: skip
    (query,) = private_sums(step, engine.parameters())
    assert query.noise_multiplier == 1.0 > chosen.events(1)[0].noise_multiplier
