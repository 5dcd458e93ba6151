"""Why a SuperNode was not taken in, in words: Flower itself logs two numbers (305, and one of the server's)."""

from collections.abc import Iterator
from pathlib import Path

from wardpose.client.connection.door import Door, check_door
from wardpose.client.connection.node import check_registered
from wardpose.client.findings import Finding
from wardpose.shared.errors import WardposeError


def why_not_taken_in(superlink: str, authority: Path, key: Path) -> str:
    """Ask the way to the server again, step by step, and return the first thing that is wrong with it, and what to do.

    Args:
        superlink: the server's address, host:port.
        authority: PEM file of the authority that signed the server's certificate.
        key: the node's private key.

    """
    host, _, port = superlink.rpartition(":")
    door = Door(name="SuperLink", host=host.strip("[]"), port=int(port), authority=authority)
    try:
        wrong = next((found.text for found in _steps(door, key) if found.status == "failure"), "")
    except WardposeError as error:
        return str(error)
    return wrong or (
        "the server can be reached now and knows this node: after a crash a node counts as online for up to a minute, "
        "and is not taken in before; it is started again by itself"
    )


def _steps(door: Door, key: Path) -> Iterator[Finding]:
    passed = True
    for found in check_door(door):
        passed = passed and found.status != "failure"
        yield found
    if passed:
        yield check_registered(door, key)
