"""With which sites the coordinator does not agree on what was charged, read from `contact.sqlite` (`contact`)."""

from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.sqlite import as_rows, read_rows


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A disagreement with a site that nobody has settled.

    Attributes:
        site: with whom.
        what: in a line.
        raised: Unix time.

    """

    site: str
    what: str
    raised: float


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    site: str
    receipts: int


def open_alarms(path: Path) -> list[Alarm]:
    """Return the disagreements that were not settled."""
    return as_rows(
        Alarm, read_rows(path, "SELECT site, what, raised FROM alarms WHERE cleared IS NULL ORDER BY number"), path
    )


def receipts_waiting(path: Path) -> dict[str, int]:
    """Return how many receipts each site has not acknowledged; sites without any are left out."""
    rows = read_rows(path, "SELECT site, count(*) AS receipts FROM receipts WHERE acknowledged IS NULL GROUP BY site")
    return {row.site: row.receipts for row in as_rows(_Waiting, rows, path)}
