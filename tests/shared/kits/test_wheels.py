"""The wheel that archives carry is the installed package, as pip knows wheels."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from wardpose.shared.kits.wheels import code_hash_of, constraints, pack_wheel
from wardpose.shared.version import code_hash

REPOSITORY = Path(__file__).parents[3]


def test_every_package_is_in_the_wheel_that_pip_builds_too() -> None:
    listed = set(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        ".".join(("wardpose", *path.parent.relative_to(REPOSITORY).parts))
        for room in ("client", "server", "shared", "simulation")
        for path in (REPOSITORY / room).rglob("__init__.py")
    }
    assert listed == there | {"wardpose.deploy"}


def test_pip_installs_it_whole_without_a_network_and_it_is_this_code(tmp_path: Path) -> None:
    name, content = pack_wheel()
    assert pack_wheel() == (name, content)
    assert code_hash_of(content) == code_hash()
    (tmp_path / name).write_bytes(content)
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", tmp_path / "site"]
    done = subprocess.run([sys.executable, "-m", "pip", *install, tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "site" / "wardpose"
    for file in ("deploy/install.sh", "shared/kits/wheels.py", "client/templates", "shared/pose/pretrained"):
        assert (installed / file).exists(), file
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert not [entry for entry in wheel.namelist() if "__pycache__" in entry or "/." in entry]


def test_constraints_are_what_is_installed_and_nothing_of_this_machine() -> None:
    lines = [line for line in constraints().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    assert {"torch", "flwr", "cryptography", "numpy"} <= set(names)
    assert "wardpose" not in names
    assert not [line for line in lines if "+" in line or "@" in line]
