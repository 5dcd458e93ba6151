"""A statement for a privacy officer: what was spent, by which study, on whom, and what it means for one patient.

One self-contained HTML page, and an entry with the fields of the public registry of deployments of differential privacy
(registry.opendp.org, tier 3: everything that a reader needs to judge the guarantee).

**What an epsilon means.** Somebody who knows everything about everybody else, and all that ever left the site, decides
by a rule of their own whether a patient took part. If the rule says so of at most a share a of those who did not, it
says so of at most min(e^epsilon a + delta, 1 - e^-epsilon (1 - delta - a)) of those who did (Kairouz, Oh, Viswanath
2015, theorem 2.1).
"""

import base64
import io
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from wardpose.shared.files import ASKED_FOR, write_text
from wardpose.shared.ledger_views import CohortView
from wardpose.shared.version import version

_UNIT_WORDS = {
    "patient": "everything that is recorded of one patient",
    "frame": "one picture and everybody in it (a patient with several pictures is protected less)",
    "record": "one annotated person in one picture (a patient with several is protected less)",
}
_RULE_WORDS = {
    "course": "privacy-loss distributions over the course that was declared before its first round",
    "renyi-filter": "a Rényi filter, which holds for orders that are chosen by looking at earlier releases",
}


def detection(epsilon: float, delta: float, false_alarms: float) -> float:
    """Return the share of those who took part that can be found at most, at a share of false alarms.

    >>> round(detection(1.0, 0.0, 0.01), 4)
    0.0272
    >>> detection(0.0, 0.0, 0.2)
    0.2

    """
    if not math.isfinite(epsilon) or epsilon > 700:
        return 1.0
    return max(
        0.0,
        min(
            1.0,
            math.exp(epsilon) * false_alarms + delta,
            1 - math.exp(-epsilon) * (1 - delta - false_alarms),
        ),
    )


def statement(views: Sequence[CohortView], *, holder: str, head: tuple[int, str]) -> dict[str, Any]:
    """Return the statement as plain JSON values.

    Args:
        views: of the cohorts.
        holder: who keeps the ledger, in words.
        head: of the ledger, which pins everything that the statement says.

    Returns:
        `holder`, `made` (UTC), `entries`, `head`, `cohorts` (each with `detection`: shares of false alarms and what can
        be found with them at most) and `registry`, one entry of the public registry a cohort.

    """
    cohorts = []
    for view in views:
        spent = math.inf if view.spent is None or view.not_private else view.spent
        found = [
            {"false_alarms": share, "found": detection(spent, view.delta, share)} for share in (0.01, 0.1, 0.25, 0.5)
        ]
        cohorts.append({**asdict(view), "detection": found})
    return {
        "holder": holder,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "version": version(),
        "entries": head[0],
        "head": head[1],
        "cohorts": cohorts,
        "registry": [registry_entry(view, holder) for view in views],
    }


def registry_entry(view: CohortView, holder: str) -> dict[str, Any]:
    """Return one cohort's entry for the public registry of deployments (tier 3).

    What only the hospital knows (who the curators are, what for, since when the model is public) is left to be filled
    in and says so.
    """
    units = ", ".join(view.units) or "none yet"
    spent = "infinite" if view.spent is None else view.spent
    return {
        "url_slug": re.sub(r"[^a-z0-9]+", "-", f"wardpose {holder} {view.cohort}".lower()).strip("-"),
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "product": {
                "name": f"Human pose estimation, cohort {view.cohort}",
                "data_curators": [holder],
                "intended_use": "to be filled in by the curator",
                "data_product_type": "Machine learning model",
                "data_product_region": "to be filled in by the curator",
                "data_product_sector": "Health",
                "description": f"Updates of a pose network, trained by Wardpose {version()} on frames at the site.",
                "publication_date": "to be filled in by the curator",
            },
            "dp_flavor": {
                "name": "NOT PRIVATE" if view.not_private else "Approximate DP",
                "input_metric": view.adjacency,
                "bound_on_input_distance": 1,
                "output_measure": "(epsilon, delta) hockey-stick divergence",
                "bound_on_output_distance": {"epsilon": spent, "delta": view.delta},
                "data_domain": "RGB video frames of patients with joints, clipped per unit to a fixed L2 norm",
                "unprotected_quantities": "The declared number of patients, the budget, that the site took part and "
                "when; under feature-DP also what the public view shows, the number of frames and who is among them.",
            },
            "privacy_loss": {
                "privacy_unit": units,
                "privacy_unit_description": "; ".join(_UNIT_WORDS[unit] for unit in view.units),
                "privacy_parameters": {"epsilon": spent, "delta": view.delta},
                "privacy_parameters_description": f"Enforced by {_RULE_WORDS[view.rule]}; the bare list of charges "
                f"composes to epsilon {'infinite' if view.composed is None else view.composed}.",
            },
            "model": {
                "model_name": "Local (each site adds the whole noise before anything leaves it)",
                "actors": "Site (trusted with its own data), coordinator and other sites (not trusted)",
                "release_type": "Many releases",
                "data_source_type": "Dynamic",
                "access_type": "Non-interactive",
            },
            "accounting": {
                "post_processing": "Aggregation of sites' updates, the model and everything that is made of it.",
                "composition": _RULE_WORDS[view.rule],
            },
            "implementation": {
                "pre_processing_eda_hyperparameter_tuning": "On public data, or charged.",
                "mechanisms": sorted({name for study in view.studies for name in study.mechanisms}),
                "justification": "to be filled in by the curator",
            },
            "resources": {"sources": "", "registry_authors": ["to be filled in by the curator"]},
        },
    }


def write_statement(path: Path, content: dict[str, Any]) -> None:
    """Write a statement as one HTML file, replaced atomically."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["day"] = lambda seconds: time.strftime("%Y-%m-%d", time.gmtime(seconds))
    environment.filters["percent"] = lambda share: f"{100 * share:.3g} %" if share < 1 else "all"
    pictures = {cohort["cohort"]: _picture(cohort) for cohort in content["cohorts"]}
    page = environment.get_template("statement.html").render(
        content=content, pictures=pictures, unit_words=_UNIT_WORDS, rule_words=_RULE_WORDS
    )
    write_text(path, page, mode=ASKED_FOR)


def _picture(cohort: dict[str, Any]) -> str:
    """Draw what can be found at which share of false alarms: by guessing, with what is spent, with the whole budget."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shares = np.concatenate([[0.0], np.geomspace(1e-4, 1, 300)])
    figure, axes = plt.subplots(figsize=(4.8, 3.8), layout="constrained")
    axes.plot(shares, shares, color="#999999", linestyle="--", linewidth=1, label="by guessing")
    spent = math.inf if cohort["not_private"] or cohort["spent"] is None else cohort["spent"]
    curves = [("spent", spent, "#1f6f8b")]
    if cohort["budget"] is not None:
        curves.append(("whole budget", cohort["budget"], "#c0772c"))
    for label, value, colour in curves:
        shown = "infinite" if math.isinf(value) else f"{value:.3g}"
        found = [detection(value, cohort["delta"], float(share)) for share in shares]
        axes.plot(shares, found, color=colour, label=f"{label}: epsilon {shown}")
    axes.set_xlabel("wrongly said to have taken part")
    axes.set_ylabel("rightly said to have, at most")
    axes.set_xlim(-0.01, 1)
    axes.set_ylim(0, 1.01)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
