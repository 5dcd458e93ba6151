"""Whether a site's ledger is the whole story: held against the journal of orders before a figure is read off it."""

import sqlite3

from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import LedgerError
from wardpose.shared.ledger_state import LedgerState, ledger_state
from wardpose.shared.site_config import SiteConfig


def state_of(site: SiteConfig) -> tuple[LedgerState, str]:
    """Tell what became of a site's ledger; see `ledger_state`."""
    try:
        paid = SiteJournal(site.state / "journal.sqlite").paid()
    except sqlite3.Error:
        return ledger_state(site.ledger, None)
    return ledger_state(site.ledger, paid)


def refuse_lost(site: SiteConfig) -> None:
    """Refuse a ledger that is not the whole story; a site that was never asked need have none.

    Raises:
        LedgerError: says what became of it.

    """
    _, problem = state_of(site)
    if problem:
        raise LedgerError(problem)
