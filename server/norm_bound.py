"""How long an honest update can be, from nothing but the order and numbers that the site declares.

`largest_norm` bounds `|w_local - w_global|` over the trained weights. An honest site exceeds it with probability at
most 1e-9 a round, whatever its patients' frames show.

Step t of a round has clip norm C, noise multiplier sigma and expected batch E = sum over tiers of q N (N declared).
X units take part, Z is the noise, and the gradient is `(sum of X vectors of norm at most C, + Z) / E + u` with u the
public batch's mean gradient (`shared.training.step`).

**SGD** is linear in the gradients g_t, one coordinate like any other: `update = a w_0 - sum_t h_t g_t`, where a (weight
decay) and h_t (learning rate, momentum, decay) come from running the optimiser's recursion on numbers. Hence

    |update| <= |a| |w_0|  +  sum_t |h_t| C X_t / E  +  |sum_t h_t Z_t / E|  +  sum_t |h_t| |u_t|

* *Units.* At most f N units (`largest_cohort`) take part by independent coins of probability q, so that the second term
  is a sum of independent variables, each at most b = max_t |h_t| C / E, with mean at most m = sum_t |h_t| C f and
  variance at most v = sum_t (h_t C / E)^2 f E. By Bernstein's inequality it exceeds
  m + b L / 3 + sqrt((b L / 3)^2 + 2 v L) with probability at most e^-L; and it never exceeds sum_t |h_t| C f N / E.
* *Noise.* Each Z_t is drawn independently of everything before it, and sub-Gaussian with parameter (sigma C)^2, whether
  Gaussian or discrete Gaussian (Canonne, Kamath, Steinke 2020: complete the square; a shifted sum over the integers is
  no larger than the centred one). Hence sum_t h_t Z_t / E is a sub-Gaussian vector with parameter
  tau^2 = sum_t (h_t sigma C / E)^2, although gradients depend on earlier noise. In d dimensions its norm exceeds
  tau sqrt(d + 2 sqrt(d L) + 2 L) with probability at most e^-L: Laurent and Massart 2000, lemma 1, for Gaussians; Hsu,
  Kakade, Zhang 2012, theorem 2.1, for all sub-Gaussian vectors.
* *Basis.* In the span of one basis V of k directions d is k, and the noise is at most |V| times as long. With B bases
  in a round, sum_b V_b Y_b is at most sqrt(B) max |V_b| times as long as the k B numbers of all Y_b. A basis that
  depends on earlier noise keeps the sum sub-Gaussian in all p dimensions with parameter (|V| tau)^2. Where the gate may
  fall back, the server cannot tell whether it did, and the bound is that of p dimensions, sqrt(p / k) times as long. A
  residual query (GEP) adds its own clip norm and noise in p dimensions.
* *Curvature.* `label-ridge` clips and noises in coordinates from which its decoding L leads back to the weights, and no
  vector gets longer by it than lambda^-1/2 times (`shared.training.ridge`); that L does not depend on the step's noise.
* *Averages.* Where the last steps' weights are averaged, a and h_t are averages too; under Adam each of the averaged
  steps is within the bound.
* *Anchor.* What public people add is shortened to a number of the order, and adds its weight times that.
* *Public part.* Nothing clips u, nor the units' gradients of mechanism `none`. Their bound is a number of the plan,
  `unclipped_gradient_norm`, and as loose as that.

With e^-L a third of 1e-9 for each of units, noise and residual noise, all hold together with probability 1 - 1e-9.

**Adam and AdamW** divide by the root of the gradients' own second moment, so that a step's length does not tell how
long the gradient was. With bias corrections, Cauchy and Schwarz give, for any gradients whatsoever,

    |m_t| / sqrt(v_t) <= R_t,
    R_t = (1 - beta_1) / (1 - beta_1^t) sqrt((1 - beta_2^t) / (1 - beta_2) sum_{j<t} (beta_1^2 / beta_2)^j)

in each coordinate, hence |update| <= learning_rate sqrt(p) sum_t R_t, plus decoupled decay, with certainty. It is
reached by gradients that always have the same sign. Noise changes sign, so that an honest update of many noisy steps is
much shorter: 2.4 times with 8 steps, 6.6 with 40, 27 with 200 (beta 0.9 and 0.999). What is no longer than that passes,
and there the median of the round's norms helps (`aggregation.clip_to_median`). Under SGD the bound is 1.1 to 7 times an
honest update's length: the tighter, the more parameters and noise there are.

What an honest site must not do is to hold more than f times the patients that it declares: it then weighs that much
more than its public weight says.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.config import AdmissionConfig
from wardpose.shared.privacy.accounting import UnitKind
from wardpose.shared.privacy.evaluation import Evaluation, Layout
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.training.step import expected_batch_size

FAILURE = 1e-9
"""Probability with which an honest update may be longer than the bound."""

_L = math.log(3 / FAILURE)  # e^-L for each of the three events
_MOST_UNITS: Mapping[UnitKind, float] = {"patient": 2.0, "frame": 1000.0, "record": 1000.0}
_STRETCH = 1.5  # |V| of a basis with float32 gradients whose singular values spread over three decades
_ROUNDING = 2.0**-23  # of float32 weights, relative, each step
_ARITHMETIC = 1e-3  # of float32 gradients and optimisers, relative, a hundred times what was seen

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What of the global weights trains.

    Attributes:
        parameters: p, their number.
        norm: |w_0|, their L2 norm at the start of the round.

    """

    parameters: int
    norm: float


def largest_norm(
    mechanism: Mechanism,
    training: LocalTraining,
    *,
    first_step: int,
    declared_units: Mapping[str, int],
    trained: Trained,
    admission: AdmissionConfig,
    in_span: bool = False,
) -> float:
    """Return what an honest update's L2 norm exceeds with probability at most `FAILURE`; may be infinite.

    Args:
        mechanism: the round's.
        training: steps and optimiser of the round.
        first_step: steps that the run took before, the position in a schedule.
        declared_units: N by consent tier, as the site stated it.
        trained: of the round's global weights.
        admission: bounds of what no mechanism bounds, and a factor on the whole.
        in_span: the update came as coefficients, hence lies in the span of the public basis.

    Raises:
        ConfigError: the declared units do not fit the mechanism's tiers, or are none.

    """
    optimizer, steps = training.optimizer, training.steps
    try:
        if optimizer.name == "sgd":
            queries = _queries(mechanism, training, first_step, dict(declared_units), admission)
            span = mechanism.uses_basis and (in_span or mechanism.projection.min_captured_energy == 0)
            bound = _sgd_bound(training, queries, mechanism, trained, in_span=span)
        else:
            bound = _adam_bound(optimizer, steps, trained, averaged=training.averaged_steps)
    except OverflowError:
        return math.inf
    total = admission.slack * (bound * (1 + _ARITHMETIC) + steps * _ROUNDING * (trained.norm + bound))
    return math.inf if math.isnan(total) else total


def largest_scores(
    evaluation: Evaluation, layout: Layout, *, unit: UnitKind, declared_units: int, admission: AdmissionConfig
) -> float:
    """Return what the L2 norm of an honest site's noised scores exceeds with probability at most `FAILURE`.

    Every unit adds a vector of norm 1 at most, and the noise of D components is longer than sigma (sqrt(D) + t) with
    probability at most exp(-t²/2) (Laurent, Massart 2000).
    """
    most = admission.largest_cohort or _MOST_UNITS[unit]
    noise = math.sqrt(layout.size) + math.sqrt(-2 * math.log(FAILURE))
    return admission.slack * (1 + _ARITHMETIC) * (most * declared_units + evaluation.noise_multiplier * noise)


@dataclass(frozen=True, kw_only=True)
class _Queries:
    """A round's private queries, and its public gradients, step by step (K,).

    Attributes:
        per_unit: the most that a unit adds to the step's gradient.
        units: the most units that are expected to take part.
        cohort: the most units that there are.
        noise: parameter of the noise on the step's gradient, in each coordinate.
        rest: the same of the residual query, always in all coordinates.
        public: the most that the public batch adds.

    """

    per_unit: Floats
    units: Floats
    cohort: float
    noise: Floats
    rest: Floats
    public: Floats


def _queries(
    mechanism: Mechanism, training: LocalTraining, first_step: int, declared: dict[str, int], admission: AdmissionConfig
) -> _Queries:
    steps, anchor = training.steps, training.anchor
    most = admission.largest_cohort or _MOST_UNITS[mechanism.unit]
    units: dict[str, int] | int = declared if mechanism.tiers or set(declared) != {""} else declared[""]
    zero = np.zeros(steps)
    residual = mechanism.projection.residual if mechanism.uses_basis else None
    unclipped = admission.unclipped_gradient_norm
    public = zero + (mechanism.feature.weight * unclipped if mechanism.adds_public_part else 0.0)
    public = public + (0.0 if anchor is None else anchor.weight * anchor.max_grad_norm)
    if not mechanism.reads_private:
        return _Queries(per_unit=zero, units=zero, cohort=0.0, noise=zero, rest=zero, public=public)
    each = [mechanism.at(first_step + step) for step in range(steps)]
    expected = np.array([expected_batch_size(one, units) for one in each])
    clip = np.array([one.max_grad_norm if one.is_private else unclipped for one in each])
    multiplier = np.array([one.noise_multiplier if one.is_private else 0.0 for one in each])
    stretch = _STRETCH if mechanism.uses_basis else _longest_decoding(mechanism)
    extra = 0.0 if residual is None else residual.max_grad_norm
    return _Queries(
        per_unit=(stretch * clip + extra) / expected,
        units=most * expected,
        cohort=most * sum(declared.values()),
        noise=multiplier * clip / expected,
        rest=zero if residual is None else residual.noise_multiplier * residual.max_grad_norm / expected,
        public=public,
    )


def _sgd_bound(
    training: LocalTraining, queries: _Queries, mechanism: Mechanism, trained: Trained, *, in_span: bool
) -> float:
    decayed, response = _sgd_response(training.optimizer, training.steps, training.averaged_steps)
    if not (math.isfinite(decayed) and np.isfinite(response).all()):
        return math.inf
    noise = np.linalg.norm(response * queries.noise) * _noise_length(mechanism, len(response), trained, in_span=in_span)
    rest = np.linalg.norm(response * queries.rest) * _chi(trained.parameters)
    units = _bernstein(response * queries.per_unit, queries.units, queries.cohort)
    return float(decayed * trained.norm + units + noise + rest + np.sum(response * queries.public))


def _noise_length(mechanism: Mechanism, steps: int, trained: Trained, *, in_span: bool) -> float:
    """Bound the norm of the main query's noise of parameter 1, where it came from: R^p, or the span of public bases."""
    everywhere = _chi(trained.parameters)
    if not mechanism.uses_basis:
        return _longest_decoding(mechanism) * everywhere
    projection = mechanism.projection
    bases = math.ceil(steps / projection.refresh_steps) if projection.refresh_steps else 1
    rank = min(projection.rank, projection.frames)
    inside = _STRETCH * min(math.sqrt(bases) * _chi(rank * bases), everywhere)
    if in_span:
        return inside
    return _STRETCH * everywhere if bases > 1 else max(inside, everywhere)


def _longest_decoding(mechanism: Mechanism) -> float:
    """Return how much longer than its coordinates a vector of weights may be."""
    return float(mechanism.ridge.damping**-0.5) if mechanism.whitens else 1.0


def _sgd_response(optimizer: OptimizerConfig, steps: int, averaged: int) -> tuple[float, Floats]:
    """Return |a|, and |h_t| of each step's gradient (K,), of `update = a w_0 - sum_t h_t g_t`.

    Where the last steps' weights are averaged, a and h_t are the averages of theirs: the update is linear in them too.
    """

    def run(weight: float, impulse: float) -> list[float]:
        """Follow torch's SGD from `weight`, with one gradient `impulse` in front; the weight after each step."""
        path, velocity = [], 0.0
        for step in range(steps):
            gradient = (impulse if step == 0 else 0.0) + optimizer.weight_decay * weight
            velocity = gradient if step == 0 else optimizer.momentum * velocity + gradient
            weight -= optimizer.learning_rate * velocity
            path.append(weight)
        return path

    answers = np.concatenate([np.zeros(averaged - 1), run(0.0, 1.0)])  # after 1 to K steps; before its time, nothing
    mean = np.convolve(answers, np.full(averaged, 1.0 / averaged), mode="valid")  # (K,)
    return abs(float(np.mean(run(1.0, 0.0)[-averaged:])) - 1.0), np.abs(mean)[::-1].copy()


def _adam_bound(optimizer: OptimizerConfig, steps: int, trained: Trained, *, averaged: int) -> float:
    """Bound every step's weights that are averaged, hence their mean."""
    first, second = optimizer.betas
    if not (0 <= first < 1 and 0 < second < 1):
        return math.inf
    powers = np.arange(1, steps + 1)
    ratio = first**2 / second
    history = np.cumsum(ratio ** (powers - 1.0))
    corrections = (1 - first) / (1 - first**powers) * np.sqrt((1 - second**powers) / (1 - second))
    kept = 1 - optimizer.learning_rate * optimizer.weight_decay if optimizer.name == "adamw" else 1.0
    decay = np.abs(kept) ** (steps - powers)  # of each step, by those after it
    if averaged > 1:
        decay = np.maximum(decay, 1.0)
    moved = optimizer.learning_rate * math.sqrt(trained.parameters) * np.sum(decay * corrections * np.sqrt(history))
    shrunk = np.abs(float(kept) ** powers[-averaged:] - 1).max()
    return float(shrunk * trained.norm + moved)


def _bernstein(weights: Floats, units: Floats, cohort: float) -> float:
    """Bound `sum_t weights_t X_t`, of X_t units that take part; see the module's docstring."""
    largest = float(weights.max(initial=0.0)) * _L / 3
    mean, variance = float(np.sum(weights * units)), float(np.sum(weights**2 * units))
    return min(mean + largest + math.sqrt(largest**2 + 2 * variance * _L), float(np.sum(weights)) * cohort)


def _chi(dimensions: int) -> float:
    """Bound the norm of that many independent sub-Gaussians of parameter 1."""
    return math.sqrt(dimensions + 2 * math.sqrt(dimensions * _L) + 2 * _L)
