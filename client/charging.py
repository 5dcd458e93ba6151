"""Charge first, then open: what every order on private data does before a frame of anybody is read."""

from dataclasses import dataclass
from pathlib import Path

from wardpose.client.policy import charged_events
from wardpose.client.site import Site, open_cohort_data
from wardpose.client.training import patients_of
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.messages import EvaluationOrder, RoundOrder
from wardpose.shared.privacy.ledger import Ledger, Reservation


@dataclass(frozen=True, kw_only=True)
class Paid:
    """A cohort that may be read, because its ledger says durably what for.

    Attributes:
        reservation: with which it was paid; to be committed when the work is done.
        data: the cohort's records.
        without: patients whose own budget is spent: they take no part, and are not charged. Private.

    """

    reservation: Reservation
    data: PoseDataset
    without: frozenset[str]


def charge_and_open(site: Site, path: Path, order: RoundOrder | EvaluationOrder, ledger: Ledger) -> Paid:
    """Reserve the cost of an order, open the cohort, and note whom it charges.

    Args:
        site: the opened site.
        path: of its site.yaml.
        order: held against the site's policy before.
        ledger: the site's.

    Raises:
        BudgetExceeded: it cannot be paid; nothing is charged.
        LedgerError: the ledger cannot be read or written.
        DataError: records cannot be read; it is charged.

    """
    mechanism, cohort = order.course.mechanism, site.config.cohort
    budget = site.budget(private=mechanism.is_private or not mechanism.reads_private)
    reservation = ledger.reserve(
        cohort.name,
        charged_events(site.config, order),
        run_id=order.run,
        round=order.round if isinstance(order, RoundOrder) else order.number,
        budget=budget,
        course=order.course,
    )
    data = open_cohort_data(path, order.model.skeleton)  # from here on every answer may tell about patients' files
    without = ledger.declare(
        cohort.name,
        identity=data.identity(),
        units=cohort.declared_patients,
        reservation=reservation,
        patients=patients_of(cohort, data),
        budget=budget,
    )
    return Paid(reservation=reservation, data=data, without=without)
