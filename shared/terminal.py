"""What commands print: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def say(content: dict[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or a line a value."""
    if as_json:
        typer.echo(json.dumps(content))
        return
    for name, value in content.items():
        typer.echo(f"{name.replace('_', ' ')}: {value if isinstance(value, str | int | float) else json.dumps(value)}")


def say_table(lines: list[list[str]]) -> None:
    """Print a table; the first line is its headings."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(lines[0][0], box=SIMPLE)
    for heading in lines[0][1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*line)
    Console().print(table)


def say_step(text: str) -> None:
    """Print what is begun."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; the function that comes out takes what is done and what there is in all."""
    from rich.progress import Progress

    with Progress(console=_console(), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Show a bar with the losses."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def show(step: int, total: int, terms: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            bar.update(task, completed=step, total=total, description=text)

        yield show


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)
