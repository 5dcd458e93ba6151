"""The installer that lies in every archive, run as a user would: unpacked by tar, below one folder, no network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kits import code_wheel, machine_plan

from wardpose.server.operator import program
from wardpose.server.provision.archives import Made, provision

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return provision(machine_plan(), tmp_path_factory.mktemp("federation") / "kits", wheel=code_wheel())


@pytest.fixture
def kit(federation: Made, tmp_path: Path) -> Path:
    """The server's archive as tar unpacks it."""
    subprocess.run(["tar", "-xzf", federation.archives["server"], "-C", tmp_path], check=True)
    return tmp_path / "wardpose-server"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A Python that has Wardpose; its folder has a blank, as a home's may."""
    binaries = tmp_path / "my programs"
    binaries.mkdir()
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "wardpose").symlink_to(program("wardpose"))
    return binaries / "python"


def run(kit: Path, *arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(kit / "install.sh"), *map(str, arguments)],
        cwd=folder or kit.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_it_installs_below_one_folder_and_says_what_is_next(federation: Made, kit: Path, environment: Path) -> None:
    done = run(kit, "--prefix", "home", "--python", environment, "--fingerprint", federation.fingerprint)
    home = kit.parent / "home"
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        f"signed by the key {federation.fingerprint}",
        f"{home}: installed",
        f"next: cd {home} && wardpose server run",
    ]
    assert (home / "server.yaml").is_file()
    assert home.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in kit.parent.iterdir()) == ["home", "my programs", "wardpose-server"]
    again = run(kit, "--prefix", home, "--python", environment, "--fingerprint", federation.fingerprint)
    assert again.returncode == 0, again.stderr
    assert f"{home}: brought up to date" in again.stdout


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:9] + bytes([content[9] ^ 1]) + content[10:])


def sign_anew(kit: Path) -> None:
    """List what is there now, as whoever changed it would."""
    names = sorted(
        path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file() and "SHA256SUMS" not in path.name
    )
    done = subprocess.run(["sha256sum", *names], cwd=kit, check=True, capture_output=True, text=True)
    (kit / "SHA256SUMS").write_text(done.stdout)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda kit: flip(next((kit / "wheel").glob("*.whl"))), "is not what was packed"),
        (lambda kit: flip(kit / "keys" / "ca.crt"), "is not what was packed"),
        (lambda kit: (kit / "nginx.conf").unlink(), "is not what was packed"),
        (lambda kit: (kit / "wheel" / "evil.whl").write_bytes(b""), "holds files that were not packed"),
        (lambda kit: (kit / "link").symlink_to("/etc/shadow"), "holds files that were not packed"),
        (lambda kit: (kit / "signer.pem").unlink(), "signer.pem: is missing"),
        (lambda kit: (flip(kit / "server.yaml"), sign_anew(kit)), "is not a signature of that key"),
        (lambda kit: ((kit / "x").write_text("x"), sign_anew(kit)), "is not a signature of that key"),
    ],
)
def test_whatever_was_changed_is_found_before_anything_is_made(
    federation: Made, kit: Path, damage: Callable[[Path], object], named: str
) -> None:
    damage(kit)
    done = run(kit, "--prefix", "home", "--fingerprint", federation.fingerprint)
    assert done.returncode == 2
    assert named in done.stderr
    assert not (kit.parent / "home").exists()


def test_the_fingerprint_must_be_vouched_for(federation: Made, kit: Path) -> None:
    for arguments, named in (
        (("--prefix", "home"), "--fingerprint: is needed where nobody can be asked"),
        (("--prefix", "home", "--fingerprint", "0" * 64), "do not install this archive"),
        (("--prefix", "home", "--fingerprint"), "--fingerprint: needs a value"),
        (("--prefix", "home", "--fingerprints", "x"), "--fingerprints: is no option"),
    ):
        done = run(kit, *arguments)
        assert done.returncode == 2
        assert named in done.stderr
    assert not (kit.parent / "home").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_user_without_rights_needs_a_folder_and_no_more(federation: Made, kit: Path) -> None:
    """As `nobody`, in a folder of its own; without Wardpose in reach the wheel is all that may be installed from."""
    public = Path("/tmp") / f"wardpose-{os.getpid()}"
    shutil.copytree(kit, public / "kit")
    try:
        for path in (public, *public.rglob("*")):
            os.chown(path, 65534, 65534)
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            str(public / "kit" / "install.sh"),
        ]
        fingerprint = ["--fingerprint", federation.fingerprint]
        done = subprocess.run([*command, *fingerprint], capture_output=True, text=True, cwd=public)
        assert done.returncode == 2
        assert "--prefix: is needed without root" in done.stderr
        done = subprocess.run(
            [*command, *fingerprint, "--prefix", "/proc/x", "--python", "/bin/sh"], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "--python must be one in which Wardpose is installed" in done.stderr
    finally:
        shutil.rmtree(public)


def test_an_environment_that_cannot_be_filled_is_taken_away(federation: Made, kit: Path) -> None:
    (kit.parent / "empty").mkdir()
    done = run(kit, "--prefix", "home", "--wheels", "empty", "--fingerprint", federation.fingerprint)
    assert done.returncode == 2
    assert f"Wardpose could not be installed in {kit.parent / 'home' / 'venv'}" in done.stderr
    assert not (kit.parent / "home").exists()


def test_what_comes_after_is_meant_where_it_was_started(federation: Made, tmp_path: Path, environment: Path) -> None:
    subprocess.run(["tar", "-xzf", federation.archives["north"], "-C", tmp_path], check=True)
    given = [
        "--prefix",
        "home",
        "--python",
        environment,
        "--fingerprint",
        federation.fingerprint,
        "--",
        "--data",
        "none",
    ]
    done = run(tmp_path / "wardpose-north", *given)
    assert done.returncode == 2
    assert f"--data {tmp_path / 'none'}: does not exist" in done.stderr or "--data none: does not exist" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_shell_finds_nothing_to_complain_of(kit: Path) -> None:
    assert subprocess.run(["sh", "-n", kit / "install.sh"]).returncode == 0
