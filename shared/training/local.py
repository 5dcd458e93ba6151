"""Local training of one round: K noised gradients on one cohort, and the update that they amount to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.clipping import GRID
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import Streams
from wardpose.shared.training.anchor import PublicAnchor
from wardpose.shared.training.basis import decode_coordinates
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.projection import ProjectionReport
from wardpose.shared.training.ridge import RidgeReport
from wardpose.shared.training.settings import (
    LocalTraining,
    refuse_anchor,
    refuse_distributed,
    refuse_ridge,
    refuse_uplink,
)
from wardpose.shared.training.step import DeclaredUnits, StepGradient, StepObserver
from wardpose.shared.training.view_gate import ViewReport
from wardpose.shared.vectors import Vector, map_vector, unflatten

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalUpdate:
    """What local training gives back: the noised update, and facts that do not depend on any private frame.

    Attributes:
        update: w_local - w_global (`LocalTraining.average`) for every trainable name, float32, on the CPU.
        mechanism: as asked for.
        steps: noised gradients taken.
        secure: whether sampling and noise came from secure streams; `False`: not private.
        projection: what the gate decided from public gradients; `None` without a basis.
        view: what was decided of the public view from public people; `None` where nothing was asked.
        ridge: what public people and the noise made of a `label-ridge`; `None` for other mechanisms.
        coefficients: (m,) float64 coordinates of the update in the public frames' gradients, when the
            mechanism's uplink asks for them and the basis was used; the update is then redundant.
        share: (p,) int64, what the site adds to the sum over sites, where the mechanism's noise is distributed. It must
            not leave unmasked, and there is no update then.

    """

    update: Vector
    mechanism: Mechanism
    steps: int
    secure: bool
    projection: ProjectionReport | None = None
    view: ViewReport | None = None
    ridge: RidgeReport | None = None
    coefficients: Tensor | None = None
    share: Tensor | None = None


def local_update(
    model: PoseModel,
    data: CohortData,
    mechanism: Mechanism,
    training: LocalTraining,
    *,
    streams: Streams,
    declared_units: DeclaredUnits,
    public: PublicData | None = None,
    first_step: int = 0,
    sites: int = 1,
    progress: Progress | None = None,
    observer: StepObserver | None = None,
) -> LocalUpdate:
    """Train `training.steps` noised steps from the model's weights; the model itself is not changed.

    Args:
        model: holds the global weights.
        data: the cohort, prepared for the same strategy and mechanism.
        mechanism: what a step does and costs.
        training: which parameters train, how long, and how weights follow gradients.
        streams: sampling, noise and public draws.
        declared_units: N, the number of units the site declared; by tier (the plain tier is "") where the
            mechanism has tiers.
        public: public data for the basis of `projected` and `feature-projective`, and for `training.anchor`.
        first_step: noised steps that the run took before this round, the position in a schedule.
        sites: that add up, where the mechanism's noise is distributed.
        progress: called after each step.
        observer: looks at the units from inside the site; what it saw is no part of the result.

    Raises:
        ConfigError: the mechanism needs public views, public data, tiers or an optimiser that are not given.

    """
    try:
        refuse_uplink(mechanism, training)
        refuse_distributed(mechanism, training)
        refuse_anchor(mechanism, training)
        refuse_ridge(mechanism, training)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    autocast = training.precision == "bfloat16" and next(model.parameters()).is_cuda
    engine = UnitGradients(model, training.strategy, micro_batch=training.micro_batch, autocast=autocast)
    start = engine.parameters()
    leaves = map_vector(torch.clone, start)
    algorithm = training.optimizer.build(list(leaves.values()))
    step_gradient = StepGradient(
        engine,
        data,
        mechanism,
        streams=streams,
        declared_units=declared_units,
        public=public,
        first_step=first_step,
        anchor=_anchor(engine, public, training, streams),
        observer=observer,
    )
    if mechanism.distributed is not None:
        share = step_gradient.share(leaves, sites=sites)
        return LocalUpdate(update={}, mechanism=mechanism, steps=1, secure=streams.secure, share=share)
    averaged, total = training.averaged_steps, map_vector(torch.zeros_like, start)
    for step in range(training.steps):
        gradient = step_gradient(leaves)
        for name, leaf in leaves.items():
            leaf.grad = gradient[name].to(leaf)
        algorithm.step()
        if step >= training.steps - averaged:
            total = map_vector(lambda value, leaf, first: value + (leaf - first) / averaged, total, leaves, start)
        if progress is not None:
            progress(step + 1, training.steps)
    projection, coordinates = step_gradient.projection, step_gradient.coordinates
    return LocalUpdate(
        update=map_vector(lambda value: value.float().cpu(), total),
        mechanism=mechanism,
        steps=training.steps,
        secure=streams.secure,
        projection=projection,
        view=step_gradient.view,
        ridge=step_gradient.ridge,
        coefficients=None if coordinates is None else -training.optimizer.learning_rate * coordinates,
    )


def _anchor(
    engine: UnitGradients, public: PublicData | None, training: LocalTraining, streams: Streams
) -> PublicAnchor | None:
    if training.anchor is None:
        return None
    if public is None:
        raise ConfigError("training.anchor: needs public data, and none is given")
    return PublicAnchor(engine, public, training.anchor, streams.public)


def apply_sum(
    parameters: Vector, total: Tensor, mechanism: Mechanism, training: LocalTraining, *, expected: float
) -> Vector:
    """Turn the sum over sites into the update that one site with all their patients would have made; float32.

    Args:
        parameters: the trained weights that the round started from.
        total: (p,) int64, the sum of the sites' shares.
        mechanism: of the round's step (`Mechanism.at`).
        training: how weights follow gradients.
        expected: sum of the sites' expected batch sizes.

    """
    leaves = map_vector(torch.clone, parameters)
    algorithm = training.optimizer.build(list(leaves.values()))
    gradient = total.double() * (mechanism.max_grad_norm / GRID / expected)
    for name, value in unflatten(gradient, leaves).items():
        leaves[name].grad = value
    algorithm.step()
    return map_vector(lambda after, before: (after - before).float(), leaves, parameters)


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
