"""The tables of the coordinator's status page: sites, rounds, evaluations."""

from collections import Counter
from collections.abc import Mapping, Sequence

from wardpose.server.apart import Alarm
from wardpose.server.facts import Runs, SiteAccount, late_in_a_row
from wardpose.server.journal import EvaluationRow, SiteRow
from wardpose.server.superlink import Node
from wardpose.shared.refusals import Refusal
from wardpose.shared.rounds_left import MOST_ROUNDS
from wardpose.shared.status_view import (
    Cell,
    Table,
    Tone,
    ago,
    budget_tone,
    cells,
    duration,
    listed,
    moment,
    number,
    of_budget,
    size,
)

_MOST_ROUNDS_SHOWN = 12
_TONES: Mapping[str, Tone] = {
    "released": "good",
    "ready": "good",
    "late": "warning",
    "failed": "warning",
    "refused": "bad",
    "rejected": "bad",
}


def site_table(
    runs: Runs,
    accounts: Mapping[str, SiteAccount],
    nodes: Mapping[str, Node] | None,
    apart: Sequence[Alarm],
    now: float,
) -> Table:
    """Show each site of the plan: what it last did, whether it is there, and what it spent."""
    alarmed = {alarm.site for alarm in apart}
    rows = []
    for name in runs.names:
        found = runs.here(name)
        released = sum(row.status == "released" for row in found)
        ledger = Cell(text="apart", tone="bad") if name in alarmed else Cell(text="agree", tone="good")
        never = not any(row.name == name for row in accounts.values()) or not found
        rows.append(
            cells(
                name,
                _last(found),
                *([] if nodes is None else [_connected(nodes.get(name), now)]),
                _spent(accounts.get(name)),
                _left(accounts.get(name)),
                Cell(text=str(released), note=size(sum(row.bytes_up for row in found)) if released else ""),
                Cell(text="–") if never else ledger,  # noqa: RUF001 (a dash, not a minus)
            )
        )
    connection = [] if nodes is None else ["connection"]
    headings = ("site", "last answer", *connection, "epsilon spent", "rounds left", "releases", "ledgers")
    return Table(
        title="Sites",
        headings=headings,
        rows=tuple(rows),
        note="Rounds left: how many more like its last one a site's budget bears.",
    )


def _last(rows: Sequence[SiteRow]) -> Cell:
    asked = [row for row in rows if row.status != "absent"]
    if not asked:
        return Cell(text="never asked" if not rows else "absent", tone="plain" if not rows else "warning")
    row, late = asked[-1], late_in_a_row(list(rows))
    where = f"round {row.round}" if row.round else "preflight"
    if row.status == "refused":
        note = Refusal(row.code).sentence if row.code in set(Refusal) else f"error {row.code}"
    else:
        note = row.detail or (f"{late} rounds in a row" if late > 1 else "")
    return Cell(text=f"{row.status}, {where}", note=note, tone=_TONES.get(row.status, "plain"))


def _connected(node: Node | None, now: float) -> Cell:
    if node is None:
        return Cell(text="not registered", tone="warning")
    seen = "never seen" if node.last_seen is None else f"seen {ago(node.last_seen, now)}"
    return Cell(text="online" if node.online else "offline", note=seen, tone="good" if node.online else "warning")


def _spent(account: SiteAccount | None) -> Cell:
    if account is None:
        return Cell(text="–")  # noqa: RUF001 (a dash, not a minus)
    return Cell(
        text=f"{number(account.spent)} of {number(account.budget, 2)}",
        tone=budget_tone(account.spent, account.budget),
        share=of_budget(account.spent, account.budget),
    )


def _left(account: SiteAccount | None) -> Cell:
    if account is None or account.rounds_left is None:
        return Cell(text="–")  # noqa: RUF001 (a dash, not a minus)
    left = account.rounds_left
    tone: Tone = "bad" if left == 0 else "warning" if left < 3 else "plain"
    return Cell(text=f"more than {MOST_ROUNDS}" if left >= MOST_ROUNDS - 1 else str(left), tone=tone)


def round_table(runs: Runs, now: float) -> Table:
    """Show the last rounds of the latest run, the newest first."""
    rows = []
    for row in reversed(runs.last_rounds[-_MOST_ROUNDS_SHOWN:]):
        became = Counter(site.status for site in runs.here() if site.round == row.round)
        released = became.pop("released", 0)
        others = listed([f"{count} {status}" for status, count in sorted(became.items())]) if became else ""
        tone: Tone = "bad" if not released else "warning" if became else "good"
        rows.append(
            cells(
                str(row.round),
                Cell(text=ago(row.started + row.seconds, now), note=moment(row.started + row.seconds)),
                duration(row.seconds),
                number(row.score),
                Cell(text=str(released), note=others, tone=tone),
                number(row.epsilon_disjoint),
            )
        )
    return Table(
        title="Rounds",
        headings=("round", "ended", "took", "score", "releases", "epsilon"),
        rows=tuple(rows),
        empty="No round has ended yet.",
    )


def evaluation_table(runs: Runs) -> list[Table]:
    """Show what patients were charged to measure; no table where nothing was."""
    if not runs.evaluations:
        return []
    rows = [
        cells(
            str(row.number),
            str(row.round),
            _measured(row, 0),
            _measured(row, 1),
            row.chosen or "",
            number(row.noise_multiplier, 2),
            listed([f"{site} {status}" for site, status in row.sites.items()]),
        )
        for row in runs.evaluations
    ]
    headings = ("evaluation", "after round", "private model", "free model (public-only)", "kept", "sigma", "sites")
    note = "On patients, with noise, and charged; ± is one standard error."
    return [Table(title="Evaluations on patients", headings=headings, rows=tuple(rows), note=note)]


def _measured(row: EvaluationRow, model: int) -> str:
    models = (row.scores or {}).get("models", [])
    if model >= len(models):
        return ""
    score = models[model]["score"]
    if score["value"] is None or score["error"] is None:
        return "not measurable at this noise"
    return f"{score['value']:.3f} ± {score['error']:.3f}"
