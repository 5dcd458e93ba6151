"""The server's own account of every site, reserved before an order goes out.

No answer, late answer or crash can therefore lower it.

With disjoint patients the federation's epsilon is the maximum over sites (parallel composition). If a patient may be at
up to k sites, it is the composition of the k costliest. Both are shown.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wardpose.shared.errors import BudgetExceeded
from wardpose.shared.privacy.accounting import UNITS, Adjacency, Event, UnitKind
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.filters import federation_epsilon
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.signing import Signer


class GlobalBudget:
    """Account for the sites of a federation in one ledger, one cohort a site.

    Attributes:
        ledger: the server's ledger.
        delta: at which the federation's epsilon is stated.
        overlap: at how many sites a patient may appear.
        unit: whose epsilon is stated; infinite where a site was charged for a weaker unit before.

    """

    def __init__(
        self,
        path: Path,
        *,
        delta: float,
        overlap: int,
        unit: str = "record",
        readonly: bool = False,
        signer: Signer | None = None,
    ) -> None:
        self.ledger = Ledger(path, readonly=readonly, signer=signer)
        self.unit: UnitKind = next((known for known in UNITS if known == unit), UNITS[0])  # of a journal: any text
        self.delta = delta
        self.overlap = overlap

    def reserve(self, site: str, events: Sequence[Event], *, course: Course, round_number: int, epsilon: float) -> bool:
        """Charge a site for a round about to be ordered; `False`, and no charge, when it would overspend."""
        budget = self._limit(epsilon, course)
        try:
            reservation = self.ledger.reserve(
                site, events, run_id=course.run, round=round_number, budget=budget, course=course
            )
        except BudgetExceeded:
            return False
        self.ledger.commit(reservation)
        return True

    def affords(self, site: str, events: Sequence[Event], *, epsilon: float, course: Course) -> bool:
        """Tell whether `reserve` would charge a site now; charges nothing."""
        try:
            budget = self._limit(epsilon, course)
            self.ledger.check(site, events, budget=budget, course=course)
        except BudgetExceeded:
            return False
        return True

    def steps(self, site: str, run: str, round_number: int | None = None) -> int:
        """Noised gradients that a site was charged for in a run, or in one round of it, tries that were lost included.

        The consent tiers of a round take the same steps; they are counted once.
        """
        total = 0
        for entry in self.ledger.reservations(site, run):
            body = entry.body
            if round_number is None or body["round"] == round_number:
                by_tier = Counter[str]()
                for event in body["events"]:
                    by_tier[event.get("tier", "")] += event["steps"]
                total += max(by_tier.values(), default=0)
        return total

    def epsilon(self, site: str, *, delta: float | None = None) -> float:
        """Epsilon charged to a site so far, over all runs, as enforced; at the federation's delta when absent."""
        return self.ledger.epsilon(site, delta or self.delta, adjacency=self._adjacency([site]), unit=self.unit)

    def federation(self, sites: Sequence[str]) -> tuple[float, float]:
        """Return the federation's epsilon with disjoint patients, and with patients at up to `overlap` sites."""
        charges = {site: self.ledger.charges(site) for site in sites}
        adjacency = self._adjacency(sites)
        disjoint = max((self.epsilon(site) for site in sites), default=0.0)
        overlap = federation_epsilon(charges, delta=self.delta, overlap=self.overlap, adjacency=adjacency)
        return disjoint, max(disjoint, overlap)  # both are infinite where one site's is

    def _limit(self, epsilon: float, course: Course) -> Budget:
        mechanism = course.mechanism
        return Budget(epsilon=epsilon, delta=self.delta, adjacency=mechanism.adjacency, unit=mechanism.unit)

    def _adjacency(self, sites: Sequence[str]) -> Adjacency:
        """Return the relation that charges were made for; the stronger one where they differ."""
        charges = (charge for site in sites for charge in self.ledger.charges(site))
        replaced = any(event.adjacency == "replace-one" for charge in charges for event in charge.events)
        return "replace-one" if replaced else "add-remove"
