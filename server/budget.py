"""The server's own account of every site, reserved before an order goes out.

No answer, late answer or crash can therefore lower it.

With disjoint patients the federation's epsilon is the maximum over sites (parallel composition). If a patient may be at
up to k sites, it is the composition of the k costliest. Both are shown, and the coordinator's limits (`limits`) on both
are checked inside the transaction that charges.

A reservation is committed when an answer comes that may hold something private. One that never was may be taken back,
by the site's signed word that nothing was released (`wardpose.shared.privacy.expiry`), and by nothing else.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from wardpose.server.ledger import ServerLedger
from wardpose.server.limits import Limits
from wardpose.shared.errors import BudgetExceeded, LedgerError
from wardpose.shared.privacy.accounting import UNITS, Adjacency, Event, UnitKind, epsilon
from wardpose.shared.privacy.budget import OverlapBudget
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.privacy.filters import federation_epsilon
from wardpose.shared.privacy.ledger import Budget, Reservation

logger = logging.getLogger("wardpose.server")


class GlobalBudget:
    """Account for the sites of a federation in one ledger, one cohort a site.

    Attributes:
        ledger: the server's ledger.
        delta: at which the federation's epsilon is stated.
        overlap: at how many sites a patient may appear.
        unit: whose epsilon is stated; infinite where a site was charged for a weaker unit before.
        limits: the coordinator's; none where sites are simulated.

    """

    def __init__(
        self,
        ledger: ServerLedger | Path,
        *,
        delta: float,
        overlap: int,
        unit: str = "record",
        limits: Limits | None = None,
    ) -> None:
        self.ledger = ServerLedger(ledger) if isinstance(ledger, Path) else ledger
        self.unit: UnitKind = next((known for known in UNITS if known == unit), UNITS[0])  # of a journal: any text
        self.delta = delta
        self.overlap = overlap
        self.limits = limits or Limits()
        self._open: dict[tuple[str, str, int], Reservation] = {}

    def reserve(self, site: str, events: Sequence[Event], *, course: Course, round_number: int, epsilon: float) -> bool:
        """Charge a site for a round about to be ordered; `False`, and no charge, when it would pass a limit."""
        account = self.ledger.account_of(site)
        try:
            reservation = self.ledger.reserve(
                account,
                events,
                run_id=course.run,
                round=round_number,
                budget=self._limit(epsilon, course),
                course=course,
                further=self._further(site, account, course),
            )
        except BudgetExceeded as error:
            logger.warning("site %s: %s", site, error)
            return False
        self._open[site, course.run, round_number] = reservation
        return True

    def affords(self, site: str, events: Sequence[Event], *, epsilon: float, course: Course) -> bool:
        """Tell whether `reserve` would charge a site now; charges nothing."""
        account = self.ledger.account_of(site)
        further = self._further(site, account, course)
        try:
            self.ledger.check(account, events, budget=self._limit(epsilon, course), course=course, further=further)
        except BudgetExceeded as error:
            logger.warning("site %s: %s", site, error)
            return False
        return True

    def charge(self, site: str, run: str, round_number: int) -> str | None:
        """Return the hash of the entry that charged a site for a round that no answer came to yet."""
        reservation = self._open.get((site, run, round_number))
        return None if reservation is None else reservation.hash

    def answered(self, site: str, run: str, round_number: int) -> None:
        """Commit what a site was charged for a round: an answer came, so that nothing can take the charge back.

        Where the site had signed meanwhile that nothing was released, it is charged again, whatever the limits are.
        """
        reservation = self._open.pop((site, run, round_number), None)
        if reservation is None:
            return
        try:
            self.ledger.commit(reservation)
        except LedgerError:
            if reservation.sequence not in self.ledger.expired():
                raise
            logger.warning(
                "site %s: answers round %d, of which it signed that nothing was released", site, round_number
            )
            unlimited = Budget(epsilon=float("inf"), delta=self.delta)
            again = self.ledger.reserve(
                reservation.cohort, reservation.events, run_id=run, round=round_number, budget=unlimited
            )
            self.ledger.commit(again)

    def steps(self, site: str, run: str, round_number: int | None = None) -> int:
        """Noised gradients that a site was charged for in a run, or in one round of it, tries that were lost included.

        The consent tiers of a round take the same steps; they are counted once.
        """
        total = 0
        for entry in self.ledger.reservations(self.ledger.account_of(site), run):
            body = entry.body
            if round_number is None or body["round"] == round_number:
                by_tier = Counter[str]()
                for event in body["events"]:
                    if event["mechanism"] != EVALUATION:
                        by_tier[event.get("tier", "")] += event["steps"]
                total += max(by_tier.values(), default=0)
        return total

    def evaluations(self, sites: Sequence[str], run: str) -> int:
        """Return the highest number of an evaluation that a site was charged for in a run; 0 before the first."""
        numbers = (number for site in sites for number, _ in self._evaluations(site, run))
        return max(numbers, default=0)

    def evaluation_epsilon(self, site: str, run: str) -> float:
        """Epsilon of the evaluations of a run alone, as a bare list; it is a part of `epsilon`."""
        events = [event for _, event in self._evaluations(site, run)]
        return epsilon(events, delta=self.delta, adjacency=self._adjacency([self.ledger.account_of(site)]))

    def _evaluations(self, site: str, run: str) -> Iterator[tuple[int, Event]]:
        """Yield number and cost of each evaluation that a site was charged for."""
        for entry in self.ledger.reservations(self.ledger.account_of(site), run):
            for event in entry.body["events"]:
                if event["mechanism"] == EVALUATION:
                    yield int(entry.body["round"]), Event.from_json(event)

    def epsilon(self, site: str, *, delta: float | None = None) -> float:
        """Epsilon charged to a site so far, over all runs, as enforced; at the federation's delta when absent."""
        account = self.ledger.account_of(site)
        return self.ledger.epsilon(account, delta or self.delta, adjacency=self._adjacency([account]), unit=self.unit)

    def federation(self, sites: Sequence[str]) -> tuple[float, float]:
        """Return the federation's epsilon with disjoint patients, and with patients at up to `overlap` sites."""
        charges = {account: self.ledger.charges(account) for account in map(self.ledger.account_of, sites)}
        adjacency = self._adjacency(list(charges))
        disjoint = max((self.epsilon(site) for site in sites), default=0.0)
        overlap = federation_epsilon(charges, delta=self.delta, overlap=self.overlap, adjacency=adjacency)
        return disjoint, max(disjoint, overlap)  # both are infinite where one site's is

    def _further(self, site: str, account: str, course: Course) -> list[Budget | OverlapBudget]:
        """Return the coordinator's limits of an account, and those of the name that the site has now."""
        names = dict.fromkeys([account, *([site] if site in self.limits.sites else [])])
        return [limit for name in names for limit in self.limits.of(name, course.federation)]

    def _limit(self, epsilon: float, course: Course) -> Budget:
        mechanism = course.mechanism
        return Budget(epsilon=epsilon, delta=self.delta, adjacency=mechanism.adjacency, unit=mechanism.unit)

    def _adjacency(self, accounts: Sequence[str]) -> Adjacency:
        """Return the relation that charges were made for; the stronger one where they differ."""
        charges = (charge for account in accounts for charge in self.ledger.charges(account))
        replaced = any(event.adjacency == "replace-one" for charge in charges for event in charge.events)
        return "replace-one" if replaced else "add-remove"
