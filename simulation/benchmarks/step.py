"""What one private step costs beside an ordinary one: engines and mechanisms interleaved in one process, one thread.

Time is CPU time of the process, best of several interleaved rounds; read the ratios. A mechanism that looks at three
views of each unit is compared with plain SGD on as many views. Memory is the peak resident size of a process that does
nothing but that step; every engine differentiates the same number of rows at a time.
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wardpose.shared.allocator import peak_resident_mib, tune_allocator
from wardpose.shared.data.crops import to_tensor
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model, trainable_names
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import secure_streams
from wardpose.shared.privacy.units import UnitIndex
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.settings import ForwardPrecision
from wardpose.shared.training.step import StepGradient
from wardpose.simulation.benchmarks.patched import patched

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cases share.

    Attributes:
        strategy: which parameters train.
        batch: units in a step, one frame each.
        rows: rows that are differentiated at a time.
        size: (height, width) of the crops.
        rank: k of the basis.
        frames: m, public frames of the basis.
        device: where to compute.
        precision: of everybody's forward passes.

    """

    strategy: Strategy = "last-stage"
    batch: int = 16
    rows: int = 8
    size: tuple[int, int] = (256, 192)
    rank: int = 50
    frames: int = 128
    device: str = "cpu"
    precision: ForwardPrecision = "float32"

    def autocast(self) -> torch.autocast:
        """Run forward passes in the setting's precision."""
        coarse = self.precision == "bfloat16"
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=coarse)


@dataclass(frozen=True)
class Case:
    """One way to take a step.

    Attributes:
        name: as printed.
        views: of each unit.
        make: prepares the step.

    """

    name: str
    views: int
    make: Callable[[Setting], Step]


def measure_step(setting: Setting, *, repetitions: int = 3, memory: bool = True, peers: bool = True) -> dict[str, Any]:
    """Time all cases interleaved, measure each one's memory in its own process.

    Returns:
        `rows` of `name`, `views`, `seconds`, `time_ratio` (to plain SGD on pixels, on as many views), `peak_mib`,
        `memory_ratio` (to plain SGD on pixels), and what they were measured on.

    """
    torch.set_num_threads(1)
    tune_allocator()
    chosen = [case for case in cases(setting.strategy) if peers or not case.name.startswith("opacus")]
    steps = {case.name: case.make(setting) for case in chosen}
    best = dict.fromkeys(steps, float("inf"))
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            seconds = _timed(step, setting.device)
            if repetition:  # the first round warms up
                best[name] = min(best[name], seconds)
    peaks = {name: _peak_mib(setting, name) for name in steps} if memory else {}
    rows = []
    for case in chosen:
        row: dict[str, Any] = {
            "name": case.name,
            "views": case.views,
            "seconds": round(best[case.name], 4),
            "time_ratio": round(best[case.name] / (best["sgd"] * case.views), 3),
        }
        if peaks:
            row |= {
                "peak_mib": round(peaks[case.name]),
                "memory_ratio": round(peaks[case.name] / peaks["sgd"], 3),
            }
        rows.append(row)
    return {"setting": vars(setting), "hardware": hardware(setting.device), "rows": rows}


def cases(strategy: Strategy) -> list[Case]:
    """All cases of a strategy, plain SGD first."""
    out = [Case("sgd", 1, _sgd), *_ours(cached=False)]
    if strategy in ("head", "last-stage"):
        out += [Case("sgd, cached", 1, partial(_sgd, cached=True)), *_ours(cached=True)]
    peers = {"opacus hooks": "hooks", "opacus functorch": "functorch", "opacus ghost": "ghost"}
    return out + [Case(name, 1, partial(_opacus, mode=mode)) for name, mode in peers.items()]


def hardware(device: str) -> dict[str, str]:
    """Name what was measured on."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            processor = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    accelerator = torch.cuda.get_device_name() if device.startswith("cuda") else "none"
    return {"processor": processor, "accelerator": accelerator, "torch": torch.__version__, "threads": "1"}


def _ours(*, cached: bool) -> list[Case]:
    names = [("dp-sgd", 1), ("projected", 1), ("feature", 3), ("feature-projective", 3)]
    suffix = ", cached" if cached else ""
    return [Case(f"{name}{suffix}", views, partial(_mechanism, name=name, cached=cached)) for name, views in names]


def random_model(setting: Setting) -> PoseModel:
    """Build the network with random weights on the setting's device."""
    return build_model(ModelConfig(weights="random", input_size=setting.size)).to(setting.device)


def _rows(setting: Setting, count: int, seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    height, width = setting.size
    return Rows(
        inputs=generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8),
        joints=(generator.random((count, 14, 2)) * [width - 1, height - 1]).astype(np.float32),
        visibility=np.full((count, 14), 2, np.uint8),
    )


def _cached(engine: UnitGradients, rows: Rows) -> Rows:
    parts = [
        load_bags(engine, rows, np.arange(start, min(start + 8, len(rows)))[:, None])
        for start in range(0, len(rows), 8)
    ]
    features = torch.cat([part.inputs[:, 0] for part in parts]).cpu().numpy()
    return Rows(inputs=features, joints=rows.joints, visibility=rows.visibility)


@lru_cache(maxsize=1)
def public_rows(setting: Setting) -> Rows:
    """Make public frames of the basis, as features where there is a frozen trunk."""
    rows = _rows(setting, setting.frames + 32, 2)
    if setting.strategy in ("head", "last-stage"):
        return _cached(UnitGradients(random_model(setting), setting.strategy), rows)
    return rows


def _mechanism(setting: Setting, *, name: str, cached: bool) -> Step:
    views = 2 if name.startswith("feature") else 1
    engine = UnitGradients(
        random_model(setting),
        setting.strategy,
        micro_batch=max(1, setting.rows // views),
        autocast=setting.precision == "bfloat16",
    )
    private, shown = _rows(setting, setting.batch, 0), _rows(setting, setting.batch, 1)
    public = public_rows(setting) if "project" in name else _rows(setting, 1, 2)
    if cached:
        private, shown = _cached(engine, private), _cached(engine, shown)
    chosen = Mechanism.model_validate(
        {
            "name": name,
            "unit": "frame",
            "sample_rate": 1.0,
            "noise_multiplier": 1.0,
            "feature": FeatureOptions(draw="cyclic"),
            "projection": ProjectionOptions(
                rank=setting.rank, frames=setting.frames, held_out=32, min_captured_energy=0.0, storage="stored"
            ),
        }
    )
    data = CohortData(
        private=private,
        public=shown,
        units=UnitIndex([(str(unit),) for unit in range(setting.batch)], unit="frame"),
        views=1,
        frames_per_unit=1,
    )
    gradient = StepGradient(
        engine,
        data,
        chosen,
        streams=secure_streams(),
        declared_units=setting.batch,
        public=PublicData(rows=public, identity="benchmark"),
    )
    leaves = engine.parameters()
    optimizer = torch.optim.Adam(list(leaves.values()))

    def step() -> None:
        for key, value in gradient(leaves).items():
            leaves[key].grad = value.to(leaves[key])
        optimizer.step()

    return step


def _sgd(setting: Setting, *, cached: bool = False) -> Step:
    model = random_model(setting)
    engine = UnitGradients(model, setting.strategy)
    trained = set(trainable_names(model, setting.strategy))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    rows = _rows(setting, setting.batch, 0)
    rows = _cached(engine, rows) if cached else rows
    return partial(_plain_step, model, rows, setting, torch.optim.Adam(_trained(model)))


def _plain_step(model: PoseModel, rows: Rows, setting: Setting, optimizer: torch.optim.Optimizer) -> None:
    codec = SimCC.of(model.config)
    optimizer.zero_grad()
    for start in range(0, len(rows), setting.rows):
        inputs, joints, visibility = _tensors(rows, slice(start, start + setting.rows), setting.device)
        with setting.autocast():
            if rows.are_crops:
                with torch.no_grad():
                    inputs = model.frozen_features(inputs, setting.strategy)
            logits_x, logits_y = model(inputs, setting.strategy)
        torch.autograd.backward(simcc_loss(logits_x, logits_y, joints, visibility, codec).sum() / len(rows))
    optimizer.step()


def _opacus(setting: Setting, *, mode: str) -> Step:
    """Opacus' samplers on the patched network: per-sample gradients or norms, clip, sum, noise from torch."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

    model = patched(random_model(setting), setting.strategy)
    rest: Any = _Rest(model, setting.strategy)
    if mode == "ghost":
        wrapped: Any = GradSampleModuleFastGradientClipping(
            rest, max_grad_norm=1.0, use_ghost_clipping=True, strict=False, loss_reduction="sum"
        )
    else:
        wrapped = GradSampleModule(rest, strict=False, loss_reduction="sum", force_functorch=mode == "functorch")
    rows = _rows(setting, setting.batch, 0)
    codec = SimCC.of(model.config)
    parameters = _trained(model)
    optimizer = torch.optim.Adam(parameters)

    def step() -> None:
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for start in range(0, len(rows), setting.rows):
            inputs, joints, visibility = _tensors(rows, slice(start, start + setting.rows), setting.device)
            with setting.autocast():
                with torch.no_grad():
                    inputs = model.frozen_features(inputs, setting.strategy)
                logits_x, logits_y = wrapped(inputs)
            losses = simcc_loss(logits_x, logits_y, joints, visibility, codec)
            clipped = _ghost(wrapped, losses, parameters) if mode == "ghost" else _sampled(losses, parameters)
            sums = [total + part for total, part in zip(sums, clipped, strict=True)]
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = (total + torch.randn_like(total)) / len(rows)
        optimizer.step()

    return step


class _Rest(torch.nn.Module):
    """What trains, as the whole of a module, so that hooks see nothing else."""

    def __init__(self, model: PoseModel, strategy: Strategy) -> None:
        super().__init__()
        self.model = model
        self._strategy = strategy

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.from_features(features, self._strategy)


def _sampled(losses: Tensor, parameters: list[Any]) -> list[Tensor]:
    losses.sum().backward()  # type: ignore[no-untyped-call]
    squares = [parameter.grad_sample.flatten(1).square().sum(1) for parameter in parameters]
    factors = torch.stack(squares).sum(0).sqrt().clamp(min=1.0).reciprocal()
    sums = [torch.tensordot(factors, parameter.grad_sample, dims=1) for parameter in parameters]
    for parameter in parameters:
        parameter.grad_sample, parameter.grad = None, None
    return sums


def _ghost(wrapped: Any, losses: Tensor, parameters: list[Any]) -> list[Tensor]:
    losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    factors = wrapped.get_clipping_coef()
    for parameter in parameters:
        parameter.grad = None
    wrapped.disable_hooks()
    (factors * losses).sum().backward()
    wrapped.enable_hooks()
    sums = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad, parameter.grad_sample, parameter._norm_sample = None, None, None
    return sums


def _tensors(rows: Rows, part: slice, device: str) -> tuple[Tensor, Tensor, Tensor]:
    inputs = torch.from_numpy(rows.inputs[part]).to(device)
    return (
        to_tensor(inputs) if rows.are_crops else inputs,
        torch.from_numpy(rows.joints[part]).to(device),
        torch.from_numpy(rows.visibility[part]).to(device),
    )


def _trained(model: PoseModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _timed(step: Step, device: str) -> float:
    """CPU seconds of this process; wall seconds around a synchronised step on an accelerator."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    step()
    return time.process_time() - start


def _peak_mib(setting: Setting, name: str) -> float:
    command = [sys.executable, "-m", "wardpose.simulation.benchmarks.step", json.dumps(vars(setting)), name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this module
    return float(run.stdout.split()[-1])


def _alone(setting: Setting, name: str) -> float:
    """Peak resident size in MiB of this process after two steps of one case."""
    torch.set_num_threads(1)
    tune_allocator()
    step = next(case for case in cases(setting.strategy) if case.name == name).make(setting)
    step()
    step()
    if setting.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib()


if __name__ == "__main__":
    _values = json.loads(sys.argv[1])
    print(_alone(Setting(**{**_values, "size": tuple(_values["size"])}), sys.argv[2]))
