"""What a coordinator's home starts, and what that costs: none of it computes, so none of it loads torch."""

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCHED = """
import sys
from pathlib import Path

import wardpose.client.launcher, wardpose.client.supernode, wardpose.client.executor
import wardpose.server.launcher, wardpose.server.superlink_process, wardpose.server.executor
from wardpose.server.commands.launching import entered

entered(Path(sys.argv[1]))
print("torch" in sys.modules)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "server.yaml").write_text("name: gait\naddress: fed.example.org\n")
    return tmp_path


def test_processes_that_compute_nothing_do_not_load_torch(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LAUNCHED, str(home)], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
