"""A site's ledger as its engineer reads it."""

import math
import time
from pathlib import Path
from typing import Any

from wardpose.shared.config import load_site
from wardpose.shared.privacy.chain import Entry
from wardpose.shared.privacy.ledger import Ledger


def overview(path: Path) -> dict[str, Any]:
    """Return every entry of a site's ledger and what each cohort has spent, as plain JSON values.

    An infinite epsilon is `null`.

    Raises:
        ConfigError: the site.yaml is missing or wrong.
        LedgerError: the ledger was tampered with or cannot be read.

    """
    site = load_site(path)
    policy = site.policy
    ledger = Ledger(site.ledger, readonly=site.ledger.exists())
    ledger.verify()
    cohorts = []
    for name in sorted({site.cohort.name, *ledger.cohorts()}):
        spent = ledger.epsilon(name, delta=policy.delta, adjacency=policy.adjacency)
        budget = policy.epsilon if name == site.cohort.name else None
        shown = spent if math.isfinite(spent) else None
        cohorts.append({"name": name, "epsilon_spent": shown, "epsilon_budget": budget})
    return {
        "site": site.site,
        "ledger": str(site.ledger),
        "head": ledger.head()[1],
        "delta": policy.delta,
        "adjacency": policy.adjacency,
        "cohorts": cohorts,
        "entries": [_entry(entry) for entry in ledger.entries()],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    body = entry.body
    charged = [
        f"{event['mechanism']}: {event['steps']} steps, q {event['sample_rate']:g}, sigma {event['noise_multiplier']:g}"
        + (f", tier {event['tier']}" if event.get("tier") else "")
        for event in body.get("events", [])
    ]
    return {
        "sequence": entry.sequence,
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(body["time"])) + "Z",
        "kind": entry.kind,
        "cohort": body.get("cohort"),
        "run": body.get("run"),
        "round": body.get("round"),
        "charged": charged,
        "hash": entry.hash,
    }
