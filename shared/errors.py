"""Errors a user can act on. Each message names the file, the key or record, the value and what is allowed."""

import sqlite3


class WardposeError(Exception):
    """Base of every error that Wardpose raises on purpose; the command line prints it on one line and exits 2."""


class ConfigError(WardposeError):
    """A federation.yaml, site.yaml or command-line value is wrong."""


class DataError(WardposeError):
    """A data set, image, annotation or weights file cannot be used."""


class StorageError(DataError, OSError):
    """A file cannot be written: the disk is full, or the folder is not writable. What was there is still there.

    An `OSError` too, made like one of (number, what the system says, file); a note says how many bytes were needed.
    """

    def __str__(self) -> str:
        """Name the file, what the system says, and what is needed."""
        notes = "".join(f": {note}" for note in getattr(self, "__notes__", []))
        return f"{self.filename}: cannot be written ({self.strerror}){notes}"


class DamagedError(DataError, sqlite3.DatabaseError):
    """A journal or another record cannot be read: damaged, locked, or of another form. An SQLite error too."""


class WireError(WardposeError):
    """A message between server and site does not have the agreed form."""


class PolicyViolation(WardposeError):  # noqa: N818 (says what happened, as users read it)
    """A round order asks for something that the site's policy does not allow."""


class BudgetExceeded(WardposeError):  # noqa: N818 (says what happened, as users read it)
    """A reservation would take a cohort over its privacy budget."""


class LedgerError(WardposeError):
    """A ledger is unreadable, was tampered with, or was rolled back."""


class RecoveryError(WardposeError):
    """An anonymised frame cannot be recovered: wrong key, missing authority or a tampered log."""


def one_line(value: object, length: int = 120) -> str:
    """Write a value that came from elsewhere so that it cannot break a line, move a cursor or fill a screen.

    Characters that cannot be printed are shown as Python escapes, and what is longer than `length` is cut.
    """
    text = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(value)[: length + 1]
    )
    return text if len(text) <= length else f"{text[: length - 3]}..."
