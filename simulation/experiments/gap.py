"""How much of the way from the best free model to training without privacy a private phase wins back.

Two ends and what lies between them, all from one start, the network after the public phase of a plan:

* `free` is the start itself: everything that costs no patient anything.
* `none` is training of the same parameters with everybody in one place, neither clipped nor noised, for `none_rounds`:
  what these parameters can reach.
* `last_stage` is what more parameters can reach: the last stage and the head, on public and private people together, by
  the plan's public recipe with its free augmentation (`_last_stage`).
* `private` is one mechanism at one epsilon, at one hospital with everybody or at several that each add all the noise.

The **share** is (private - free) / (none - free), of means over seeds; `last_stage_share` the same with the other end.
Scores are PCK@0.2 on the plan's `data.test`.

Nothing is chosen on `data.test`. What private training uses, the set of parameters among `candidates`, clip norm,
learning rate and weight of the public anchor, is what half of the people of `data.validation`, who are public, improved
the score of the other half most with, under noise of the standard deviation that the mean gradient of the private
people gets (`choose`). The rate of `none`, which protects nobody, is that with which the private people improved the
score of `data.validation` most (`choose_none`). Rates fall from round to round by half a cosine.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wardpose.server.initial import initial_model
from wardpose.server.scoring import open_all
from wardpose.shared.anonymize.public_view import PublicView, PublicViewConfig, open_public_view
from wardpose.shared.config import FederationConfig, wardpose_home
from wardpose.shared.data.dataset import listed
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.evaluation import Scores, evaluate
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.pretrain import PretrainConfig, pretrain
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.pose.weights import load_model, read_metadata, state_hash
from wardpose.shared.privacy.accounting import calibrate
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cache import Rows, build_rows
from wardpose.shared.training.cohort import CohortData, PublicData, build_cohort, build_public, index_units
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import AnchorOptions, LocalTraining, OptimizerConfig
from wardpose.shared.vectors import Vector
from wardpose.simulation.experiments.cohorts import deal, private_people, score_rows
from wardpose.simulation.experiments.records import Results

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run of the experiment covers.

    Attributes:
        sites: numbers of hospitals that the private people are dealt to.
        epsilons: of each hospital, at `delta`.
        delta: of the plan.
        mechanisms: private ones, in this order.
        strategy: which parameters train, in `none` too.
        candidates: other sets, one of which trains instead if it did better at the first of `epsilons` (`choose`).
        seeds: of partition, coins and noise.
        rounds: exchanges; sites' updates are averaged.
        steps: noised gradients of a round.
        none_rounds: rounds of `none`, which has no reason to stop early.
        none_rates: among which its learning rate is chosen.
        last_stage_epochs: of `last_stage`; 0 leaves it out.
        momentum: of the steps of a round.
        sample_rate: of a step.
        clip_norms: among which one is chosen.
        learning_rates: among which one is chosen, times the clip norm's reciprocal.
        anchors: weights of the public anchor among which one is chosen.
        view: phi of the feature mechanisms: its kind, and its strength.

    """

    sites: tuple[int, ...] = (1, 4)
    epsilons: tuple[float, ...] = (0.8, 8.0, 0.2)
    delta: float = 1e-4
    mechanisms: tuple[str, ...] = ("dp-sgd", "projected", "feature-projective")
    strategy: Strategy = "maps"
    candidates: tuple[Strategy, ...] = ("bias-norms",)
    seeds: tuple[int, ...] = (1, 2, 3)
    rounds: int = 3
    steps: int = 4
    none_rounds: int = 8
    none_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    last_stage_epochs: int = 1
    momentum: float = 0.5
    sample_rate: float = 0.25
    clip_norms: tuple[float, ...] = (1.0,)
    learning_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    anchors: tuple[float, ...] = (0.0,)
    view: tuple[str, float] = ("mosaic", 16)


SIZES = {
    "small": Setting(),
    "full": Setting(
        sites=(1, 4, 10),
        epsilons=(0.2, 0.4, 0.6, 0.8, 2.0, 8.0),
        mechanisms=("dp-sgd", "projected", "feature", "feature-projective"),
        rounds=6,
        steps=10,
        none_rounds=20,
        last_stage_epochs=10,
        anchors=(0.0, 0.3),
        sample_rate=1.0,
        clip_norms=(0.25, 0.5, 1.0, 2.0),
    ),
}


def run(
    plan: FederationConfig,
    setting: Setting,
    out: Path,
    *,
    start: Path | None = None,
    only: Sequence[str] | None = None,
    say: Say = print,
) -> None:
    """Train what is not in `out` yet.

    Args:
        plan: its data, its network and its public phase.
        setting: what to cover.
        out: JSON file, made or continued.
        start: weights of the free model, instead of the plan's public phase.
        only: some of the setting's mechanisms; all when absent.
        say: told about every run.

    Raises:
        ConfigError: the plan has no private, public, validation or test data.
        DataError: `out` holds another setting.

    """
    results = Results(out, plain(asdict(setting)))
    if "strategies" not in results.content:
        results.note("strategies", _choose_strategy(plan, setting, start, say))
    tried: dict[str, float] = results.content["strategies"]
    sets = {str(one): one for one in (setting.strategy, *setting.candidates)}
    setting = replace(setting, strategy=sets[max(tried, key=lambda name: tried[name])])
    bench = Bench(plan, setting, start)
    results.note("start", bench.start)
    if "free" not in results.content:
        results.note("free", shown(bench.score(bench.weights)))
        say(f"free: {results.content['free']['score']:.3f}")
    if "chosen" not in results.content:
        results.note("chosen", {f"{e:g}": choose(bench, e, say) for e in setting.epsilons})
    if "chosen_none" not in results.content:
        results.note("chosen_none", choose_none(bench, say))
    chosen = results.content["chosen"]
    private = itertools.product(setting.mechanisms if only is None else only, setting.epsilons, setting.sites)
    cases: list[tuple[str, float | None, int]] = [("none", None, 1), *private]
    for (mechanism, epsilon, sites), seed in itertools.product(cases, setting.seeds):
        key = {"sites": sites, "epsilon": epsilon, "mechanism": mechanism, "seed": seed}
        if results.done(**key):
            continue
        before = time.process_time()
        made = results.content["chosen_none"] if epsilon is None else chosen[f"{epsilon:g}"]
        found = bench.train(mechanism, epsilon, sites=sites, seed=seed, made=made)
        results.add({**found, "cpu_seconds": round(time.process_time() - before, 1)}, **key)
        say(f"{mechanism}, {sites} sites, epsilon {epsilon}, seed {seed}: {found['score']:.3f}")
    if setting.last_stage_epochs and "last_stage" not in results.content:
        results.note("last_stage", _last_stage(plan, setting, bench, start))
        say(f"last stage without privacy: {results.content['last_stage']['score']:.3f}")


class Bench:
    """The start, the people and their features; everything is computed once, and kept in `$WARDPOSE_HOME`.

    Attributes:
        start: what the free model is.
        weights: of the start that train.

    """

    def __init__(self, plan: FederationConfig, setting: Setting, start: Path | None) -> None:
        self.setting = setting
        self._folder = wardpose_home() / "experiments"
        self._model = _start(plan, self._folder, start)
        metadata = {} if start is None else read_metadata(start)
        self.start = {"state": state_hash(self._model), "source": metadata.get("recipe", "the plan's public phase")}
        self._engine = UnitGradients(self._model, setting.strategy)
        self.weights = self._engine.parameters()
        self._people = private_people(plan)
        self._cohorts: dict[bool, CohortData] = {}
        known = {"public": plan.data.public, "validation": plan.data.validation, "test": plan.data.test}
        opened = {name: open_all(sources, plan.model.skeleton) for name, sources in known.items()}
        missing = [name for name, dataset in opened.items() if dataset is None]
        if missing:
            raise ConfigError(f"data.{missing[0]}: missing; the experiment needs it")
        self._open = {name: dataset for name, dataset in opened.items() if dataset is not None}
        self._public: PublicData = build_public(
            self._open["public"], self._model, strategy=self._engine.strategy, cache_folder=self._folder / "cache"
        )
        self._test = self._rows(self._open["test"])

    @property
    def size(self) -> int:
        """Return how many private people there are."""
        return len(self._people)

    def score(self, weights: Vector) -> Scores:
        """Score trained weights on the test people."""
        return score_rows(self._engine, weights, self._test, self._open["test"])

    def train(
        self, name: str, epsilon: float | None, *, sites: int, seed: int, made: dict[str, float]
    ) -> dict[str, Any]:
        """Train once with the chosen numbers; returns score, groups, sigma and what became of the basis."""
        mechanism = self.mechanism(name, epsilon, made["max_grad_norm"])
        weights, verdict = self.rounds(mechanism, made, self.dealt(mechanism, sites, seed), seed)
        return {**shown(self.score(weights)), "noise_multiplier": mechanism.noise_multiplier, "projection": verdict}

    def mechanism(self, name: str, epsilon: float | None, clip: float) -> Mechanism:
        """Return a mechanism with the noise that `epsilon` asks for; none for `none`."""
        setting = self.setting
        options = {"name": name, "unit": "frame", "sample_rate": setting.sample_rate, "max_grad_norm": clip}
        plain = Mechanism.model_validate(options)
        if epsilon is None:
            return plain
        sigma = calibrate(
            epsilon=epsilon,
            delta=COURSE_SHARE * setting.delta,
            sample_rate=setting.sample_rate,
            steps=setting.rounds * setting.steps,
            noise="discrete-gaussian" if plain.discrete else "gaussian",
        )
        return Mechanism.model_validate({**options, "noise_multiplier": sigma})

    def rounds(
        self,
        mechanism: Mechanism,
        made: dict[str, float],
        cohorts: Sequence[CohortData],
        seed: int,
        *,
        start: Vector | None = None,
    ) -> tuple[Vector, str]:
        """Take the rounds at all sites, from `start` or the free model; returns weights and the last verdict."""
        training = LocalTraining(
            strategy=self._engine.strategy,
            steps=self.setting.steps,
            optimizer=OptimizerConfig(name="sgd", learning_rate=made["learning_rate"], momentum=self.setting.momentum),
            anchor=AnchorOptions(weight=made["anchor"]) if made["anchor"] else None,
            average=0.6,
        )
        rounds = self.setting.rounds if mechanism.is_private else self.setting.none_rounds
        return self.follow(mechanism, training, cohorts, seed, rounds=rounds, start=start, cosine=True)

    def follow(
        self,
        mechanism: Mechanism,
        training: LocalTraining,
        cohorts: Sequence[CohortData],
        seed: int,
        *,
        rounds: int,
        start: Vector | None = None,
        cosine: bool = False,
    ) -> tuple[Vector, str]:
        """Take rounds of any local training, its rate constant or falling by half a cosine; otherwise as `rounds`."""
        weights, verdict = dict(self.weights if start is None else start), ""
        for number in range(rounds):
            self._put(weights)
            local = _decayed(training, number / rounds) if cosine else training
            updates = []
            for site, cohort in enumerate(cohorts):
                done = local_update(
                    self._model,
                    cohort,
                    mechanism,
                    local,
                    streams=seeded_streams(1_000_000 * seed + 1_000 * number + site),
                    declared_units=len(cohort.units),
                    public=self._public,
                    first_step=number * training.steps,
                )
                updates.append(done.update)
                verdict = str(done.projection or done.ridge or "")
            weights = {name: value + sum(u[name] for u in updates) / len(updates) for name, value in weights.items()}
        self._put(self.weights)
        return weights, verdict

    def dealt(self, mechanism: Mechanism, sites: int, seed: int) -> list[CohortData]:
        """Deal the private people, as the mechanism reads them, to sites."""
        return deal(self._people, self._cohort(mechanism), sites, seed)

    def everybody(self) -> list[PoseDataset]:
        """Return the public and the private people."""
        return [self._open["public"], self._people]

    def score_model(self, model: PoseModel) -> dict[str, Any]:
        """Score a whole model on the test people."""
        device = next(model.parameters()).device
        return shown(evaluate(model, self._open["test"], device=device))

    def halves(self) -> list[tuple[CohortData, Rows, PoseDataset]]:
        """Return each half of the validation people as a cohort, with the other half to score on."""
        dataset = listed(self._open["validation"])
        parts: list[tuple[CohortData, Rows, PoseDataset]] = []
        for first in (0, 1):
            mine, others = (dataset.select(list(range(k, len(dataset), 2))) for k in (first, 1 - first))
            rows = self._rows(mine)
            units = index_units(mine, unit="frame")
            data = CohortData(private=rows, public=None, units=units, views=1, frames_per_unit=1)
            parts.append((data, self._rows(others), others))
        return parts

    def score_validation(self, weights: Vector) -> float:
        """Score trained weights on all validation people."""
        dataset = listed(self._open["validation"])
        return self.score_half(weights, self._rows(dataset), dataset)

    def score_half(self, weights: Vector, rows: Rows, dataset: PoseDataset) -> float:
        """Score trained weights on some of the validation people."""
        return score_rows(self._engine, weights, rows, dataset).pck_box_02

    def _rows(self, dataset: PoseDataset) -> Rows:
        return build_rows(dataset, self._model, self._engine.strategy, folder=self._folder / "cache")[0]

    def _cohort(self, mechanism: Mechanism) -> CohortData:
        """Open the private people's features, those of their public views only when they are needed."""
        shown = mechanism.uses_public_views
        if shown not in self._cohorts:
            self._cohorts[shown] = build_cohort(
                self._people,
                self._model,
                mechanism,
                LocalTraining(strategy=self._engine.strategy),
                cache_folder=self._folder / "cache",
                public_view=self._view() if shown else None,
            )
        return self._cohorts[shown]

    def _view(self) -> PublicView:
        kind, strength = self.setting.view
        return open_public_view(PublicViewConfig.model_validate({"kind": kind, "strength": strength}))

    def _put(self, weights: Vector) -> None:
        """Give the network these weights."""
        with torch.no_grad():
            for name, value in self._model.named_parameters():
                if name in weights:
                    value.copy_(weights[name])


def choose(bench: Bench, epsilon: float, say: Say) -> dict[str, float]:
    """Choose the numbers of one epsilon on public people alone.

    Half of the validation people stand for all private ones: everybody takes part in every step, and the noise on their
    mean gradient has the standard deviation that it has there, sigma C / (q N).
    """
    setting, halves = bench.setting, bench.halves()
    best: dict[str, float] = {}
    for clip, rate, anchor in itertools.product(setting.clip_norms, setting.learning_rates, setting.anchors):
        made = {"max_grad_norm": clip, "learning_rate": rate / clip, "anchor": anchor}
        real = bench.mechanism("dp-sgd", epsilon, clip)
        scores = []
        for data, rows, others in halves:
            sigma = real.noise_multiplier * len(data.units) / (setting.sample_rate * bench.size)
            mechanism = real.model_copy(update={"sample_rate": 1.0, "noise_multiplier": sigma})
            weights, _ = bench.rounds(mechanism, made, [data], seed=0)
            scores.append(bench.score_half(weights, rows, others))
        if float(np.mean(scores)) > best.get("score", -1.0):
            best = {**made, "score": float(np.mean(scores))}
    say(f"epsilon {epsilon:g}: chosen {best}")
    return best


def _choose_strategy(plan: FederationConfig, setting: Setting, start: Path | None, say: Say) -> dict[str, float]:
    """Return what each set of parameters reached on public people at the first epsilon (`choose`)."""
    tried = {}
    for strategy in (setting.strategy, *setting.candidates):
        bench = Bench(plan, replace(setting, strategy=strategy), start)
        tried[str(strategy)] = choose(bench, setting.epsilons[0], say)["score"] if setting.candidates else 0.0
        say(f"{strategy}: {tried[str(strategy)]:.3f} on public people")
    return tried


def choose_none(bench: Bench, say: Say) -> dict[str, float]:
    """Choose the rate of `none`: it protects nobody, so it may learn from private people; scored on public ones."""
    best: dict[str, float] = {}
    mechanism = bench.mechanism("none", None, 1.0)
    for rate in bench.setting.none_rates:
        made = {"max_grad_norm": 1.0, "learning_rate": rate, "anchor": 0.0}
        weights, _ = bench.rounds(mechanism, made, bench.dealt(mechanism, 1, 0), seed=0)
        score = bench.score_validation(weights)
        if score > best.get("score", -1.0):
            best = {**made, "score": score}
    say(f"none: chosen {best}")
    return best


def _last_stage(plan: FederationConfig, setting: Setting, bench: Bench, start: Path | None) -> dict[str, Any]:
    """Train the last stage on public and private people, by the plan's public recipe; it goes on if stopped."""
    recipe = (plan.pretrain or PretrainConfig()).model_copy(
        update={"strategy": "last-stage", "epochs": setting.last_stage_epochs}
    )
    folder = wardpose_home() / "experiments" / "last_stage"
    folder.mkdir(parents=True, exist_ok=True)
    model = _start(plan, wardpose_home() / "experiments", start)
    device = next(model.parameters()).device
    report = pretrain(model, bench.everybody(), recipe, folder=folder, device=device)
    return {**bench.score_model(model), "steps": report.steps, "recipe": recipe.model_dump(mode="json")}


def _decayed(training: LocalTraining, passed: float) -> LocalTraining:
    """Return a round's training, its rate what half a cosine leaves of it."""
    rate = training.optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))
    optimizer = training.optimizer.model_copy(update={"learning_rate": rate})
    return training.model_copy(update={"optimizer": optimizer})


def rows_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the table: one row for each number of sites, epsilon and mechanism that has a run.

    Returns:
        `sites`, `epsilon`, `aggregation`, `mechanism`, `free`, `none`, `private`, `spread` (largest less smallest of
        the seeds), `share` (`None` where `none` is not above `free`), `seeds`, and `last_stage` and
        `last_stage_share` where it was trained.

    """
    runs, free = content["runs"], content["free"]["score"]

    def scores(sites: int, epsilon: float | None, mechanism: str) -> list[float]:
        wanted = {"sites": sites, "epsilon": epsilon, "mechanism": mechanism}
        return [run["score"] for run in runs if wanted.items() <= run["key"].items()]

    table = []
    keys = dict.fromkeys((run["key"]["sites"], run["key"]["epsilon"], run["key"]["mechanism"]) for run in runs)
    for sites, epsilon, mechanism in keys:
        ends = scores(1, None, "none")
        if mechanism == "none" or not ends:
            continue
        found = scores(sites, epsilon, mechanism)
        none, private = float(np.mean(ends)), float(np.mean(found))
        far = content.get("last_stage", {}).get("score")
        more = {} if far is None else {"last_stage": far, "last_stage_share": _share(free, private, far)}
        table.append(
            {
                "sites": sites,
                "epsilon": epsilon,
                "aggregation": "plain",
                "mechanism": mechanism,
                "free": free,
                "none": none,
                "private": private,
                "spread": max(found) - min(found),
                "share": _share(free, private, none),
                "seeds": len(found),
                **more,
            }
        )
    return sorted(table, key=lambda row: (row["mechanism"], row["sites"], row["epsilon"]))


def _share(free: float, private: float, end: float) -> float | None:
    return (private - free) / (end - free) if end > free else None


def draw(content: dict[str, Any], path: Path) -> None:
    """Write a PNG: the private scores over epsilon between the two ends, one panel for each number of sites."""
    from matplotlib.figure import Figure

    table = rows_of(content)
    counts, epsilons = (sorted({row[key] for row in table}) for key in ("sites", "epsilon"))
    figure = Figure(figsize=(4.2 * len(counts), 3.4), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, counts, strict=True):
        mine = [row for row in table if row["sites"] == count]
        for mechanism in dict.fromkeys(row["mechanism"] for row in mine):
            line = sorted((row["epsilon"], row["private"]) for row in mine if row["mechanism"] == mechanism)
            axes.plot(*zip(*line, strict=True), marker="o", label=mechanism)
        axes.axhline(mine[0]["free"], color="grey", linestyle=":", label="free")
        axes.axhline(mine[0]["none"], color="black", linestyle="--", label="none")
        if "last_stage" in mine[0]:
            axes.axhline(mine[0]["last_stage"], color="black", linestyle="-.", label="none, last stage")
        axes.set_xscale("log")
        axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
        axes.minorticks_off()
        axes.set_xlabel("epsilon of each site")
        axes.set_title("one hospital" if count == 1 else f"{count} hospitals, plain aggregation")
    panels[0].set_ylabel("PCK@0.2")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def _start(plan: FederationConfig, folder: Path, start: Path | None) -> PoseModel:
    if start is not None:
        return load_model(start)
    folder.mkdir(parents=True, exist_ok=True)
    return initial_model(plan, folder, reuse=False)


def shown(scores: Scores) -> dict[str, Any]:
    """Return a score and those of the groups as results have them."""
    groups = {name: round(value, 4) for name, value in scores.by_group.items()}
    return {"score": round(scores.pck_box_02, 4), "by_group": groups}


def plain(setting: dict[str, Any]) -> dict[str, Any]:
    """Return a setting as JSON has it: lists for tuples."""
    return dict(json.loads(json.dumps(setting)))
