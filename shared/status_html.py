"""A status page as HTML: made on the server from a view, without a script, a font, a picture or anything else to fetch.

Every text is escaped by the template engine; the policy that goes with the page (`HEADERS`) allows one style sheet, by
its hash, and nothing besides: even markup that got through could load, run and send nothing.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardpose.shared.errors import one_line
from wardpose.shared.status_view import Curve, StatusView, duration, moment, number, size

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST = 2000  # characters of one text
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640.0, 200.0, 56.0, 30.0, 14.0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A curve as its picture needs it, in units of the picture.

    Attributes:
        line: points of the curve ("x,y x,y").
        dots: (x, y, text) of each point.
        levels: (y, text) of what it is compared with.
        marks: (y, text) of the scale.
        rounds: (x, text) of the rounds that are named.
        width: of the picture.
        height: of the picture.
        left: where the curve begins.

    """

    line: str
    dots: tuple[tuple[float, float, str], ...]
    levels: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]
    rounds: tuple[tuple[float, str], ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT


def render(view: StatusView) -> str:
    """Return the page of a view."""
    return (
        _environment()
        .get_template("status.html")
        .render(view=view, style=style(), drawing=None if view.curve is None else draw(view.curve))
    )


def headers() -> Mapping[str, str]:
    """Return what a browser is told with the page."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": (
            f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        **HEADERS,
    }


HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What a browser is told with everything that an exporter serves."""


def draw(curve: Curve) -> Drawing | None:
    """Lay a curve out; `None` where it has no point."""
    if not curve.points:
        return None
    values = [value for _, value in curve.points] + ([value for _, value in curve.levels])
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.05
    low, high = low - margin, high + margin
    first, last = curve.points[0][0], curve.points[-1][0]

    def across(at: int) -> float:
        way = (_WIDTH - 14 - _LEFT) * ((at - first) / (last - first) if last > first else 0.5)
        return round(_LEFT + 8 + way - 4, 1)

    def up(value: float) -> float:
        return round(_TOP + (_HEIGHT - _BOTTOM - _TOP) * (high - value) / (high - low), 1)

    named = sorted({first, last, curve.points[len(curve.points) // 2][0]})
    return Drawing(
        line=" ".join(f"{across(at)},{up(value)}" for at, value in curve.points),
        dots=tuple((across(at), up(value), f"round {at}: {value:.3f}") for at, value in curve.points),
        levels=tuple((up(value), f"{name}: {value:.3f}") for name, value in curve.levels),
        marks=tuple((up(value), f"{value:.2f}") for value in (low + margin, (low + high) / 2, high - margin)),
        rounds=tuple((across(at), str(at)) for at in named),
    )


@cache
def style() -> str:
    """Return the style sheet of all pages."""
    return (_TEMPLATES / "status.css").read_text()


@cache
def _environment() -> Environment:
    return environment()


def environment(*folders: Path) -> Environment:
    """Return what makes pages of templates in folders, and of the parts that all pages share."""
    made = Environment(
        loader=FileSystemLoader([*folders, _TEMPLATES]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(moment=moment, plain=_plain, number=number, duration=duration, size=size)
    return made


def _plain(text: Any) -> str:
    """Show what cannot be printed as escapes; marks that turn the direction of writing are among it."""
    return one_line(text, _LONGEST)
