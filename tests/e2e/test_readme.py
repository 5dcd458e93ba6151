"""README's sections "Run a site" and "Watch" work as they are pasted, on a machine that has nothing of it yet."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def pasted(section: str) -> list[str]:
    _, _, rest = (REPOSITORY / "README.md").read_text().partition(f"## {section}\n")
    return re.findall(r"^ {4}(\S.*)$", rest.partition("\n## ")[0], re.MULTILINE)


def test_a_site_is_set_up_run_and_watched_by_the_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    lines = [*pasted("Run a site"), *pasted("Watch")]
    assert len(lines) > 20
    assert all(any(line.startswith(word) for line in lines) for word in ("wardpose server", "wardpose site", "nginx"))
    (tmp_path / "pasted.sh").write_text("\n".join([*lines, ""]))
    shell = subprocess.Popen(
        ["bash", "-e", "-o", "pipefail", "pasted.sh"],
        cwd=tmp_path,
        env=os.environ
        | {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "OMP_NUM_THREADS": "1"},  # no environment is active
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = shell.communicate(timeout=1500)
    finally:
        for log in sorted((tmp_path / "try").glob("*.log")):
            print(log.name, log.read_text(errors="replace")[-2000:])
        pid = tmp_path / "try" / "server" / "log" / "nginx.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
        os.killpg(shell.pid, signal.SIGTERM)
    print(out)
    assert shell.returncode == 0
    assert "this site can take part" in out
    assert "completed" in out
    up = re.search(r'\{"status":"success".*', out)
    assert up is not None
    assert '"1"]' in up[0]
    assert (tmp_path / "try" / "statement.html").stat().st_size > 1000
    assert list((tmp_path / "try" / "server" / "runs").glob("*/model.safetensors"))
