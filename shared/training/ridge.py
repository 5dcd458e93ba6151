"""Ridge regression of the last layer, in closed form, from one noised sum: the mechanism `label-ridge`.

Only the last 1x1 convolution trains (`maps`): for each joint j a weight per channel and a bias, w_j (d,). Behind it all
is linear up to the two softmaxes, so that the loss is convex in w_j, joints do not mix, and its second derivative is
known exactly: with X (positions, d) the trunk's features and a 1, M_a = T_a U X the way from w_j to the bins of axis a
(U the interpolation, T_a the head's linear layer), p_a what is predicted and v_j the joint's share of the loss,

    H_j = mean over people of  v_j sum_a M_a' (diag p_a - p_a p_a') M_a .

One step of Newton's method with damping lambda, which for a squared loss is the ridge regression itself, is

    w_j <- w_j - rate (H_j + lambda)^-1 X'R_j ,

X'R_j being the mean over patients of features times residuals, which is the gradient. Here H comes from public people,
and X'R alone from patients. With L_j = (H_j + lambda)^-1/2, round after round:

1. c_u = L g_u, the unit's gradient (of the mean loss over its frames) in coordinates in which the public curvature is
   1 in every direction; clipped to C over all joints together.
2. s = sum of c_u over the units that take part + N(0, (sigma C)^2), one draw.
3. s is shrunk, band by band of neighbouring eigenvalues of each joint, by max(0, 1 - k (sigma C)^2 / |s_band|^2), k
   coordinates in a band: the share of its energy that the noise, whose variance is known, does not explain (Wiener's
   filter with an estimated signal; James and Stein 1961).
4. the gradient that the optimiser follows is L s / (q N).

**It costs one Gaussian query of sensitivity C.** Given the weights and the public people, L is a fixed matrix, whatever
it is: H is worked out without any patient, or, with `ridge.source` `public-views`, from phi(x), which then must be
public (under feature-DP: the same for both neighbours). Whoever comes or goes adds or removes one vector of norm at
most C (`privacy.clipping`; what is not finite adds nothing), and nobody else's changes: `c_u` is a function of the unit
alone. Steps 3 and 4 are functions of the noised s, of sigma C and q N, which are declared, and of L: post-processing.
Nothing else of a patient enters, no X'X, no count, no norm. With `ridge.inputs` `public-views` g_u is taken at phi(x)
with the unit's own keypoints, and the frame itself is not read.

**It moves the weights by a known length.** H has no negative eigenvalues (they are cut off at 0), so L is no longer
than lambda^-1/2, whoever chose the weights and the public people; shrinking only shortens. Hence the server's
`norm_bound`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.cohort import PublicData, RowIds, load_bags
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.training.public_part import PublicViews
from wardpose.shared.vectors import Vector, map_vector

WEIGHT, BIAS = "head.maps.weight", "head.maps.bias"
_TOGETHER = 32  # people whose features are loaded at a time


@dataclass(frozen=True, kw_only=True)
class RidgeReport:
    """What became of a round's closed form; a function of public people and of the noised sum.

    Attributes:
        people: whose second moments were taken.
        dimensions: sum over eigenvalues e of e / (e + lambda): how many numbers the regression has in effect.
        kept: share of the noised sum's energy that shrinking left.

    """

    people: int
    dimensions: float
    kept: float

    @property
    def used(self) -> bool:
        """Whether anything stands out of the noise."""
        return self.kept > 0

    def __str__(self) -> str:
        verdict = f"{self.kept:.0%} of the noised sum is kept" if self.used else "NOTHING stands out of the noise"
        return (
            f"ridge regression of {self.dimensions:.0f} effective numbers over {self.people} public people: {verdict}"
        )


class Whitening:
    """L, joint by joint, as eigenvectors and what gradients along them are multiplied by.

    Attributes:
        vectors: (J, d, d) float64, orthonormal columns, of falling eigenvalues.
        scale: (J, d) float64, (eigenvalue + lambda)^-1/2.
        rank: J d.

    """

    def __init__(self, vectors: Tensor, scale: Tensor, like: Vector) -> None:
        self.vectors = vectors
        self.scale = scale
        self.rank = scale.numel()
        self._like = like

    def encode(self, gradients: Vector) -> Tensor:
        """Coordinates `L g_u`, (u, J d) float64, of gradients (u, ...)."""
        turned = torch.matmul(rows_of(gradients), self.vectors) * self.scale[:, None]
        return turned.transpose(0, 1).flatten(1)

    def decode(self, coordinates: Tensor) -> Vector:
        """Return `L c` of coordinates (J d,), float64."""
        turned = coordinates.to(self.scale).reshape(self.scale.shape) * self.scale
        rows = torch.matmul(self.vectors, turned[:, :, None])  # (J, d, 1)
        return like_rows(rows.mT, self._like, units=False)


class Ridge:
    """The closed form of each step of a round.

    Args:
        engine: the gradients' engine, of strategy `maps`.
        mechanism: its ridge options decide whose second moments, and the damping.
        public: a public data set, for source `public`.
        views: the site's public views, for source `public-views`.

    Attributes:
        report: of the last step; `None` before the first.

    Raises:
        ConfigError: the strategy trains something else, or the source's data are not given or hold nobody.

    """

    def __init__(
        self, engine: UnitGradients, mechanism: Mechanism, public: PublicData | None, views: PublicViews | None
    ) -> None:
        if engine.names != (WEIGHT, BIAS):
            raise ConfigError(f'mechanism "{mechanism.name}" trains "maps" alone, not {list(engine.names)[:4]}')
        self._engine = engine
        self._options = mechanism.ridge
        self._load: Callable[[RowIds], Bags]
        if self._options.source == "public-views":
            if views is None:
                raise ConfigError('ridge.source "public-views" needs the public view; the cohort has none')
            self._load, available = views.bags, len(views)
        else:
            if public is None or not len(public.rows):
                raise ConfigError(f'mechanism "{mechanism.name}" needs public data for its curvature; none are given')
            rows = public.rows
            self._load, available = (lambda ids: load_bags(engine, rows, ids)), len(rows)
        self._ids = np.unique(np.linspace(0, available - 1, self._options.people).astype(np.int64))
        self._joints = len(engine.parameters()[BIAS])
        self._dimensions = 0.0
        self._last: tuple[Vector, Whitening] | None = None
        self.report: RidgeReport | None = None

    def at(self, parameters: Vector) -> Whitening:
        """Return the whitening at `parameters`, from public people; the last one where the weights did not move."""
        if self._last is not None and all(
            torch.equal(value, self._last[0][name]) for name, value in parameters.items()
        ):
            return self._last[1]
        made = self._made(parameters)
        self._last = (map_vector(torch.clone, parameters), made)
        return made

    def _made(self, parameters: Vector) -> Whitening:
        total = torch.zeros(())
        for start in range(0, len(self._ids), _TOGETHER):
            bags = self._load(self._ids[start : start + _TOGETHER, None])
            total = total + curvature(self._engine, parameters, bags)
        mean = total / len(self._ids)
        sound = torch.isfinite(mean).flatten(1).all(dim=1)  # hostile weights; such a joint's curvature counts as none
        values, vectors = torch.linalg.eigh(torch.where(sound[:, None, None], mean, 0.0))
        values, vectors = values.flip(-1).clamp(min=0.0), vectors.flip(-1)
        damping = self._options.damping
        self._dimensions = float((values / (values + damping)).sum())
        return Whitening(vectors, (values + damping).rsqrt(), parameters)

    def shrunk(self, coordinates: Tensor, deviation: float) -> Tensor:
        """Shorten a noised sum (J d,) by its noise of standard deviation `deviation` in each coordinate."""
        rows = kept = coordinates.reshape(self._joints, -1)
        if self._options.band and deviation:
            bands = torch.split(rows, self._options.band, dim=1)
            kept = torch.cat([_without_noise(part, deviation) for part in bands], dim=1)
        whole = float(rows.norm())
        share = (float(kept.norm()) / whole) ** 2 if whole > 0 else 0.0
        self.report = RidgeReport(people=len(self._ids), dimensions=self._dimensions, kept=share)
        return kept.reshape(-1)


def rows_of(gradients: Vector) -> Tensor:
    """Rows (J, u, d) float64 of gradients (u, ...): each joint's weights, and its bias."""
    return torch.cat([gradients[WEIGHT].flatten(2), gradients[BIAS][:, :, None]], dim=2).double().transpose(0, 1)


def like_rows(rows: Tensor, like: Vector, *, units: bool = True) -> Vector:
    """Inverse of `rows_of`, of the dtype of `like`; without `units`, rows (J, 1, d) of one vector in float64."""
    one = rows.transpose(0, 1)
    if not units:
        return {WEIGHT: one[0, :, :-1].reshape(like[WEIGHT].shape), BIAS: one[0, :, -1]}
    return {WEIGHT: one[:, :, :-1].reshape(like[WEIGHT].shape).to(like[WEIGHT]), BIAS: one[:, :, -1].to(like[BIAS])}


def curvature(engine: UnitGradients, parameters: Vector, bags: Bags) -> Tensor:
    """Sum of `H_j` over people, (J, d, d) float64: second derivatives of the loss by each joint's weights and bias.

    Args:
        engine: of strategy `maps`; its loss is that of training.
        parameters: where it is taken.
        bags: people, one row each.

    """
    features = bags.inputs[:, 0].double()
    codec = SimCC.of(engine.config)
    weight = codec.encode(bags.joints[:, 0], bags.visibility[:, 0]).weight.double()  # (B, J)
    share = weight / weight.sum(dim=1, keepdim=True).clamp(min=1.0)
    height, width = features.shape[2:]
    tall, wide = (side // 8 for side in engine.config.input_size)
    points = torch.eye(height * width, dtype=torch.float64, device=features.device).reshape(-1, 1, height, width)
    spread = functional.interpolate(points, size=(tall, wide), mode="bilinear", align_corners=True).flatten(1)
    ways = [engine.frozen(f"head.{axis}.weight").double() @ spread.T for axis in ("x", "y")]  # (bins, h w)
    logits = engine.logits(parameters, bags.inputs[:, 0])
    total = torch.zeros(*share.shape[1:], features.shape[1] + 1, features.shape[1] + 1).to(features)
    for person, picture in enumerate(features.flatten(2)):
        inner = torch.zeros(len(total), len(points), len(points)).to(features)
        for way, values in zip(ways, logits, strict=True):
            likely = values[person].double().softmax(dim=-1)  # (J, bins)
            mean = likely @ way  # (J, h w)
            inner += torch.matmul((likely[:, None] * way.T), way) - mean[:, :, None] * mean[:, None]
        seen = torch.cat([picture, torch.ones_like(picture[:1])])  # (d, h w)
        total += torch.matmul(torch.matmul(seen, inner * share[person, :, None, None]), seen.T)
    return total


def _without_noise(part: Tensor, deviation: float) -> Tensor:
    """Shrink bands (J, k) by the share of their energy that the noise explains."""
    energy = part.square().sum(dim=1, keepdim=True)
    explained = part.shape[1] * deviation**2
    return part * torch.where(energy > explained, 1.0 - explained / energy, 0.0)
