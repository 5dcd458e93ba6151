"""A site's home as an archive leaves it, and the server it belongs to: real certificates, keys and a real wheel."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from support.budget_service import Coordinator, create_coordinator
from support.superlinks import Superlink, superlink
from support.tls_servers import LOOPBACK, Certified

from wardpose.client.home import SiteHome, open_site_home
from wardpose.shared.files import private_folder, write_bytes, write_text
from wardpose.shared.kits.wheels import pack_wheel

WARD = {"kind": "ward", "hospital": "north", "patients": 24, "frames_per_patient": 1, "seed": 1}
PLAN: dict[str, Any] = {
    "name": "test",
    "rounds": 2,
    "sites": ["north", "south"],
    "mechanism": {"sample_rate": 0.1, "noise_multiplier": 6.0},
    "privacy": {"epsilon": 2.0, "delta": 1e-3},
    "training": {"steps": 3},
}

wheel = cache(pack_wheel)


@dataclass
class Deployed:
    """A hospital's home and what it reaches.

    Attributes:
        home: the site's.
        server: Flower's own application.
        coordinator: files of the coordinator, whose Budget service runs.

    """

    home: SiteHome
    server: Superlink
    coordinator: Coordinator

    def change(self, name: str, **values: Any) -> None:
        """Change keys of a YAML file in the home."""
        path = self.home.folder / name
        content = yaml.safe_load(path.read_text()) if path.exists() else {}
        write_text(path, yaml.safe_dump({**content, **values}))


@contextmanager
def deployed(folder: Path, **policy: Any) -> Iterator[Deployed]:
    """Write a home for the site "north" beside a server that runs, which knows it."""
    coordinator = create_coordinator(private_folder(folder / "coordinator"))
    shown = Certified(coordinator.folder / "server.crt", coordinator.folder / "server.key")
    with superlink(shown) as server, coordinator.serving():
        home = private_folder(folder / "home")
        for name, source in {
            "ca.crt": coordinator.authority / "ca.crt",
            "node.key": coordinator.folder / "north-node.key",
            "node.pub": coordinator.folder / "keys" / "north.pub",
            "budget.crt": coordinator.folder / "north.crt",
            "budget.key": coordinator.folder / "north.key",
            "coordinator.pub": coordinator.folder / "coordinator.pub",
        }.items():
            write_bytes(home / "keys" / name, source.read_bytes())
        write_bytes(home / "keys" / "superexec.secret", b"s" * 48)
        name, content = wheel()
        write_bytes(home / "wheel" / name, content)
        kit = {
            "site": "north",
            "federation": "test",
            "address": LOOPBACK,
            "fleet": server.port,
            "budget": int(coordinator.address.rpartition(":")[2]),
            "wheel": hashlib.sha256(content).hexdigest(),
        }
        write_text(home / "kit.yaml", yaml.safe_dump(kit))
        site = {
            "site": "north",
            "cohort": {"name": "ward-7", "declared_patients": 24, "data": WARD},
            "policy": {"epsilon": 4.0, "delta": 1e-3, **policy},
            "node_key": "keys/node.key",
            "coordinator_key": "keys/coordinator.pub",
        }
        write_text(home / "site.yaml", yaml.safe_dump(site))
        write_text(home / "federation.yaml", yaml.safe_dump(PLAN))
        server.register("north", home / "keys" / "node.pub")
        yield Deployed(open_site_home(home), server, coordinator)
