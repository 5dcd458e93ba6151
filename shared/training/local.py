"""Local training of one round: K noised gradients on one cohort, and the update that they amount to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel, Strategy
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import Streams
from wardpose.shared.training.basis import decode_coordinates
from wardpose.shared.training.cohort import CohortData, PublicData, build_cohort, build_public, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.projection import ProjectionReport
from wardpose.shared.training.step import DeclaredUnits, StepGradient
from wardpose.shared.vectors import Vector, map_vector

__all__ = [
    "CohortData",
    "ForwardPrecision",
    "LocalUpdate",
    "OptimizerConfig",
    "ProjectionReport",
    "PublicData",
    "build_cohort",
    "build_public",
    "decode_update",
    "local_update",
    "refuse_uplink",
]

ForwardPrecision = Literal["float32", "bfloat16"]
"""Arithmetic of forward passes on CUDA. Elsewhere it is always that of the model: nothing else gains by bfloat16."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class OptimizerConfig(BaseModel):
    """How a site's weights follow its noised gradients; the state starts anew each round.

    Attributes:
        name: `sgd`, `adam` or `adamw`.
        learning_rate: step size.
        momentum: of `sgd`.
        betas: of `adam` and `adamw`.
        weight_decay: L2 (`sgd`, `adam`) or decoupled (`adamw`); of the weights, hence free.
        eps: of `adam` and `adamw`.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    eps: float = Field(default=1e-8, gt=0)

    def build(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Make the optimiser of these leaves."""
        if self.name == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.learning_rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalUpdate:
    """What local training gives back: the noised update, and facts that do not depend on any private frame.

    Attributes:
        update: w_local - w_global for every trainable name, float32, on the CPU.
        mechanism: as asked for.
        steps: noised gradients taken.
        secure: whether sampling and noise came from secure streams; `False`: not private.
        projection: what the gate decided from public gradients; `None` without a basis.
        coefficients: (m,) float64 coordinates of the update in the public frames' gradients, when the
            mechanism's uplink asks for them and the basis was used; the update is then redundant.

    """

    update: Vector
    mechanism: Mechanism
    steps: int
    secure: bool
    projection: ProjectionReport | None = None
    coefficients: Tensor | None = None


def local_update(
    model: PoseModel,
    data: CohortData,
    mechanism: Mechanism,
    *,
    strategy: Strategy,
    steps: int,
    optimizer: OptimizerConfig,
    streams: Streams,
    declared_units: DeclaredUnits,
    micro_batch: int | None = None,
    public: PublicData | None = None,
    first_step: int = 0,
    precision: ForwardPrecision = "float32",
    progress: Progress | None = None,
) -> LocalUpdate:
    """Train `steps` noised steps from the model's weights; the model itself is not changed.

    Args:
        model: holds the global weights.
        data: the cohort, prepared for the same strategy and mechanism.
        mechanism: what a step does and costs.
        strategy: which parameters train.
        steps: noised gradients to take.
        optimizer: how weights follow gradients.
        streams: sampling, noise and public draws.
        declared_units: N, the number of units the site declared; by tier (the plain tier is "") where the
            mechanism has tiers.
        micro_batch: units differentiated at a time; from the free memory when absent.
        public: public data for the basis of `projected` and `feature-projective`.
        first_step: noised steps that the run took before this round, the position in a schedule.
        precision: of forward passes, on CUDA; without CUDA `bfloat16` changes nothing. Unit gradients, clip norms and
            sums stay in the model's dtype and noise in float64: what is coarser is the gradient, not its bound.
        progress: called after each step.

    Raises:
        ConfigError: the mechanism needs public views, public data, tiers or an optimiser that are not given.

    """
    try:
        refuse_uplink(mechanism, optimizer, precision)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    autocast = precision == "bfloat16" and next(model.parameters()).is_cuda
    engine = UnitGradients(model, strategy, micro_batch=micro_batch, autocast=autocast)
    start = engine.parameters()
    leaves = map_vector(torch.clone, start)
    algorithm = optimizer.build(list(leaves.values()))
    step_gradient = StepGradient(
        engine, data, mechanism, streams=streams, declared_units=declared_units, public=public, first_step=first_step
    )
    for step in range(steps):
        gradient = step_gradient(leaves)
        for name, leaf in leaves.items():
            leaf.grad = gradient[name].to(leaf)
        algorithm.step()
        if progress is not None:
            progress(step + 1, steps)
    projection, coordinates = step_gradient.projection, step_gradient.coordinates
    return LocalUpdate(
        update=map_vector(lambda after, before: (after - before).float().cpu(), leaves, start),
        mechanism=mechanism,
        steps=steps,
        secure=streams.secure,
        projection=projection,
        coefficients=None if coordinates is None else -optimizer.learning_rate * coordinates,
    )


def decode_update(
    model: PoseModel, public: PublicData, mechanism: Mechanism, coefficients: Tensor, *, strategy: Strategy
) -> Vector:
    """Turn a site's coefficients (m,) back into its update, float32, by one weighted backward pass.

    Args:
        model: holds the weights that the round started from.
        public: the public data that the site's basis was made from.
        mechanism: the round's.
        coefficients: as in `LocalUpdate`; of several sites, their weighted sum may be decoded at once.
        strategy: which parameters trained.

    Raises:
        ConfigError: the number of coefficients does not fit the public frames.

    """
    engine = UnitGradients(model, strategy)
    update = decode_coordinates(
        engine,
        engine.parameters(),
        lambda ids: load_bags(engine, public.rows, ids),
        public.identity,
        len(public.rows),
        mechanism.projection,
        coefficients,
    )
    return map_vector(lambda value: value.float().cpu(), update)


def refuse_uplink(mechanism: Mechanism, optimizer: OptimizerConfig, precision: ForwardPrecision) -> None:
    """Refuse what coefficients cannot express; part of every order's validation, before anything is charged.

    Raises:
        ValueError: the update is not a fixed multiple of the gradients' sum, or the basis is not the float32 one that
            the server decodes with.

    """
    if not mechanism.sends_coefficients:
        return
    if optimizer.name != "sgd" or optimizer.momentum or optimizer.weight_decay:
        raise ValueError(
            f'projection.uplink "coefficients" needs optimizer "sgd" without momentum and weight decay, not {optimizer}'
        )
    if precision != "float32":
        raise ValueError(f'projection.uplink "coefficients" needs precision "float32", not "{precision}"')
