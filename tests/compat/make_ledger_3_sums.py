"""Writes `files/ledger-3-sums`: a ledger with checkpoints as 0.1.0 wrote them, without months and studies.

Kept for the record; it was run by the code before checkpoints had a form (commit 706107b), and is not run again.
"""

import sys
from pathlib import Path

from wardpose.client.journal import SiteJournal
from wardpose.shared.privacy import chain
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism

EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=4.0, steps=8, max_grad_norm=1.0)
BUDGET = Budget(epsilon=50.0, delta=1e-5, unit="patient")


def main(folder: Path) -> None:
    """Write the ledger and its witness into a folder."""
    chain._SPACING = 8
    journal = SiteJournal(folder / "journal.sqlite")
    times = iter(range(1_700_000_000, 1_900_000_000, 1_000_000))
    ledger = Ledger(folder / "ledger.sqlite", clock=lambda: float(next(times)), witness=journal)
    course = Course(
        run="old",
        federation="posture",
        mechanism=Mechanism(sample_rate=0.1, noise_multiplier=4.0, max_grad_norm=1.0),
        steps=8,
        last_round=100,
    )
    for number in range(1, 13):
        cohort = ("ward", "other")[number % 2]
        reservation = ledger.reserve(
            cohort, course.events(number), run_id="old", round=number, budget=BUDGET, course=course
        )
        members = {"ada": "", "bob": ""} if number < 5 else {"ada": "", "cyd": ""}
        if number % 3:
            ledger.declare(cohort, identity=cohort, reservation=reservation, patients=members, budget=BUDGET)
        ledger.commit(reservation)
    ledger.reserve("ward", [EVENT], run_id="older", round=1, budget=BUDGET)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
