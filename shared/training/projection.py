"""When private gradients are projected: the basis in force, its refresh and its gate.

Noise averages out over steps, what a basis misses does not. So a basis is used only while it holds enough
energy of held-out *public* gradients; otherwise the step falls back to the unprojected mechanism, which costs
the same. Nothing private is looked at to decide.
"""

from collections.abc import Callable
from dataclasses import dataclass

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.basis import PublicBasis, build_basis, choose_frames, public_frames
from wardpose.shared.training.cohort import PublicData, RowIds, load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.training.public_part import PublicViews
from wardpose.shared.vectors import Vector


@dataclass(frozen=True, kw_only=True)
class ProjectionReport:
    """What became of the basis; a function of public gradients only.

    Attributes:
        used: whether the last basis was used; `False`: the gate fell back to the unprojected mechanism.
        rank: k of the last basis.
        captured_energy: share of held-out public gradients' mean that it holds.
        threshold: what the gate asks for.
        fallbacks: bases that the gate rejected in this round.

    """

    used: bool
    rank: int
    captured_energy: float
    threshold: float
    fallbacks: int

    def __str__(self) -> str:
        verdict = "projected" if self.used else "NOT projected (fell back to the unprojected mechanism)"
        return (
            f"{verdict}: {self.rank} directions hold {self.captured_energy:.0%} of held-out public "
            f"gradients, {self.threshold:.0%} asked for"
        )


class Projection:
    """The basis of each step of a round.

    Args:
        engine: the gradients' engine.
        mechanism: its projection options decide source, rank, refresh and gate.
        public: a public data set, for source `public`.
        views: the site's public views, for source `public-views`.

    Raises:
        ConfigError: the source's data are not given, or hold fewer than 4 rows.

    """

    def __init__(
        self,
        engine: UnitGradients,
        mechanism: Mechanism,
        public: PublicData | None,
        views: PublicViews | None,
    ) -> None:
        self._engine = engine
        self._options = mechanism.projection
        self._steps = 0
        self._bases = 0
        self._fallbacks = 0
        self._basis: PublicBasis | None = None
        self.report: ProjectionReport | None = None
        self._load: Callable[[RowIds], Bags]
        if self._options.source == "public-views":
            if views is None:
                raise ConfigError('projection.source "public-views" needs the public view; the cohort has none')
            self._load, self._available, self._identity = views.bags, len(views), "public-views"
        else:
            if public is None:
                raise ConfigError(f'mechanism "{mechanism.name}" needs public data for its basis; none is given')
            rows = public.rows
            self._load = lambda ids: load_bags(engine, rows, ids)
            self._available, self._identity = len(rows), public.identity
        choose_frames(self._identity, self._available, self._options, 0)

    def at(self, parameters: Vector) -> PublicBasis | None:
        """Return the next step's basis, made at `parameters` when due; `None` when the gate rejected it."""
        refresh = self._options.refresh_steps
        if self._steps == 0 or (refresh and self._steps % refresh == 0):
            self._make(parameters)
        self._steps += 1
        return self._basis

    def _make(self, parameters: Vector) -> None:
        frames, held_out = public_frames(self._load, self._identity, self._available, self._options, self._bases)
        basis = build_basis(self._engine, parameters, frames, held_out, self._options)
        energy = basis.captured.mean
        used = energy >= self._options.min_captured_energy
        self._basis = basis if used else None
        self._bases += 1
        self._fallbacks += not used
        self.report = ProjectionReport(
            used=used,
            rank=basis.rank,
            captured_energy=energy,
            threshold=self._options.min_captured_energy,
            fallbacks=self._fallbacks,
        )
