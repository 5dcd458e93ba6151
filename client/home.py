"""A site's home: the one folder that a hospital's archive is installed in.

It is found by `--home`, by `WARDPOSE_SITE_HOME`, or as the working directory. Everything of a site but its frames lies
below it, so that it may be anywhere, belong to anybody, and be backed up as a whole.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from wardpose.shared.deployment import Host, Port, SitePorts, at
from wardpose.shared.home import LOOPBACK, Home, find_home
from wardpose.shared.yaml_config import Name, Strict, load_yaml

VARIABLE = "WARDPOSE_SITE_HOME"
FILE = "kit.yaml"


class KitSettings(Strict):
    """kit.yaml: whose archive it is, and where its server is.

    Attributes:
        site: the site's name, as the server knows it.
        federation: the federation's name.
        address: of the server.
        fleet: the server's port for SuperNodes.
        budget: the server's port of the Budget service.
        ports: of this machine.
        wheel: SHA-256 of the wheel that the federation runs.

    """

    site: Name
    federation: Name
    address: Host
    fleet: Port = 443
    budget: Port = 9443
    ports: SitePorts = SitePorts()
    wheel: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SiteHome(Home[KitSettings]):
    """Places and addresses of a site."""

    @property
    def site(self) -> Path:
        """site.yaml: what the hospital brings and allows; written by `wardpose site install`."""
        return self.folder / "site.yaml"

    @property
    def node_key(self) -> Path:
        """The site's private key, beside it its public half `node.pub`."""
        return self.keys / "node.key"

    @property
    def node_public_key(self) -> Path:
        """The public half of the site's key."""
        return self.keys / "node.pub"

    @property
    def coordinator_key(self) -> Path:
        """Public key of the coordinator, whose orders alone are carried out."""
        return self.keys / "coordinator.pub"

    @property
    def budget_certificate(self) -> Path:
        """Certificate by which the Budget service knows the site."""
        return self.keys / "budget.crt"

    @property
    def budget_key(self) -> Path:
        """The certificate's private key."""
        return self.keys / "budget.key"

    @property
    def peers(self) -> Path:
        """Folder of the other sites' public node keys, NAME.pub each, which secure aggregation needs."""
        return self.folder / "peers"

    @property
    def state(self) -> Path:
        """Folder of caches, the local journal, and what the coordinator was seen to say."""
        return self.folder / "state"

    @property
    def ledger(self) -> Path:
        """The site's privacy ledger."""
        return self.folder / "ledger.sqlite"

    @property
    def wheels(self) -> Path:
        """Folder of the wheel that the federation runs, and its constraints.txt."""
        return self.folder / "wheel"

    @property
    def superlink(self) -> str:
        """Address at which the server takes SuperNodes."""
        return at(self.settings.address, self.settings.fleet)

    @property
    def budget_service(self) -> str:
        """Address of the server's Budget service."""
        return at(self.settings.address, self.settings.budget)

    @property
    def node(self) -> str:
        """Address at which SuperNode and executor meet."""
        return at(LOOPBACK, self.settings.ports.node)


def open_site_home(folder: Path | None = None) -> SiteHome:
    """Open a site's home.

    Args:
        folder: what `--home` says; the environment's, else the working directory, when absent.

    Raises:
        ConfigError: it is none, or its kit.yaml is wrong.

    """
    home = find_home(folder, variable=VARIABLE, file=FILE)
    return SiteHome(home, load_yaml(home / FILE, KitSettings))
