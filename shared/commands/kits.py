"""What `wardpose server install` and `wardpose site install` ask alike: whose archive it is."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wardpose.shared.kits.machine import Installed
    from wardpose.shared.kits.seal import Kit, Role

KitPath = Annotated[Path, typer.Argument(help="The archive, or the folder it was unpacked in.", metavar="KIT")]
Fingerprint = Annotated[
    str | None,
    typer.Option(
        help="Of the key that signed it, as the coordinator told you by telephone or in person.", show_default=""
    ),
]


def open_confirmed(path: Path, *, role: "Role", fingerprint: str | None, home: Path | None) -> "Kit":
    """Open an archive whose signing key somebody vouches for: the option, the home it came to before, or an answer.

    Raises:
        KitError: nobody does, or it is damaged, changed, or for another role.

    """
    from wardpose.shared.kits.archive import KitError
    from wardpose.shared.kits.placing import HOMES
    from wardpose.shared.kits.seal import SIGNER, fingerprint_of, open_kit

    kit = open_kit(path, fingerprint=fingerprint, role=role)
    known = (home or Path(HOMES[role])) / SIGNER
    if fingerprint is not None:
        return kit
    typer.echo(f"{path}: signed by the key {kit.fingerprint}", err=True)
    if known.is_file() and fingerprint_of(known.read_bytes()) == kit.fingerprint:
        return kit
    if not sys.stdin.isatty():
        raise KitError("--fingerprint: is needed where nobody can be asked (allowed: what the coordinator told you)")
    if not typer.confirm("Is this the fingerprint that the coordinator told you?", err=True):
        raise KitError("the fingerprint is not the coordinator's; do not install this archive")
    return kit


def say_installed(done: "Installed", *, start: str, as_json: bool) -> None:
    """Print what was installed, what stayed as people wrote it, and the next command.

    Args:
        done: what was.
        start: the next command where there are no units.
        as_json: as one JSON object.

    """
    placed = done.placed
    following = f"systemctl enable --now {' '.join(done.units)}" if done.units else start
    if as_json:
        found = {"home": str(placed.home), "new": placed.new, "kept": placed.kept, "units": done.units}
        typer.echo(json.dumps({**found, "next": following}))
        return
    typer.echo(f"{placed.home}: {'installed' if placed.new else 'brought up to date'}")
    for name in placed.kept:
        typer.echo(f"{placed.home / name}: stays as you have it; the archive's is beside it as {name}.new")
    typer.echo(f"next: {following}")
