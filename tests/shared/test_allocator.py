"""The allocator setting has the effect that it is there for."""

import subprocess
import sys

PROGRAM = """
import torch
from wardpose.shared.allocator import freed_memory_is_kept, tune_allocator, page_faults

def step():
    for _ in range(5):
        torch.ones(16_000_000).add(1)

step()
before, kept_before = page_faults(step), freed_memory_is_kept()
assert tune_allocator()
step()
print(before, page_faults(step), kept_before)
"""


def test_a_step_stops_causing_page_faults() -> None:
    environment = {"OMP_NUM_THREADS": "1", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    before, after, kept_before = run.stdout.split()
    assert kept_before == "False"
    assert int(before) > 50_000
    assert int(after) < 1000
