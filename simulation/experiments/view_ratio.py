"""How far a public view's gradient is from the frame's, and how much nearer imputed features bring it.

Feature-DP noises g(x) - g(phi(x)) in the place of g(x). It helps where |g - g(phi)| / |g| (roots of mean squares over
people) is below 1; above 1 the view is worse than none. The ratio and the cosine of the two mean gradients are measured
on private people of a plan and, as a site's gate would, on public people whom the imputing network has not seen
(`training.imputation`), at the weights of the free model, with the true joints. Nothing is trained but that network, on
public people; a private number here is research on published data, and no site computes it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.server.scoring import open_all
from wardpose.shared.anonymize.public_view import PublicView, PublicViewConfig, open_public_view
from wardpose.shared.config import FederationConfig, wardpose_home
from wardpose.shared.data.dataset import ListDataset, listed
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.training.cache import Rows, build_rows
from wardpose.shared.training.cohort import load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.imputation import make_imputer, trunk_features
from wardpose.shared.vectors import flatten, map_vector
from wardpose.simulation.experiments.bench import open_start
from wardpose.simulation.experiments.cohorts import private_people
from wardpose.simulation.experiments.records import Results

_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        views: kinds of phi, each with its strength; 0 for the kind's own, and for the bundled part map.
        strategies: of one front, the head.
        private: people, spread over all.
        public: most held-out people, spread over all.

    """

    views: tuple[tuple[str, float], ...] = (("generator", 0), ("mosaic", 16), ("blur", 8), ("edges", 0))
    strategies: tuple[Strategy, ...] = ("maps", "head")
    private: int = 300
    public: int = 64

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the views."""
        return tuple(_name(*view) for view in self.views)


SIZES = {"small": Setting(), "full": Setting(private=4_000, public=400)}


def run(
    plan: FederationConfig,
    setting: Setting,
    out: Path,
    *,
    start: Path | None = None,
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Measure what is not in `out` yet.

    Args:
        plan: its people, its network and its public phase.
        setting: what to measure.
        out: JSON file, made or continued.
        start: weights of the free model, instead of the plan's public phase.
        only: names of some of the setting's views; all when absent.
        say: told about every measurement.

    Raises:
        ConfigError: the plan has no private or no public data.
        DataError: `out` holds another setting.

    """
    results = Results(out, asdict(setting) | {"views": [list(view) for view in setting.views]} | _lists(setting))
    folder = wardpose_home() / "experiments"
    cache = folder / "cache"
    model, known = open_start(plan, folder, start)
    results.note("start", known)
    public = open_all(plan.data.public, plan.model.skeleton)
    if public is None:
        raise ConfigError("data.public: missing; the experiment needs it")
    bench = Bench(model, setting.strategies)
    private = _spread(private_people(plan), setting.private)
    for kind, strength in setting.views:
        name = _name(kind, strength)
        if results.done(view=name, imputed=True) or (only is not None and name not in only):
            continue
        view = open_public_view(PublicViewConfig.model_validate({"kind": kind, "strength": strength or None}))
        before = time.process_time()
        imputer = make_imputer(public, model, setting.strategies[0], view, folder=cache, frames=cache)
        seconds = round(time.process_time() - before, 1)
        people = {
            "private": private,
            "public": _spread(listed(public).select(imputer.held_out.tolist()), setting.public),
        }
        for imputed in (False, True):
            if results.done(view=name, imputed=imputed):
                continue
            change = imputer if imputed else bench.trunk
            found = {group: bench.compare(dataset, view, change) for group, dataset in people.items()}
            results.add({**found, **({"cpu_seconds": seconds} if imputed else {})}, view=name, imputed=imputed)
            say(f"{name}, imputed {imputed}: {found}")


class Bench:
    """The network, and what was computed of people once.

    Args:
        model: the free model.
        strategies: of one front.

    """

    def __init__(self, model: PoseModel, strategies: Sequence[Strategy]) -> None:
        self._model = model
        self._strategies = tuple(strategies)
        self._frames: dict[str, Rows] = {}
        self._views: dict[tuple[str, str], Rows] = {}

    def trunk(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the network's own trunk makes of crops."""
        return trunk_features(self._model, self._strategies[0], crops).astype(np.float32)

    def compare(
        self, dataset: ListDataset, view: PublicView, features: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    ) -> dict[str, dict[str, float]]:
        """Return `ratio` and `cosine` by strategy, of people and of what `features` makes of their views."""
        people = dataset.identity()
        pair = people, view.identity()
        if pair not in self._views:
            frames, shown = build_rows(
                dataset, self._model, self._strategies[0], folder=None, public_view=view, features=False
            )
            if people not in self._frames:
                self._frames[people] = replace(frames, inputs=self.trunk(frames.inputs))
            self._views = {key: rows for key, rows in self._views.items() if key[1] == pair[1]}
            self._views[pair] = frames if shown is None else shown
        rows, crops = self._frames[people], self._views[pair]
        parts = [features(crops.inputs[start : start + _CHUNK]) for start in range(0, len(crops), _CHUNK)]
        shown_rows = replace(crops, inputs=np.concatenate(parts))
        return {str(name): _distance(UnitGradients(self._model, name), rows, shown_rows) for name in self._strategies}


def _distance(engine: UnitGradients, rows: Rows, shown: Rows) -> dict[str, float]:
    """Compare the gradients of rows and of their views, person by person, and their means."""
    weights = engine.parameters()
    sums = [map_vector(lambda value: torch.zeros_like(value, dtype=torch.float64), weights) for _ in range(2)]
    whole = apart = 0.0
    for start in range(0, len(rows), _CHUNK):
        ids = np.arange(start, min(start + _CHUNK, len(rows)))[:, None]
        pairs = zip(
            engine.per_unit(weights, load_bags(engine, rows, ids)),
            engine.per_unit(weights, load_bags(engine, shown, ids)),
            strict=True,
        )
        for real, public in pairs:
            whole += _square(real)
            apart += _square(map_vector(torch.sub, real, public))
            sums = [
                map_vector(lambda t, g: t + g.double().sum(0), *both) for both in zip(sums, (real, public), strict=True)
            ]
    first, second = (flatten(total) for total in sums)
    cosine = float(first @ second / (first.norm() * second.norm()))
    return {"ratio": round((apart / whole) ** 0.5, 4), "cosine": round(cosine, 4)}


def rows_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the table: a row for each view and strategy, without and with imputed features."""
    found = {(run["key"]["view"], run["key"]["imputed"]): run for run in content["runs"]}
    table = []
    for view, imputed in found:
        if imputed or (view, True) not in found:
            continue
        plain, better = found[view, False], found[view, True]
        for strategy in plain["private"]:
            row: dict[str, Any] = {"view": "part map" if view == "generator" else view, "strategy": strategy}
            for group in ("private", "public"):
                for number in ("ratio", "cosine"):
                    row[f"{group} {number}"] = plain[group][strategy][number]
                    row[f"{group} {number}, imputed"] = better[group][strategy][number]
            table.append(row)
    return table


def draw(content: dict[str, Any], path: Path) -> None:
    """Write a PNG: the ratios on private people, without and with imputed features, one panel for each strategy."""
    from matplotlib.figure import Figure

    table = rows_of(content)
    strategies = list(dict.fromkeys(row["strategy"] for row in table))
    figure = Figure(figsize=(3.9 * len(strategies), 3.2), layout="constrained")
    panels = figure.subplots(1, len(strategies), sharey=True, squeeze=False)[0]
    for axes, strategy in zip(panels, strategies, strict=True):
        mine = [row for row in table if row["strategy"] == strategy]
        places = np.arange(len(mine))
        axes.bar(places - 0.2, [row["private ratio"] for row in mine], 0.4, label="g(phi(x))")
        axes.bar(places + 0.2, [row["private ratio, imputed"] for row in mine], 0.4, label="g(h(phi(x)))")
        axes.axhline(1.0, color="black", linestyle="--", linewidth=1)
        axes.set_xticks(places, [row["view"] for row in mine])
        axes.set_title(strategy)
    panels[0].set_ylabel("|g - g(view)| / |g|, private people")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def _name(kind: str, strength: float) -> str:
    return f"{kind}({strength:g})" if strength else kind


def _square(gradients: dict[str, torch.Tensor]) -> float:
    return float(sum(value.double().square().sum() for value in gradients.values()))


def _spread(dataset: ListDataset, most: int) -> ListDataset:
    """Every so-manieth record, at most so many."""
    return dataset.select(np.unique(np.linspace(0, len(dataset) - 1, most).astype(np.int64)).tolist())


def _lists(setting: Setting) -> dict[str, Any]:
    return {"strategies": [str(name) for name in setting.strategies]}
