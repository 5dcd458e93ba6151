"""What experiments train and score on: a free start, a plan's people and their features, and training at n hospitals.

Clip norm, learning rate and weight of the public anchor of private training are those with which half of the people of
`data.validation`, who are public, improved the score of the other half most, under noise of the standard deviation that
the mean gradient of the private people gets (`choose`). `none` protects nobody: its rate is the one with which private
people improved the score of `data.validation` most (`choose_none`). Rates fall from round to round by half a cosine.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.pose.weights import load_model, read_metadata, state_hash
from wardpose.shared.privacy.accounting import calibrate
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cache import Rows, build_rows
from wardpose.shared.training.cohort import CohortData, PublicData, build_cohort, build_public, index_units
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.imputation import Imputer, make_imputer
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
        impute: let features of the view be imputed (`training.imputation`).

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
    impute: bool = False


class Bench:
    """The start, the people and their features; everything is computed once, and kept in `$WARDPOSE_HOME`.

    Attributes:
        start: what the free model is.
        weights: of the start that train.

    """

    def __init__(self, plan: FederationConfig, setting: Setting, start: Path | None) -> None:
        self.setting = setting
        self._folder = wardpose_home() / "experiments"
        self._model, self.start = open_start(plan, self._folder, start)
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
        options |= {"feature": {"impute": setting.impute}}
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
                impute=self._imputer() if mechanism.imputes else None,
            )
        return self._cohorts[shown]

    def _imputer(self) -> Imputer:
        folder = self._folder / "cache"
        return make_imputer(self._open["public"], self._model, self._engine.strategy, self._view(), folder=folder)

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


def open_start(plan: FederationConfig, folder: Path, start: Path | None) -> tuple[PoseModel, dict[str, str]]:
    """Open the free model, or make it by the plan's public phase; returns it, and what results say that it is.

    Args:
        plan: its network and its public phase.
        folder: where the public phase keeps its checkpoints; made when missing.
        start: weights, instead of the public phase.

    """
    folder.mkdir(parents=True, exist_ok=True)
    if start is None:
        model, source = initial_model(plan, folder, reuse=False), "the plan's public phase"
    else:
        model, source = load_model(start), str(read_metadata(start).get("recipe", start.name))
    return model, {"state": state_hash(model), "source": source}


def note_free(results: Results, bench: Bench, say: Say) -> None:
    """Write down what training starts from, and what that reaches by itself."""
    results.note("start", bench.start)
    if "free" not in results.content:
        results.note("free", shown(bench.score(bench.weights)))
        say(f"free: {results.content['free']['score']:.3f}")


def _decayed(training: LocalTraining, passed: float) -> LocalTraining:
    """Return a round's training, its rate what half a cosine leaves of it."""
    rate = training.optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))
    optimizer = training.optimizer.model_copy(update={"learning_rate": rate})
    return training.model_copy(update={"optimizer": optimizer})


def shown(scores: Scores) -> dict[str, Any]:
    """Return a score and those of the groups as results have them."""
    groups = {name: round(value, 4) for name, value in scores.by_group.items()}
    return {"score": round(scores.pck_box_02, 4), "by_group": groups}


def plain(setting: dict[str, Any]) -> dict[str, Any]:
    """Return a setting as JSON has it: lists for tuples, no `impute` that nobody asks for."""

    def asked(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name != "impute" or value}

    return dict(json.loads(json.dumps(setting), object_hook=asked))
