"""Every argument of every command is explained where a user looks for it."""

from collections.abc import Iterator

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from wardpose.simulation.cli import app


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))
    else:
        yield path, command


COMMANDS = dict(commands(get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_parameter_says_what_it_is(path: tuple[str, ...]) -> None:
    parameters = [parameter for parameter in COMMANDS[path].params if parameter.name != "help"]
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "300"}).stdout
    words = " ".join(shown.replace("\u2502", " ").split())
    for parameter in parameters:
        text = getattr(parameter, "help", None)
        assert text, f"{' '.join(path)}: {parameter.name} has no help"
        assert " ".join(text.split())[:40] in words
