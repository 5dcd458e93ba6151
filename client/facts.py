"""What a site's files say, read for exporter, status page and `wardpose watch` alike; nothing is written."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wardpose.client.home import SiteHome
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
