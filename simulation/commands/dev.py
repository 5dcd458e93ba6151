"""`wardpose dev`: a real deployment on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from wardpose.shared.terminal import say_step

dev = typer.Typer(
    help="Run a real deployment (SuperLink, SuperNodes, TLS, keys) on this machine.", no_args_is_help=True
)

Directory = Annotated[Path, typer.Option("--directory", help="Folder of the deployment.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
_DEFAULT = Path(".wardpose/dev")


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.add_typer(dev, name="dev")


@dev.command()
def up(
    federation: Annotated[str, typer.Argument(help="federation.yaml, or the name of a bundled one.")] = "demo",
    sites: Annotated[int | None, typer.Option(min=1, help="Take the first N sites only.")] = None,
    directory: Directory = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Start a SuperLink and a SuperNode a site, with certificates and keys, and wait until they are online."""
    from wardpose.shared.config import FederationConfig, find_federation, load_federation
    from wardpose.shared.errors import ConfigError
    from wardpose.simulation.dev import Deployment

    config = load_federation(find_federation(federation))
    if sites is not None:
        if sites > len(config.sites):
            raise ConfigError(f"--sites {sites}: the federation has {len(config.sites)} (allowed: at most that)")
        content = config.model_dump()
        config = FederationConfig.model_validate({**content, "sites": content["sites"][:sites]})
    deployment = Deployment(directory)
    deployment.up(config, report=say_step)
    if as_json:
        typer.echo(json.dumps(deployment.status()))
    else:
        say_step(
            f"next: wardpose dev run --directory {directory}; look: wardpose server status --home {directory}; "
            f"afterwards: wardpose dev down --directory {directory}"
        )


@dev.command()
def run(
    directory: Directory = _DEFAULT,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest run from its last checkpoint.")
    ] = False,
    spend_rest: Annotated[
        bool, typer.Option("--spend-rest", help="Also if the run would train on noise with what is left.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the federation once on the processes that are up; ends 0 when it completed, 1 failed, 3 stopped."""
    from wardpose.simulation.dev import open_deployment

    found, summary = open_deployment(directory).run(resume=resume, spend_rest=spend_rest, report=say_step)
    if as_json:
        typer.echo(json.dumps(summary | {"status": found.status, "why": found.why, "next": found.next}))
    elif summary:
        score = " -> ".join(
            "-" if value is None else f"{value:.3f}" for value in (summary["score_initial"], summary["score_final"])
        )
        say_step(f"{summary['status']}: {summary['score_name']} {score}")
        for site in summary["sites"]:
            spent = "infinite" if site["epsilon_spent"] is None else f"{site['epsilon_spent']:.4f}"
            say_step(f"{site['name']}: epsilon {spent} of {site['epsilon_budget']}, {site['status']}")
    say_step(found.sentence)
    raise typer.Exit(found.exit_status)


@dev.command()
def status(directory: Directory = _DEFAULT, as_json: AsJson = False) -> None:
    """Show what is running and which sites are online."""
    from wardpose.simulation.dev import open_deployment

    state = open_deployment(directory).status()
    if as_json:
        typer.echo(json.dumps(state))
        return
    say_step("up" if state["up"] else "down")
    for role, alive in state["processes"].items():
        say_step(f"  {role}: {'running' if alive else 'gone'}")
    for site, online in state["sites"].items():
        say_step(f"  site {site}: {'online' if online else 'offline'}")


@dev.command()
def down(directory: Directory = _DEFAULT, as_json: AsJson = False) -> None:
    """Stop exactly what `up` started, SuperNodes first; keys, ledgers and runs stay."""
    from wardpose.simulation.dev import Deployment

    stopped = Deployment(directory).down()
    if as_json:
        typer.echo(json.dumps({"stopped": stopped}))
    else:
        say_step(f"stopped: {', '.join(stopped) or 'nothing was running'}")


@dev.command()
def certificate(
    authority: Annotated[Path, typer.Argument(help="Folder of the authority: ca.key and ca.crt.", metavar="AUTHORITY")],
    folder: Annotated[Path, typer.Argument(help="Where NAME.crt is written, and NAME.key.", metavar="FOLDER")],
    name: Annotated[str, typer.Option(help="The site, as the coordinator knows it, or the auditor.")],
    role: Annotated[str, typer.Option(help="What the holder may see: site or auditor.")] = "site",
    days: Annotated[int, typer.Option(min=1, help="How long it holds.")] = 365,
    request: Annotated[
        Path | None,
        typer.Option(help="A signing request (PEM), whose key stays where it was made; of it only the key is taken."),
    ] = None,
) -> None:
    """Make a client certificate for the coordinator's Budget service."""
    from wardpose.server.provision.certificates import client_role, create_client_certificate, sign_client_request
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.files import write_bytes

    path = folder / f"{name}.crt"
    if path.exists():
        raise ConfigError(f"{path}: exists already (allowed: a new name, or another folder)")
    if request is None:
        create_client_certificate(authority, folder, name=name, role=client_role(role), days=days)
    else:
        write_bytes(path, sign_client_request(authority, request, name=name, role=client_role(role), days=days))
    typer.echo(f"{path}: written", err=True)
