"""A run in one JSON object, from the journal and the server's ledger; what `summary.json` and `--json` hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wardpose.server.budget import GlobalBudget
from wardpose.server.contact import Stated, stated_spent
from wardpose.server.journal import EvaluationRow, RunJournal, SiteRow
from wardpose.server.ledger import ServerLedger
from wardpose.server.spent import ledger_of, refuse_lost
from wardpose.shared.errors import DataError
from wardpose.shared.ledger_views import finite
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.version import versions


def summarise(folder: Path, run: str | None = None) -> dict[str, Any]:
    """Summarise a run of the coordinator's folder; the last one when `run` is absent.

    An infinite epsilon (mechanism `none`) is `null`, because JSON has no infinity; `not_private` then says why.

    Raises:
        DataError: the folder holds no such run.
        LedgerError: the ledger is gone, empty, locked, broken or rolled back.

    """
    journal = RunJournal(folder / "journal.sqlite")
    runs = journal.runs()
    chosen = next((row for row in reversed(runs) if run is None or row["run"] == run), None)
    if chosen is None:
        raise DataError(f"{folder / 'journal.sqlite'}: holds no run{'' if run is None else f' {run}'}")
    place = ledger_of(folder)
    refuse_lost(folder, place)
    rows = journal.sites(chosen["run"])
    rounds = journal.rounds(chosen["run"])
    names = [entry["name"] for entry in chosen["config"]["sites"]]
    ledger, stated = (
        ServerLedger(place.path, witness=place.witness),
        stated_spent(place.path.with_name("contact.sqlite")),
    )
    budget = GlobalBudget(
        ledger,
        delta=chosen["delta"],
        overlap=chosen["overlap"],
        unit=chosen["unit"],
    )
    disjoint, overlap = budget.federation(names)
    made = journal.evaluations(chosen["run"])
    on_patients = {row.round: row.scores["models"][0]["score"]["value"] for row in made if row.scores}
    initial, final = chosen["score_initial"] or {}, chosen["score_final"] or {}
    return {
        "run": chosen["run"],
        "federation": chosen["federation"],
        "status": chosen["status"],
        "score_name": chosen["score_name"],
        "score_on": final.get("on", "test"),
        "score_initial": initial.get("score"),
        "score_final": final.get("score"),
        "kept": final.get("kept", "private"),
        "score_initial_by_group": initial.get("by_group", {}),
        "score_final_by_group": final.get("by_group", {}),
        "rounds": len(rounds),
        "rounds_planned": chosen["rounds"],
        "mechanism": chosen["mechanism"],
        "unit": chosen["unit"],
        "delta": chosen["delta"],
        "not_private": not_private(chosen["mechanism"], rows),
        "sites": [
            _site(
                name,
                [row for row in rows if row.site == name],
                steps=budget.steps(name, chosen["run"]),
                spent=budget.epsilon(name) if made else 0.0,
                stated=stated.get(name),
                unanswered=[each.round for each in ledger.open_reservations(name) if each.run == chosen["run"]],
            )
            for name in names
        ],
        "epsilon_federation": {
            "disjoint": finite(disjoint),
            "overlap": finite(overlap),
            "overlap_sites": chosen["overlap"],
        },
        "bytes_up": sum(row.bytes_up for row in rounds),
        "bytes_down": sum(row.bytes_down for row in rounds),
        "seconds": round(sum(row.seconds for row in rounds), 2),
        "evaluation": _evaluation(made, budget, names),
        "history": [
            {
                "round": row.round,
                "score": row.score if row.score is not None else on_patients.get(row.round),
                "seconds": round(row.seconds, 2),
                "bytes_up": row.bytes_up,
            }
            for row in rounds
        ],
        "versions": versions(),
    }


def _evaluation(made: Sequence[EvaluationRow], budget: GlobalBudget, names: Sequence[str]) -> dict[str, Any] | None:
    """Say what was measured on patients, what that cost them, and which model is kept; `None` where nothing was.

    The cost is that of the run's evaluations by themselves at the federation's delta; it is part of the run's epsilon.
    """
    if not made:
        return None
    last = made[-1]
    scores = last.scores or {}
    models = scores.get("models", [])
    return {
        "epsilon_alone": finite(max(budget.evaluation_epsilon(name, last.run) for name in names)),
        "noise_multiplier": last.noise_multiplier,
        "times": len(made),
        "sites": last.sites,
        "units": scores.get("units"),
        "score": models[0]["score"] if models else None,
        "score_public_only": models[1]["score"] if len(models) > 1 else None,
        "difference": scores.get("difference"),
        "chosen": last.chosen,
        "history": [
            {"number": row.number, "round": row.round, "scores": row.scores, "chosen": row.chosen} for row in made
        ],
    }


def not_private(mechanism: str, rows: list[SiteRow]) -> str | None:
    """Say why a run gives no privacy at all; `None` when it gives what its epsilon says."""
    try:
        chosen = Mechanism.model_validate({"name": mechanism})
    except ValidationError:
        return f"mechanism {mechanism}: this version does not know what it gives"
    if chosen.reads_private and not chosen.is_private:
        return f"mechanism {chosen.name}: updates are neither clipped nor noised"
    if any(row.secure is False for row in rows):
        return "seeded simulation: whoever knows the seed can subtract the noise"
    return None


def _site(
    name: str,
    rows: list[SiteRow],
    *,
    steps: int,
    spent: float,
    stated: Stated | None,
    unanswered: Sequence[int],
) -> dict[str, Any]:
    """Say what became of a site, and where its own ledger says less than is charged here: for which rounds."""
    last = rows[-1] if rows else None
    known = next((row for row in reversed(rows) if row.delta is not None), None)
    return {
        "name": name,
        "epsilon_spent": finite(max([spent, *(row.epsilon_spent or 0.0 for row in rows)])),
        "epsilon_at_site": finite(stated.epsilon) if stated else None,
        "rounds_unanswered": sorted(set(unanswered)),
        "epsilon_budget": finite(known.epsilon_budget) if known else None,
        "delta": known.delta if known else None,
        "steps": steps,
        "bytes_up": sum(row.bytes_up for row in rows),
        "rounds_released": sum(row.status == "released" for row in rows),
        "status": last.status if last else "absent",
        "reason": last.reason if last else "",
        "detail": last.detail if last else "",
    }
