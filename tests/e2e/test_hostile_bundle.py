"""Bundles that bring or name other code, sent by a real SuperLink to real SuperNodes with TLS and node keys.

Three hospitals are online: one under `wardpose dev up`, one under `wardpose site run`, and one, kept as the
demonstration of what is prevented, under Flower's own `flower-supernode` and `flower-superexec`.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from support.bundles import pack

from wardpose.client.journal import SiteJournal
from wardpose.server.journal import RunJournal
from wardpose.server.operator import ask, environment, program
from wardpose.server.provision.certificates import create_secret
from wardpose.shared.config import FederationConfig
from wardpose.shared.home import LOOPBACK
from wardpose.shared.refusals import Refusal
from wardpose.shared.signing import ensure_key_pair
from wardpose.shared.site_config import load_site
from wardpose.simulation.dev import Deployment
from wardpose.simulation.layout import prepare_sites
from wardpose.simulation.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.guard, pytest.mark.timeout(900)]

DEV, LAUNCHED, STOCK = "north", "west", "stock"
PROCESSES = 4  # of a site: launcher, node, executor, and the process that those who answer are forked from
SITES = (DEV, LAUNCHED, STOCK)
RECORD = "patient 4711, admitted for a fall"
REFUSED = {"code": int(Refusal.CODE), "reason": Refusal.CODE.sentence}
LOOT = {"text": RECORD}

# Importable everywhere, as any package would be that a hospital happens to have installed.
INSTALLED = """\
import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server, client = ServerApp(), ClientApp()


@client.query()
def read(message, context):
    text = Path(str(message.content["ask"]["path"])).read_text()
    return Message(RecordDict({"loot": ConfigRecord({"text": text})}), reply_to=message)


@server.main()
def main(grid, context):
    settings = context.run_config
    nodes = {node.node_id: node.name for node in grid.get_nodes() if node.name in settings["sites"].split(",")}
    ask = RecordDict({"ask": ConfigRecord({"path": settings["path"]})})
    messages = [Message(ask, dst_node_id=node, message_type="query") for node in nodes]
    grid.push_messages(messages)
    names = {message.metadata.message_id: nodes[message.metadata.dst_node_id] for message in messages}
    answers = {}
    until = time.time() + 240
    while len(answers) < len(names) and time.time() < until:
        for reply in grid.pull_messages(set(names) - set(answers)):
            if reply.has_error():
                answer = {"code": reply.error.code, "reason": reply.error.reason}
            else:
                answer = {"text": reply.content["loot"]["text"]}
            answers[reply.metadata.reply_to_message_id] = answer
        time.sleep(0.2)
    Path(settings["out"]).write_text(json.dumps({names[key]: value for key, value in answers.items()}))
"""
BUNDLE = """\
[project]
name = "wardpose"
version = "0.1.0"
[tool.flwr.app]
publisher = "wardpose"
[tool.flwr.app.components]
serverapp = "hostile_installed:server"
clientapp = "{app}"
[tool.flwr.app.config]
sites = ""
path = ""
out = ""
"""
EVIL = "from hostile_installed import client as app\n"


@dataclass(frozen=True)
class Attack:
    """A bundle, and what Flower's own start commands answer to it."""

    app: str
    files: dict[str, str]
    stock: dict[str, object] | None
    named: str  # what the site's journal says of it


ATTACKS = {
    "own-module": Attack("evil.loot:app", {"evil/__init__.py": "", "evil/loot.py": EVIL}, LOOT, "'evil/__init__.py'"),
    "installed-module": Attack("hostile_installed:client", {}, LOOT, "'hostile_installed:client'"),
    "shadow": Attack(
        "wardpose.client.app:app",
        {"wardpose/__init__.py": "", "wardpose/client/__init__.py": "", "wardpose/client/app.py": EVIL},
        LOOT,
        "'wardpose/__init__.py'",
    ),
    "start-up-files": Attack(
        "wardpose.client.app:app",
        {"sitecustomize.py": EVIL, "usercustomize.py": EVIL, "evil.pth": "import hostile_installed"},
        None,  # runs the installed app, which knows no such message
        "'sitecustomize.py'",
    ),
    "bomb": Attack("wardpose.client.app:app", {"README.md": "0" * (1 << 26)}, None, "67108864 bytes unpacked"),
    "markup": Attack("[red]x[/red]\x1b[2J:app", {}, None, "'[red]x[/red]\\x1b[2J:app'"),
}


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def federation() -> FederationConfig:
    """As little training as there can be, on rendered frames."""
    ward = {"kind": "ward", "hospital": "north", "patients": 4, "frames_per_patient": 1}
    return FederationConfig.model_validate(
        {
            "rounds": 1,
            "sites": [{"name": name, "data": ward} for name in (DEV, LAUNCHED)],
            "data": {"validation": [{**ward, "hospital": "south", "patients": 2}]},
            "model": {"input_size": [64, 64], "weights": "random"},
            "privacy": {"delta": 1e-2},
            "training": {"strategy": "head"},
        }
    )


class Hospitals:
    """A deployment with three sites, and what a coordinator can do to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.deployment = Deployment(folder / "deployment")
        self.processes = self.deployment.processes
        self.record = folder / "record.txt"
        self.record.write_text(RECORD)
        self._authority = self.deployment.folder / "authority" / "ca.crt"

    @property
    def address(self) -> str:
        settings = (self.deployment.folder / "operator" / "config.toml").read_text()
        return settings.partition('address = "')[2].partition('"')[0]

    def up(self, federation: FederationConfig) -> None:
        prepare_sites(federation, self.deployment.folder, coordinator=self.deployment.ledger.parent)
        first = FederationConfig.model_validate(
            {**federation.model_dump(), "sites": federation.model_dump()["sites"][:1]}
        )
        self.deployment.up(first)
        for site in (LAUNCHED, STOCK):
            folder = self.deployment.site_config(site).parent
            public = folder / "node.pub"
            ensure_key_pair(folder / "node.key", public)
            operator = self.deployment.folder / "operator"
            ask(operator, "supernode", "register", str(public), "dev", "--name", site)
        self.launch()
        self._stock()
        wait_for(lambda: self.online() == set(SITES), seconds=120, what="three sites to come online")

    def online(self) -> set[str]:
        return {name for name, online in self.deployment.status()["sites"].items() if online}

    def launch(self) -> None:
        config = self.deployment.site_config(LAUNCHED)
        command = [
            *(program("wardpose"), "site", "run", str(config), "--superlink", self.address),
            *("--root-certificates", str(self._authority), "--auth-private-key", str(config.parent / "node.key")),
            *("--port", str(free_ports(1)[0])),
        ]
        self.processes.start(LAUNCHED, command, environment=environment(config.parent / "flwr"), folder=config.parent)

    def _stock(self) -> None:
        folder = self.deployment.site_config(STOCK).parent
        port = free_ports(1)[0]
        secret = ["--superexec-auth-secret-file", str(create_secret(folder / "superexec.secret"))]
        node = [
            *(program("flower-supernode"), "--superlink", self.address, "--root-certificates", str(self._authority)),
            *("--auth-supernode-private-key", str(folder / "node.key"), "--isolation", "process", *secret),
            *("--host", LOOPBACK, "--port", str(port)),
        ]
        executor = [program("flower-superexec"), "--insecure", "--runtime-api-address", f"{LOOPBACK}:{port}", *secret]
        for role, command in (("stock-node", node), ("stock-exec", executor)):
            self.processes.start(role, command, environment=environment(folder / "flwr"), folder=folder)

    def attack(self, name: str, sites: tuple[str, ...]) -> Callable[[], dict[str, object]]:
        """Start a run with a bundle; what comes out waits for its end and returns what each site answered."""
        attack = ATTACKS[name]
        out = self.folder / f"{name}.json"
        bundle = pack(*attack.files.items(), pyproject=BUNDLE.format(app=json.dumps(attack.app)[1:-1]))
        settings = {"sites": ",".join(sites), "path": str(self.record), "out": str(out)}
        interceptors = [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
        with ControlHttpClient.from_server_address(
            self.address, False, self._authority.read_bytes(), interceptors=interceptors
        ) as control:
            started = control.StartRun(
                StartRunRequest(
                    fab=fab_to_proto(Fab("", bundle, {})), override_config=user_config_to_proto(settings), federation=""
                )
            )
        assert started.HasField("run_id")

        def answers() -> dict[str, object]:
            wait_for(out.exists, seconds=300, what=f"the end of {name}")
            content: dict[str, object] = json.loads(out.read_text())
            return content

        return answers

    def refusals(self, site: str) -> list[str]:
        state = load_site(self.deployment.site_config(site)).state
        return [order.detail for order in SiteJournal(state / "journal.sqlite").orders() if order.status == "refused"]

    def descendants(self, role: str) -> dict[int, str]:
        """Return number and command line of what is alive of a role."""
        alive = {process.pid for process in self.processes.alive() if process.role == role}
        found = {}
        for pid in alive:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory, federation: FederationConfig) -> Iterator[Hospitals]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "installed").mkdir()
    (folder / "installed" / "hostile_installed.py").write_text(INSTALLED)
    made = Hospitals(folder)
    with pytest.MonkeyPatch.context() as patch:
        path = [str(folder / "installed"), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        try:
            made.up(federation)
            yield made
        finally:
            made.processes.stop(LAUNCHED, "stock-node", "stock-exec")
            made.deployment.down()
            assert made.processes.alive() == []


def test_no_bundle_brings_code(hospitals: Hospitals) -> None:
    """All at once: each site meets the runs interleaved."""
    started = {
        name: hospitals.attack(name, SITES if attack.stock else (DEV, LAUNCHED)) for name, attack in ATTACKS.items()
    }
    for name, answers in started.items():
        attack = ATTACKS[name]
        expected = {DEV: REFUSED, LAUNCHED: REFUSED, **({STOCK: attack.stock} if attack.stock else {})}
        assert answers() == expected, name
    for site in (DEV, LAUNCHED):
        told = hospitals.refusals(site)
        assert len(told) == len(ATTACKS)
        for attack in ATTACKS.values():
            assert sum(attack.named in line for line in told) == 1, (attack, told)
        log = hospitals.processes.log(f"exec-{site}" if site == DEV else site).read_text()
        assert all(line in log for line in told)
        assert RECORD not in log
    home = hospitals.deployment.folder / "sites" / DEV
    assert not list(home.rglob("apps/*")), "a bundle was unpacked"


def test_the_bundle_without_code_trains_a_round(hospitals: Hospitals, federation: FederationConfig) -> None:
    hospitals.deployment.folder.joinpath("federation.yaml").write_text(json.dumps(federation.model_dump(mode="json")))
    _, summary = hospitals.deployment.run()
    assert summary["status"] == "completed"
    assert {site["name"]: site["rounds_released"] for site in summary["sites"]} == {DEV: 1, LAUNCHED: 1}
    journal = RunJournal(hospitals.deployment.run_directory / "journal.sqlite")
    assert len(journal.rounds(journal.runs()[-1]["run"])) == 1


def test_a_dead_executor_is_started_again_and_answers(hospitals: Hospitals) -> None:
    def executors() -> set[int]:
        return {pid for pid, line in hospitals.descendants(LAUNCHED).items() if "wardpose.client exec" in line}

    (before,) = executors()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: executors() not in ({before}, set()), seconds=60, what="another executor")
    hospitals.folder.joinpath("own-module.json").unlink(missing_ok=True)
    assert hospitals.attack("own-module", (LAUNCHED,))() == {LAUNCHED: REFUSED}


def test_signals_reach_the_supernode_and_nothing_outlives_the_launcher(hospitals: Hospitals) -> None:
    (launcher,) = [pid for pid, line in hospitals.descendants(LAUNCHED).items() if "site run" in line]
    wait_for(
        lambda: len(hospitals.descendants(LAUNCHED)) == PROCESSES, seconds=30, what="the last message's process to end"
    )
    os.kill(launcher, signal.SIGTERM)
    wait_for(lambda: not hospitals.descendants(LAUNCHED), seconds=40, what="everything to end")
    wait_for(lambda: LAUNCHED not in hospitals.online(), seconds=10, what="the node to sign off")

    hospitals.launch()
    wait_for(
        lambda: len(hospitals.descendants(LAUNCHED)) == PROCESSES and LAUNCHED in hospitals.online(),
        seconds=90,
        what="it",
    )
    (launcher,) = [pid for pid, line in hospitals.descendants(LAUNCHED).items() if "site run" in line]
    os.kill(launcher, signal.SIGKILL)
    wait_for(lambda: not hospitals.descendants(LAUNCHED), seconds=40, what="everything to end with its parent")
