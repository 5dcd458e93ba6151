"""What a federation.yaml says about machines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wardpose.shared.deployment import DeploymentConfig
from wardpose.shared.errors import ConfigError

_RESERVED = ("all", "authority", "server")


@dataclass(frozen=True, kw_only=True)
class MachinePlan:
    """A federation's machines, and the plan that its server starts with.

    Attributes:
        name: of the federation.
        sites: names of the hospitals.
        deployment: addresses, ports, days.
        epsilon: what a run of the plan may cost a patient.
        delta: at which.
        unit: of privacy.
        content: the file itself.
        names: files and folders that it names, as seen from it, which the server needs too.

    """

    name: str
    sites: tuple[str, ...]
    deployment: DeploymentConfig
    epsilon: float
    delta: float
    unit: str
    content: bytes
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that an archive, a folder or a certificate cannot carry apart."""
        seen: dict[str, str] = {}
        for site in self.sites:
            folded = site.casefold()
            if folded in _RESERVED:
                raise ConfigError(
                    f"sites: {site} is a name of provision's own (allowed: any but {', '.join(_RESERVED)})"
                )
            if folded in seen:
                raise ConfigError(
                    f"sites: {seen[folded]} and {site} are one name on some disks (allowed: names that "
                    "differ in more than capitals)"
                )
            seen[folded] = site


def load_plan(path: Path) -> MachinePlan:
    """Read a federation.yaml that has a section `deployment`.

    Raises:
        ConfigError: it is wrong, or has none.

    """
    from wardpose.shared.config import load_federation  # torch comes with it

    config = load_federation(path)
    if config.deployment is None:
        raise ConfigError(f"{path}: deployment: missing (allowed: at least deployment: {{address: HOST}})")
    try:
        return MachinePlan(
            name=config.name,
            sites=tuple(site.name for site in config.sites),
            deployment=config.deployment,
            epsilon=config.privacy.epsilon,
            delta=config.privacy.delta,
            unit=config.mechanism.unit,
            content=path.read_bytes(),
            names=tuple(sorted({_seen_from(path, named) for named in _paths(config)})),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)


def _seen_from(plan: Path, named: Path) -> str:
    folder = plan.resolve().parent
    return str(named.relative_to(folder) if named.is_relative_to(folder) else named)
