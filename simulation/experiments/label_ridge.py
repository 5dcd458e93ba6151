"""What one noised ridge regression of the last layer wins back, beside steps of `dp-sgd`; otherwise as `gap`.

* `label-ridge` is one release: everybody takes part (q = 1), one draw of noise, a closed form.
* `label-ridge (views)` is the same from features of the public view alone, around boxes that somebody drew (or whole
  frames), so that only keypoints are private.
* `label-ridge (rounds)` is several of them in one course, each from where the last one led to, with noise for all.
* `label-ridge + dp-sgd` spends half of epsilon on that release and goes on with `gap`'s steps of `dp-sgd` from there,
  with the noise that makes both together cost epsilon.

Clip norm, learning rate and damping are chosen on public people as `gap` chooses its numbers, and again for several
rounds, at the smallest clip norm. The views' one takes those of `label-ridge`: what public people's views would say of
them is not looked at.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wardpose.shared.config import FederationConfig
from wardpose.shared.privacy.accounting import Event, calibrate, epsilon
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.cohort import CohortData
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.vectors import Vector
from wardpose.simulation.experiments import gap
from wardpose.simulation.experiments.bench import Bench, Say, choose_none, note_free, plain, shown
from wardpose.simulation.experiments.bench import Setting as BenchSetting
from wardpose.simulation.experiments.bench import choose as choose_steps
from wardpose.simulation.experiments.records import Results

Numbers = dict[str, float]

_SEVERAL = "label-ridge (rounds)"
_FIRST_SHARE = 0.5  # of epsilon, for the release that steps of dp-sgd follow
_PRECISION = 1e-3  # relative, of a noise multiplier that is sought


_ONE = BenchSetting(sites=(1,))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run of the experiment covers.

    Attributes:
        base: sites, epsilons, seeds and the steps of `none` and `dp-sgd`.
        mechanisms: what is compared.
        people: public ones in the curvature.
        rounds: of `label-ridge (rounds)`.
        clip_norms: among which one is chosen.
        learning_rates: among which one is chosen, times the clip norm's reciprocal.
        dampings: among which one is chosen.

    """

    base: BenchSetting = _ONE
    mechanisms: tuple[str, ...] = (
        "dp-sgd",
        "label-ridge",
        _SEVERAL,
        "label-ridge + dp-sgd",
        "label-ridge (views)",
    )
    people: int = 128
    rounds: int = 3
    clip_norms: tuple[float, ...] = (1.0, 4.0)
    learning_rates: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    dampings: tuple[float, ...] = (0.01, 0.1, 1.0)


SIZES = {"small": Setting(), "full": Setting(base=BenchSetting(sites=(1, 4)), people=783)}


def run(
    plan: FederationConfig,
    setting: Setting,
    out: Path,
    *,
    start: Path | None = None,
    only: Sequence[str] | None = None,
    say: Say = print,
) -> None:
    """Train what is not in `out` yet; arguments and errors as `gap.run`."""
    results = Results(out, plain(asdict(setting)))
    bench = Bench(plan, setting.base, start)
    note_free(results, bench, say)
    epsilons = setting.base.epsilons
    if "chosen" not in results.content:
        results.note("chosen", {f"{e:g}": choose_steps(bench, e, say) for e in epsilons})
        results.note("chosen_none", choose_none(bench, say))
    if "chosen_ridge" not in results.content:
        results.note("chosen_ridge", {f"{e:g}": choose(bench, setting, e, say) for e in epsilons})
    private = itertools.product(setting.mechanisms if only is None else only, epsilons, setting.base.sites)
    cases: list[tuple[str, float | None, int]] = [("none", None, 1), *private]
    for (mechanism, budget, sites), seed in itertools.product(cases, setting.base.seeds):
        key = {"sites": sites, "epsilon": budget, "mechanism": mechanism, "seed": seed}
        if results.done(**key):
            continue
        if mechanism == _SEVERAL and budget is not None:
            _choose_rounds(bench, setting, results, budget, say)
        before = time.process_time()
        found = _train(bench, setting, results.content, mechanism, budget, sites=sites, seed=seed)
        results.add({**found, "cpu_seconds": round(time.process_time() - before, 1)}, **key)
        say(f"{mechanism}, {sites} sites, epsilon {budget}, seed {seed}: {found['score']:.3f}")


def _choose_rounds(bench: Bench, setting: Setting, results: Results, budget: float, say: Say) -> None:
    """Choose, where it is not done yet, and keep what several rounds take; it takes longest of all."""
    known = results.content.get("chosen_rounds", {})
    if f"{budget:g}" not in known:
        made = choose(bench, setting, budget, say, rounds=setting.rounds)
        results.note("chosen_rounds", {**known, f"{budget:g}": made})


def rows_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the table, as `gap.rows_of`."""
    return gap.rows_of(content)


def draw(content: dict[str, Any], path: Path) -> None:
    """Write a PNG, as `gap.draw`."""
    gap.draw(content, path)


def ridge(setting: Setting, made: Numbers, sigma: float, *, views: bool = False) -> Mechanism:
    """Return the mechanism of one release with these numbers."""
    options: dict[str, Any] = {"damping": made["damping"], "people": setting.people}
    values: dict[str, Any] = {
        "name": "label-ridge",
        "unit": "frame",
        "sample_rate": 1.0,
        "max_grad_norm": made["max_grad_norm"],
        "noise_multiplier": sigma,
        "ridge": {**options, "inputs": "public-views" if views else "frames"},
        "feature": {"labels": "pseudo" if views else "ground-truth"},
    }
    return Mechanism.model_validate(values)


def noise_of(budget: float, delta: float, events: Sequence[Event] = (), *, rate: float = 1.0, steps: int = 1) -> float:
    """Return the least sigma of `steps` at rate q that, together with `events`, cost no more than `budget`."""
    delta = COURSE_SHARE * delta
    if not events:
        return calibrate(epsilon=budget, delta=delta, sample_rate=rate, steps=steps, noise="gaussian")

    def cost(sigma: float) -> float:
        return epsilon([*events, *_steps(rate, sigma).events(steps)], delta=delta)

    least, most = 0.1, 1.0
    while cost(most) > budget:
        least, most = most, 2 * most
    while most > (1 + _PRECISION) * least:
        middle = (least * most) ** 0.5
        least, most = (least, middle) if cost(middle) <= budget else (middle, most)
    return most


def choose(bench: Bench, setting: Setting, budget: float, say: Say, *, rounds: int = 1) -> Numbers:
    """Choose the numbers of one epsilon on public people alone, as `bench.choose`."""
    halves, sigma = bench.halves(), noise_of(budget, setting.base.delta, steps=rounds)
    best: Numbers = {}
    clips = setting.clip_norms if rounds == 1 else (min(setting.clip_norms),)
    for damping, clip, rate in itertools.product(setting.dampings, clips, setting.learning_rates):
        made = {"damping": damping, "max_grad_norm": clip, "learning_rate": rate / clip}
        scores = []
        for data, rows, others in halves:
            mechanism = ridge(setting, made, sigma * len(data.units) / bench.size)
            weights, _ = _release(bench, mechanism, made, [data], 0, rounds=rounds)
            scores.append(bench.score_half(weights, rows, others))
        if float(np.mean(scores)) > best.get("score", -1.0):
            best = {**made, "score": float(np.mean(scores))}
    say(f"label-ridge, {rounds} rounds, epsilon {budget:g}: chosen {best}")
    return best


def _train(
    bench: Bench,
    setting: Setting,
    content: dict[str, Any],
    mechanism: str,
    budget: float | None,
    *,
    sites: int,
    seed: int,
) -> dict[str, Any]:
    if budget is None:
        return bench.train(mechanism, None, sites=sites, seed=seed, made=content["chosen_none"])
    steps, made = content["chosen"][f"{budget:g}"], content["chosen_ridge"][f"{budget:g}"]
    if mechanism == "dp-sgd":
        return bench.train(mechanism, budget, sites=sites, seed=seed, made=steps)
    several = mechanism == _SEVERAL
    if several:
        made = content["chosen_rounds"][f"{budget:g}"]
    rounds = setting.rounds if several else 1
    first = budget * (_FIRST_SHARE if mechanism == "label-ridge + dp-sgd" else 1.0)
    noised = noise_of(first, setting.base.delta, steps=rounds)
    release = ridge(setting, made, noised, views=mechanism == "label-ridge (views)")
    dealt = bench.dealt(release, sites, seed)
    weights, verdict = _release(bench, release, made, dealt, seed, rounds=rounds)
    noise: list[float] = [release.noise_multiplier]
    if mechanism == "label-ridge + dp-sgd":
        rate, count = setting.base.sample_rate, setting.base.rounds * setting.base.steps
        sigma = noise_of(budget, setting.base.delta, release.events(1), rate=rate, steps=count)
        further = _steps(rate, sigma).model_copy(update={"max_grad_norm": steps["max_grad_norm"]})
        weights, _ = bench.rounds(further, steps, dealt, 500 + seed, start=weights)
        noise.append(sigma)
    return {**shown(bench.score(weights)), "noise_multiplier": noise, "ridge": verdict}


def _release(
    bench: Bench, mechanism: Mechanism, made: Numbers, cohorts: Sequence[CohortData], seed: int, *, rounds: int
) -> tuple[Vector, str]:
    optimizer = OptimizerConfig(name="sgd", learning_rate=made["learning_rate"])
    training = LocalTraining(strategy="maps", steps=1, optimizer=optimizer)
    return bench.follow(mechanism, training, cohorts, seed, rounds=rounds)


def _steps(rate: float, sigma: float) -> Mechanism:
    return Mechanism(unit="frame", frames_per_unit=1, sample_rate=rate, noise_multiplier=sigma)
