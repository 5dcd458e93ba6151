"""The server's home: the one folder that a coordinator's archive is installed in.

It is found by `--home`, by `WARDPOSE_SERVER_HOME`, or as the working directory. Everything of a coordinator's machine
lies below it, so that it may be anywhere, belong to anybody, and be backed up as a whole.
"""

from pathlib import Path

from wardpose.shared.deployment import Host, ServerPorts, at
from wardpose.shared.home import LOOPBACK, Home, find_home
from wardpose.shared.yaml_config import Name, Strict, load_yaml

VARIABLE = "WARDPOSE_SERVER_HOME"
COORDINATOR = "WARDPOSE_COORDINATOR"
"""Names the coordinator.yaml to the server's processes; here, so that those without torch need not import it."""

FILE = "server.yaml"


class ServerSettings(Strict):
    """server.yaml: who the server is, and where it listens.

    Attributes:
        name: of the federation.
        address: at which hospitals reach it.
        ports: of its machine.

    """

    name: Name
    address: Host
    ports: ServerPorts = ServerPorts()


class ServerHome(Home[ServerSettings]):
    """Places and addresses of a server."""

    @property
    def plan(self) -> Path:
        """The plan that is submitted where none is given."""
        return self.folder / "federation.yaml"

    @property
    def coordinator(self) -> Path:
        """coordinator.yaml, which `WARDPOSE_COORDINATOR` names to the server's processes."""
        return self.folder / "coordinator.yaml"

    @property
    def state(self) -> Path:
        """Folder of the coordinator's ledger, its key, heads and alarms."""
        return self.folder / "coordinator"

    @property
    def ledger(self) -> Path:
        """The coordinator's ledger."""
        return self.state / "ledger.sqlite"

    @property
    def certificate(self) -> Path:
        """The server's certificate, for its address and loopback."""
        return self.keys / "server.crt"

    @property
    def key(self) -> Path:
        """The certificate's private key."""
        return self.keys / "server.key"

    @property
    def operator(self) -> Path:
        """Flower's home of the operator (`FLWR_HOME`), whose default connection is this server's SuperLink."""
        return self.folder / "operator"

    @property
    def variables(self) -> dict[str, str]:
        """What the server's processes find in their environment: the coordinator's configuration, Flower's own files.

        Flower would keep the apps that it unpacks in the home folder of a user who, under systemd and in a container,
        has none.
        """
        return {COORDINATOR: str(self.coordinator), "FLWR_HOME": str(self.folder / "superlink" / "flwr")}

    @property
    def nodes(self) -> Path:
        """Folder of the sites' public node keys, NAME.pub each."""
        return self.folder / "nodes"

    @property
    def database(self) -> Path:
        """The SuperLink's SQLite file."""
        return self.folder / "superlink" / "state.sqlite"

    @property
    def runs(self) -> Path:
        """Folder of runs, one folder each."""
        return self.folder / "runs"

    @property
    def superlink(self) -> str:
        """Address of the SuperLink itself, which only this machine reaches."""
        return at(LOOPBACK, self.settings.ports.superlink)

    @property
    def budget_service(self) -> str:
        """Address of the Budget service itself, likewise; its door passes connections on as they are."""
        return at(LOOPBACK, self.settings.ports.budget_service)


def open_server_home(folder: Path | None = None) -> ServerHome:
    """Open a server's home.

    Args:
        folder: what `--home` says; the environment's, else the working directory, when absent.

    Raises:
        ConfigError: it is none, or its server.yaml is wrong.

    """
    home = find_home(folder, variable=VARIABLE, file=FILE)
    return ServerHome(home, load_yaml(home / FILE, ServerSettings))
