"""Views beside their floor before the relinking attacker alone, with its curve over more and more pairs.

`wardpose anonymizer relink` fills this table, to compare views while they are hardened and to see whether the attacker
has enough pairs. A certificate has these rows and those of all other attackers.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardpose.shared.anonymize.figures import parse
from wardpose.shared.anonymize.public_view import open_public_view
from wardpose.simulation.anonymizer.certify_config import FLOOR, OWN, CertifyConfig
from wardpose.simulation.anonymizer.figure_table import GROWTH, HEADINGS, figure_lines, growth_lines
from wardpose.simulation.anonymizer.finished_rows import FinishedRows
from wardpose.simulation.anonymizer.floors import figures
from wardpose.simulation.anonymizer.measuring import COLUMNS, Bench, Row, Say
from wardpose.simulation.anonymizer.methods import Method, floor, untouched
from wardpose.simulation.anonymizer.rounding import rounded

_ROWS = {"view", "recoverable", "compare", "others", "attacked", "posed"}


def measure(
    config: CertifyConfig, *, command: str, work: Path | None = None, say: Say = lambda _: None
) -> dict[str, Any]:
    """Return rows and, for each view, figures as JSON; numbers are rounded to four places.

    Args:
        config: as of a certificate; its comparisons, trained attackers and recoverable weights are left out.
        command: stored.
        work: keeps finished rows, see `certify.measure`.
        say: called with each thing that is begun.

    Raises:
        DataError: data, weights or a model that the configuration names cannot be used.
        ConfigError: a view's weights are of kind `recoverable`; `work` belongs to another measurement.

    """
    views = {OWN: open_public_view(config.view)} | {view.name: view for view in map(open_public_view, config.others)}
    bench = Bench(config, say)
    setting = bench.setting()
    finished = FinishedRows(work, {"config": config.model_dump(mode="json", exclude=_ROWS), "setting": setting})

    def row(method: Method, identity: str, *, relinked: bool) -> Row:
        key = f"{method.name} {identity} relinked={relinked}"
        return finished.of(key, lambda: bench.row(method, attacked=False, posed=True, relinked=relinked))[0]

    raw = row(untouched(), "", relinked=False)
    lowest = row(floor(FLOOR), "", relinked=True)
    shown = [row(Method.of_map(name, view), view.identity(), relinked=True) for name, view in views.items()]
    rows = [raw, lowest, *shown]
    for one in rows:
        one["pose_kept"] = one["p_pck"] / raw["p_pck"] if raw["p_pck"] and one["p_pck"] is not None else None
    return {
        "about": (
            f"{setting['people']} people whom nobody learned from. Whoever holds the very frame and the map needs no "
            "attacker: they apply the map and compare."
        ),
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "figures": {
            one["name"]: {name: rounded(asdict(figure)) for name, figure in figures(one, lowest, setting).items()}
            for one in shown
        },
        "rows": [{key: rounded(value) for key, value in one.items() if value is not None} for one in rows],
        "setting": setting | {"views": {name: view.identity() for name, view in views.items()}},
    }


def tables(found: dict[str, Any]) -> list[list[list[str]]]:
    """Return what `measure` found as tables, headings first: the figures of each view, the curves, and what P keeps."""
    names = [row["name"] for row in found["rows"] if row["name"] in found["figures"]]
    stated = [(name, line) for name in names for line in figure_lines(parse(found["figures"][name]))]
    kept = [
        [row["name"], f"{row['p_pck']:.3f}", f"{row['pose_kept']:.3f}"]
        for row in found["rows"]
        if row.get("p_pck") is not None
    ]
    return [
        [["view", *HEADINGS], *([name, *line] for name, line in stated)],
        [GROWTH, *growth_lines(found["rows"])],
        *([[["row", COLUMNS["p_pck"], COLUMNS["pose_kept"]], *kept]] if kept else []),
    ]


def brief(found: dict[str, Any]) -> list[list[list[str]]]:
    """Return the same for a terminal: without trials, chance and networks."""
    figures_lines, curves, *kept = tables(found)
    narrow = [[f"{line[0]}: {line[1]}", line[2], line[3], line[7]] for line in figures_lines[1:]]
    steps = [[f"{line[0]}, {line[1]} pairs", line[2], line[3]] for line in curves[1:]]
    return [
        [["figure", "view [95 %]", "skeleton and box", "pairs"], *narrow],
        [["attacker", "rank-1 [95 %]", "rank-5 [95 %]"], *steps],
        *kept,
    ]
