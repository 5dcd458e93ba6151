"""The console script `wardpose`: every command of server, site and simulator under one root."""

import importlib
import pkgutil
import sys

import typer

import wardpose.simulation.commands
from wardpose.client.cli import app as site_app
from wardpose.server.cli import app as server_app
from wardpose.shared.allocator import tune_allocator
from wardpose.shared.errors import WardposeError

app = typer.Typer(
    name="wardpose",
    help="Federated, differentially private human-pose learning across hospital sites.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(site_app, name="site", help="What a hospital engineer does.")
app.add_typer(server_app, name="server", help="What a coordinator does.")
for _module in pkgutil.iter_modules(wardpose.simulation.commands.__path__):
    importlib.import_module(f"wardpose.simulation.commands.{_module.name}").register(app)


def main() -> None:
    """Run the command line; an error that names its cause is one line on standard error and exit code 2."""
    tune_allocator()
    try:
        app()
    except WardposeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
