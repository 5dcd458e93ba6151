"""The figures of a certificate as lines of a table: each beside its floor, and what more pairs would bring."""

from typing import Any

from wardpose.shared.anonymize.figures import Figure
from wardpose.simulation.anonymizer.measuring import COLUMNS

HEADINGS = [
    "measure", "view [95 %]", "skeleton and box [95 %]", "above this floor", "guessing", "trials", "pairs learned",
    "networks",
]  # fmt: skip
GROWTH = ["row", "pairs learned", "rank-1 [95 %]", "rank-5 [95 %]", "rank-1 of its own pairs"]


def figure_lines(figures: dict[str, Figure]) -> list[list[str]]:
    """One line a figure, in the order of `HEADINGS`."""
    return [
        [
            COLUMNS.get(name, name),
            _share(figure.value, figure.low, figure.high),
            _share(figure.floor, figure.floor_low, figure.floor_high),
            "-" if figure.above_floor is None else f"{figure.above_floor:+.3f}",
            f"{figure.chance:.3f}",
            str(figure.trials),
            str(figure.pairs) if figure.pairs else "none: published",
            "; ".join(figure.networks),
        ]
        for name, figure in figures.items()
    ]


def growth_lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One line a step of each row's curve, in the order of `GROWTH`; the last one is that of all pairs."""
    return [
        [
            row["name"],
            str(step["pairs"]),
            _share(step["rank1"], step["low1"], step["high1"]),
            _share(step["rank5"], step["low5"], step["high5"]),
            f"{step['training_rank1']:.3f}",
        ]
        for row in rows
        for step in [*row.get("growth", ()), *([row["relink"]] if row.get("relink") else ())]
    ]


def _share(value: float | None, low: float | None, high: float | None) -> str:
    return "none" if value is None or low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
