"""An experiment's results as one self-contained page."""

import base64
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardpose.shared.files import write_text
from wardpose.simulation.experiments import gap

_FACTS = ("start", "free", "last_stage", "setting", "facts")


def write_page(
    path: Path,
    name: str,
    content: dict[str, Any],
    *,
    about: str | None = gap.__doc__,
    rows_of: Callable[[dict[str, Any]], list[dict[str, Any]]] = gap.rows_of,
    draw: Callable[[dict[str, Any], Path], None] = gap.draw,
) -> None:
    """Write the table, the picture, what was chosen and on what it was measured.

    Args:
        path: HTML file, replaced atomically.
        name: of the experiment.
        content: as `records.read_results` returns it.
        about: what the experiment is.
        rows_of: makes its table.
        draw: makes its picture.

    """
    rows = rows_of(content)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        draw(content, picture)
        encoded = base64.b64encode(picture.read_bytes()).decode()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("experiment.html").render(
        name=name,
        about=about,
        picture=f"data:image/png;base64,{encoded}",
        headings=list(rows[0]) if rows else [],
        rows=rows,
        shown=shown,
        chosen=json.dumps(content.get("chosen", {}), indent=1),
        facts=json.dumps({key: content[key] for key in _FACTS if key in content}, indent=1),
    )
    write_text(path, html)


def shown(value: object) -> str:
    """Return a cell's text."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) and value != int(value) else f"{value}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table as documentation has it."""
    headings = list(rows[0])
    lines = [headings, ["---"] * len(headings), *([shown(row[heading]) for heading in headings] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
