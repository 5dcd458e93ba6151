"""`wardpose server run | superlink | exec`: the processes of a coordinator."""

import os
from pathlib import Path
from typing import Annotated

import typer

from wardpose.server.home import ServerHome

_OF_HOME = "the home's"
Home = Annotated[
    Path | None,
    typer.Option(help="The server's home.", show_default="WARDPOSE_SERVER_HOME, else the working directory"),
]
SecretFile = Annotated[
    Path | None,
    typer.Option(help="Secret that SuperLink and executor share: any bytes, kept private.", show_default=_OF_HOME),
]
Authority = Annotated[
    Path | None, typer.Option(help="Certificate of the authority that signed the server's.", show_default=_OF_HOME)
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to `wardpose server`."""
    for command in (run, superlink):
        app.command()(command)
    app.command("exec")(execute)


def entered(home: Path | None) -> ServerHome:
    """Open a server's home, and have this process and its children keep the coordinator's books there."""
    from wardpose.server.home import open_server_home

    found = open_server_home(home)
    os.environ.update(found.variables)
    return found


def run(home: Home = None) -> None:
    """Run a coordinator's whole home until stopped: SuperLink, executor of runs, Budget service and exporter."""
    from wardpose.server.launcher import run_home
    from wardpose.shared.children import log_to_stderr

    log_to_stderr()
    raise typer.Exit(run_home(entered(home)))


def superlink(
    certificate: Annotated[
        Path | None, typer.Option(help="The server's certificate, which names its host.", show_default=_OF_HOME)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key.", show_default=_OF_HOME)] = None,
    ca: Authority = None,
    secret_file: SecretFile = None,
    database: Annotated[Path | None, typer.Option(help="SQLite file of its state.", show_default=_OF_HOME)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on.", show_default="the home's, else 8000")
    ] = None,
    home: Home = None,
) -> None:
    """Run Flower's SuperLink, whose database is waited for, until stopped; sites reach it through a proxy alone."""
    from wardpose.shared.children import QUIET, log_to_stderr

    os.environ.update(QUIET)  # Flower reads them when it is imported
    from wardpose.server.superlink_process import run_superlink

    log_to_stderr()
    given = (certificate, key, ca, secret_file, database)
    if None in given:
        place = entered(home)
        certificate, key, ca = certificate or place.certificate, key or place.key, ca or place.authority
        secret_file, database = secret_file or place.secret, database or place.database
        port = port or place.settings.ports.superlink
    if certificate and key and ca and secret_file and database:
        run_superlink(
            certificate=certificate,
            key=key,
            authority=ca,
            secret_file=secret_file,
            database=database,
            host=host,
            port=port or 8000,
        )


def execute(
    superlink: Annotated[
        str | None, typer.Option(help="The SuperLink, host:port.", show_default="the home's, else 127.0.0.1:8000")
    ] = None,
    ca: Authority = None,
    secret_file: SecretFile = None,
    home: Home = None,
) -> None:
    """Start the ServerApp of each run that is submitted, until stopped."""
    from wardpose.shared.children import QUIET, log_to_stderr

    os.environ.update(QUIET)  # Flower reads them when it is imported
    from wardpose.server.executor import run_executor

    log_to_stderr()
    if ca is None or secret_file is None:
        place = entered(home)
        ca, secret_file, superlink = ca or place.authority, secret_file or place.secret, superlink or place.superlink
    run_executor(address=superlink or "127.0.0.1:8000", authority=ca, secret_file=secret_file)
