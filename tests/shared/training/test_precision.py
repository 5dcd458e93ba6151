"""bfloat16 forward passes: the gradients are coarser, the bound, the sums and the noise are not."""

import copy
from collections.abc import Callable

import pytest
import torch
from support.engine import make_cohort, make_mechanism, make_model, make_public, make_step, private_sums

from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.mechanisms import ProjectionOptions
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import LocalUpdate, local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.vectors import flatten

NAMES = ("dp-sgd", "projected", "feature", "feature-projective")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.gpu])])
def device_model(request: pytest.FixtureRequest) -> Callable[[torch.dtype], PoseModel]:
    """A fresh copy of the model on each device there is."""

    def make(dtype: torch.dtype) -> PoseModel:
        return copy.deepcopy(make_model(dtype)).to(request.param)

    return make


def update(model: PoseModel, precision: str, name: str = "dp-sgd", **options: object) -> LocalUpdate:
    chosen = make_mechanism(name, noise_multiplier=0.5, **options)
    return local_update(
        model,
        make_cohort(chosen),
        chosen,
        LocalTraining(
            strategy="head",
            steps=2,
            optimizer=OptimizerConfig(name="sgd", learning_rate=1e-2),
            micro_batch=4,
            precision=precision,
        ),
        streams=seeded_streams(1),
        declared_units=4,
        public=make_public(12),
    )


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.cpu().double() - expected.cpu().double()).norm() / expected.cpu().double().norm())


@pytest.mark.parametrize("strategy", ["head", "last-stage", "full"])
def test_coarse_gradients_are_those_of_each_unit_and_near_the_fine_ones(
    strategy: Strategy, device_model: Callable[[torch.dtype], PoseModel]
) -> None:
    model = device_model(torch.float32)
    chosen = make_mechanism("feature", unit="frame", frames_per_unit=1)
    data = make_cohort(chosen, (1, 1, 1))
    engines = [UnitGradients(model, strategy, micro_batch=2, autocast=autocast) for autocast in (False, True)]
    fine, coarse = (
        [
            flatten({name: value[unit] for name, value in part.items()})
            for part in engine.per_unit(
                engine.parameters(), load_bags(engine, data.private, torch.arange(3).numpy()[:, None])
            )
            for unit in range(len(part[engine.names[0]]))
        ]
        for engine in engines
    )
    bags = load_bags(engines[1], data.private, torch.arange(3).numpy()[:, None])
    for unit in range(3):
        assert coarse[unit].dtype == torch.float32
        one = flatten(engines[1].summed(engines[1].parameters(), bags.units(unit, unit + 1)))
        assert relative(coarse[unit], one) < 0.05  # one unit's gradient, not a mixture
        assert 1e-5 < relative(coarse[unit], fine[unit]) < 0.1  # it is another arithmetic, and not by much


@pytest.mark.parametrize("name", NAMES)
def test_the_clip_norm_holds_for_coarse_gradients(name: str, device_model: Callable[[torch.dtype], PoseModel]) -> None:
    model = device_model(torch.float32)
    engine = UnitGradients(model, "head", micro_batch=4, autocast=True)
    chosen = make_mechanism(name, max_grad_norm=1e-3)
    data = make_cohort(chosen, (2,))
    step = make_step(engine, data, chosen, declared_units=1, public=make_public(12))
    for query in private_sums(step, engine.parameters()):  # one unit: its contribution is the sum
        assert 0.5 < float(query.total.norm()) / query.max_grad_norm <= 1


def test_without_cuda_bfloat16_is_float32() -> None:
    model = make_model(torch.float32)
    for name in ("dp-sgd", "feature-projective"):
        fine, coarse = (update(model, precision, name) for precision in ("float32", "bfloat16"))
        assert torch.equal(flatten(fine.update), flatten(coarse.update))


def test_coefficients_are_decoded_in_float32_hence_made_in_it() -> None:
    uplink = ProjectionOptions(rank=4, frames=8, held_out=2, min_captured_energy=0.0, uplink="coefficients")
    with pytest.raises(ConfigError, match='"coefficients" needs precision "float32"'):
        update(make_model(torch.float32), "bfloat16", "projected", projection=uplink)


@cuda
@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_an_update_on_cuda_is_that_of_the_cpu(name: str, device_model: Callable[[torch.dtype], PoseModel]) -> None:
    reference = flatten(update(make_model(torch.float64), "float32", name).update)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = flatten(update(device_model(torch.float32), "float32", name).update)
    coarse = flatten(update(device_model(torch.float32), "bfloat16", name).update)
    assert relative(exact, reference) < 1e-4
    assert 1e-6 < relative(coarse, reference) < 0.2
