"""Whether the public view helps the gradient or hurts it: measured on public people before a private frame is touched.

Feature-DP noises g(x) - g(phi(x)) in the place of g(x), under the same clip norm and the same noise. That pays only
while the difference is shorter than what it stands for. Where |g - g(phi)| is above |g| the view's gradient points
somewhere else, more is clipped, and the round is worse than the plain mechanism at the same price (measured on Leeds
Sports Pose: mosaic of 4 pixels 0.6, of 16 pixels 1.1, a drawn skeleton 1.2).

The ratio here is that of the roots of the mean squares over public people, at the round's first weights. Where it is
above `feature.max_difference`, the round's steps take clip(g(x)) and no public part. Each unit still contributes a
vector of norm at most C to one Poisson-subsampled, noised sum, so the event that was charged bounds it; and what is
decided follows from public people and released weights alone, so that deciding costs nothing. With imputed features
(`imputation`) it is measured on public people from whom the imputing network did not learn.
"""

from dataclasses import dataclass

import numpy as np

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.clipping import unit_norms
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.cohort import PublicData, load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients, join
from wardpose.shared.training.public_part import PublicViews

_PEOPLE = 64


@dataclass(frozen=True, kw_only=True)
class ViewReport:
    """What became of the public view; a function of public people only.

    Attributes:
        ratio: |g - g(phi)| over |g|.
        limit: above which the round falls back.
        people: on whom it was measured.
        imputed: whether the view's features are imputed; the people are then none of those that the network knows.

    """

    ratio: float
    limit: float
    people: int = 0
    imputed: bool = False

    @property
    def used(self) -> bool:
        """Whether the round's steps use the view."""
        return self.ratio <= self.limit

    def __str__(self) -> str:
        verdict = "the public view is used" if self.used else "the public view is NOT used (fell back to g(x) alone)"
        whom = f"{self.people} held-out public people, with imputed features," if self.imputed else "public people"
        return f"{verdict}: on {whom} |g - g(phi)| is {self.ratio:.2f} of |g|, {self.limit:.2f} allowed"


def judge_view(engine: UnitGradients, mechanism: Mechanism, public: PublicData | None) -> ViewReport | None:
    """Measure the view on public people; `None` where the mechanism has no view or asks for no judgement.

    Raises:
        ConfigError: a judgement is asked for, and there are no public people with their views.

    """
    limit = mechanism.feature.max_difference
    if limit is None or not mechanism.uses_difference:
        return None
    if public is None or public.shown is None or not len(public.rows):
        raise ConfigError("feature.max_difference needs public data with their public views, and none are given")
    known = np.arange(len(public.rows)) if public.unseen is None else public.unseen
    if mechanism.imputes and public.unseen is None:
        raise ConfigError("feature.impute with feature.max_difference needs public people who were held out")
    ids = known[np.unique(np.linspace(0, len(known) - 1, _PEOPLE).astype(np.int64))][:, None]
    private = load_bags(engine, public.rows, ids)
    views = PublicViews(engine, public.shown, mechanism.feature.labels)
    whole = _mean_square(engine, private)
    difference = _mean_square(engine, join(private, views.bags(ids)))
    return ViewReport(
        ratio=(difference / whole) ** 0.5 if whole > 0 else float("inf"),
        limit=limit,
        people=len(ids),
        imputed=mechanism.imputes,
    )


def _mean_square(engine: UnitGradients, bags: Bags) -> float:
    norms = [unit_norms(part) for part in engine.per_unit(engine.parameters(), bags)]
    return float(sum(part.double().square().sum() for part in norms)) / len(bags)
