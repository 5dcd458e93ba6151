"""What a run shows of names that came from elsewhere: on the screen, and in its report."""

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from wardpose.server.report import write_report
from wardpose.shared import terminal
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import one_line
from wardpose.simulation.commands.simulate import print_summary

HOSTILE = [
    "[/x]",
    "[red]r[/red]",
    "trailing\\",
    ":skull:",
    "\x1b[31mred",
    "a\nb",
    "<script>alert(1)</script>",
    "$\\frac{$",
    '">',
]


def summary(name: str) -> dict[str, Any]:
    site = {
        "name": name, "epsilon_spent": 0.5, "epsilon_budget": 2.0, "delta": 1e-3, "steps": 4, "bytes_up": 100,
        "rounds_released": 1, "status": name,
    }  # fmt: skip
    return {
        "run": name, "federation": name, "status": name, "score_name": name, "score_initial": 0.1, "score_final": 0.2,
        "score_initial_by_group": {name: 0.1, "b": 0.1}, "score_final_by_group": {name: 0.2, "b": 0.1}, "rounds": 1,
        "rounds_planned": 3, "mechanism": name, "unit": name, "delta": 1e-3, "not_private": name, "sites": [site],
        "epsilon_federation": {"disjoint": 0.5, "overlap": None, "overlap_sites": 2}, "bytes_up": 100,
        "bytes_down": 100, "seconds": 1.0, "kept": name, "versions": {name: name},
        "history": [{"round": 1, "score": 0.2, "seconds": 1.0, "bytes_up": 100}], "score_on": "test",
        "evaluation": {
            "epsilon_alone": 0.1, "noise_multiplier": 4.0, "times": 1, "sites": {name: name}, "chosen": name,
            "units": {"value": 20.0, "error": 3.0}, "score": {"value": None, "error": None},
            "score_public_only": None, "difference": {"value": 0.1, "error": 0.05},
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_the_summary_is_literal(name: str) -> None:
    screen = terminal.console()
    screen.file, screen.width = io.StringIO(), 200
    print_summary(screen, summary(name), Path("/runs") / "x")
    printed = screen.file.getvalue()
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert printed.count(one_line(name)) == 8


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_report_is_literal(name: str, tmp_path: Path) -> None:
    config = FederationConfig(sites=("a",))  # type: ignore[arg-type]  # as YAML writes it
    write_report(tmp_path / "report.html", summary(name), config, before=None, after=None)  # type: ignore[arg-type]  # no frames to show
    page, plain = Page(), Page()
    page.feed((tmp_path / "report.html").read_text())
    write_report(tmp_path / "plain.html", summary("north"), config, before=None, after=None)  # type: ignore[arg-type]
    plain.feed((tmp_path / "plain.html").read_text())
    assert page.tags == plain.tags
    assert sum(text.count(name) for text in page.text) >= 9
