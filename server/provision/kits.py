"""What is in the archive of a server, and in that of a hospital."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from wardpose.server.bundle import bundle_files
from wardpose.server.provision.plan import MachinePlan
from wardpose.server.provision.templates import DEPLOY, render, verbatim
from wardpose.shared.deployment import at
from wardpose.shared.kits.archive import PRIVATE_FOLDER, KitFile
from wardpose.shared.kits.placing import BINARIES, HOMES
from wardpose.shared.kits.seal import Role
from wardpose.shared.kits.wheels import constraints, pack_wheel

_SERVER_UNITS = ("superlink", "superlink-exec", "server-metrics", "budget-service", "nginx", "prometheus")
_SITE_UNITS = ("supernode", "site-exec", "site-metrics")
_GRAFANA = "grafana/provisioning"


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """The wheel that every machine of a federation runs.

    Attributes:
        name: of its file.
        content: of its file.
        constraints: what it was provisioned with, as pip reads it.

    """

    name: str
    content: bytes
    constraints: str

    def files(self) -> dict[str, KitFile]:
        """Return the folder `wheel/`."""
        return {
            f"wheel/{self.name}": KitFile(content=self.content),
            "wheel/constraints.txt": KitFile(content=self.constraints.encode()),
        }


def installed_wheel() -> Wheel:
    """Return the wheel of what is running here.

    Raises:
        KitError: the installation lacks what a wheel needs.

    """
    name, content = pack_wheel()
    return Wheel(name=name, content=content, constraints=constraints())


def server_files(
    plan: MachinePlan,
    *,
    public: Mapping[str, bytes],
    private: Mapping[str, bytes],
    nodes: Mapping[str, bytes],
    wheel: Wheel,
) -> dict[str, KitFile]:
    """Return the files of the server's archive, unsigned.

    Args:
        plan: of the federation.
        public: certificates and public keys, by path in the archive.
        private: keys that go with it, likewise; none where they lie at the server already.
        nodes: public node keys by site.
        wheel: what the federation runs.

    """
    ports = plan.deployment.ports.model_dump()
    values = {"address": plan.deployment.address, "ports": ports, "names": plan.names, "sites": plan.sites}
    settings = {"name": plan.name, "address": plan.deployment.address, "ports": ports}
    fill = _filler("server", plan, values)
    coordinator = fill("coordinator.yaml", epsilon=plan.epsilon, delta=plan.delta, unit=plan.unit)
    operator = fill("operator.toml", superlink=at("127.0.0.1", ports["superlink"]))
    return {
        **_common("server", fill, _SERVER_UNITS, wheel),
        **{name: KitFile(content=content) for name, content in (*public.items(), *private.items())},
        **{f"nodes/{site}.pub": KitFile(content=content) for site, content in nodes.items()},
        **{f"bundle/{name}": KitFile(content=text.encode()) for name, text in bundle_files().items()},
        "server.yaml": _yaml(settings),
        "federation.yaml": KitFile(content=plan.content),
        "coordinator.yaml": KitFile(content=coordinator),
        "operator/config.toml": KitFile(content=operator),
        "nginx.conf": KitFile(content=fill("nginx/nginx.conf")),
        "prometheus/targets/sites.yml": KitFile(content=b"[]\n"),
    }


def site_files(
    plan: MachinePlan,
    site: str,
    *,
    public: Mapping[str, bytes],
    private: Mapping[str, bytes],
    peers: Mapping[str, bytes],
    wheel: Wheel,
) -> dict[str, KitFile]:
    """Return the files of a hospital's archive, unsigned.

    Args:
        plan: of the federation.
        site: the hospital's name.
        public: certificates and public keys, by path in the archive.
        private: keys that go with it, likewise; none where they lie at the hospital already.
        peers: public node keys of the other sites, by name.
        wheel: what the federation runs.

    """
    deployment = plan.deployment
    ports = deployment.site_ports.model_dump()
    settings = {
        "site": site,
        "federation": plan.name,
        "address": deployment.address,
        "fleet": deployment.ports.fleet,
        "budget": deployment.ports.budget,
        "ports": ports,
        "wheel": hashlib.sha256(wheel.content).hexdigest(),
    }
    server = {"superlink": at(deployment.address, deployment.ports.fleet)}
    server |= {"budget_service": at(deployment.address, deployment.ports.budget)}
    own = bool(private)
    fill = _filler("site", plan, {"site": site, "address": deployment.address, "ports": ports, "own": own, **server})
    return {
        **_common("site", fill, _SITE_UNITS, wheel),
        **{name: KitFile(content=content) for name, content in (*public.items(), *private.items())},
        **{f"peers/{peer}.pub": KitFile(content=content) for peer, content in peers.items()},
        "kit.yaml": _yaml(settings),
        "federation.yaml": KitFile(content=plan.content),  # for `wardpose site check --connect`
    }


def _filler(role: Role, plan: MachinePlan, values: Mapping[str, Any]) -> Any:
    whole = {"role": role, "home": HOMES[role], "binaries": BINARIES, "federation": plan.name, **values}
    return lambda name, **more: render(name, **whole, **more)


def _common(role: Role, fill: Any, units: tuple[str, ...], wheel: Wheel) -> dict[str, KitFile]:
    return {
        **wheel.files(),
        **{
            f"systemd/wardpose-{unit}.service": KitFile(content=fill(f"systemd/wardpose-{unit}.service"))
            for unit in units
        },
        "compose/docker-compose.yaml": KitFile(content=fill("compose/docker-compose.yaml")),
        "compose/Dockerfile": KitFile(content=verbatim("compose/Dockerfile")),
        "prometheus/prometheus.yml": KitFile(content=fill("prometheus/prometheus.yml")),
        "prometheus/rules.yml": KitFile(content=verbatim("prometheus/rules.yml")),
        **{
            f"{_GRAFANA}/{name}": KitFile(content=fill(f"{_GRAFANA}/{name}"))
            for name in ("datasources/prometheus.yaml", "dashboards/wardpose.yaml")
        },
        **{
            f"grafana/dashboards/{path.name}": KitFile(content=path.read_bytes())
            for path in sorted((DEPLOY / "grafana").glob("*.json"))
        },
        "install.sh": KitFile(content=fill("install.sh"), mode=PRIVATE_FOLDER),
        "READ-ME-FIRST.md": KitFile(content=fill(f"read-me/{role}.md")),
    }


def _yaml(settings: Mapping[str, Any]) -> KitFile:
    return KitFile(content=yaml.safe_dump(dict(settings), sort_keys=False).encode())
