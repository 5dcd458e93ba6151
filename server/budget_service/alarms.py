"""What was found of sites' ledgers that did not continue what was seen before: kept until staff settle it."""

from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.sqlite import as_rows, read_rows, transaction

ALARMS = "ledger-alarms.sqlite"

_MOST_ALARMS = 100  # different ones that are kept of a site
_SCHEMA = """
CREATE TABLE IF NOT EXISTS alarms (
    site TEXT NOT NULL, what TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, times INTEGER NOT NULL,
    settled TEXT NOT NULL DEFAULT '', PRIMARY KEY (site, what)
);
"""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A site's ledger was found not to be the one that it was.

    Attributes:
        site: whose.
        what: happened.
        first: Unix time when it was first found.
        last: when it was last found.
        times: how often.

    """

    site: str
    what: str
    first: int
    last: int
    times: int


class Alarms:
    """Remember alarms.

    Attributes:
        path: an SQLite file, made with the first.

    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, site: str | None = None) -> list[Alarm]:
        """Return the alarms of a site that nobody settled yet, oldest first; of all sites when absent."""
        query = (
            "SELECT site, what, first, last, times FROM alarms WHERE settled = '' AND (? IS NULL OR site = ?) "
            "ORDER BY first, what"
        )
        return as_rows(Alarm, read_rows(self.path, query, site, site), self.path)

    def raise_(self, site: str, what: str, now: int) -> None:
        """Write one down, durably; the same one again is counted."""
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "INSERT INTO alarms SELECT ?, ?, ?, ?, 1, '' WHERE (SELECT count(*) FROM alarms WHERE site = ?) < ? "
                "OR EXISTS (SELECT 1 FROM alarms WHERE site = ? AND what = ?) "
                "ON CONFLICT (site, what) DO UPDATE SET last = excluded.last, times = times + 1, settled = ''",
                (site, what, now, now, site, _MOST_ALARMS, site, what),
            )

    def settle(self, site: str, why: str) -> None:
        """Take a site's alarms off the list: staff know what happened, and said so."""
        if self.path.exists():
            with transaction(self.path, _SCHEMA) as connection:
                connection.execute("UPDATE alarms SET settled = ? WHERE site = ? AND settled = ''", (why, site))
