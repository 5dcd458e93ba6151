"""`wardpose provision`: one archive for each machine of a federation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardpose.shared.terminal import Json, say

if TYPE_CHECKING:
    from wardpose.server.provision.archives import Made, Requests


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command()(provision)


def provision(
    federation: Annotated[
        Path, typer.Argument(help="The plan, with a section `deployment`.", metavar="FEDERATION.yaml")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the authority and the archives.")] = Path("kits"),
    add: Annotated[str, typer.Option(help="Make the archive of one more site.", show_default="")] = "",
    revoke: Annotated[str, typer.Option(help="Take a site's keys and certificate back.", show_default="")] = "",
    renew: Annotated[
        list[str] | None,
        typer.Option(
            help="New certificate and wheel, for the keys it has: a site, `server` or `all`.", show_default=""
        ),
    ] = None,
    csr: Annotated[
        list[Path] | None,
        typer.Option(help="A site's request (`wardpose site request`), whose keys stay there.", show_default=""),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the authority, keys, certificates and one archive for each machine of a federation."""
    from wardpose.server.provision import archives
    from wardpose.server.provision.plan import load_plan
    from wardpose.shared.errors import ConfigError

    chosen = [name for name, value in (("--add", add), ("--revoke", revoke), ("--renew", renew)) if value]
    if len(chosen) > 1 or (csr and chosen not in ([], ["--add"])):
        chosen += ["--csr"] if csr else []
        raise ConfigError(f"{', '.join(chosen)}: do not go together (allowed: one of them)")
    requests = _requests(csr or [])
    plan = load_plan(federation)
    if add:
        done = archives.add_site(plan, out, add, requests=requests)
    elif revoke:
        done = archives.revoke_site(plan, out, revoke)
    elif renew:
        done = archives.renew(plan, out, renew)
    else:
        done = archives.provision(plan, out, requests=requests)
    if as_json:
        say(
            {
                "archives": {machine: str(path) for machine, path in done.archives.items()},
                "node_keys": dict(done.node_keys),
                "own_keys": list(done.own),
                "revoked": done.revoked,
                "fingerprint": done.fingerprint,
            },
            as_json=True,
        )
    else:
        _show(done, added=add)


def _requests(paths: list[Path]) -> "Requests":
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.kits.request import read_request

    found = {}
    for path in paths:
        request = read_request(path)
        if request.site in found:
            raise ConfigError(f"--csr {path}: {request.site} has another request (allowed: one a site)")
        found[request.site] = (path, request)
    return found


def _show(done: "Made", *, added: str) -> None:
    for machine, path in done.archives.items():
        key = done.node_keys.get(machine)
        typer.echo(f"{path}: for {machine}" + (f", whose node key is {key}" if key else ""))
    typer.echo(f"signing key: {done.fingerprint}")
    if done.archives:
        typer.echo("Send each archive to its machine; tell its people the signing key by telephone or in person.")
    for site in done.own:
        typer.echo(f"{site}: its private keys are there alone; compare its node key with its people.")
    authority = done.out / "authority"
    if added:
        typer.echo(
            f"At the server: copy {authority / 'nodes' / f'{added}.pub'} to nodes/ in its home, write {added} into the "
            f"sites of its federation.yaml, then: wardpose server register {added}"
        )
    if done.revoked:
        typer.echo(
            f"{done.revoked}: taken back. At the server: copy {authority / 'revoked.txt'} to keys/ in its home, then: "
            f"wardpose server revoke {done.revoked}"
        )
