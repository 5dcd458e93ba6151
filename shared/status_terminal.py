"""A status page on a terminal: the same view as the web page's, by the same words."""

import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from wardpose.shared.status_view import Cell, Fact, StatusView, Table, Tone, moment
from wardpose.shared.terminal import line

_STYLES: dict[Tone, str] = {"good": "green", "plain": "", "warning": "yellow", "bad": "bold red"}
_SIGNS: dict[Tone, str] = {"good": "+", "plain": "-", "warning": "!", "bad": "X"}
_BAR = 18  # characters


def watch(read: Callable[[], StatusView], screen: Console, *, seconds: float) -> None:
    """Show a view anew every so many seconds until Ctrl-C."""
    with Live(show(read()), console=screen, screen=screen.is_terminal, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(show(read()), refresh=True)


def show(view: StatusView) -> RenderableType:
    """Lay a view out."""
    return Group(*_parts(view))


def _parts(view: StatusView) -> Iterator[RenderableType]:
    who = "coordinator" if view.role == "coordinator" else "hospital"
    yield line((view.name or "Wardpose", "bold"), f"  ({who}, {moment(view.made)})")
    yield line((f"{_SIGNS[view.tone]} {view.headline}", _STYLES[view.tone] or "bold"))
    yield line(("next step: ", "bold"), view.next_step)
    if view.last_error:
        yield line(("last error: ", "bold"), view.last_error)
    for finding in view.findings:
        yield Text()
        yield line((f"{_SIGNS[finding.tone]} {finding.what}", _STYLES[finding.tone]))
        yield Padding(line(finding.todo), (0, 0, 0, 2))
    if view.facts:
        yield Text()
        yield _facts(view.facts)
    for table in view.tables:
        yield Text()
        yield _table(table)


def _facts(facts: tuple[Fact, ...]) -> RenderableType:
    made = RichTable.grid(padding=(0, 2))
    for fact in facts:
        bar: RenderableType = Text() if fact.share is None else ProgressBar(total=1.0, completed=fact.share, width=_BAR)
        made.add_row(line(fact.name), line((fact.value, _STYLES[fact.tone] or "bold")), bar, line(fact.note))
    return made


def _table(table: Table) -> RenderableType:
    title = f"{table.title} (this machine only)" if table.local else table.title
    if not table.rows:
        return line((title, "bold"), f": {table.empty}")
    made = RichTable(title=line((title, "bold")), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in table.headings:
        made.add_column(line(heading), overflow="fold")
    for row in table.rows:
        made.add_row(*map(_cell, row))
    return made


def _cell(cell: Cell) -> RenderableType:
    note = f" ({cell.note})" if cell.note else ""
    return line((cell.text, _STYLES[cell.tone]), note)
