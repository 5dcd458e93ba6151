"""A ledger and its epsilon: reserve before training, compose over rounds, refuse what the budget cannot bear.

python examples/ledger_epsilon.py
"""

import tempfile
from pathlib import Path

from wardpose.shared.errors import BudgetExceeded
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism

DELTA = 1e-5


def main() -> None:
    """Spend a budget round by round until the ledger says no."""
    # A run declares its whole course first: what is inside it composes tightly, whatever the server saw meanwhile.
    mechanism = Mechanism(unit="patient", sample_rate=0.1, noise_multiplier=1.0)
    course = Course(run="run-1", federation="study", mechanism=mechanism, steps=10, last_round=20)
    budget = Budget(epsilon=4.0, delta=DELTA, unit="patient")

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        try:
            for number in range(1, course.last_round + 1):
                reservation = ledger.reserve(
                    "ward-7", course.events(number), run_id=course.run, round=number, budget=budget, course=course
                )
                # Here a site trains. If it dies, the reservation stays: epsilon can only be too high, never too low.
                ledger.commit(reservation)
                print(f"round {number}: epsilon {ledger.epsilon('ward-7', DELTA):.2f} of {budget.epsilon}")
        except BudgetExceeded as refused:
            print(f"round {number}: {refused}")

        ledger.verify()  # every entry holds the hash of the one before it
        sequence, head = ledger.head()
        print(f"{sequence} entries, head {head[:12]}; whoever remembers it finds every later change")


if __name__ == "__main__":
    main()
