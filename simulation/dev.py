"""A deployment on one machine: real SuperLink, SuperNodes and SuperExecs on loopback, with TLS and node keys.

It differs from a hospital's deployment in two things only: everything is on 127.0.0.1, and the patients are simulated.
The folder holds `federation.yaml`, `authority/`, `superlink/`, `operator/` (Flower's connection settings), `app/` (the
bundle without code), `coordinator.yaml`, `coordinator/` (the ledger), `server/` (the run directory), `sites/NAME/`,
`logs/` and `processes.json`.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wardpose.server.bundle import run_config, write_bundle
from wardpose.server.journal import RoundRow, RunJournal
from wardpose.server.provision.certificates import (
    create_authority,
    create_node_key,
    create_secret,
    create_server_certificate,
)
from wardpose.server.superlink import registered_nodes, run_ended
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_text
from wardpose.simulation.flower import (
    LOOPBACK,
    ask,
    environment,
    free_ports,
    healthy,
    program,
    write_connection,
)
from wardpose.simulation.processes import ProcessError, Processes

if TYPE_CHECKING:
    from wardpose.shared.config import FederationConfig

_CONNECTION = "dev"
_DAYS = 30
_START_SECONDS = 180.0
_RESTART_SECONDS = 5  # Flower's processes end at the first answer 500, which a busy SuperLink gives now and then
_SUPERLINK, _SUPERLINK_EXEC = "superlink", "superlink-exec"
_NODE, _EXEC = "node-", "exec-"

Report = Callable[[str], None]


class Deployment:
    """One federation's processes on this machine.

    Attributes:
        folder: where everything about it is.
        processes: what was started. Roles are `superlink`, `superlink-exec`, and `node-SITE` and `exec-SITE`.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.processes = Processes(self.folder / "processes.json", self.folder / "logs")
        self._certificate = self.folder / "authority" / "ca.crt"
        self._operator = self.folder / "operator"
        self._submitted = 0.0

    @property
    def database(self) -> Path:
        """The SuperLink's SQLite database."""
        return self.folder / "superlink" / "state.sqlite"

    @property
    def run_directory(self) -> Path:
        """The run's folder: journal, checkpoint, model."""
        return self.folder / "server"

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
            self._start_sites(sites, self._start_server(report), report)
        except BaseException:
            self.down()
            raise

    def run(self, *, resume: bool = False, report: Report = lambda line: None) -> dict[str, Any]:
        """Run the federation once with `flwr run`, wait for its end and return its summary.

        Raises:
            ConfigError: nothing is up.
            ProcessError: Flower does not list the run as `finished:completed`, or a server process ended.

        """
        from wardpose.server.summary import summarise

        run_id = self.submit(resume=resume)
        report(f"run {run_id}")
        status = self.wait_for_end(run_id, report=report)
        if status != "finished:completed":
            raise ProcessError(f"run {run_id}: {status}\n{self.processes.tail(_SUPERLINK_EXEC)}")
        return {**summarise(self.run_directory), "flower": {"run": run_id, "status": status}}

    def submit(self, *, resume: bool = False) -> int:
        """Hand the federation to the SuperLink with `flwr run` and return Flower's number of the run.

        Raises:
            ConfigError: nothing is up.
            ProcessError: Flower refused it.

        """
        if _SUPERLINK not in self._alive_roles():
            raise ConfigError(f"{self.folder}: is not up (allowed: wardpose dev up first)")
        settings = self.folder / "run-config.toml"
        write_text(settings, run_config(self.folder / "federation.yaml", self.run_directory, resume=resume))
        bundle = write_bundle(self.folder / "app")
        self._submitted = time.time()
        return int(self._ask("run", str(bundle), _CONNECTION, "--run-config", str(settings))["run-id"])

    def wait_for_end(self, run_id: int, *, report: Report = lambda line: None) -> str:
        """Wait for the end of a run, report its rounds, and return its status as Flower lists it.

        Raises:
            ProcessError: a server process ended.

        """
        journal = RunJournal(self.run_directory / "journal.sqlite")
        shown: set[tuple[str, int]] = set()
        while True:
            ended = run_ended(self.database, run_id)
            for row in _latest_rounds(journal, after=self._submitted):
                if (row.run, row.round) not in shown:
                    report(_describe(row))
                    shown.add((row.run, row.round))
            if ended:
                return str(self._ask("list", _CONNECTION, "--run-id", str(run_id))["runs"][0]["status"])
            for role in {_SUPERLINK, _SUPERLINK_EXEC} - self._alive_roles():
                raise ProcessError(f"{role} ended\n{self.processes.tail(role)}")
            time.sleep(0.5)

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

    def _start_server(self, report: Report) -> str:
        """Start the SuperLink and its SuperExec; return the SuperLink's address."""
        from wardpose.server.coordinator import VARIABLE

        address = f"{LOOPBACK}:{free_ports(1)[0]}"
        home = self.folder / "superlink"
        secret = ["--superexec-auth-secret-file", str(home / "superexec.secret")]
        write_connection(self._operator, name=_CONNECTION, address=address, authority=self._certificate)
        for file in home.glob(f"{self.database.name}*"):
            file.unlink()  # nodes that a crash left "online" in it would be locked out for a minute
        self._launch(
            _SUPERLINK,
            home,
            "flower-superlink",
            *("--ssl-ca-certfile", str(self._certificate)),
            *("--ssl-certfile", str(home / "server.crt"), "--ssl-keyfile", str(home / "server.key")),
            *("--host", LOOPBACK, "--port", address.rpartition(":")[2]),
            *("--database", str(self.database), "--enable-supernode-auth", "--isolation", "process", *secret),
            "--disable-runtime-dependency-installation",
            restart=False,
        )
        self._wait(lambda: healthy(address, self._certificate), f"the SuperLink to answer on {address}")
        self._launch(
            _SUPERLINK_EXEC,
            home,
            "flower-superexec",
            *("--runtime-api-address", address, "--root-certificates", str(self._certificate), *secret),
            variables={VARIABLE: str(self.coordinator)},
        )
        report(f"SuperLink on {address}")
        return address

    def _start_sites(self, sites: Mapping[str, Path], address: str, report: Report) -> None:
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(self._register, sites))
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
        authority, home = self._certificate.parent, self.folder / "superlink"
        if not self._certificate.exists():
            create_authority(authority, name="wardpose dev", days=_DAYS)
        create_server_certificate(authority, home, hosts=("localhost", LOOPBACK), days=_DAYS)
        create_secret(home / "superexec.secret")
        for config in sites.values():
            if not (config.parent / "node.pub").exists():
                create_node_key(config.parent)
            create_secret(config.parent / "superexec.secret")

    def _launch(
        self,
        role: str,
        folder: Path,
        name: str,
        *arguments: str,
        restart: bool = True,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.processes.start(
            role,
            [program(name), *arguments],
            environment={**environment(folder / "flwr"), **(variables or {})},
            folder=folder,
            restart_seconds=_RESTART_SECONDS if restart else None,
        )

    def _ask(self, *arguments: str) -> dict[str, Any]:
        return ask(self._operator, *arguments)

    def _register(self, site: str) -> None:
        key = self.site_config(site).parent / "node.pub"
        self._ask("supernode", "register", str(key), _CONNECTION, "--name", site)

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


def _latest_rounds(journal: RunJournal, *, after: float) -> list[RoundRow]:
    """Return the rounds of the journal's latest run that started after a moment."""
    runs = journal.runs()
    rounds = journal.rounds(runs[-1]["run"]) if runs else []
    return [row for row in rounds if row.started > after]


def _describe(row: RoundRow) -> str:
    score = "-" if row.score is None else f"{row.score:.3f}"
    return f"round {row.round}: score {score}, {row.bytes_up / 1e6:.1f} MB up, {row.seconds:.1f} s"
