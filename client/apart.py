"""Whether a site and its coordinator agree on what was charged, read from `contact.sqlite` (`contact`)."""

from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.sqlite import as_rows, read_rows


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A disagreement that nobody has settled.

    Attributes:
        what: in a line.
        raised: Unix time.

    """

    what: str
    raised: int


def open_alarms(path: Path) -> list[Alarm]:
    """Return the disagreements with a coordinator that a site has and that were not settled."""
    rows = read_rows(path, "SELECT what, raised FROM alarms WHERE cleared IS NULL ORDER BY number")
    return as_rows(Alarm, rows, path)
