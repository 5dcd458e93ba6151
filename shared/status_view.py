"""What a status page says, whoever shows it: a browser, a terminal or a program.

One value is made of an exporter's files (`wardpose.server.status`, `wardpose.client.status`); three places show it
(`status_html`, `status_terminal`, `StatusView.to_json`). All texts are plain: whoever shows them escapes them.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from wardpose.shared.errors import one_line

Tone = Literal["good", "plain", "warning", "bad"]
"""How much something needs somebody: not at all, nothing to say, soon, now."""

Value = TypeVar("Value")

_URGENT: dict[Tone, int] = {"bad": 0, "warning": 1, "plain": 2, "good": 3}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that needs somebody.

    Attributes:
        tone: how much.
        what: happened, in a sentence.
        todo: what to do about it.
        about: which site it is about; empty where it is about none.
        local: may only be shown on the machine itself.

    """

    tone: Tone
    what: str
    todo: str
    about: str = ""
    local: bool = False

    @property
    def step(self) -> str:
        """What to do, and about whom."""
        return f"{self.about}: {self.todo}" if self.about else self.todo


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure with its name.

    Attributes:
        name: what it is.
        value: as it is read.
        note: what it is compared with, or of what it is.
        tone: how it is.
        share: of a budget or of a way, 0 to 1, for a bar; `None` where it is no share.
        local: may only be shown on the machine itself.

    """

    name: str
    value: str
    note: str = ""
    tone: Tone = "plain"
    share: float | None = None
    local: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of a table; attributes as those of `Fact`."""

    text: str
    note: str = ""
    tone: Tone = "plain"
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under headings.

    Attributes:
        title: of the table.
        headings: of its columns; the first names a row.
        rows: as many cells as there are headings.
        note: a sentence about it.
        empty: what is said where there are no rows.
        local: may only be shown on the machine itself.

    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    empty: str = "nothing yet"
    local: bool = False


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value over rounds, with what it is compared with.

    Attributes:
        title: of the picture.
        points: (round, value), in order.
        levels: (what it is, value) of what it is compared with: first of what costs nothing.

    """

    title: str
    points: tuple[tuple[int, float], ...]
    levels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StatusView:
    """All that a status page says.

    Attributes:
        role: whose it is: `coordinator` or `site`.
        name: of the federation or the site; empty where nobody knows yet.
        headline: where things stand, in a sentence.
        tone: how that is.
        next_step: what to do now, in a sentence.
        last_error: the last thing that went wrong, in words; empty where nothing did.
        findings: what needs somebody, the most urgent first.
        facts: figures.
        tables: rows.
        curve: the score over rounds, if there is one.
        footer: what a reader should know of these figures.
        made: Unix time.

    """

    role: Literal["coordinator", "site"]
    name: str
    headline: str
    tone: Tone
    next_step: str
    last_error: str = ""
    findings: tuple[Finding, ...] = ()
    facts: tuple[Fact, ...] = ()
    tables: tuple[Table, ...] = ()
    curve: Curve | None = None
    footer: str = ""
    last_error_local: bool = False
    made: float

    def shared(self) -> "StatusView":
        """Return what may be shown outside the machine."""
        return replace(
            self,
            last_error="" if self.last_error_local else self.last_error,
            findings=tuple(finding for finding in self.findings if not finding.local),
            facts=tuple(fact for fact in self.facts if not fact.local),
            tables=tuple(table for table in self.tables if not table.local),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def by_urgency(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings, the most urgent first, and leave out those that say the same."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: _URGENT[finding.tone]))


def worst(tones: Iterable[Tone], default: Tone = "good") -> Tone:
    """Return the most urgent tone."""
    return min(tones, key=lambda tone: _URGENT[tone], default=default)


class Reading:
    """Read one source after the other; what cannot be read becomes a finding, and the page goes on.

    Attributes:
        findings: what could not be read.

    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def read(self, what: str, reader: Callable[[], Value], default: Value, *, todo: str, local: bool = False) -> Value:
        """Return what `reader` returns; `default`, and a finding, where it raises.

        Args:
            what: the source, as a reader knows it.
            reader: reads it.
            default: where it cannot.
            todo: what to do then.
            local: the error's text may only be shown on the machine itself.

        """
        try:
            return reader()
        except Exception as error:  # whatever a damaged file does, the page says so and stays
            text = f"{what} cannot be read: {one_line(error, 600)}"
            self.findings.append(Finding(tone="bad", what=text, todo=todo, local=local))
            if local:
                general = f"{what} cannot be read"
                self.findings.append(Finding(tone="bad", what=general, todo="look at the site itself"))
            return default


def number(value: float | None, digits: int = 3) -> str:
    """Write a figure: a dash for none, a word for infinity."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001 (a dash, not a minus)
    return f"{value:.{digits}f}" if math.isfinite(value) else "infinite"


def size(count: float | None) -> str:
    """Write bytes in the unit that a person would use (powers of 1000)."""
    if count is None:
        return "–"  # noqa: RUF001 (a dash, not a minus)
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Write a time span in the two units that a person would use."""
    if seconds is None or not math.isfinite(seconds):
        return "–"  # noqa: RUF001 (a dash, not a minus)
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def ago(then: float | None, now: float) -> str:
    """Write when something was."""
    if then is None:
        return "never"
    if then > now + 5:
        return f"in {duration(then - now)}"
    return f"{duration(now - then)} ago"


def moment(then: float) -> str:
    """Write a time of day as everybody reads it the same."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(then))


def cells(*values: str | Cell) -> tuple[Cell, ...]:
    """Make a row."""
    return tuple(value if isinstance(value, Cell) else Cell(text=value) for value in values)


def certificate_table(ends: Mapping[str, float], now: float) -> Table:
    """Show how long certificates hold."""
    rows = [
        cells(name, Cell(text=f"{(end - now) / 86400:.0f} days", note=moment(end), tone=certificate_tone(end, now)))
        for name, end in ends.items()
    ]
    return Table(title="Certificates", headings=("certificate", "holds for"), rows=tuple(rows))


def certificate_tone(end: float, now: float) -> Tone:
    """Judge how long a certificate still holds: 21 days leave time to renew it, 3 hardly."""
    days = (end - now) / 86400
    return "bad" if days < 3 else "warning" if days < 21 else "good"


def certificate_findings(ends: Mapping[str, float], now: float, *, todo: str) -> list[Finding]:
    """Say which certificates end soon."""
    found = []
    for name, end in ends.items():
        tone = certificate_tone(end, now)
        if tone != "good":
            words = f"ends in {duration(end - now)}" if end > now else f"ended {ago(end, now)}"
            found.append(Finding(tone=tone, what=f"Certificate {name} {words} ({moment(end)}).", todo=todo))
    return found


def budget_tone(spent: float, budget: float | None) -> Tone:
    """Judge a budget: nine tenths are nearly all."""
    if budget is None or budget <= 0:
        return "plain" if math.isfinite(spent) else "bad"
    return "bad" if spent > budget else "warning" if spent > 0.9 * budget else "good"


def of_budget(spent: float, budget: float | None) -> float | None:
    """Return which share of a budget is spent, for a bar."""
    return min(1.0, spent / budget) if budget and math.isfinite(budget) else None


def disk_facts(folder: Path, *, local: bool = False) -> tuple[list[Fact], list[Finding]]:
    """Show how much room is left where files are written; nothing where the folder is not there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return [], []
    share = 1 - usage.free / usage.total if usage.total else 0.0
    tone: Tone = "bad" if usage.free < 0.02 * usage.total else "warning" if usage.free < 0.1 * usage.total else "good"
    fact = Fact(name="disk", value=f"{size(usage.free)} free", note=f"of {size(usage.total)}", tone=tone, share=share)
    findings = []
    if tone != "good":
        what = f"The disk of {folder} has {size(usage.free)} of {size(usage.total)} left."
        todo = "Make room: a ledger that cannot be written stops the run."
        findings.append(Finding(tone=tone, what=what, todo=todo, local=local))
    return [replace(fact, local=local)], findings


def score_label(name: str) -> str:
    """Write a plan's score as people do: PCK@0.2, PCKh@0.5."""
    return name.replace("pck", "PCK")


def listed(names: Sequence[str]) -> str:
    """Write names in a row."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else "none"


def finite(value: object) -> object:
    """Return plain values in which every infinite number is `None`: JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
