"""Where the machines of a federation find each other: one address, and ports that are each taken once.

The section `deployment` of federation.yaml says it; the archives that `wardpose provision` makes carry it on, to the
server as server.yaml and to each hospital as kit.yaml. Nothing of it is part of a run.
"""

import ipaddress
import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from wardpose.shared.yaml_config import Strict

_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_LONGEST = 253  # characters of a host name


def _host(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        pass
    else:
        if address.is_unspecified or address.is_multicast or "%" in value:
            raise ValueError("an address that hospitals can connect to is allowed: no 0.0.0.0, group or network card")
        return str(address)
    labels = value.removesuffix(".").split(".")
    numeric = labels[-1].isdecimal()  # 10.0.0.300 is no address, and no name either
    if len(value) > _LONGEST or numeric or any(_LABEL.fullmatch(label) is None for label in labels):
        raise ValueError("a host name or an IP address alone is allowed: no scheme, port, path or other character")
    return value.removesuffix(".").lower()


Host = Annotated[str, Field(min_length=1), AfterValidator(_host)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]


class _Ports(Strict):
    """Ports of one machine."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        taken: dict[int, str] = {}
        for name, port in self.model_dump().items():
            if port in taken:
                raise ValueError(f"{name} = {port}: is taken by {taken[port]} (allowed: every port once)")
            taken[port] = name
        return self


class ServerPorts(_Ports):
    """Where the coordinator's machine listens.

    Attributes:
        fleet: the door of sites, TLS.
        budget: the door of the Budget service, mutual TLS.
        superlink: the SuperLink itself, on loopback.
        budget_service: the Budget service itself, on loopback.
        metrics: the exporter, on loopback.
        prometheus: on loopback.

    """

    fleet: Port = 443
    budget: Port = 9443
    superlink: Port = 8000
    budget_service: Port = 9444
    metrics: Port = 9464
    prometheus: Port = 9090


class SitePorts(_Ports):
    """Where a hospital's machine listens, on loopback.

    Attributes:
        node: where SuperNode and executor meet.
        metrics: the exporter.
        prometheus: for a hospital that watches itself.

    """

    node: Port = 9094
    metrics: Port = 9465
    prometheus: Port = 9090


class DeploymentConfig(Strict):
    """The section `deployment` of federation.yaml.

    Attributes:
        address: host name or IP address at which hospitals reach the server.
        ports: of the server's machine.
        site_ports: of each hospital's machine.
        days: how long certificates hold.
        authority_days: how long the authority holds, which signs them.

    """

    address: Host
    ports: ServerPorts = ServerPorts()
    site_ports: SitePorts = SitePorts()
    days: int = Field(default=365, ge=1, le=3650)
    authority_days: int = Field(default=3650, ge=1, le=7300)

    @model_validator(mode="after")
    def _authority_outlives(self) -> Self:
        if self.authority_days < self.days:
            raise ValueError(f"authority_days = {self.authority_days} (allowed: at least days = {self.days})")
        return self


def at(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
