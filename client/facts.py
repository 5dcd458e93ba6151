"""What a site's files say, read for exporter, status page and `wardpose watch` alike; nothing is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from wardpose.client.home import SiteHome
from wardpose.client.journal import OrderRow
from wardpose.shared.anonymize.certificate import read
from wardpose.shared.data.source import names_patients
from wardpose.shared.errors import DataError
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.rounds_left import last_round, rounds_left
from wardpose.shared.site_config import SiteConfig


@dataclass(frozen=True, kw_only=True)
class Rate:
    """At which rate a cohort is charged.

    Attributes:
        left: how many more rounds like the last one its budget bears; `None` before the first.
        sigma: smallest noise multiplier of that round.

    """

    left: int | None = None
    sigma: float | None = None


def as_told(orders: Sequence[OrderRow], *, answer_seconds: float, now: float) -> list[OrderRow]:
    """Return orders as the coordinator knows them: in training until their answer leaves, and ended when it did.

    How long a round took varies with the frames that were drawn, and its answer therefore waits for a whole multiple of
    `answer_seconds` (`release.at_declared_times`). Whoever scrapes a site may not see earlier what became of an order.

    Args:
        orders: of the journal.
        answer_seconds: of site.yaml.
        now: Unix time.

    """
    return [_told(order, answer_seconds, now) for order in orders]


def _told(order: OrderRow, seconds: float, now: float) -> OrderRow:
    if order.finished is None or seconds <= 0:
        return order
    periods = max(1, math.ceil((order.finished - order.received) / seconds))
    leaves = math.ceil(order.received + periods * seconds)
    if now < leaves:
        return replace(order, finished=None, status="training", detail="", bytes_up=0)
    return replace(order, finished=leaves)


def charged_entries(ledger: Ledger) -> int:
    """Return the number of a ledger's newest entry that charged anybody; that of its newest one before the first.

    The entries that follow a charge are written when the cohort was opened and when training has ended: to count them
    would tell how long that took.
    """
    charged = [entry.sequence for entry in ledger.all_reservations()]
    return charged[-1] if charged else ledger.head()[0]


def certificates_of(home: SiteHome) -> dict[str, Path]:
    """Return the certificates of a site's home, by name."""
    return {"authority": home.authority, "budget service": home.budget_certificate}


def spent_of(site: SiteConfig, ledger: Ledger) -> float:
    """Return what the cohort's most charged unit spent, as it is enforced."""
    return ledger.account(
        site.cohort.name,
        site.policy.delta,
        adjacency=site.policy.adjacency,
        whole_ledger=not names_patients(site.cohort.data),
        unit=site.policy.unit,
    ).epsilon


def rate_of(site: SiteConfig, ledger: Ledger) -> Rate:
    """Return at which rate the site's cohort is charged."""
    mine, policy = site.cohort.name, site.policy
    last = last_round(ledger, mine)
    if last is None:
        return Rate()
    cohorts = (mine,) if names_patients(site.cohort.data) else ledger.cohorts()
    left = rounds_left(
        tuple(charge for cohort in cohorts for charge in ledger.charges(cohort)),
        last,
        epsilon=policy.epsilon,
        delta=policy.delta,
        adjacency=policy.adjacency,
        unit=policy.unit,
        order=ledger.first_order(),
    )
    return Rate(left=left, sigma=min(event.noise_multiplier for event in last.events))


def certified(site: SiteConfig) -> float | None:
    """Return when the public view's certificate was made, Unix time; `None` where there is none.

    Raises:
        DataError: it cannot be read, or was tampered with.

    """
    path = None if site.public_view is None else site.public_view.certificate
    if path is None:
        return None
    try:
        made = datetime.fromisoformat(read(path).created)
    except ValueError as error:
        raise DataError(f"{path}: created is no time ({error})") from error
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()
