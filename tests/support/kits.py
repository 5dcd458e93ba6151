"""Federations that are provisioned in tests: their plan, and the wheel of the code alone, which is small."""

import io
import zipfile
from functools import cache
from pathlib import Path

from wardpose.client.request import make_request
from wardpose.server.provision.archives import Made
from wardpose.server.provision.kits import Wheel
from wardpose.server.provision.plan import MachinePlan
from wardpose.shared.deployment import DeploymentConfig, ServerPorts
from wardpose.shared.kits.request import SiteRequest, read_request
from wardpose.shared.kits.seal import Kit, open_kit
from wardpose.shared.kits.wheels import pack_wheel

PLAN = b"name: gait\nsites: [north, south]\ndeployment: {address: fed.example.org, ports: {fleet: 8443}}\n"


def machine_plan(*sites: str, days: int = 365, address: str = "fed.example.org") -> MachinePlan:
    """A plan as `load_plan` reads it, without torch."""
    return MachinePlan(
        name="gait",
        sites=sites or ("north", "south"),
        deployment=DeploymentConfig(address=address, ports=ServerPorts(fleet=8443), days=days),
        epsilon=6.0,
        delta=1e-5,
        unit="patient",
        content=PLAN,
        names=("data/public.json",),
    )


def small_wheel() -> Wheel:
    """A file that stands for a wheel, where nobody looks into it."""
    return Wheel(name="wardpose-0.1.0-py3-none-any.whl", content=b"wheel", constraints="torch==2.9.1\n")


@cache
def code_wheel() -> Wheel:
    """The installed wheel without weights."""
    name, whole = pack_wheel()
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename.endswith(".py"):
                new.writestr(entry, old.read(entry))
    return Wheel(name=name, content=buffer.getvalue(), constraints="torch==2.9.1\n")


def kit_of(made: Made, machine: str) -> Kit:
    return open_kit(made.archives[machine], fingerprint=made.fingerprint)


def asked(site: str, home: Path) -> dict[str, tuple[Path, SiteRequest]]:
    """What a hospital asks for that makes its keys in a home to be."""
    path, _ = make_request(site, home)
    return {site: (path, read_request(path))}
