"""Sites by their names: whose keys the SuperLink takes, who is there, and what each has been charged.

A home's `nodes/NAME.pub` are the keys to register. A revoked one goes to `nodes/revoked/`, so that no later
registration brings it back.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wardpose.server.home import ServerHome
from wardpose.server.link_state import Registered, registered
from wardpose.server.operator import ask
from wardpose.server.superlink import registered_nodes
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_folder, storing
from wardpose.shared.ledger_views import finite
from wardpose.shared.signing import PublicKey, load_public_key, read_public_key

if TYPE_CHECKING:  # torch comes with it
    from wardpose.server.coordinator import Accounts

_REVOKED = "revoked"
_STARTING_SECONDS = 60.0  # that a SuperLink may take to answer once it was started


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """A site as the coordinator sees it.

    Attributes:
        name: the site's.
        registered: whether the SuperLink takes its key.
        online: whether it is there.
        last_seen: Unix time; `None` for one that was never there.
        fingerprint: of its key.
        epsilon: that its account was charged; `None` for no privacy.
        delta: at which it is stated, the coordinator's.

    """

    name: str
    registered: bool
    online: bool
    last_seen: float | None
    fingerprint: str
    epsilon: float | None
    delta: float


def register(home: ServerHome, names: Sequence[str] = ()) -> dict[str, str]:
    """Register sites' keys with the SuperLink; one that is registered already stays.

    Args:
        home: the server's.
        names: of sites; all whose keys are in `nodes/` when empty.

    Returns:
        Site -> `registered`, or `was registered`.

    Raises:
        ConfigError: there is no such key, another key is registered under the name, or Flower refused one.

    """
    keys = {name: _key(home, name) for name in names or known_names(home)}
    if not keys:
        raise ConfigError(
            f"{home.nodes}: holds no key to register (allowed: NAME.pub, the public half of a node's key)"
        )
    there = {node.name: node for node in registered(home.database)}
    done = {}
    for name, key in keys.items():
        if name in there:
            _refuse_other(there[name], key)
            done[name] = "was registered"
            continue
        file = str(home.nodes / f"{name}.pub")
        ask(home.operator, "supernode", "register", file, "--name", name, patience=_STARTING_SECONDS)
        done[name] = "registered"
    return done


def revoke(home: ServerHome, name: str) -> None:
    """Take a site's key back: its SuperNode is refused from now on; what it was charged stays charged.

    Raises:
        ConfigError: no such site is registered, or Flower did not do it.

    """
    found = [node for node in registered(home.database) if node.name == name]
    key = home.nodes / f"{name}.pub"
    if not found and not key.exists():
        raise ConfigError(f"site {name!r}: is not registered (allowed: {', '.join(known_names(home)) or 'none is'})")
    for node in found:
        ask(home.operator, "supernode", "unregister", str(node.number))
    if key.exists():
        with storing(key):
            place = home.nodes / _REVOKED / f"{name}.{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.pub"
            private_folder(place.parent)
            key.replace(place)


def known_names(home: ServerHome) -> list[str]:
    """Return the names of the sites whose keys are in `nodes/`."""
    return sorted(path.stem for path in home.nodes.glob("*.pub"))


def views(home: ServerHome) -> list[NodeView]:
    """Return all sites that are registered or to be registered, by name.

    Raises:
        DataError: the SuperLink's database cannot be read.
        LedgerError: the ledger is lost or broken.

    """
    there = {node.name: node for node in registered(home.database)}
    seen = {node.name: node for node in registered_nodes(home.database)} if there else {}
    from wardpose.server.coordinator import coordinator_accounts, load_coordinator

    config = load_coordinator(home.coordinator)
    spent = _spent(coordinator_accounts(config), [*there, *known_names(home)], config.budget.delta)
    found = []
    for name in sorted({*there, *known_names(home)}):
        node = seen.get(name)
        key = _read(there[name]) if name in there else _key(home, name)
        found.append(
            NodeView(
                name=name,
                registered=name in there,
                online=node is not None and node.online,
                last_seen=None if node is None else node.last_seen,
                fingerprint="unreadable" if key is None else key.fingerprint,
                epsilon=finite(spent.get(name, 0.0)),
                delta=config.budget.delta,
            )
        )
    return found


def _spent(accounts: "Accounts", names: Sequence[str], delta: float) -> dict[str, float]:
    if not accounts.ledger_path.exists():
        return {}
    ledger = accounts.ledger()
    return {name: ledger.epsilon(ledger.account_of(name), delta=delta) for name in names}


def _key(home: ServerHome, name: str) -> PublicKey:
    path = home.nodes / f"{name}.pub"
    if Path(name).name != name or not path.is_file():
        known = ", ".join(known_names(home)) or "none"
        raise ConfigError(f"{path}: no such key (allowed: {known})")
    return load_public_key(path)


def _read(node: Registered) -> PublicKey | None:
    try:
        return read_public_key(node.key, f"node {node.name}")
    except ConfigError:
        return None


def _refuse_other(node: Registered, key: PublicKey) -> None:
    if _read(node) != key:
        raise ConfigError(
            f"site {node.name!r}: is registered with another key than nodes/{node.name}.pub, {key.fingerprint} "
            f"(allowed: wardpose server revoke {node.name} first, if the hospital says that its key is a new one)"
        )
