"""What an audit looks at: the mechanism, and what is broken about it on purpose."""

from dataclasses import dataclass
from typing import Literal

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import Mechanism, ProjectionOptions, RidgeOptions

Name = Literal["dp-sgd", "projected", "feature", "feature-projective", "label-ridge"]
Break = Literal["halved-noise", "skipped-clip", "shared-batch"]

BREAKS: dict[Break, str] = {
    "halved-noise": "noise of half the standard deviation that is accounted for",
    "skipped-clip": "gradients are summed without clipping",
    "shared-batch": "the public gradient is taken over the private batch, not over an independent draw",
}

LOOSE = 64.0
"""A clip norm that clips no canary."""

FRAMES = 96
"""Public frames of a basis, where there is one."""

PEOPLE = 32
"""Public frames of a curvature, where there is one."""

_FULL_BATCH_GAP = 0.5  # canary's gap over the noise: halved noise is then told best from the claim
_SECRET_BATCH = (0.1, 2.0)  # sampling rate and noise multiplier where a revealed batch is told best
_RANK = 64
_PER_RUN = 16
_PER_RUN_WITH_A_BASIS = 32  # whose making takes most of a step's time
_PICTURES_IN_A_BASIS = 8  # more would overlap too much


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What is audited.

    Attributes:
        mechanism: one that claims privacy.
        canaries: how many in all runs together; rounded up to whole runs.
        broken: what is deliberately wrong, if anything.
        sample_rate: q; by default 1, and 0.1 where the secrecy of the batch is what is looked at (`feature*`, intact
            or with a shared batch).
        noise_multiplier: sigma; by default what tells broken from intact best.
        delta: at which epsilon is claimed.
        confidence: of the lower bound.
        per_run: canaries of one run; 0: 16, with a projection 32, or 8 if they are pictures.
        pictures: canaries have the gradients of pictures, which interfere, rather than orthogonal ones.
        seed: of everything: canaries, coins and noise.

    Raises:
        ConfigError: the break does not exist in the mechanism, or a number is out of range.

    """

    mechanism: Name = "dp-sgd"
    canaries: int = 100_000
    broken: Break | None = None
    sample_rate: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-6
    confidence: float = 0.95
    per_run: int = 0
    pictures: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.broken == "shared-batch" and not self.by_replacement:
            raise ConfigError(
                f'audit: mechanism "{self.mechanism}" has no public batch to share; allowed with shared-batch: '
                "feature, feature-projective"
            )
        if self.per_run == 0:
            in_a_basis = _PICTURES_IN_A_BASIS if self.pictures else _PER_RUN_WITH_A_BASIS
            object.__setattr__(self, "per_run", in_a_basis if self.projects else _PER_RUN)
        if not 2 <= self.per_run <= _RANK // 2 or self.canaries < self.per_run:
            raise ConfigError(
                f"audit: {self.canaries} canaries, {self.per_run} in a run; allowed: 2 to {_RANK // 2} in a run, and "
                "at least one run"
            )

    @property
    def by_replacement(self) -> bool:
        """Whether canaries are exchanged for one of equal public view, rather than put in or left out."""
        return self.mechanism in ("feature", "feature-projective")

    @property
    def projects(self) -> bool:
        """Whether private gradients are projected on a public basis."""
        return self.mechanism in ("projected", "feature-projective")

    @property
    def whitens(self) -> bool:
        """Whether private gradients are clipped in coordinates of a public curvature."""
        return self.mechanism == "label-ridge"

    @property
    def runs(self) -> int:
        """How many steps."""
        return -(-self.canaries // self.per_run)

    def claimed(self, max_grad_norm: float) -> Mechanism:
        """Return the mechanism as it is accounted for."""
        secret = self.by_replacement and self.broken in (None, "shared-batch")
        rate = self.sample_rate if self.sample_rate is not None else _SECRET_BATCH[0] if secret else 1.0
        sigma = self.noise_multiplier
        if sigma is None:
            full = (2.0 if self.by_replacement else 1.0) / _FULL_BATCH_GAP
            sigma = _SECRET_BATCH[1] if secret and self.sample_rate is None else full
        return Mechanism(
            name=self.mechanism,
            unit="frame",
            sample_rate=rate,
            noise_multiplier=sigma,
            max_grad_norm=max_grad_norm,
            adjacency="replace-one" if self.by_replacement else "add-remove",
            projection=ProjectionOptions(
                rank=_RANK, energy=1.0, frames=FRAMES, held_out=8, min_captured_energy=0.0, storage="stored"
            ),
            ridge=RidgeOptions(people=PEOPLE, band=0),  # what shrinking is given has no more noise than it leaves
        )


def break_mechanism(mechanism: Mechanism, broken: Break | None) -> Mechanism:
    """Return the values with which a broken engine runs while claiming those of `mechanism`."""
    if broken == "halved-noise":
        return mechanism.model_copy(update={"noise_multiplier": mechanism.noise_multiplier / 2})
    if broken == "skipped-clip":
        # Noise is sigma C: a clip norm that clips nothing, and as much noise as before.
        scale = LOOSE / mechanism.max_grad_norm
        values = {"max_grad_norm": LOOSE, "noise_multiplier": mechanism.noise_multiplier / scale}
        return mechanism.model_copy(update=values)
    return mechanism
