"""What commands print: results on standard output, everything else on standard error.

Names of runs, cohorts and files, and the texts of errors, come from elsewhere: over the wire, from a ledger, from a
disk. None of it is ever markup, an emoji, or an escape sequence of the terminal: what a `console` prints is literal,
`line` and `table` show what cannot be printed as escapes, and styles are given beside the text, never inside it.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.shared.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TextColumn
    from rich.table import Table
    from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


_LONGEST = 4000  # characters of a text from elsewhere


def console(*, stderr: bool = False) -> "Console":
    """Make a console on which texts are printed as they are: no markup, no emoji, no guessed highlights."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def line(*parts: str | tuple[str, str], style: str = "") -> "Text":
    """Put one line together.

    Args:
        parts: texts, or texts with a style of their own (`("stopped", "bold yellow")`).
        style: of the whole.

    """
    from rich.text import Text

    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((one_line(text, _LONGEST), own) for text, own in styled), style=style)


def table(headings: Iterable[str], rows: Iterable[Iterable[object]], *, title: str = "", left: int = 1) -> "Table":
    """Lay texts out under headings; the first `left` columns are aligned to the left, the others to the right."""
    from rich.table import Table

    made = Table(title=line(title) if title else None, title_justify="left")
    for index, heading in enumerate(headings):
        made.add_column(line(heading), justify="left" if index < left else "right")
    for row in rows:
        made.add_row(*(line("" if value is None else str(value)) for value in row))
    return made


def task_column() -> "TextColumn":
    """Show a progress task's description, in which names of sites stand."""
    from rich.progress import TextColumn

    return TextColumn("{task.description}", markup=False)


def say(content: dict[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or a line a value."""
    if as_json:
        typer.echo(json.dumps(content))
        return
    for name, value in content.items():
        shown = value if isinstance(value, str | int | float) else json.dumps(value)
        typer.echo(one_line(f"{name.replace('_', ' ')}: {shown}", _LONGEST))


def say_table(lines: list[list[str]]) -> None:
    """Print a table; the first line is its headings."""
    from rich.box import SIMPLE

    made = table(lines[0], lines[1:])
    made.box = SIMPLE
    for column in made.columns[1:]:
        column.no_wrap = True
    console().print(made)


def say_step(text: str) -> None:
    """Print what is begun."""
    print(one_line(text, _LONGEST), file=sys.stderr, flush=True)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; the function that comes out takes what is done and what there is in all."""
    from rich.progress import Progress

    columns = (task_column(), *Progress.get_default_columns()[1:])
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def training_progress(title: str) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Show a bar with the losses."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (task_column(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def show(step: int, total: int, terms: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            bar.update(task, completed=step, total=total, description=text)

        yield show
