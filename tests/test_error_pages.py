"""Nothing that can go wrong on purpose is missing from the page that says what to do."""

import re
from pathlib import Path

import pytest

from wardpose.server.journal import Reason
from wardpose.shared.ledger_state import LEDGER_STATES
from wardpose.shared.refusals import Refusal

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "errors.md").read_text()
CLASS = re.compile(r"^class (\w+)\(([\w, ]+)\):", re.MULTILINE)


def rows(heading: str) -> dict[str, list[str]]:
    """Return the rows of the first table below a heading, by their first code word."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"
    ]
    return {line[0].strip("` "): line[1:] for line in cells[2:]}


def classes() -> set[str]:
    """Return the name of every `WardposeError` of the project, found in the files themselves."""
    files = [
        path for room in ("client", "server", "shared", "simulation") for path in (REPOSITORY / room).rglob("*.py")
    ]
    defined = {name: set(re.split(r",\s*", bases)) for path in files for name, bases in CLASS.findall(path.read_text())}
    found = {"WardposeError"}
    while more := {name for name, bases in defined.items() if bases & found} - found:
        found |= more
    return found


def test_every_error_class_has_a_row() -> None:
    known = classes()
    assert {"StorageError", "CutFileError", "Rejected", "NoiseTestError"} <= known
    assert set(rows("On the command line and in Python")) == known


@pytest.mark.parametrize("heading", ["What a server hears", "Why the server does not believe", "When a ledger is lost"])
def test_every_row_says_what_to_do(heading: str) -> None:
    assert all(all(cell for cell in line) for line in rows(heading).values())


def test_every_refusal_has_a_row_with_its_number() -> None:
    assert {int(code): line[0].strip("`") for code, line in rows("What a server hears").items()} == {
        code.value: code.name for code in Refusal
    }


def test_every_reason_and_every_state_has_a_row() -> None:
    assert set(rows("Why the server does not believe")) == {reason.value for reason in Reason}
    assert set(rows("When a ledger is lost")) == set(LEDGER_STATES)
