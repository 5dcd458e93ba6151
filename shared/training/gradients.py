"""Per-unit gradients by `torch.func`: one loss over a unit's bag of views, on the stock model.

A unit is a bag of R rows with signed weights; its loss is `sum_r weight_r * loss(row_r)`. That covers every
kind of unit:

| unit | rows | weights |
|---|---|---|
| a frame | x | 1 |
| a frame under feature-DP | x, phi(x) | 1, -1 |
| a patient, F frames | x_1 .. x_F | 1/F each |
| a patient under feature-DP | x_1 .. x_F, phi(x_1) .. phi(x_F) | 1/F each, -1/F each |

`vmap(grad(bag loss))` materialises the unit's gradient, so the norm that decides the clip factor is the norm
of the very vector that is summed; no Gram identity is involved, and with it no cancellation when the two
halves of a pair nearly agree.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, jvp, vmap

from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.low_rank import SUFFIX, expanded
from wardpose.shared.pose.model import PoseModel, trainable_names, trained_values
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.vectors import Vector, map_vector

_BYTES_OF_A_MICRO_BATCH_ON_CPU = 1.2e9  # beyond it page faults cost more than larger products gain
_SAVED_TO_PEAK = 2.5  # peak of a vmapped backward over what its forward saves, measured on TinyViT


@dataclass(frozen=True, kw_only=True, eq=False)
class Bags:
    """U units of R rows each.

    Attributes:
        inputs: (U, R, 3, H, W) crops or (U, R, C, h, w) features of the frozen trunk, floating point.
        joints: (U, R, J, 2) crop pixels.
        visibility: (U, R, J), 0 where a joint does not count.
        weights: (R,) signed weight of each row in its unit's loss.

    """

    inputs: Tensor
    joints: Tensor
    visibility: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def units(self, start: int, stop: int) -> "Bags":
        """Units `start` to `stop`, as a view."""
        part = slice(start, stop)
        return Bags(
            inputs=self.inputs[part],
            joints=self.joints[part],
            visibility=self.visibility[part],
            weights=self.weights,
        )

    def padded(self, size: int) -> "Bags":
        """At least `size` units: the last one is repeated; callers drop what they do not use."""
        index = torch.arange(max(size, len(self)), device=self.inputs.device).clamp(max=len(self) - 1)
        return Bags(
            inputs=self.inputs[index],
            joints=self.joints[index],
            visibility=self.visibility[index],
            weights=self.weights,
        )


def join(private: Bags, public: Bags) -> Bags:
    """Make the bags of l(x) - l(phi(x)): the public rows follow the private ones, weights negated."""
    return Bags(
        inputs=torch.cat([private.inputs, public.inputs], dim=1),
        joints=torch.cat([private.joints, public.joints], dim=1),
        visibility=torch.cat([private.visibility, public.visibility], dim=1),
        weights=torch.cat([private.weights, -public.weights]),
    )


class UnitGradients:
    """Gradients of bags with respect to the parameters a strategy trains.

    The model is never written to: parameters are an argument. Everything that does not train is captured,
    detached, when the object is made.

    Args:
        model: the model; its device and dtype are those of the gradients.
        strategy: which parameters train.
        micro_batch: units that are differentiated at a time; chosen from the free memory when absent.
        autocast: run forward passes in bfloat16; gradients and sums stay in the model's dtype.

    Raises:
        ValueError: `micro_batch` is not positive.

    """

    def __init__(
        self,
        model: PoseModel,
        strategy: Strategy,
        *,
        micro_batch: int | None = None,
        autocast: bool = False,
    ) -> None:
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}; allowed: 1 or more")
        self.names = trainable_names(model, strategy)
        self.strategy = strategy
        self.config = model.config
        self._model = model
        self._codec = SimCC.of(model.config)
        trained = set(self.names)
        self._frozen = {
            name: tensor.detach()
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            if name not in trained
        }
        factored = {name.removesuffix(SUFFIX) for name in self.names if name.endswith(SUFFIX)}
        self._shapes = {name: tuple(value.shape) for name, value in self._frozen.items() if name in factored}
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self._autocast = autocast
        self._micro_batch = micro_batch
        self._row_bytes: float | None = None

    def parameters(self) -> Vector:
        """Copy the model's trainable parameters: the point at which gradients are taken."""
        return trained_values(self._model, self.strategy)

    def frozen(self, name: str) -> Tensor:
        """Return a weight that does not train."""
        return self._frozen[name]

    def features(self, inputs: Tensor) -> Tensor:
        """Compute trunk features (B, C, h, w) of crops (B, 3, H, W); the crops where nothing is frozen."""
        with torch.no_grad(), self._precision():
            return self._model.frozen_features(inputs, self.strategy).to(self.dtype)

    def losses(self, parameters: Vector, bags: Bags) -> Tensor:
        """Weighted loss of every unit, (U,), by one ordinary forward pass."""
        units, rows = bags.inputs.shape[:2]
        losses = self._row_losses(
            parameters,
            bags.inputs.flatten(0, 1),
            bags.joints.flatten(0, 1),
            bags.visibility.flatten(0, 1),
        )
        return losses.reshape(units, rows) @ bags.weights

    def per_unit(self, parameters: Vector, bags: Bags, *, only: tuple[str, ...] | None = None) -> Iterator[Vector]:
        """Yield each micro-batch's gradients, tensors (u, *parameter's shape); nothing for an empty batch.

        Args:
            parameters: where gradients are taken.
            bags: the units.
            only: differentiate with respect to these parameters alone; all of them when absent.

        """
        for gradients, count in self.padded(parameters, bags, self.micro_batch(bags) if len(bags) else 1, only=only):
            yield map_vector(lambda value, kept=count: value[:kept], gradients)

    def padded(
        self,
        parameters: Vector,
        bags: Bags,
        size: int,
        *,
        only: tuple[str, ...] | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Iterator[tuple[Vector, int]]:
        """Yield micro-batches of exactly `size` gradients, and how many of them are units; arguments as `per_unit`.

        `watch` is shown the units' losses (u,), which are computed anyway.

        The last unit is repeated until a micro-batch is full. Shapes therefore never change, and with equal shapes a
        unit's gradient does not depend on the others, to the last bit (see `clipping`).
        """
        names = self.names if only is None else only
        fixed = {name: value.detach() for name, value in parameters.items() if name not in names}
        moving = {name: parameters[name].detach() for name in names}

        def bag_loss(values: Vector, inputs: Tensor, joints: Tensor, visibility: Tensor) -> Tensor:
            return self._row_losses({**fixed, **values}, inputs, joints, visibility) @ bags.weights

        gradient = vmap(grad_and_value(bag_loss), in_dims=(None, 0, 0, 0))
        for start in range(0, len(bags), size):
            part = bags.units(start, min(start + size, len(bags)))
            count = len(part)
            part = part.padded(size)
            result, losses = gradient(moving, part.inputs, part.joints, part.visibility)
            if watch is not None:
                watch(losses[:count])
            yield {name: result.pop(name) for name in names}, count  # not held on to: the largest thing here

    def summed(self, parameters: Vector, bags: Bags, unit_weights: Tensor | None = None) -> Vector:
        """Gradient of `sum_u unit_weights_u * loss_u` by ordinary back-propagation; zeros for an empty batch.

        Only for gradients that carry no guarantee or are public: nothing bounds one unit's share.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        total = {name: torch.zeros_like(value) for name, value in parameters.items()}
        size = self.micro_batch(bags) if len(bags) else 1
        for start in range(0, len(bags), size):
            stop = min(start + size, len(bags))
            losses = self.losses(leaves, bags.units(start, stop))
            scalar = losses.sum() if unit_weights is None else losses @ unit_weights[start:stop]
            for name, value in zip(self.names, torch.autograd.grad(scalar, list(leaves.values())), strict=True):
                total[name] += value
        return total

    def directional(self, parameters: Vector, bags: Bags, direction: Vector) -> Tensor:
        """Differentiate every unit's loss along `direction`, (U,), by forward mode: `G d` without `G`."""
        primals = map_vector(torch.detach, parameters)
        tangents = {name: direction[name].to(value) for name, value in primals.items()}
        size = self.micro_batch(bags) if len(bags) else 1
        parts = []
        with torch.no_grad():
            for start in range(0, len(bags), size):
                part = bags.units(start, min(start + size, len(bags)))

                def losses(values: Vector, part: Bags = part) -> Tensor:
                    return self.losses(values, part)

                parts.append(jvp(losses, (primals,), (tangents,))[1])
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self.dtype, device=self.device)

    def logits(self, parameters: Vector, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over the bins of x (B, J, bins) and of y that `parameters` give trunk features (B, C, h, w)."""
        with torch.no_grad():
            return self._call(parameters, features)

    def predict(self, parameters: Vector, features: Tensor) -> Tensor:
        """Joints (B, J, 2), crop pixels, that `parameters` predict from trunk features (B, C, h, w)."""
        joints, _ = self._codec.decode(*self.logits(parameters, features))
        return joints

    def micro_batch(self, bags: Bags) -> int:
        """Return how many units are differentiated at a time: as asked for, else by the free memory."""
        if self._micro_batch is not None:
            return self._micro_batch
        if self._row_bytes is None:
            self._row_bytes = self._saved_bytes(bags.units(0, 1))
        rows = bags.inputs.shape[1]
        parameters = sum(value.numel() * value.element_size() for value in self.parameters().values())
        unit = _SAVED_TO_PEAK * rows * self._row_bytes + 3 * parameters
        return max(1, min(256, int(_affordable_bytes(self.device) // unit)))

    def _saved_bytes(self, one: Bags) -> float:
        """Bytes that the forward pass of one row keeps for its backward pass."""
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        parameters = self.parameters()
        row = Bags(
            inputs=torch.zeros_like(one.inputs[:, :1]),
            joints=torch.zeros_like(one.joints[:, :1]),
            visibility=torch.ones_like(one.visibility[:, :1]),
            weights=torch.ones_like(one.weights[:1]),
        )
        leaves = {name: value.requires_grad_() for name, value in parameters.items()}
        weights = {value.untyped_storage().data_ptr() for value in [*leaves.values(), *self._frozen.values()]}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.losses(leaves, row)
        return float(sum(size for pointer, size in seen.items() if pointer not in weights))

    def _row_losses(self, parameters: Vector, inputs: Tensor, joints: Tensor, visibility: Tensor) -> Tensor:
        logits_x, logits_y = self._call(parameters, inputs)
        return simcc_loss(logits_x, logits_y, joints, visibility, self._codec)

    def _call(self, parameters: Vector, features: Tensor) -> tuple[Tensor, Tensor]:
        values = parameters
        if self._shapes:
            values = expanded(parameters, self._shapes)
            values |= {name: self._frozen[name] + values[name] for name in self._shapes}
        with self._precision():
            logits_x, logits_y = functional_call(self._model, {**self._frozen, **values}, (features, self.strategy))
        return logits_x.to(self.dtype), logits_y.to(self.dtype)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        if not self._autocast:
            yield
            return
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield


def available_bytes(device: torch.device) -> float:
    """Memory that is free on the device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return 4e9
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return 1024.0 * int(fields["MemAvailable"].split()[0])


def _affordable_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return 0.5 * available_bytes(device)
    return min(_BYTES_OF_A_MICRO_BATCH_ON_CPU, 0.25 * available_bytes(device))
