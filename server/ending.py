"""How a run ended, in a word that metrics count and a line that people read."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from wardpose.server.journal import Ending
from wardpose.shared.errors import BudgetExceeded, ConfigError, DataError, LedgerError, StorageError, one_line

SPENT = "its privacy budget is spent"
"""Why a site leaves a run that it cannot pay for any more."""

_LONGEST = 1000  # characters of a line about it


@dataclass(frozen=True, kw_only=True)
class End:
    """How a run ended.

    Attributes:
        status: `completed`, `stopped`, `interrupted` or `failed`.
        reason: of another end than `completed`.
        detail: a line about it.

    """

    status: str
    reason: Ending | None = None
    detail: str = ""


def stopped(*, round_number: int, quorum: int, dropped: Mapping[str, str], missing: list[str]) -> End:
    """Say why a round could not be ordered: those who are missing would have to be as many as the plan asks for.

    Args:
        round_number: the round.
        quorum: how many sites it needs.
        dropped: sites that left the run -> why.
        missing: sites that did not answer when they were asked.

    """
    why = [f"{site}: {reason}" for site, reason in dropped.items()] + [f"{site}: no answer" for site in missing]
    if any(reason == SPENT for reason in dropped.values()):
        reason = Ending.BUDGET
    else:
        reason = Ending.REFUSED if dropped else Ending.ABSENT
    text = f"round {round_number} needs {quorum} sites and fewer could take part ({'; '.join(why) or 'none was there'})"
    return End(status="stopped", reason=reason, detail=one_line(text, _LONGEST))


def failed(error: BaseException) -> End:
    """Say what a run failed over."""
    from flwr.supercore.run import RunNotRunningException

    if isinstance(error, RunNotRunningException):  # what Flower's grid raises after `flwr stop`
        return End(status="stopped", reason=Ending.INTERRUPTED, detail="it was told to stop")
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return End(status="interrupted", reason=Ending.INTERRUPTED, detail="it was told to end")
    kinds: tuple[tuple[type[BaseException], Ending], ...] = (
        (BudgetExceeded, Ending.BUDGET),
        (LedgerError, Ending.LEDGER),
        (ConfigError, Ending.CONFIGURATION),
        (StorageError, Ending.STORAGE),
        (DataError, Ending.DATA),
        (OSError, Ending.STORAGE),
        (sqlite3.Error, Ending.STORAGE),
    )
    reason = next((ending for kind, ending in kinds if isinstance(error, kind)), Ending.DEFECT)
    return End(status="failed", reason=reason, detail=one_line(f"{type(error).__name__}: {error}", _LONGEST))
