"""What a round does to private data and what that costs: one value behind training and events.

| name | private part of a step | public part |
|---|---|---|
| `dp-sgd` | clipped, noised g(x) | none |
| `projected` | the same, projected on a public basis V | none |
| `feature` | clipped, noised g(x) - g(phi(x)) | mean g(phi(x)) on an independent draw |
| `feature-projective` | as `feature`, projected on V | mean g(phi(x)) on an independent draw |
| `label-ridge` | clipped, noised L g(x), or L g(phi(x)) with private keypoints | L, which is a public curvature |
| `none` | g(x), neither clipped nor noised | none |
| `public-only` | none | mean g(phi(x)) |

`feature*` follow "Machine Learning with Privacy for Protected Attributes" (arXiv 2506.19836): the pair's
*difference* is clipped and the public batch is drawn independently of the private one, which is what keeps
amplification by subsampling. `projected` follows PDP-SGD (arXiv 2007.03813), `feature-projective`
"Differentially Private 2D Human Pose Estimation" (arXiv 2504.10190). `label-ridge` is one ridge regression of the last
layer, see `training.ridge`.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import UNTIERED, Event, Noise, UnitKind
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.schedules import Schedule

Name = Literal["none", "public-only", "dp-sgd", "projected", "feature", "feature-projective", "label-ridge"]
Adjacency = Literal["add-remove", "replace-one"]

# Numbers beyond these have no use, and arithmetic with them no meaning; a site's policy is narrower still.
ClipNorm = Annotated[float, Field(ge=1e-12, le=1e12, allow_inf_nan=False)]
NoiseMultiplier = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
_LARGEST_EXACT_MULTIPLIER = 200.0  # what the discrete sampler draws on a grid of a millionth of the clip norm

Tier = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Rate = Annotated[float, Field(ge=1e-12, le=1)]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureOptions(_Options):
    """The public part of `feature`, `feature-projective` and `public-only`.

    Attributes:
        draw: where the public batch comes from. `poisson`: own coins from the public stream; `cyclic`: a
            shuffled order over all units, continued step after step; `once-per-round`: the mean over all
            units at the round's first weights, held fixed.
        rate: expected share of units in a public batch; the private sampling rate when absent.
        weight: factor of the public gradient. 1 makes the update an unbiased estimate of g(x) wherever
            nothing is clipped.
        labels: labels of the public views. `ground-truth` makes the keypoints public too; `pseudo` predicts
            them from the public view with the round's first weights, so that keypoints stay private. The crop
            itself is part of the public view: a box that was computed from the keypoints still tells about them.
        max_difference: largest |g(x) - g(phi(x))| / |g(x)| on the site's public people with which a round uses the
            view; above it, it takes clip(g(x)) alone, which costs the same. Nothing is measured when absent.

    """

    draw: Literal["poisson", "cyclic", "once-per-round"] = "poisson"
    rate: Rate | None = None
    weight: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    labels: Literal["ground-truth", "pseudo"] = "ground-truth"
    max_difference: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is absent, so that a course keeps the identity that earlier versions gave it."""
        values: dict[str, Any] = handler(self)
        if self.max_difference is None:
            values.pop("max_difference", None)
        return values


class ResidualOptions(_Options):
    """A second, p-dimensional query for what the basis misses (GEP, Yu et al. 2021), with its own noise.

    Attributes:
        max_grad_norm: clip norm of the residual g - V V' g.
        noise_multiplier: its noise over its clip norm.

    """

    max_grad_norm: ClipNorm
    noise_multiplier: NoiseMultiplier


class ProjectionOptions(_Options):
    """The public subspace of `projected` and `feature-projective`.

    Attributes:
        rank: at most so many basis vectors, k.
        energy: fewer when this share of the public gradients' energy is reached.
        frames: public frames whose gradients span the basis, m.
        held_out: further public frames on which the captured energy is measured.
        min_captured_energy: below it the round falls back to the unprojected mechanism, which costs the same;
            0 never falls back.
        refresh_steps: local steps between two bases; 0: one basis for the round.
        source: `public`: a public data set; `public-views`: the site's own phi(x), public under feature-DP
            only.
        clip: `after`: project each unit's gradient, then clip in R^k (more signal per clip norm); `before`:
            clip in R^p, then project (the paper).
        storage: keep the m public gradients (`stored`) or nothing but their Gram matrix (`matrix-free`);
            `auto`: store when they fit in a quarter of the free memory.
        residual: the second query, if any.
        uplink: `full`: the update in R^p; `coefficients`: m numbers in the coordinates of the public frames
            (`projected` with one basis a round and plain SGD only).

    """

    rank: int = Field(default=50, ge=1, le=4096)
    energy: float = Field(default=0.999, gt=0, le=1)
    frames: int = Field(default=128, ge=2, le=4096)
    held_out: int = Field(default=32, ge=1, le=4096)
    min_captured_energy: float = Field(default=0.3, ge=0, le=1)
    refresh_steps: int = Field(default=0, ge=0, le=1_000_000)
    source: Literal["public", "public-views"] = "public"
    clip: Literal["after", "before"] = "after"
    storage: Literal["auto", "stored", "matrix-free"] = "auto"
    residual: ResidualOptions | None = None
    uplink: Literal["full", "coefficients"] = "full"


class RidgeOptions(_Options):
    """The closed form of `label-ridge`.

    Attributes:
        damping: lambda, what is added to the public second moments; it also bounds how much a unit, or the noise, can
            move the weights (`norm_bound`).
        inputs: `frames`: features of the frames themselves; `public-views`: of phi(x) alone, so that of a unit
            nothing but its keypoints is read that is not public anyway (needs `feature.labels` `pseudo`).
        source: `public`: second moments of a public data set; `public-views`: those of the site's own phi(x), exactly.
        people: at most so many of them.
        band: coordinates of neighbouring eigenvalues that are shrunk together by the known noise; 0: nothing is.

    """

    damping: float = Field(default=0.03, ge=1e-6, le=1e6, allow_inf_nan=False)
    inputs: Literal["frames", "public-views"] = "frames"
    source: Literal["public", "public-views"] = "public"
    people: int = Field(default=256, ge=1, le=4096)
    band: int = Field(default=32, ge=0, le=4096)


class Mechanism(_Options):
    """One round's private computation; it travels as JSON in the order and is held against site policy.

    Attributes:
        name: see the module's table.
        unit: whose presence is hidden: all frames of a patient, one frame with all that it shows, or one annotated
            record.
        frames_per_unit: F, frames drawn from a unit each time it takes part; patients with fewer are drawn
            with replacement. 1 for frames.
        sample_rate: q, probability with which each unit takes part in a step.
        noise_multiplier: sigma, noise standard deviation over the clip norm. 0 gives no privacy: an infinite
            epsilon. In a plan, 0 stands for the sigma that is calibrated to the plan's epsilon.
        max_grad_norm: C, L2 bound of one unit's contribution.
        adjacency: what the reported epsilon compares: a unit added or removed (sensitivity C), or replaced
            (2C).
        exact_noise: discrete Gaussian noise on an integer grid in R^p too. In R^k it is always so; otherwise
            R^p takes float64 Gaussians.
        tiers: sampling rate of each consent tier that differs from `sample_rate`.
        schedule: pre-declared (C, sigma, q) of every step of the run; they replace the three values above.
        feature: options of the public part.
        projection: options of the basis.
        ridge: options of `label-ridge`.
        distributed: under secure aggregation: the noise is that of the sum over sites, of which each adds a share. In a
            plan `server.aggregation` decides it.

    Raises:
        pydantic.ValidationError: a value is out of range, or options contradict each other.

    """

    name: Name = "dp-sgd"
    unit: UnitKind = "patient"
    frames_per_unit: int = Field(default=4, ge=1, le=256)
    sample_rate: Rate = 0.1
    noise_multiplier: NoiseMultiplier = 0.0
    max_grad_norm: ClipNorm = 1.0
    adjacency: Adjacency = "add-remove"
    exact_noise: bool = False
    tiers: dict[Tier, Rate] = Field(default_factory=dict, max_length=64)
    schedule: Schedule | None = None
    feature: FeatureOptions = FeatureOptions()
    projection: ProjectionOptions = ProjectionOptions()
    ridge: RidgeOptions = RidgeOptions()
    distributed: DistributedNoise | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is absent, so that a course keeps the identity that earlier versions gave it."""
        values: dict[str, Any] = handler(self)
        if self.distributed is None:
            values.pop("distributed", None)
        if not self.whitens and self.ridge == RidgeOptions():
            values.pop("ridge", None)
        return values

    @model_validator(mode="before")
    @classmethod
    def _one_frame_per_frame(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("unit", "patient") != "patient" and "frames_per_unit" not in values:
            return {**values, "frames_per_unit": 1}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.unit != "patient" and self.frames_per_unit != 1:
            raise ValueError(f"frames_per_unit is {self.frames_per_unit}; a unit that is a {self.unit} has 1")
        if not self.is_private and self.noise_multiplier:
            raise ValueError(f'mechanism "{self.name}" adds no noise; noise_multiplier must be 0 or absent')
        if self.feature.max_difference is not None and self.uses_basis and self.projection.source == "public-views":
            raise ValueError('feature.max_difference with projection.source "public-views"; allowed: "public"')
        projection = self.projection
        if self.name == "projected" and projection.source == "public-views":
            raise ValueError('projection.source "public-views" needs feature-DP; mechanism "projected" allows "public"')
        if projection.residual is not None and projection.residual.noise_multiplier == 0 < self.noise_multiplier:
            raise ValueError("projection.residual.noise_multiplier is 0; allowed: above 0, as noise_multiplier is")
        if projection.uplink == "coefficients" and (
            self.name != "projected" or projection.refresh_steps or projection.residual is not None
        ):
            raise ValueError(
                'projection.uplink "coefficients" needs mechanism "projected", refresh_steps 0, no residual'
            )
        if self.whitens and self.uses_public_views and self.feature.labels != "pseudo":
            raise ValueError('ridge with "public-views" and feature.labels "ground-truth"; allowed: labels "pseudo"')
        if self.tiers and UNTIERED in self.tiers:
            raise ValueError(f'tier "{UNTIERED}" is the name of the units without a tier')
        if self.schedule is not None:
            self._check_schedule(self.schedule)
        if self.distributed is not None:
            self._check_distributed(self.distributed)
        multipliers = [self.noise_multiplier, *([projection.residual.noise_multiplier] if projection.residual else [])]
        if self.discrete and max(multipliers) > _LARGEST_EXACT_MULTIPLIER:
            raise ValueError(
                f"noise_multiplier is {max(multipliers)}; with exact noise allowed: at most "
                f"{_LARGEST_EXACT_MULTIPLIER:.0f}"
            )
        return self

    def _check_distributed(self, distributed: DistributedNoise) -> None:
        if self.name != "dp-sgd":
            raise ValueError(f'distributed noise with mechanism "{self.name}"; allowed: "dp-sgd"')
        phases = self.schedule.phases if self.schedule is not None else (self,)
        for phase in phases:
            distributed.scales(phase.noise_multiplier, sites=distributed.sites)

    def _check_schedule(self, schedule: Schedule) -> None:
        if not self.is_private or self.tiers or self.projection.residual is not None:
            raise ValueError("a schedule needs a private mechanism without tiers and without a residual query")
        for phase in schedule.phases:
            if phase.sample_rate == 0:
                raise ValueError("a phase of the schedule has sample_rate 0; allowed: above 0")
            if self.discrete and phase.noise_multiplier > _LARGEST_EXACT_MULTIPLIER:
                raise ValueError(f"a phase has noise_multiplier {phase.noise_multiplier}, too large for exact noise")

    @property
    def is_private(self) -> bool:
        """Whether private frames are read and protected by noise (at least in form: sigma may be 0)."""
        return self.name not in ("none", "public-only")

    @property
    def reads_private(self) -> bool:
        """Whether private frames are read at all."""
        return self.name != "public-only"

    @property
    def uses_public_views(self) -> bool:
        """Whether the declared public view phi of the site's frames is used."""
        of_ridge = self.whitens and "public-views" in (self.ridge.inputs, self.ridge.source)
        return of_ridge or self.adds_public_part

    @property
    def adds_public_part(self) -> bool:
        """Whether a gradient of the public view is added un-noised."""
        return self.name in ("feature", "feature-projective", "public-only")

    @property
    def whitens(self) -> bool:
        """Whether unit gradients are taken to coordinates of public curvature before they are clipped."""
        return self.name == "label-ridge"

    @property
    def reads_views_alone(self) -> bool:
        """Whether of a unit only the public view, and its keypoints, are read in training."""
        return self.whitens and self.ridge.inputs == "public-views"

    @property
    def shows_own_views(self) -> bool:
        """Whether something un-noised, a basis or a curvature, is made of the site's own public views."""
        basis = self.uses_basis and self.projection.source == "public-views"
        return basis or (self.whitens and self.ridge.source == "public-views")

    @property
    def reads_public_people(self) -> bool:
        """Whether a site needs a public data set: for a basis or a curvature."""
        basis = self.uses_basis and self.projection.source == "public"
        return basis or (self.whitens and self.ridge.source == "public")

    @property
    def uses_difference(self) -> bool:
        """Whether a unit's private gradient is that of l(x) - l(phi(x))."""
        return self.name in ("feature", "feature-projective")

    @property
    def uses_basis(self) -> bool:
        """Whether the private part is projected on a public basis."""
        return self.name in ("projected", "feature-projective")

    @property
    def discrete(self) -> bool:
        """Whether every number that is noised is an integer with discrete Gaussian noise.

        A round whose gate falls back to R^p keeps the kind of noise that was reserved, so it then pays for
        exact noise there.
        """
        exact = self.exact_noise or self.distributed is not None
        return exact or (self.uses_basis and self.projection.residual is None)

    @property
    def sends_coefficients(self) -> bool:
        """Whether a site answers with m numbers in the coordinates of public frames instead of the update."""
        return self.uses_basis and self.projection.uplink == "coefficients"

    @property
    def effective_noise_multiplier(self) -> float:
        """Sigma of the one Gaussian that all queries of a step amount to.

        Embedding and residual are answered on the *same* Poisson batch. Scaled by their clip norms they are
        one Gaussian query of L2 sensitivity sqrt(1/sigma^2 + 1/sigma_r^2) under unit noise, subsampled once.
        Two subsampled events, one for each query, would pretend two independent batches and under-report.
        """
        residual = self.projection.residual if self.uses_basis else None
        if residual is None or self.noise_multiplier == 0:
            return self.noise_multiplier
        return float((self.noise_multiplier**-2 + residual.noise_multiplier**-2) ** -0.5)

    @property
    def smallest_noise_multiplier(self) -> float:
        """The least sigma of any step; what a policy's minimum is held against."""
        if self.schedule is None:
            return self.noise_multiplier
        return min(phase.noise_multiplier for phase in self.schedule.phases)

    @property
    def largest_sample_rate(self) -> float:
        """The largest q of any step and tier; what a policy's maximum is held against."""
        if self.schedule is None:
            return max([self.sample_rate, *self.tiers.values()])
        return max(phase.sample_rate for phase in self.schedule.phases)

    def rate(self, tier: str = "") -> float:
        """Return the sampling rate of the units of `tier`."""
        return self.tiers.get(tier, self.sample_rate)

    def at(self, step: int) -> "Mechanism":
        """Return the mechanism of one step of the run, counted from 0: itself, or its schedule's values.

        Raises:
            ConfigError: the schedule has no such step.

        """
        if self.schedule is None:
            return self
        phase = self.schedule.at(step)
        values = {name: getattr(phase, name) for name in ("max_grad_norm", "noise_multiplier", "sample_rate")}
        return self.model_copy(update={**values, "schedule": None})

    def events(self, steps: int, *, first: int = 0) -> tuple[Event, ...]:
        """Return what `steps` local steps cost, one event for each consent tier or phase of the schedule.

        Examples:
            >>> mechanism = Mechanism(sample_rate=0.1, noise_multiplier=1.0, tiers={"strict": 0.05})
            >>> [(event.tier, event.sample_rate, event.steps) for event in mechanism.events(10)]
            [('untiered', 0.1, 10), ('strict', 0.05, 10)]

        Args:
            steps: of this round.
            first: steps that the run took before, the position in a schedule.

        Raises:
            ValueError: `steps` is negative.
            ConfigError: the schedule has no such steps.

        """
        if steps < 0:
            raise ValueError(f"steps is {steps}; allowed: 0 or more")
        if steps == 0:
            return ()
        kind: Noise = "discrete-gaussian" if self.discrete else "gaussian"
        shares = 1
        if self.distributed is not None:
            kind, shares = "distributed-discrete-gaussian", self.distributed.shares
        if self.schedule is not None:
            phases = self.schedule.events(
                first, steps, unit=self.unit, mechanism=self.name, noise=kind, adjacency=self.adjacency
            )
            return tuple(replace(event, shares=shares) for event in phases)
        return tuple(
            Event(
                mechanism=self.name,
                unit=self.unit,
                sample_rate=self.rate(tier),
                noise_multiplier=self.effective_noise_multiplier,
                steps=steps,
                max_grad_norm=self.max_grad_norm,
                noise=kind,
                shares=shares,
                tier=tier or (UNTIERED if self.tiers else ""),
                adjacency=self.adjacency,
            )
            for tier in ("", *sorted(self.tiers))
        )


def with_values(mechanism: Mechanism, **values: object) -> Mechanism:
    """Return the mechanism with other values, checked as a whole again.

    Examples:
        >>> with_values(Mechanism(), noise_multiplier=1.5).noise_multiplier
        1.5

    Raises:
        ConfigError: the values do not go together.

    """
    try:
        return Mechanism.model_validate(mechanism.model_dump() | values)
    except ValidationError as error:
        raise ConfigError(f"mechanism: {error.errors()[0]['msg']}") from error
