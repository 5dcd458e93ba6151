"""One coordinator at a time, and no litter."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wardpose.server.folder import LOCK, held, set_aside
from wardpose.shared.errors import ConfigError

_HOLD = """
import sys, time
from pathlib import Path
from wardpose.server.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=rf"{tmp_path}: another coordinator \(process {child.pid}\)"),
            held(tmp_path),
        ):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with held(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"


_DIE = """
import os, sys
from pathlib import Path
from wardpose.shared.files import write_bytes
Path.replace = lambda *_: os.kill(os.getpid(), 9)  # at the last moment
write_bytes(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_process_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"old")
    subprocess.run([sys.executable, "-c", _DIE, str(path)], check=False)
    (tmp_path / ".checkpoint.safetensors.backup-of-monday").touch()
    assert len(list(tmp_path.glob(".checkpoint*"))) == 2
    with held(tmp_path):
        left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [".checkpoint.safetensors.backup-of-monday", path.name, LOCK]
    assert path.read_bytes() == b"old"


def test_what_another_run_left_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"first")
    assert set_aside(tmp_path / "model.safetensors", "run-1") == tmp_path / "model.run-1.safetensors"
    assert (tmp_path / "model.run-1.safetensors").read_bytes() == b"first"
