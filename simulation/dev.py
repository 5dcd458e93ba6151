"""A deployment on one machine: real SuperLink, SuperNodes and their executors on loopback, with TLS and node keys.

It differs from a hospital's deployment in two things only: everything is on 127.0.0.1, and the patients are simulated.
The folder is a server's home (`server.home`), so that every `wardpose server` command works on it with `--home`; beside
what a home holds there are `authority/`, `sites/NAME/`, `logs/` and `processes.json`.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wardpose.server.home import FILE, ServerHome, open_server_home
from wardpose.server.link_state import run_state
from wardpose.server.nodes import register
from wardpose.server.operator import environment, program, write_connection
from wardpose.server.outcome import Outcome, finished
from wardpose.server.provision.certificates import (
    create_authority,
    create_node_key,
    create_secret,
    create_server_certificate,
)
from wardpose.server.runs import Run, find_run
from wardpose.server.superlink import registered_nodes
from wardpose.shared.deployment import ServerPorts
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_text
from wardpose.shared.health import healthy
from wardpose.shared.home import LOOPBACK
from wardpose.simulation.ports import free_ports
from wardpose.simulation.processes import ProcessError, Processes

if TYPE_CHECKING:
    from wardpose.shared.config import FederationConfig

_CONNECTION = "dev"
_DAYS = 30
_START_SECONDS = 180.0
_RESTART_SECONDS = 5
_SUPERLINK, _SUPERLINK_EXEC = "superlink", "superlink-exec"
_NODE, _EXEC = "node-", "exec-"

Report = Callable[[str], None]


class Deployment:
    """One federation's processes on this machine.

    Args:
        folder: where everything about it is.
        variables: of the processes' environment, beside what they inherit.

    Attributes:
        folder: where everything about it is.
        processes: what was started. Roles are `superlink`, `superlink-exec`, and `node-SITE` and `exec-SITE`.

    """

    def __init__(self, folder: Path, *, variables: Mapping[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self._variables = dict(variables or {})
        self.processes = Processes(self.folder / "processes.json", self.folder / "logs")
        self._certificate = self.folder / "authority" / "ca.crt"

    @property
    def home(self) -> ServerHome:
        """The server's home.

        Raises:
            ConfigError: `up` never made it.

        """
        return open_server_home(self.folder)

    @property
    def database(self) -> Path:
        """The SuperLink's SQLite database."""
        return self.folder / "superlink" / "state.sqlite"

    @property
    def run_directory(self) -> Path:
        """Folder of the latest run: journal, checkpoint, model.

        Raises:
            ConfigError: there is none.

        """
        return find_run(self.folder / "runs").folder

    @property
    def ledger(self) -> Path:
        """The coordinator's ledger, beside which are the heads of the sites' ones."""
        return self.folder / "coordinator" / "ledger.sqlite"

    @property
    def coordinator(self) -> Path:
        """The coordinator's configuration, which its processes are started with."""
        return self.folder / "coordinator.yaml"

    def site_config(self, site: str) -> Path:
        """Return the site.yaml of a hospital."""
        return self.folder / "sites" / site / "site.yaml"

    def up(self, config: "FederationConfig", *, report: Report = lambda line: None) -> None:
        """Start everything and wait until all sites are online; on failure nothing stays running.

        Keys, ledgers and site files that an earlier start left in the folder are used again.

        Raises:
            ConfigError: the folder's federation is up already.
            ProcessError: a process ended, or was not ready in time.

        """
        from wardpose.shared.yaml_config import to_yaml  # torch comes with it, which status and down do without
        from wardpose.simulation.layout import prepare_sites

        if self.processes.alive():
            raise ConfigError(f"{self.folder}: is up already (allowed: wardpose dev down first)")
        self.processes.forget()
        sites = prepare_sites(config, self.folder, coordinator=self.ledger.parent)
        write_text(self.folder / "federation.yaml", to_yaml(config))
        if not self.coordinator.exists():
            write_text(self.coordinator, "state: coordinator\n")
        self._write_keys(sites)
        try:
            self._start_sites(sites, self._start_server(config, report), report)
        except BaseException:
            self.down()
            raise

    def run(
        self, *, resume: bool = False, spend_rest: bool = False, report: Report = lambda line: None
    ) -> tuple[Outcome, dict[str, Any]]:
        """Run the federation once, or go on with the latest run, and wait for its end.

        Returns:
            What became of it, and its summary; empty for a run that never began.

        Raises:
            BudgetExceeded: it would cross a limit, or train on noise.
            ConfigError: nothing is up, or Flower refused it.
            ProcessError: a server process ended.

        """
        from wardpose.server.summary import summarise

        if resume:
            run = find_run(self.home.runs)
            done = finished(run, self.database)
            if done is not None:
                return done, summarise(run.folder)
        from wardpose.server.submission import wait_for_end  # torch comes with it

        started = time.time()
        run = self.submit(resume=resume, spend_rest=spend_rest)
        report(f"run {run.name}")
        found = wait_for_end(self.home, run, after=started, report=report, watch=self._see_server)
        summary = summarise(run.folder) if run.journal.runs() else {}
        return found, summary | {"flower": self._flower(run)} if summary else {}

    def submit(self, *, resume: bool = False, spend_rest: bool = False) -> Run:
        """Hand the federation, or the latest run, to the SuperLink.

        Raises:
            BudgetExceeded: it would cross a limit, or train on noise.
            ConfigError: nothing is up, or Flower refused it.

        """
        if _SUPERLINK not in self._alive_roles():
            raise ConfigError(f"{self.folder}: is not up (allowed: wardpose dev up first)")
        from wardpose.server.submission import hand_over, submit_new

        home = self.home
        if resume:
            run = find_run(home.runs)
            hand_over(home, run, resume=True)
            return run
        run, _ = submit_new(home, home.plan, preflight="", spend_rest=spend_rest)
        return run

    def wait_for_end(self, run: Run, *, report: Report = lambda line: None) -> Outcome:
        """Wait for the end of a run and report its rounds.

        Raises:
            ProcessError: a server process ended.

        """
        from wardpose.server.submission import wait_for_end

        return wait_for_end(self.home, run, after=0.0, report=report, watch=self._see_server)

    def status(self) -> dict[str, Any]:
        """Return what is running and which sites are online."""
        alive = self._alive_roles()
        nodes = registered_nodes(self.database) if self.database.exists() else []
        return {
            "folder": str(self.folder),
            "up": _SUPERLINK in alive,
            "processes": {role: role in alive for role in self.processes.roles()},
            "sites": {node.name: node.online and _SUPERLINK in alive for node in nodes},
        }

    def down(self) -> list[str]:
        """Stop what `up` started, SuperNodes first and the SuperLink last; return the roles that were still alive."""
        alive = self._alive_roles()
        nodes = {role for role in alive if role.startswith(_NODE)}
        last = alive & {_SUPERLINK}
        for roles in (nodes, alive - nodes - last, last):
            self.processes.stop(*roles)
        self.processes.forget()
        return sorted(alive)

    def _start_server(self, config: "FederationConfig", report: Report) -> str:
        """Start the SuperLink and the executor of runs; return the SuperLink's address."""
        self._write_home(config)
        home = self.home
        write_connection(home.operator, name=_CONNECTION, address=home.superlink, authority=home.authority)
        for file in self.database.parent.glob(f"{self.database.name}*"):
            file.unlink()  # nodes that a crash left "online" in it would be locked out for a minute
        place = self.folder / "superlink"
        self._launch(_SUPERLINK, place, "wardpose", "server", "superlink", "--home", str(self.folder))
        self._wait(lambda: healthy(home.superlink, home.authority), f"the SuperLink to answer on {home.superlink}")
        self._launch(_SUPERLINK_EXEC, place, "wardpose", "server", "exec", "--home", str(self.folder))
        report(f"SuperLink on {home.superlink}")
        return home.superlink

    def _write_home(self, config: "FederationConfig") -> None:
        ports = dict(zip(ServerPorts.model_fields, free_ports(len(ServerPorts.model_fields)), strict=True))
        settings = {"name": config.name, "address": "localhost", "ports": ports}
        write_text(self.folder / FILE, yaml.safe_dump(settings, sort_keys=False))

    def _start_sites(self, sites: Mapping[str, Path], address: str, report: Report) -> None:
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(lambda site: register(self.home, [site]), sites))
        for (site, config), port in zip(sites.items(), free_ports(len(sites)), strict=True):
            folder = config.parent
            secret = ["--secret-file", str(folder / "superexec.secret")]
            self._launch(
                f"{_NODE}{site}",
                folder,
                "wardpose",
                *("site", "node", "--superlink", address, "--root-certificates", str(self._certificate)),
                *("--auth-private-key", str(folder / "node.key"), "--port", str(port), *secret),
            )
            self._launch(
                f"{_EXEC}{site}",
                folder,
                "wardpose",
                *("site", "exec", str(config), "--runtime-api-address", f"{LOOPBACK}:{port}", *secret),
            )
        self._wait(lambda: self._online() >= set(sites), f"the sites {', '.join(sites)} to come online")
        report(f"online: {', '.join(sites)}")

    def _write_keys(self, sites: Mapping[str, Path]) -> None:
        authority, keys = self._certificate.parent, self.folder / "keys"
        if not self._certificate.exists():
            create_authority(authority, name="wardpose dev", days=_DAYS)
        create_server_certificate(authority, keys, hosts=("localhost", LOOPBACK), days=_DAYS)
        shutil.copyfile(self._certificate, keys / "ca.crt")
        create_secret(keys / "superexec.secret")
        nodes = self.folder / "nodes"
        nodes.mkdir(exist_ok=True)
        for site, config in sites.items():
            if not (config.parent / "node.pub").exists():
                create_node_key(config.parent)
            create_secret(config.parent / "superexec.secret")
            shutil.copyfile(config.parent / "node.pub", nodes / f"{site}.pub")

    def _launch(self, role: str, folder: Path, name: str, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.processes.start(
            role,
            [program(name), *arguments],
            environment=environment(folder / "flwr") | self._variables,
            folder=folder,
            restart_seconds=_RESTART_SECONDS,
        )

    def _flower(self, run: Run) -> dict[str, Any]:
        number = run.flower_runs[-1]
        state = run_state(self.database, number)
        return {"run": number, "status": "unknown" if state is None else f"finished:{state.outcome}"}

    def _see_server(self) -> None:
        """See that the server's processes are there.

        Raises:
            ProcessError: one ended.

        """
        for role in {_SUPERLINK, _SUPERLINK_EXEC} - self._alive_roles():
            raise ProcessError(f"{role} ended\n{self.processes.tail(role)}")

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _START_SECONDS
        while not ready():
            for role in self.processes.dead():
                raise ProcessError(f"{role} ended while waiting for {what}\n{self.processes.tail(role)}")
            if time.monotonic() > until:
                last = self.processes.tail(self.processes.roles()[-1])
                raise ProcessError(f"waited {_START_SECONDS:.0f} s for {what}; see {self.processes.logs}\n{last}")
            time.sleep(0.2)

    def _online(self) -> set[str]:
        return {node.name for node in registered_nodes(self.database) if node.online}

    def _alive_roles(self) -> set[str]:
        return {process.role for process in self.processes.alive()}


def open_deployment(folder: Path) -> Deployment:
    """Open a folder that `up` made.

    Raises:
        ConfigError: it is not one.

    """
    if not (folder / "federation.yaml").exists():
        raise ConfigError(f"{folder}: holds no deployment (allowed: a folder made by wardpose dev up)")
    return Deployment(folder)
