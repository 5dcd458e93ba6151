"""The files of `deploy/`, filled in for one machine.

A line that begins with `#%` is the template's own, so that every file there is a comment longer than what it makes, and
nothing else.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def render(name: str, **values: Any) -> bytes:
    """Return a file of `deploy/` with its places filled in; a value that is missing is an error.

    Args:
        name: its path below `deploy/`.
        values: by name.

    """
    return _environment().get_template(name).render(**values).encode()


def verbatim(name: str) -> bytes:
    """Return a file of `deploy/` as it is: what is in braces in it belongs to another program."""
    return (DEPLOY / name).read_bytes()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(DEPLOY),
        line_statement_prefix="#%",
        keep_trailing_newline=True,
        trim_blocks=True,
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 (configuration files, of names and numbers that were checked)
    )
