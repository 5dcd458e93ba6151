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

Nothing is chosen on `data.test`. The set of parameters among `candidates` is the one with which public people reached
most at the first epsilon; the rest is chosen as `bench` says.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from wardpose.shared.config import FederationConfig, wardpose_home
from wardpose.shared.pose.pretrain import PretrainConfig, pretrain
from wardpose.simulation.experiments.bench import (
    Bench,
    Say,
    Setting,
    choose,
    choose_none,
    note_free,
    open_start,
    plain,
)
from wardpose.simulation.experiments.records import Results

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
    note_free(results, bench, say)
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


def _choose_strategy(plan: FederationConfig, setting: Setting, start: Path | None, say: Say) -> dict[str, float]:
    """Return what each set of parameters reached on public people at the first epsilon (`choose`)."""
    tried = {}
    for strategy in (setting.strategy, *setting.candidates):
        bench = Bench(plan, replace(setting, strategy=strategy), start)
        tried[str(strategy)] = choose(bench, setting.epsilons[0], say)["score"] if setting.candidates else 0.0
        say(f"{strategy}: {tried[str(strategy)]:.3f} on public people")
    return tried


def _last_stage(plan: FederationConfig, setting: Setting, bench: Bench, start: Path | None) -> dict[str, Any]:
    """Train the last stage on public and private people, by the plan's public recipe; it goes on if stopped."""
    recipe = (plan.pretrain or PretrainConfig()).model_copy(
        update={"strategy": "last-stage", "epochs": setting.last_stage_epochs}
    )
    folder = wardpose_home() / "experiments" / "last_stage"
    folder.mkdir(parents=True, exist_ok=True)
    model, _ = open_start(plan, wardpose_home() / "experiments", start)
    device = next(model.parameters()).device
    report = pretrain(model, bench.everybody(), recipe, folder=folder, device=device)
    return {**bench.score_model(model), "steps": report.steps, "recipe": recipe.model_dump(mode="json")}


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
    figure = Figure(figsize=(4.2 * len(counts) + 1.8, 3.4), layout="constrained")
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
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
