"""The first code that a stranger reads runs, and says what it is there to say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "anonymize_and_recover.py": ("ada alone: this vault needs 2 different people", "log 3: recover by ada and ben"),
    "federation.py": ("round 3: pck@0.2", "north: epsilon 8.00 of 8.0"),
    "hospital_data.py": ("north: 60 frames of 60 patients",),
    "ledger_epsilon.py": ("round 2: epsilon 3.68 of 4.0", "round 3: cohort 'ward-7': epsilon would be 4.27"),
    "private_step.py": ("24 frames of 8 patients", "epsilon of the step: 2.27", "from a secure generator: True"),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for said in SAYS[name]:
        assert said in done.stdout
    assert list(tmp_path.iterdir()) == []  # an example leaves nothing behind
