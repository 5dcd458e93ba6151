"""What root does in a home of somebody else's is done as that user."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from wardpose.server.operator import program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else")
SOMEBODY = 54_321  # has no name here
_CREATE = """
import os, sys
from pathlib import Path
from wardpose.shared.home import become_owner, find_home
home = find_home(Path(sys.argv[1]), variable="NONE", file="server.yaml")
become_owner(home)  # twice is as once
(home / "made").write_text("x")
print(os.geteuid(), os.getegid(), os.getgroups())
try:
    os.setuid(0)
except PermissionError:
    print("for good")
"""


def made_by_root(home: Path) -> tuple[list[str], Path]:
    done = subprocess.run([sys.executable, "-c", _CREATE, home], capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), home / "made"


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that others reach: pytest's own are closed to everybody but root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        (home / "server.yaml").write_text("{}\n")
        yield home


def test_root_goes_on_as_the_homes_owner(home: Path) -> None:
    for path in (home, home / "server.yaml"):
        os.chown(path, SOMEBODY, SOMEBODY)
    said, made = made_by_root(home)
    assert said == [f"{SOMEBODY} {SOMEBODY} []", "for good"]
    assert (made.stat().st_uid, made.stat().st_gid, made.stat().st_mode & 0o777) == (SOMEBODY, SOMEBODY, 0o600)


def test_root_stays_root_in_its_own_home(home: Path) -> None:
    said, made = made_by_root(home)
    assert said[0].startswith("0 0 ")
    assert made.stat().st_uid == 0


def test_a_root_that_may_not_is_told(home: Path) -> None:
    """As in a container without CAP_SETUID."""
    for path in (home, home / "server.yaml"):
        os.chown(path, SOMEBODY, SOMEBODY)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is not installed")
    done = subprocess.run(
        [setpriv, "--bounding-set=-setuid", "--inh-caps=-setuid", sys.executable, "-c", _CREATE, home],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"belongs to user {SOMEBODY}, who root cannot become here" in done.stderr
    assert not (home / "made").exists()


def wardpose(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([program("wardpose"), *map(str, words)], capture_output=True, text=True, cwd="/", check=False)


@pytest.mark.skipif(os.__file__.startswith("/root/"), reason="this Python is root's alone")
def test_a_sites_commands_are_its_owners(home: Path) -> None:
    """`site.yaml` alone says where a site is: what is made beside it is not root's either."""
    done = wardpose("site", "init", home)
    assert done.returncode == 0, done.stderr
    site = home / "site.yaml"
    settings = yaml.safe_load(site.read_text())
    settings["cohort"]["data"] = {"kind": "ward", "hospital": "north", "patients": 8, "frames_per_patient": 1}
    site.write_text(yaml.safe_dump(settings))
    before = set(home.rglob("*"))
    for path in (home, *before):
        os.chown(path, SOMEBODY, SOMEBODY)
    done = wardpose("site", "accept-coordinator-ledger", site, "--why", "says Dr Grey")
    assert done.returncode == 0, done.stderr
    made = set(home.rglob("*")) - before
    assert made
    assert {path.stat().st_uid for path in made} == {SOMEBODY}
