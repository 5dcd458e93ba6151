"""`wardpose watch`: a coordinator's or a site's status page on a terminal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardpose.shared.terminal import Json, console

if TYPE_CHECKING:
    from wardpose.shared.status_view import StatusView

_SITE, _KIT, _SERVER = "site.yaml", "kit.yaml", "server.yaml"


def register(app: typer.Typer) -> None:
    """Add the command to the console script."""
    app.command()(watch)


def watch(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A server's home or run folder, a site's home, or its site.yaml.", show_default="the working directory"
        ),
    ] = None,
    superlink_database: Annotated[
        Path | None,
        typer.Option(
            "--superlink-database", help="The SuperLink's SQLite file, to see who is online.", show_default="the home's"
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    seconds: Annotated[float, typer.Option(min=1.0, help="Read the files anew after so many seconds.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Show where a run or a site stands, what it spent, what went wrong and what to do now; the files are only read."""
    from wardpose.shared.status_view import finite

    read = reader(folder or Path.cwd(), superlink_database)
    if as_json:
        typer.echo(json.dumps(finite(read().to_json())))
        return
    from wardpose.shared import status_terminal

    screen = console()
    if once:
        screen.print(status_terminal.show(read()))
        return
    try:
        status_terminal.watch(read, screen, seconds=seconds)
    except KeyboardInterrupt:
        return


def reader(folder: Path, superlink: Path | None = None) -> "Callable[[], StatusView]":
    """Return what makes the status page of whatever lies in a folder.

    Raises:
        ConfigError: it is no folder of a coordinator or a site.

    """
    from wardpose.client.facts import certificates_of
    from wardpose.client.home import open_site_home
    from wardpose.client.status import site_status
    from wardpose.server.facts import Places, places_of, run_folders
    from wardpose.server.home import open_server_home
    from wardpose.server.status import server_status
    from wardpose.shared.errors import ConfigError, one_line

    folder = folder.expanduser().resolve()
    if folder.is_file():
        return lambda: site_status(folder)
    if (folder / _SERVER).is_file():
        home = places_of(open_server_home(folder))
        places = home if superlink is None else Places(**{**vars(home), "superlink": superlink})
        return lambda: server_status(places)
    if (folder / _KIT).is_file():
        site = open_site_home(folder)
        return lambda: site_status(site.site, certificates=certificates_of(site))
    if (folder / _SITE).is_file():
        return lambda: site_status(folder / _SITE)
    if folder.is_dir() and (run_folders(folder) or not any(folder.iterdir())):
        return lambda: server_status(Places(directory=folder, superlink=superlink))
    raise ConfigError(
        f"{one_line(folder)}: nothing to watch (allowed: a server's home or run folder, a site's home, a site.yaml)"
    )
