"""Keys of a site and its coordinator in one folder, and messages as that coordinator seals them."""

from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from wardpose.client.contact import Conversation
from wardpose.shared.seals import Head, new_nonce, seal
from wardpose.shared.signing import Signer, ensure_key_pair

NOTHING = Head(0, "0" * 64)


def write_keys(folder: Path) -> tuple[Signer, Signer]:
    """The site's key and the coordinator's, where a site.yaml in the folder looks for them by default."""
    pairs = ((folder / f"{name}.key", folder / f"{name}.pub") for name in ("node", "coordinator"))
    site, coordinator = (ensure_key_pair(*pair) for pair in pairs)
    return site, coordinator


def sealed(folder: Path, content: RecordDict, kind: str, *, site: str = "north", **changes: Any) -> RecordDict:
    """The content with a seal of the folder's coordinator, whose ledger is empty unless a test says otherwise."""
    _, coordinator = write_keys(folder)
    usual = {"ledger": NOTHING, "charge": None if kind.startswith("query") else new_nonce()}
    return seal(content, coordinator, site=site, kind=kind, **(usual | changes))[0]


def conversation(folder: Path, content: RecordDict, kind: str = "train", *, site: str = "north") -> Conversation:
    """An order that a site has believed."""
    signer, coordinator = write_keys(folder)
    _, made = seal(content, coordinator, site=site, kind=kind, ledger=NOTHING)
    return Conversation(seal=made, signer=signer, server_ledger=NOTHING)
