"""A site's processes: what starts, what may come to them, how they end, and what of Flower they stand on."""

import argparse
import dataclasses
import hashlib
import importlib
import inspect
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import flwr.common.constant
import flwr.supercore.fab
import flwr.supernode.runtime.run_clientapp as flower_clientapp
import flwr.supernode.start_client_internal as flower_supernode
import pytest
import yaml
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from support.bundles import PYPROJECT, clientapp, pack
from support.hostile_superlink import HostileSuperlink, Order, serve_superlink

from wardpose.client import app
from wardpose.client.bundle import APP, check_bundle
from wardpose.client.clientapp import answer
from wardpose.client.contract import check_flower
from wardpose.client.journal import SiteJournal
from wardpose.client.launcher import run_site
from wardpose.client.supernode import REFUSED, SIGNED_OFF, checked_fab
from wardpose.server.operator import program
from wardpose.server.provision.certificates import create_authority, create_node_key, create_server_certificate
from wardpose.shared.errors import ConfigError
from wardpose.shared.home import LOOPBACK
from wardpose.shared.messages import PREFLIGHT
from wardpose.shared.refusals import Refusal
from wardpose.simulation.ports import free_ports

CLEAN = pack()
HOSTILE = pack(("evil.py", "raise SystemExit"), pyproject=clientapp('clientapp = "evil:app"'))
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and the parent's death signal")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wait_for(condition: Callable[[], bool], *, seconds: float = 30, what: str = "it") -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    ward = {"kind": "ward", "hospital": "north", "patients": 10, "frames_per_patient": 1, "seed": 0}
    content = {"site": "north", "cohort": {"name": "c", "declared_patients": 10, "data": ward}}
    path = tmp_path / "north" / "site.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(content))
    return path


def refused(site: Path) -> list[str]:
    orders = SiteJournal(site.parent / "state" / "journal.sqlite").orders()
    return [order.detail for order in orders if order.status == "refused"]


# What Flower must be like.


def test_the_installed_flower_is_what_a_site_stands_on() -> None:
    check_flower()


def _signature(client: object, message: object) -> None:
    """Stand in for a function that lost a parameter."""


@dataclasses.dataclass
class _Fab:
    hash_str: str
    content: bytes


@pytest.mark.parametrize(
    ("part", "name", "value", "text"),
    [
        (flower_supernode, "http_request_response", None, "http_request_response is missing"),
        (flower_clientapp, "push_message", _signature, "push_message has the parameters"),
        (flwr.supercore.fab, "Fab", _Fab, "Fab has the fields"),
        (flwr.common.constant.SubStatus, "COMPLETED", "done", "SubStatus.COMPLETED has the value done"),
        (flower_supernode, "_pull_and_store_message", _signature, "no longer does"),
        (
            importlib.import_module("flwr.supernode.cli.flower_supernode"),
            "_parse_args_run_supernode",
            argparse.ArgumentParser,
            "flower-supernode has no option --superlink",
        ),
    ],
)
def test_a_flower_that_has_changed_is_named(
    monkeypatch: pytest.MonkeyPatch, part: ModuleType | type, name: str, value: object, text: str
) -> None:
    if value is None:
        monkeypatch.delattr(part, name)
    else:
        monkeypatch.setattr(part, name, value)
    with pytest.raises(ConfigError) as error:
        check_flower()
    assert str(error.value).startswith(f"flwr {version('flwr')}: ")
    assert text in str(error.value)


# What comes to a site.


@pytest.mark.parametrize(
    "content",
    [
        HOSTILE,
        pack(("../../evil.py", "")),
        b"not a bundle",
        pack(pyproject=PYPROJECT + "[tool.flwr.app.config]\nx = [1]\n"),  # Flower's SuperNode would end at it
        pack(pyproject=PYPROJECT.replace("[project]", "[other]")),
    ],
)
def test_the_supernode_gets_an_empty_bundle_instead_of_a_refused_one(content: bytes) -> None:
    fab = checked_fab(Fab(digest(content), content, {REFUSED: ""}), digest(content))
    assert fab.hash_str == digest(fab.content) != digest(content)
    assert fab.verifications[REFUSED].startswith(f"bundle {digest(content)}")
    assert get_fused_config_from_fab(fab.content, Run.create_empty(1)) == {}


def test_the_supernode_passes_a_clean_bundle_on_without_anything_beside_it() -> None:
    fab = checked_fab(Fab(digest(CLEAN), CLEAN, {"valid_license": "x", REFUSED: "y"}), digest(CLEAN))
    assert fab == Fab(digest(CLEAN), CLEAN, {})


def asked(site: Path, fab: Fab, *, announced: str | None = None, kind: str = PREFLIGHT) -> Message:
    """Answer a message with nonsense in it, from a server that names another site.yaml."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 5, 1
    message = Message(RecordDict({"x": ConfigRecord({"y": 1})}), dst_node_id=7, message_type=kind)
    message.metadata.__dict__["_message_id"] = message.object_id
    TaskIdentity.node_id = 7
    run = Run.create_empty(5)
    run.fab_hash = fab.hash_str if announced is None else announced
    other = {"site-config": "/etc/passwd"}
    context = Context(run_id=5, node_id=7, node_config=other, state=RecordDict(), run_config=other)
    return answer(site, message, context, run, fab)


def test_a_clean_bundle_is_answered_by_the_installed_app(site: Path) -> None:
    """Its answer shows which one it was: none other knows that the order is nonsense."""
    reply = asked(site, Fab(digest(CLEAN), CLEAN, {}))
    assert (reply.error.code, reply.error.reason) == (Refusal.ORDER, Refusal.ORDER.sentence)
    assert refused(site) == []


@pytest.mark.parametrize(
    ("fab", "announced", "why"),
    [
        (Fab(digest(HOSTILE), HOSTILE, {}), None, "holds 'evil.py'"),
        (Fab(digest(CLEAN), HOSTILE, {}), digest(CLEAN), "holds 'evil.py'"),
        (Fab(digest(HOSTILE), CLEAN, {}), digest(HOSTILE), "was announced as"),
        (Fab(digest(CLEAN), CLEAN, {REFUSED: "bundle 12: the SuperNode says so"}), None, "the SuperNode says so"),
    ],
    ids=["hostile", "hostile under a clean hash", "clean under a hostile hash", "refused by the SuperNode"],
)
def test_another_bundle_is_refused_and_written_down(site: Path, fab: Fab, announced: str | None, why: str) -> None:
    before = [*sys.path]
    reply = asked(site, fab, announced=announced)
    assert (reply.error.code, reply.error.reason) == (Refusal.CODE, Refusal.CODE.sentence)
    (detail,) = refused(site)
    assert why in detail
    assert sys.path == before
    assert "evil" not in sys.modules


def test_a_refusal_does_not_wait_for_a_site_that_can_be_read(site: Path) -> None:
    site.write_text("nonsense: 1")
    assert asked(site, Fab(digest(HOSTILE), HOSTILE, {})).error.code == Refusal.CODE


@pytest.mark.parametrize("kind", ["evaluate.other", "query.secrets", "train.other"])
def test_what_the_app_does_not_know_fails_without_a_word(site: Path, kind: str) -> None:
    reply = asked(site, Fab(digest(CLEAN), CLEAN, {}), kind=kind)
    assert (reply.error.code, reply.error.reason) == (Refusal.FAILED, Refusal.FAILED.sentence)


def test_an_app_that_is_stopped_is_answered_for(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(message: Message, context: Context) -> Message:
        raise SystemExit(f"{context.node_config} {context.run_config}")

    monkeypatch.setattr(app, "app", stopped)
    reply = asked(site, Fab(digest(CLEAN), CLEAN, {}))
    assert (reply.error.code, reply.error.reason) == (Refusal.FAILED, Refusal.FAILED.sentence)


def test_the_app_hears_of_its_site_from_the_command_line_alone(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Context] = []
    monkeypatch.setattr(app, "app", lambda message, context: (heard.append(context), message)[1])
    asked(site, Fab(digest(CLEAN), CLEAN, {}))
    assert heard[0].node_config == {"site-config": str(site)}
    assert heard[0].run_config == {}


def test_no_process_of_a_site_uses_flowers_loader() -> None:
    folder = Path(inspect.getfile(check_bundle)).parent
    text = "".join(
        (folder / f"{name}.py").read_text() for name in ("clientapp", "executor", "launcher", "supernode", "zygote")
    )
    for name in ("install_from_fab", "load_app", "get_load_client_app_fn", "install_app_dependencies", "extractall"):
        assert name not in text
    assert APP == "wardpose.client.app:app"


# How the processes start and end.

DRIVER = """\
import subprocess, sys
from wardpose.shared.children import start_child
from wardpose.client.launcher import supervise

def start(script):
    return lambda: subprocess.Popen(["sh", "-c", script], text=True, process_group=0)
"""


class Driver:
    """A Python process that supervises shell scripts."""

    def __init__(self, folder: Path, script: str, **variables: str) -> None:
        self.said = folder / "said"
        self.said.touch()
        environment = {**os.environ, "SAID": str(self.said), **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER + textwrap.dedent(script)],
            env=environment,
            cwd=folder,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def lines(self) -> list[str]:
        return self.said.read_text().split()

    def ends(self) -> int:
        return self.process.wait(timeout=30)


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def make(script: str, **variables: str) -> Driver:
        drivers.append(Driver(tmp_path, script, **variables))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


def gone(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


ASLEEP = "echo $$ >> $SAID; exec sleep 100"


@linux
def test_the_site_ends_with_the_supernodes_status_and_takes_the_executor_along(drive: Callable[..., Driver]) -> None:
    driver = drive(f'sys.exit(supervise(start("sleep 1; exit 9"), start({ASLEEP!r})))')
    assert driver.ends() == 9
    (executor,) = driver.lines()
    assert gone(executor)


@linux
def test_a_port_that_another_site_has_is_said_before_anything_starts(site: Path) -> None:
    key, _ = create_node_key(site.parent)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: cannot be listened on .*Address already in use"):
            run_site(site, superlink="localhost:1", root_certificates=site, private_key=key, port=port)


def test_an_executor_that_dies_is_started_again(drive: Callable[..., Driver]) -> None:
    driver = drive(f"sys.exit(supervise(start({ASLEEP.replace('$$', 'node')!r}), start({ASLEEP!r})))")
    wait_for(lambda: len(driver.lines()) == 2)
    (executor,) = set(driver.lines()) - {"node"}
    os.kill(int(executor), signal.SIGKILL)
    wait_for(lambda: len(set(driver.lines()) - {"node", executor}) == 1)
    assert driver.lines().count("node") == 1


@linux
def test_a_supernode_that_signed_off_is_started_again(drive: Callable[..., Driver]) -> None:
    node = f"echo node >> $SAID; sleep 0.2; test $(grep -c node $SAID) = 2 && exit 4; exit {SIGNED_OFF}"
    driver = drive(f'sys.exit(supervise(start({node!r}), start("exec sleep 100")))')
    assert driver.ends() == 4
    assert driver.lines() == ["node", "node"]


@linux
@pytest.mark.parametrize(("sent", "heard"), [(signal.SIGTERM, "TERM"), (signal.SIGINT, "INT"), (signal.SIGHUP, "TERM")])
def test_signals_are_passed_on(drive: Callable[..., Driver], sent: signal.Signals, heard: str) -> None:
    traps = "".join(f"trap 'echo {name} >> $SAID; exit 6' {name}; " for name in ("TERM", "INT", "HUP"))
    script = f"{traps} echo up >> $SAID; while :; do sleep 0.05; done"
    driver = drive(f"sys.exit(supervise(start({script!r}), start({script!r})))")
    wait_for(lambda: driver.lines().count("up") == 2)
    driver.process.send_signal(sent)
    assert driver.ends() == 6
    assert driver.lines().count(heard) == 2


@linux
def test_a_child_ends_with_a_parent_that_is_killed(drive: Callable[..., Driver]) -> None:
    driver = drive("""
        child = start_child("http.server", "0", "--bind", "127.0.0.1")
        with open("said", "w") as file: file.write(str(child.pid))
        child.wait()
    """)
    wait_for(lambda: driver.lines() != [])
    (child,) = driver.lines()
    assert not gone(child)
    driver.process.kill()
    wait_for(lambda: gone(child), what="the child to end")


def test_a_child_takes_no_module_from_where_it_was_started(drive: Callable[..., Driver], tmp_path: Path) -> None:
    """Not even where an empty entry of PYTHONPATH stands for the working folder."""
    evil = tmp_path / "evil"
    (evil / "wardpose" / "client").mkdir(parents=True)
    for name in ("sitecustomize", "usercustomize", "wardpose/__init__", "wardpose/client/__init__", "typer"):
        (evil / f"{name}.py").write_text("import os\nprint('evil', file=open(os.environ['SAID'], 'a'))\n")
    driver = drive("""
        import os
        os.chdir("evil")
        os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH", "") + os.pathsep
        sys.exit(start_child("wardpose.client", "--help").wait())
    """)
    assert driver.ends() == 0
    assert driver.lines() == []


# All of it, against a SuperLink that is not Flower's.


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[HostileSuperlink]:
    create_authority(tmp_path, name="test", days=1)
    certificate, key = create_server_certificate(tmp_path, tmp_path, hosts=("localhost", LOOPBACK), days=1)
    with serve_superlink(certificate, key) as made:
        yield made


@pytest.fixture
def launched(tmp_path: Path, site: Path, superlink: HostileSuperlink) -> Iterator[subprocess.Popen[str]]:
    key, _ = create_node_key(tmp_path)
    (tmp_path / "temporary").mkdir()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(program("wardpose"), "site", "run", str(site), "--superlink", superlink.address),
                *("--root-certificates", str(tmp_path / "ca.crt"), "--auth-private-key", str(key)),
                *("--port", str(free_ports(1)[0])),
            ],
            env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            text=True,
        )
        yield process
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.guard
def test_whatever_a_superlink_sends_only_the_installed_app_answers(
    superlink: HostileSuperlink, launched: subprocess.Popen[str], site: Path, tmp_path: Path
) -> None:
    agent = pack(("agent.py", ""), pyproject=PYPROJECT + 'agentapp = "agent:app"')
    as_agent = {"primary_task_type": "flwr-agentapp"}
    orders = {
        "clean": (Order(bundle=CLEAN, announced=digest(CLEAN)), Refusal.ORDER),
        "changed": (Order(bundle=HOSTILE, announced=digest(CLEAN)), Refusal.CODE),
        "agent": (
            Order(bundle=agent, announced=digest(agent), run=as_agent),
            Refusal.CODE,
        ),
        "garbage": (Order(bundle=b"\0\1", announced="x"), Refusal.CODE),
        "settings": (
            Order(bundle=CLEAN, announced=digest(CLEAN), run={"override_config": {"site-config": "/etc/passwd"}}),
            Refusal.ORDER,
        ),
    }
    for name, (order, code) in orders.items():
        reply = superlink.send(order)
        assert reply.has_error(), name
        assert (reply.error.code, reply.error.reason) == (code, code.sentence), name
    assert len(refused(site)) == 3
    assert superlink.runtimes == [0.0] * len(orders)
    assert superlink.activations == 1

    superlink.fail()
    wait_for(lambda: superlink.activations == 2, seconds=60, what="the SuperNode to come back")
    assert superlink.send(orders["clean"][0]).error.code == Refusal.ORDER
    assert launched.poll() is None
    assert not list((tmp_path / "temporary").rglob("*.py"))
    launched.terminate()
    assert launched.wait(timeout=60) == 0
    assert list((tmp_path / "temporary").iterdir()) == []
