"""What a coordinator lets sites and federations spend, whatever a plan or a site says: limits of its own ledger.

A plan names its epsilon, its delta, how many sites may share a patient, and itself; whoever submits it writes all of
that. The limits here are in the coordinator's own file, at a delta, a unit and an overlap of its own, and hold beside
the plan's and the site's: a round must fit them all.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import UnitKind
from wardpose.shared.privacy.budget import Budget, OverlapBudget
from wardpose.shared.yaml_config import Name, Strict

Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_EVERYWHERE = 1_000_000


class SiteLimits(Strict):
    """What one site's account may be charged, over all federations and runs.

    Attributes:
        epsilon: in all; no limit when absent.
        month: in one calendar month (UTC); no limit when absent.
        studies: by single federations, by name; with any, a federation that is not named may charge nothing.

    """

    epsilon: Limit | None = None
    month: Limit | None = None
    studies: dict[Name, Limit] = Field(default={})


class DefaultLimits(SiteLimits):
    """What every site's account may be charged that is not named, and what all limits are stated for.

    Attributes:
        delta: probability of failure.
        adjacency: neighbouring relation.
        unit: what an epsilon protects at least: charges for less count as infinite.

    """

    delta: float = Field(default=1e-5, gt=0, lt=1)
    adjacency: Literal["add-remove", "replace-one"] = "add-remove"
    unit: UnitKind = "patient"


class FederationLimits(Strict):
    """What a federation may charge.

    Attributes:
        epsilon: of a patient who is at one of its sites: of each site's account, whoever else charged it.
        month: the same in one calendar month (UTC).
        overlap: at how many sites one patient may be; at all of them when absent.
        overlap_epsilon: of such a patient: the composition of the costliest accounts.
        overlap_month: the same in one calendar month.
        sites: which may take part and may share patients; any, and all accounts of the coordinator, when absent.

    """

    epsilon: Limit | None = None
    month: Limit | None = None
    overlap: int | None = Field(default=None, ge=1)
    overlap_epsilon: Limit | None = None
    overlap_month: Limit | None = None
    sites: tuple[Name, ...] = ()


class NoiseLimits(Strict):
    """Beyond which a run costs patients what is left and learns nothing, so that it is refused when it is submitted.

    Attributes:
        largest_multiplier: of a sigma that is calibrated. The noise of a step is, along every direction, as long as the
            clipped gradients of sigma patients who all agree; a hospital's batch is some tens of patients.
        smallest_share: of the plan's epsilon that must be left at every site.

    """

    largest_multiplier: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    smallest_share: float = Field(default=0.1, ge=0, lt=1)


class Limits(Strict):
    """All limits of a coordinator.

    Attributes:
        noise: beyond which a run is refused when it is submitted, unless it is said to spend the rest.
        budget: of every site that is not named in `sites`.
        sites: limits of single accounts; what one does not say is as in `budget`.
        federations: limits of single federations; with any, a federation that is not named may not run.

    """

    noise: NoiseLimits = NoiseLimits()
    budget: DefaultLimits = DefaultLimits()
    sites: dict[Name, SiteLimits] = Field(default={})
    federations: dict[Name, FederationLimits] = Field(default={})

    @model_validator(mode="after")
    def _overlaps_fit(self) -> Self:
        for name, federation in self.federations.items():
            if federation.overlap is not None and federation.sites and federation.overlap > len(federation.sites):
                raise ValueError(
                    f"federations.{name}.overlap = {federation.overlap} "
                    f"(allowed: at most its {len(federation.sites)} sites)"
                )
        return self

    def check_federation(self, name: str, sites: Sequence[str]) -> None:
        """Refuse a federation, or sites of it, that the coordinator does not know.

        Raises:
            ConfigError: names what is not allowed.

        """
        if not self.federations:
            return
        if name not in self.federations:
            known = ", ".join(self.federations)
            raise ConfigError(f"federation {name!r}: is not in the coordinator's configuration (allowed: {known})")
        allowed = self.federations[name].sites
        strangers = ", ".join(site for site in sites if allowed and site not in allowed)
        if strangers:
            raise ConfigError(f"federation {name!r}: {strangers} may not take part (allowed: {', '.join(allowed)})")

    def of(self, account: str, federation: str) -> list[Budget | OverlapBudget]:
        """Return the limits that a charge of an account for a federation is held against."""
        own, rest = self.sites.get(account, SiteLimits()), self.budget
        found: list[Budget | OverlapBudget] = [
            self._budget(own.epsilon or rest.epsilon, own.month or rest.month, own.studies or rest.studies)
        ]
        limits = self.federations.get(federation, FederationLimits())
        found.append(self._budget(limits.epsilon, limits.month, {}))
        if limits.overlap_epsilon is not None or limits.overlap_month is not None:
            found.append(
                OverlapBudget(
                    budget=self._budget(limits.overlap_epsilon, limits.overlap_month, {}),
                    overlap=limits.overlap or _EVERYWHERE,
                    cohorts=limits.sites,
                )
            )
        return [limit for limit in found if isinstance(limit, OverlapBudget) or limit.is_bounded]

    def _budget(self, epsilon: float | None, month: float | None, studies: dict[str, float]) -> Budget:
        return Budget(
            epsilon=math.inf if epsilon is None else epsilon,
            delta=self.budget.delta,
            adjacency=self.budget.adjacency,
            unit=self.budget.unit,
            per_month=math.inf if month is None else month,
            studies=studies,
        )
