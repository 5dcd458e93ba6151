"""A site's ledger as its engineer reads it."""

import math
import time
from pathlib import Path
from typing import Any, get_args

from wardpose.client.spent import refuse_lost
from wardpose.shared.privacy.accounting import Adjacency
from wardpose.shared.privacy.chain import Entry
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site


def overview(path: Path) -> dict[str, Any]:
    """Return every entry of a site's ledger and what each cohort has spent, as plain JSON values.

    What is spent is given for the policy's adjacency, under both adjacencies, and for each consent tier. An infinite
    epsilon is `null`.

    Raises:
        ConfigError: the site.yaml is missing or wrong.
        LedgerError: the ledger was tampered with, is gone, empty or rolled back, or cannot be read.

    """
    site = load_site(path)
    policy = site.policy
    refuse_lost(site)
    ledger = Ledger(site.ledger, readonly=site.ledger.exists())
    ledger.verify()
    cohorts = []
    for name in sorted({site.cohort.name, *ledger.cohorts()}):
        mine = name == site.cohort.name
        both = {other: ledger.epsilon(name, delta=policy.delta, adjacency=other) for other in get_args(Adjacency)}
        tiers = ledger.epsilon_by_tier(name, delta=policy.delta, adjacency=policy.adjacency)
        limits = policy.tiers if mine else {}
        cohorts.append(
            {
                "name": name,
                "epsilon_spent": _finite(both[policy.adjacency]),
                "epsilon_budget": policy.epsilon if mine else None,
                "epsilon_by_adjacency": {other: _finite(spent) for other, spent in both.items()},
                "tiers": [
                    {
                        "tier": tier,
                        "epsilon_spent": _finite(tiers.get(tier, tiers[""])),
                        "epsilon_budget": limits.get(tier, policy.epsilon) if mine else None,
                    }
                    for tier in sorted({*tiers, *limits} - {""})
                ],
            }
        )
    return {
        "site": site.site,
        "ledger": str(site.ledger),
        "head": ledger.head()[1],
        "delta": policy.delta,
        "adjacency": policy.adjacency,
        "cohorts": cohorts,
        "entries": [_entry(entry) for entry in ledger.entries()],
    }


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


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
