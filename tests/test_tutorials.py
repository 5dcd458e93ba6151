"""What tutorials tell people to type is typed here, page by page, and says what the page says.

Blocks of a page are taken in order: a titled `yaml` or `python` block is a file, a `bash` block is run, and every line
of a titled `text` block is part of what the last `bash` block said (blanks and line breaks aside).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
PAGES = sorted(path.name for path in TUTORIALS.glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def run(script: str, folder: Path) -> str:
    """Return what a script of the shell says."""
    programs = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{programs}:{os.environ.get('PATH', '')}", "COLUMNS": "240", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=env | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
@pytest.mark.guard  # what a hospital is told that its budget is, is what its ledger says
@pytest.mark.parametrize("page", PAGES)
def test_tutorial(page: str, tmp_path: Path) -> None:
    said, ran, compared = "", 0, 0
    for language, title, body in BLOCK.findall((TUTORIALS / page).read_text()):
        if language in ("yaml", "python") and title:
            (tmp_path / title).write_text(body)
        elif language == "bash":
            said, ran = run(body, tmp_path), ran + 1
        elif language == "text" and title:
            for line in body.splitlines():
                assert " ".join(line.split()) in said, f"{page}: {line!r} is not in {said}"
                compared += 1
    assert ran > 1
    assert compared > 3
