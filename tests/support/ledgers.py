"""What tests of the ledger charge, and how."""

import math

from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger

DELTA = 1e-5
EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=2.0, steps=5, max_grad_norm=1.0)
BUDGET = Budget(epsilon=3.0, delta=DELTA)
UNLIMITED = Budget(epsilon=math.inf, delta=DELTA)


def spend(ledger: Ledger, rounds: int, cohort: str = "ward", budget: Budget = BUDGET) -> None:
    """Reserve and commit so many rounds of `EVENT`."""
    for number in range(rounds):
        ledger.commit(ledger.reserve(cohort, [EVENT], run_id="run", round=number, budget=budget))
