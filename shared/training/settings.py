"""How a site trains locally: one value that the plan holds, the order carries and `local_update` takes, unchanged."""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from wardpose.shared.data.crops import Augmentation
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.mechanisms import Mechanism

Decay = Annotated[float, Field(ge=0, lt=1)]

ForwardPrecision = Literal["float32", "bfloat16"]
"""Arithmetic of forward passes on CUDA. Elsewhere it is always that of the model: nothing else gains by bfloat16."""


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
    learning_rate: float = Field(default=1e-3, gt=0, le=1e6, allow_inf_nan=False)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0, le=1e3, allow_inf_nan=False)
    eps: float = Field(default=1e-8, ge=1e-30, le=1e3, allow_inf_nan=False)

    def build(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Make the optimiser of these leaves."""
        if self.name == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(parameters, lr=self.learning_rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


class AnchorOptions(BaseModel):
    """What public people add to every step; `training.anchor` has the proof that it costs no privacy.

    Attributes:
        weight: factor of their un-noised gradient; 0 for none.
        max_grad_norm: to which their mean gradient is shortened before.
        batch: people of a step.
        precondition: scale coordinates by their second moments before units are clipped (`dp-sgd` alone).

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=0.1, ge=0, le=1e6, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, ge=1e-12, le=1e12, allow_inf_nan=False)
    batch: int = Field(default=64, ge=1, le=4096)
    precondition: bool = False


class LocalTraining(BaseModel):
    """Local training of one round.

    Attributes:
        strategy: which parameters train: a named set, or a list of sets and of patterns (`pose.trainable`).
        steps: noised gradients a site takes in a round.
        optimizer: of the site's steps.
        augmented_views: pre-rendered views per frame, the plain crop included; they belong to the same unit.
        augmentation: of the other views.
        micro_batch: units per vectorised gradient; chosen from free memory when absent.
        precision: of forward passes at sites that train on CUDA; `bfloat16` is faster there and changes nothing
            elsewhere. Unit gradients, clip norms and sums stay in the model's dtype and noise in float64: what is
            coarser is the gradient, not its bound.
        anchor: what public people add; the site's `public_data` are these people. Nothing when absent.
        average: share of the round's last steps whose weights are averaged into the update; 0: the last step's weights
            alone. Weights after noised steps may be averaged freely: that is post-processing.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Strategy = "head"
    steps: int = Field(default=10, ge=1, le=1_000_000)
    optimizer: OptimizerConfig = OptimizerConfig()
    augmented_views: int = Field(default=1, ge=1, le=64)
    augmentation: Augmentation = Augmentation()
    micro_batch: int | None = Field(default=None, ge=1, le=4096)
    precision: ForwardPrecision = "float32"
    anchor: AnchorOptions | None = None
    average: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _of_one_record(cls, values: Any) -> Any:
        """Refuse what would put a piece of one record before another, whose gradient then hangs on both."""
        if isinstance(values, dict) and "looks" in values:
            raise ValueError("looks is for public people (allowed: pretrain.looks; a private view is of one record)")
        return values

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is absent, so that a run of an earlier version is still the same run."""
        values: dict[str, Any] = handler(self)
        for name in ("anchor", "average"):
            if not values.get(name):
                values.pop(name, None)
        return values

    @property
    def averaged_steps(self) -> int:
        """Return how many of the last steps' weights are averaged, 1 or more."""
        return max(1, round(self.average * self.steps))


def refuse_anchor(mechanism: Mechanism, training: LocalTraining) -> None:
    """Refuse public help that does not go with the mechanism; part of every plan's and order's validation.

    Raises:
        ValueError: the sum over sites or coefficients in a basis cannot hold the anchor, or the preconditioner's scale
            is not that of the mechanism's other parts.

    """
    anchor = training.anchor
    if anchor is not None and (mechanism.distributed is not None or mechanism.sends_coefficients):
        raise ValueError("training.anchor: allowed: neither with secure aggregation nor with coefficients as uplink")
    if anchor is not None and anchor.precondition and mechanism.name != "dp-sgd":
        raise ValueError(f'training.anchor.precondition with mechanism "{mechanism.name}"; allowed: "dp-sgd"')
    if training.average and mechanism.sends_coefficients:
        raise ValueError(f"training.average is {training.average:g}; coefficients as uplink allow 0")


def refuse_ridge(mechanism: Mechanism, training: LocalTraining) -> None:
    """Refuse what one ridge regression of the last layer cannot be; part of every plan's and order's validation.

    Raises:
        ValueError: something else than `maps` trains, in more steps than one, or by an optimiser with a memory.

    """
    if not mechanism.whitens:
        return
    name, optimizer = f'mechanism "{mechanism.name}"', training.optimizer
    if training.strategy != "maps":
        raise ValueError(f'training.strategy is {training.strategy!r}; {name} allows "maps"')
    if training.steps != 1:
        raise ValueError(f"training.steps is {training.steps}; {name} allows 1, a round is one closed form")
    if optimizer.name != "sgd" or optimizer.momentum or optimizer.weight_decay:
        raise ValueError(f'training.optimizer: {name} allows "sgd" without momentum and weight decay, not {optimizer}')
    if training.anchor is not None:
        raise ValueError(f"training.anchor: {name} allows none, public people are in its curvature")


def refuse_distributed(mechanism: Mechanism, training: LocalTraining) -> None:
    """Refuse what shares of noise cannot protect (`privacy.distributed`); part of every plan's and order's validation.

    Raises:
        ValueError: a site would take several steps, or follow the gradient in a way that the sum over sites cannot.

    """
    if mechanism.distributed is None:
        return
    if training.steps != 1:
        raise ValueError(f"training.steps is {training.steps}; secure aggregation allows 1, a round is one step")
    optimizer = training.optimizer
    if optimizer.name != "sgd" or optimizer.momentum:
        raise ValueError(
            f'training.optimizer is "{optimizer.name}" with momentum {optimizer.momentum:g}; secure aggregation allows '
            '"sgd" without (server.aggregation.name "fedadam" or "fedavgm" follows at the server)'
        )


def refuse_uplink(mechanism: Mechanism, training: LocalTraining) -> None:
    """Refuse what coefficients cannot express; part of every order's validation, before anything is charged.

    Raises:
        ValueError: the update is not a fixed multiple of the gradients' sum, or the basis is not the float32 one that
            the server decodes with.

    """
    if not mechanism.sends_coefficients:
        return
    optimizer, precision = training.optimizer, training.precision
    if optimizer.name != "sgd" or optimizer.momentum or optimizer.weight_decay:
        raise ValueError(
            f'projection.uplink "coefficients" needs optimizer "sgd" without momentum and weight decay, not {optimizer}'
        )
    if precision != "float32":
        raise ValueError(f'projection.uplink "coefficients" needs precision "float32", not "{precision}"')
