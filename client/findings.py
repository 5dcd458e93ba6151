"""What a check found, as a value and on a screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure"]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the check.
        status: `failure` is wrong and has to be mended; a site with one cannot take part.
        text: what was found, and what to do about it, on one line.
        examples: the first places where it was found.

    """

    name: str
    status: Status
    text: str
    examples: tuple[str, ...] = ()


def finding(name: str, status: Status, text: str, examples: Sequence[str] = ()) -> Finding:
    """Make a finding whose texts are of one line each, and of letters that every screen has."""
    return Finding(
        name=name,
        status=status,
        text=_one_line(text),
        examples=tuple(_one_line(example) for example in examples[:_SHOWN]),
    )


def _one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
