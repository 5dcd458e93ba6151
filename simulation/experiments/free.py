"""What each thing that costs no patient anything gives the public phase: short phases, one thing left out at a time.

Every phase starts from the plan's public weights, takes the same public people in the same order, and is scored on
`data.validation` and `data.test` (PCK@0.2). `everything` is the recipe with all of it; each other row lacks one thing:

| without | what is left out |
|---|---|
| rotation, scale, flip, half_body | that part of the crops' geometry (`crops.Augmentation`) |
| colour, occlusion, blanket | what is laid over people, and the light (`looks.Looks`) |
| weights | the plan's public weights: the network begins at random |
| length | half of the epochs |
| geometry | rotation, scale, flip and half_body together |

Phases are short, so that a machine without a GPU can run them, and what hardens a recipe against overfitting gives less
in a short phase than in a long one. Recipes are chosen by the scores on `data.validation`; those on `data.test` are
only shown.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wardpose.server.scoring import open_all
from wardpose.shared.config import FederationConfig, wardpose_home
from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.looks import Looks
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.evaluation import evaluate
from wardpose.shared.pose.model import PoseModel, build_model
from wardpose.shared.pose.pretrain import PretrainConfig, pretrain
from wardpose.shared.pose.weights import load_model, read_metadata, state_hash
from wardpose.simulation.experiments.bench import plain, shown
from wardpose.simulation.experiments.records import Results

Say = Callable[[str], None]

EVERYTHING = "everything"

_GEOMETRY = ("rotation", "scale", "flip", "half_body")
_LOOKS = ("colour", "occlusion", "blanket")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run of the experiment covers.

    Attributes:
        without: what is switched off, one at a time; the module's docstring explains the names.
        epochs: passes over the public people.
        seeds: of order and augmentation.
        scale, rotation, rotation_probability, flip, half_body: of `everything`.
        colour, occlusion, blanket: of `everything`.

    """

    without: tuple[str, ...] = ("rotation", "weights", "colour", "occlusion", "scale", "length")
    epochs: int = 2
    seeds: tuple[int, ...] = (0,)
    scale: float = 0.25
    rotation: float = 180.0
    rotation_probability: float = 0.8
    flip: float = 0.5
    half_body: float = 0.1
    colour: float = 0.5
    occlusion: float = 0.2
    blanket: float = 0.0

    def recipe(self, base: PretrainConfig, without: str, seed: int) -> PretrainConfig:
        """Return a plan's public recipe with everything but one thing.

        Raises:
            ConfigError: there is no such thing.

        """
        known = (EVERYTHING, *_GEOMETRY, *_LOOKS, "weights", "length", "geometry")
        if without not in known:
            raise ConfigError(f'without "{without}" is unknown (allowed: {", ".join(known)})')
        off = _GEOMETRY if without == "geometry" else (without,)
        geometry = {name: 0.0 if name in off else getattr(self, name) for name in _GEOMETRY}
        return base.model_copy(
            update={
                "epochs": max(1, self.epochs // 2) if without == "length" else self.epochs,
                "seed": seed,
                "augmentation": Augmentation(rotation_probability=self.rotation_probability, **geometry),
                "looks": Looks(**{name: 0.0 if name in off else getattr(self, name) for name in _LOOKS}),
            }
        )


SIZES = {
    "small": Setting(),
    "full": Setting(
        without=(*_GEOMETRY, *_LOOKS, "weights", "length", "geometry"), epochs=120, seeds=(0, 1, 2), blanket=0.1
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
        plan: its public, validation and test data, its network and its public recipe.
        setting: what to cover.
        out: JSON file, made or continued.
        start: weights to begin with, instead of the plan's.
        only: some of what is switched off; all of the setting's when absent.
        say: told about every phase.

    Raises:
        ConfigError: the plan has no public, validation or test data, or there is no such thing to switch off.
        DataError: `out` holds another setting.

    """
    public, scored = _opened(plan)
    base = plan.pretrain or PretrainConfig()
    cases = [
        (name, seed, setting.recipe(base, name, seed))
        for name, seed in itertools.product((EVERYTHING, *(setting.without if only is None else only)), setting.seeds)
    ]
    results = Results(out, plain(asdict(setting)))
    first = _network(plan, start, EVERYTHING)
    source = first.weights_source if start is None else read_metadata(start).get("recipe", str(start.name))
    results.note("start", {"state": state_hash(first), "source": source})
    for name, seed, recipe in cases:
        if results.done(without=name, seed=seed):
            continue
        before = time.process_time()
        model = _network(plan, start, name)
        report = pretrain(model, public, recipe, folder=_folder())
        scores = {kind: shown(evaluate(model, dataset)) for kind, dataset in scored.items()}
        seconds = round(time.process_time() - before, 1)
        results.add({**scores, "steps": report.steps, "cpu_seconds": seconds}, without=name, seed=seed)
        found = ", ".join(f"{kind} {score['score']:.3f}" for kind, score in scores.items())
        say(f"{_named(name)}, seed {seed}: {found}")


def rows_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the table, the most helpful thing first.

    Returns:
        `phase`, `validation` and `test` (means over seeds), `gives` (what `everything` has more on `validation`),
        `steps`, `seeds`.

    """
    runs = content["runs"]

    def mean(name: str, kind: str) -> float:
        return float(np.mean([run[kind]["score"] for run in runs if run["key"]["without"] == name]))

    names = list(dict.fromkeys(run["key"]["without"] for run in runs))
    rows = [
        {
            "phase": _named(name),
            "validation": mean(name, "validation"),
            "test": mean(name, "test"),
            "gives": mean(EVERYTHING, "validation") - mean(name, "validation") if name != EVERYTHING else None,
            "steps": next(run["steps"] for run in runs if run["key"]["without"] == name),
            "seeds": sum(run["key"]["without"] == name for run in runs),
        }
        for name in names
    ]
    return sorted(rows, key=lambda row: (row["gives"] is not None, -(row["gives"] or 0.0)))


def draw(content: dict[str, Any], path: Path) -> None:
    """Write a PNG: the scores of every phase."""
    from matplotlib.figure import Figure

    rows = rows_of(content)[::-1]
    places = np.arange(len(rows))
    figure = Figure(figsize=(6.4, 0.5 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for shift, kind in ((0.2, "validation"), (-0.2, "test")):
        axes.barh(places + shift, [row[kind] for row in rows], height=0.38, label=kind)
    axes.set_yticks(places, [row["phase"] for row in rows])
    axes.set_xlabel("PCK@0.2")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


def _named(name: str) -> str:
    return name if name == EVERYTHING else f"without {name}"


def _network(plan: FederationConfig, start: Path | None, without: str) -> PoseModel:
    if without == "weights":
        return build_model(plan.model.model_copy(update={"weights": "random"}), seed=plan.seed or 0)
    return build_model(plan.model, seed=plan.seed or 0) if start is None else load_model(start)


def _folder() -> Path:
    folder = wardpose_home() / "experiments" / "free"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _opened(plan: FederationConfig) -> tuple[list[PoseDataset], dict[str, PoseDataset]]:
    """Open the public people, and those who are scored."""
    opened = {}
    for name in ("public", "validation", "test"):
        dataset = open_all(getattr(plan.data, name), plan.model.skeleton)
        if dataset is None:
            raise ConfigError(f"data.{name}: missing; the experiment needs it")
        opened[name] = dataset
    return [opened.pop("public")], opened
