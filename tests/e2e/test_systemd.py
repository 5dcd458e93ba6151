"""A coordinator and a hospital installed by root, as units of systemd: registered, trained, and back after a power cut.

The archives are those of `wardpose provision`, the units those in them, systemd is the machine's own. What root types
is what the archives' READ-ME-FIRST says.
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.hospitals import wait_for
from tests.support.systemd_machine import Machine, impossible, system_python
from wardpose.server.operator import program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(impossible()), reason=impossible() or "-"),
]
ANSWER_SECONDS = 4
SERVER, SITE = "/var/lib/wardpose-server", "/var/lib/wardpose-site"
SERVER_UNITS = ("superlink", "superlink-exec", "server-metrics", "budget-service", "nginx")
SITE_UNITS = ("supernode", "site-exec", "site-metrics")
EXAMPLE = Path(__file__).parents[2] / "examples" / "hospital_data.py"
PLAN: dict[str, Any] = {
    "name": "gait",
    "sites": ["north"],
    "rounds": 3,
    "mechanism": {"name": "dp-sgd", "sample_rate": 0.2, "noise_multiplier": 8.0, "frames_per_unit": 1},
    "data": {"validation": [{"kind": "ward", "hospital": "west", "patients": 4, "frames_per_patient": 1, "seed": 2}]},
    "model": {"input_size": [64, 64], "last_stride": 16, "weights": "random"},
    "privacy": {"epsilon": 4.0, "delta": 1e-5},
    "training": {"strategy": "head", "steps": 2},
    "server": {"minimum_sites": 1, "deadline_seconds": 120},
    "deployment": {"address": "localhost", "ports": {"fleet": 443, "budget": 9443}},
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, installed: Callable[[str], str]) -> Iterator[Machine]:
    """A machine with both archives unpacked, and Wardpose in /opt as `install.sh` would bring it from the network."""
    assert installed("nginx") == "/usr/sbin/nginx"
    folder = tmp_path_factory.mktemp("systemd")
    (folder / "federation.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    subprocess.run(
        [program("wardpose"), "provision", "federation.yaml", "--out", "kits"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    made = Machine(folder / "machine")
    try:
        for name in ("server", "north"):
            made.bring(folder / "kits" / f"{name}.tar.gz", "/var/kits")
        made.boot()
        _bring_wardpose(made)
        for name in ("server", "north"):
            made.run("tar", "-xzf", f"/var/kits/{name}.tar.gz", "-C", "/var/kits", check=True)
        made.run("pip", "install", "-q", "--no-deps", "--no-index", _wheel(made), check=True)
        yield made
    finally:
        made.cut()


def _bring_wardpose(machine: Machine) -> None:
    """Make the environment; what Wardpose needs is this environment's, for there is no network."""
    machine.run(system_python(), "-m", "venv", "/opt/wardpose", check=True)
    there = f"/opt/wardpose/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    machine.run("sh", "-c", f"echo {sysconfig.get_path('purelib')} >{there}/shared.pth", check=True)
    for name in (
        "flwr",
        "flower-superlink",
        "flower-supernode",
        "flower-superexec",
        "flwr-serverapp",
        "flwr-clientapp",
    ):
        original = Path(sys.executable).with_name(name)
        if original.exists():
            copy = f"/opt/wardpose/bin/{name}"
            line = f"sed '1c #!/opt/wardpose/bin/python' {original} >{copy} && chmod 755 {copy}"
            machine.run("sh", "-c", line, check=True)


def _wheel(machine: Machine) -> str:
    return machine.run("sh", "-c", "echo /var/kits/wardpose-server/wheel/wardpose-*.whl").stdout.strip()


def _of_root(machine: Machine) -> str:
    """Return what in the homes belongs to somebody else than the units' user."""
    return machine.run("find", SERVER, SITE, "!", "-user", "wardpose").stdout


def _nodes(machine: Machine) -> list[dict[str, Any]]:
    done = machine.run("wardpose", "server", "nodes", "--json", cwd=SERVER, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)["nodes"]
    return found


def _wait_online(machine: Machine) -> None:
    wait_for(lambda: all(node["online"] for node in _nodes(machine)), what="the hospital", seconds=150, every=3)


def _status(machine: Machine) -> dict[str, Any]:
    done = machine.run("wardpose", "server", "status", "--json", cwd=SERVER)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _submit(machine: Machine) -> None:
    done = machine.run("wardpose", "server", "submit", "--json", cwd=SERVER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["answers"] == {"north": "ready"}
    assert _of_root(machine) == ""


def _agree(machine: Machine) -> None:
    ledgers = (f"{SITE}/ledger.sqlite", f"{SERVER}/coordinator/ledger.sqlite")
    compared = machine.run("wardpose", "ledger", "compare", *ledgers, "--name", "north")
    assert compared.returncode == 0, compared.stdout + compared.stderr


def test_root_installs_both_archives(machine: Machine) -> None:
    fingerprint = machine.run("sha256sum", "/var/kits/wardpose-server/signer.pem", check=True).stdout[:64]
    common = ("--fingerprint", fingerprint, "--python", "/opt/wardpose/bin/python")
    machine.run("sh", "/var/kits/wardpose-server/install.sh", *common, check=True)
    machine.run("python", EXAMPLE, "/var/frames", "north", check=True)
    machine.run("chmod", "-R", "a+rX", "/var/frames", check=True)
    done = machine.run(
        "sh", "/var/kits/wardpose-north/install.sh", *common, "--", "--data", "/var/frames/north", check=True
    )
    assert "60 records of 60 patients" in done.stdout
    machine.run(
        "sed", "-i", f"s/^answer_seconds: 300 /answer_seconds: {ANSWER_SECONDS} /", f"{SITE}/site.yaml", check=True
    )
    assert _of_root(machine) == ""
    modes = machine.run("find", SERVER, SITE, "-perm", "/077").stdout
    assert modes == ""


def test_units_are_up_and_the_hospital_is_let_in_when_it_is_registered(machine: Machine) -> None:
    units = [f"wardpose-{name}" for name in (*SERVER_UNITS, *SITE_UNITS)]
    machine.run("systemctl", "enable", "--now", *units, check=True)
    for unit in units:
        if unit != "wardpose-supernode":  # ends until it is registered, and is started again
            wait_for(lambda unit=unit: machine.state(unit) == "active", what=unit, seconds=90)
    refusal = "it is not registered, or was revoked"
    wait_for(lambda: refusal in machine.journal("wardpose-supernode"), what="the reason in its journal", every=2)
    done = machine.run("wardpose", "server", "register", "--json", cwd=SERVER)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"north": "registered"}
    _wait_online(machine)
    assert [machine.state(unit) for unit in units] == ["active"] * len(units)
    assert _of_root(machine) == ""
    checked = machine.run("wardpose", "site", "check", "--connect", cwd=SITE)
    assert checked.returncode == 0, checked.stdout
    assert _of_root(machine) == ""


def test_what_reaches_the_server_sees_no_patient(machine: Machine) -> None:
    """Of the two halves of a site, each is kept from what it does not need."""
    node, executor = (machine.main_process(f"wardpose-{name}") for name in ("supernode", "site-exec"))
    for hidden in ("ledger.sqlite", "state"):
        seen = machine.run("nsenter", "-t", str(node), "-m", "ls", f"{SITE}/{hidden}")
        assert seen.returncode != 0 or seen.stdout == "", seen.stdout
    for process in (node, executor):
        for place in ("/usr", "/etc", "/opt/wardpose"):
            made = machine.run("nsenter", "-t", str(process), "-m", "touch", f"{place}/left-behind")
            assert "Read-only file system" in made.stderr
        who = machine.run("ps", "-o", "user=", "-p", str(process)).stdout.strip()
        assert who == "wardpose"


def test_a_run_is_trained_and_both_ledgers_agree(machine: Machine) -> None:
    _submit(machine)
    wait_for(lambda: _status(machine)["status"] not in ("running", "starting"), what="the run", every=3)
    status = _status(machine)
    assert (status["status"], status["rounds"]) == ("completed", 3), status
    _agree(machine)
    assert _of_root(machine) == ""


def test_after_a_power_cut_the_machine_comes_back_by_itself(machine: Machine) -> None:
    _submit(machine)
    wait_for(lambda: _status(machine)["rounds"] >= 1, what="a round", every=1)
    machine.cut()
    machine.boot()
    _wait_online(machine)
    wait_for(lambda: _status(machine)["status"] != "running", what="an end, or a stop", every=3)
    if _status(machine)["status"] != "completed":
        done = machine.run("wardpose", "server", "resume", cwd=SERVER)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_for(lambda: _status(machine)["status"] == "completed", what="the resumed run", every=3)
    assert _status(machine)["rounds"] == 3
    _agree(machine)
    assert _of_root(machine) == ""
