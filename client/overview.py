"""A site's ledger as its engineer reads it."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from wardpose.client.journal import SiteJournal
from wardpose.client.spent import refuse_lost
from wardpose.shared.data.source import names_patients
from wardpose.shared.privacy.accounting import Adjacency, Event, group_epsilon
from wardpose.shared.privacy.entries import Entry
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import PolicyConfig, load_site


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
    ledger = Ledger(site.ledger, readonly=site.ledger.exists(), witness=SiteJournal(site.state / "journal.sqlite"))
    ledger.verify()
    cohorts = []
    for name in sorted({site.cohort.name, *ledger.cohorts()}):
        mine = name == site.cohort.name
        whole = mine and not names_patients(site.cohort.data)
        accounts = {
            other: ledger.account(
                name, policy.delta, adjacency=other, whole_ledger=whole, unit=policy.unit if mine else "record"
            )
            for other in get_args(Adjacency)
        }
        both = {other: account.epsilon for other, account in accounts.items()}
        account = accounts[policy.adjacency]
        tiers = ledger.epsilon_by_tier(name, policy.delta, adjacency=policy.adjacency)
        events = ledger.events(name)
        limits = policy.tiers if mine else {}
        cohorts.append(
            {
                "name": name,
                "epsilon_spent": _finite(both[policy.adjacency]),
                "epsilon_budget": policy.epsilon if mine else None,
                "epsilon_by_adjacency": {other: _finite(spent) for other, spent in both.items()},
                "enforced_by": account.rule,
                "epsilon_composed": _finite(account.composed),
                "epsilon_course": _finite(account.course),
                "epsilon_renyi_filter": _finite(account.renyi_filter),
                "units": sorted({event.unit for event in events}),
                "epsilon_of_patient": _of_patient(events, policy),
                "not_private": _not_private(ledger, name),
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
        "patients": [
            {"patients": count, "epsilon_spent": _finite(spent)}
            for count, spent in ledger.patients(delta=policy.delta, adjacency=policy.adjacency)
        ],
        "entries": [_entry(entry) for entry in ledger.entries()],
    }


def _of_patient(events: Sequence[Event], policy: PolicyConfig) -> float | None:
    """Epsilon of a patient with as many frames as the policy says, where charges are for less than a patient."""
    if policy.frames_per_patient is None or all(event.unit == "patient" for event in events):
        return None
    return _finite(group_epsilon(events, policy.frames_per_patient, delta=policy.delta))


def _not_private(ledger: Ledger, cohort: str) -> str | None:
    if ledger.seeded(cohort):
        return "noise came from a seed: whoever knows it can subtract it"
    if any(event.is_unprotected for event in ledger.events(cohort)):
        return "mechanism none: updates are neither clipped nor noised"
    return None


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _entry(entry: Entry) -> dict[str, Any]:
    body = entry.body
    charged = [
        f"{event['mechanism']}: {event['steps']} steps, q {event['sample_rate']:g}, sigma {event['noise_multiplier']:g}"
        + (f", tier {event['tier']}" if event.get("tier") else "")
        + (f", unit {event['unit']}")
        + (", NOT PRIVATE: seeded" if event.get("seeded") else "")
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
