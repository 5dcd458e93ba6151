"""What a basis costs: one refresh, one encode of 16 units, one decode, stored, matrix-free and the explicit p x k way.

CPU time of one thread. Each way runs in a process of its own; `extra_mib` is by how much its peak resident size exceeds
that of a process that holds the model, the public frames' inputs and 16 vectors, and has taken one plain gradient.
"""

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from wardpose.shared.allocator import peak_resident_mib, tune_allocator
from wardpose.shared.privacy.mechanisms import ProjectionOptions
from wardpose.shared.training.basis import build_basis
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.vectors import Vector, map_vector
from wardpose.simulation.benchmarks.step import Setting, hardware, public_rows, random_model

WAYS = ("stored", "matrix-free", "explicit")
UNITS = 16


def measure_basis(setting: Setting, *, ways: tuple[str, ...] = WAYS) -> dict[str, Any]:
    """Measure each way in its own process.

    Returns:
        `rows` of `name`, `refresh_seconds`, `encode_seconds` (16 units), `decode_seconds`, `peak_mib`, `extra_mib`,
        and what they were measured on.

    """
    base = _run(setting, "nothing")
    rows = []
    for way in ways:
        row = _run(setting, way)
        rows.append({**row, "extra_mib": round(row["peak_mib"] - base["peak_mib"])})
    return {"setting": vars(setting), "hardware": hardware(setting.device), "rows": rows}


def _run(setting: Setting, way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "wardpose.simulation.benchmarks.basis", json.dumps(vars(setting)), way]
    run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - this module
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


def _alone(setting: Setting, way: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    tune_allocator()
    engine = UnitGradients(random_model(setting), setting.strategy, micro_batch=4)
    rows = public_rows(setting)
    frames, held_out = (
        load_bags(engine, rows, np.arange(*part)[:, None])
        for part in ((0, setting.frames), (setting.frames, setting.frames + 4))
    )
    parameters = engine.parameters()
    row: dict[str, Any] = {"name": way}
    generator = torch.Generator().manual_seed(0)
    vectors = map_vector(lambda value: torch.randn(UNITS, *value.shape, generator=generator), parameters)
    if way == "nothing":
        engine.summed(parameters, frames)
    elif way == "explicit":
        row |= _explicit(engine, parameters, frames, vectors, setting.rank)
    else:
        options = ProjectionOptions(rank=setting.rank, energy=1.0, storage=way)
        start = time.process_time()
        basis = build_basis(engine, parameters, frames, held_out, options)
        row["refresh_seconds"] = round(time.process_time() - start, 3)
        start = time.process_time()
        coefficients = basis.encode(vectors)
        row["encode_seconds"] = round(time.process_time() - start, 3)
        start = time.process_time()
        basis.decode(coefficients[0])
        row["decode_seconds"] = round(time.process_time() - start, 3)
    row["peak_mib"] = round(peak_resident_mib())
    return row


def _explicit(engine: UnitGradients, parameters: Vector, frames: Bags, vectors: Vector, rank: int) -> dict[str, float]:
    """G (m, p) by one gradient after another, V (p, k) by a thin singular value decomposition."""
    start = time.process_time()
    rows = [engine.summed(parameters, frames.units(unit, unit + 1)) for unit in range(len(frames))]
    matrix = torch.stack([torch.cat([value.reshape(-1) for value in row.values()]) for row in rows])
    del rows
    basis = torch.linalg.svd(matrix, full_matrices=False).Vh[:rank].T.contiguous()
    refresh = time.process_time() - start
    start = time.process_time()
    coefficients = torch.cat([value.flatten(1) for value in vectors.values()], dim=1) @ basis
    encode = time.process_time() - start
    start = time.process_time()
    _ = basis @ coefficients[0]
    return {
        "refresh_seconds": round(refresh, 3),
        "encode_seconds": round(encode, 3),
        "decode_seconds": round(time.process_time() - start, 3),
    }


if __name__ == "__main__":
    _values = json.loads(sys.argv[1])
    print(json.dumps(_alone(Setting(**{**_values, "size": tuple(_values["size"])}), sys.argv[2])))
