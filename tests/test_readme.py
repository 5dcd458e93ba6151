"""The lines under "Use the model" run as they are pasted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def lines() -> list[str]:
    _, _, rest = (REPOSITORY / "README.md").read_text().partition("## Use the model\n")
    part, _, _ = rest.partition("\n## ")
    return [line.split("  #")[0].strip() for line in re.findall(r"^ {4}(wardpose .*)$", part, re.MULTILINE)]


def test_there_are_five_and_each_names_a_command() -> None:
    from typer.main import get_command

    from wardpose.simulation.cli import app

    known = set(getattr(get_command(app), "commands", {}))
    assert len(lines()) == 5
    assert {line.split()[1] for line in lines()} <= known


@pytest.mark.slow
@pytest.mark.realdata
def test_the_five_lines_run_on_a_fresh_checkout(data_root: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "examples").symlink_to(REPOSITORY / "examples")
    (tmp_path / "shared").symlink_to(data_root.resolve().parent)
    command = f"{sys.executable} -c 'from wardpose.simulation.cli import main; main()'"
    for line in lines():
        pasted = line.replace("wardpose", command, 1)
        done = subprocess.run(
            ["bash", "-c", pasted],
            cwd=checkout,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (line, done.stderr)
    made = {"joints.csv", "joints.json", "openpose", "drawn", "wardpose.onnx", "draft.xml", "scores.html"}
    assert {path.name for path in checkout.iterdir()} == made | {"examples"}
    assert len(list((checkout / "drawn").rglob("*.png"))) == 26
