"""`wardpose audit`: whether the engine loses more privacy than it claims, as far as an attack can show."""

import json
import math
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from wardpose.shared.errors import ConfigError
from wardpose.shared.terminal import console, line, table

if TYPE_CHECKING:
    from wardpose.simulation.auditing.audit import Audit


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("audit")(audit)


def audit(
    mechanism: Annotated[
        str | None,
        typer.Option(
            help="dp-sgd (default), projected, feature (default with shared-batch), feature-projective or label-ridge."
        ),
    ] = None,
    canaries: Annotated[
        int | None, typer.Option(min=1, help="Planted units in all runs together; 100000, with a projection 50000.")
    ] = None,
    broken: Annotated[
        str | None, typer.Option("--break", help="Audit a broken engine: halved-noise, skipped-clip, shared-batch.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Sampling rate; by default what shows most.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Sigma; by default what shows most.")] = None,
    delta: Annotated[float, typer.Option(help="At which epsilon is claimed.")] = 1e-6,
    confidence: Annotated[float, typer.Option(help="Of the lower bound.")] = 0.95,
    pictures: Annotated[
        bool, typer.Option(help="Plant pictures, whose gradients overlap, rather than orthogonal gradients.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of canaries, coins and noise; by default a new one.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Attack the engine's own steps with planted canaries: a lower bound on epsilon beside the claimed one.

    Needs no data and touches no ledger. A bound below the claim is no proof; a bound above it is a violation. Three
    bounds share the error: one-run and f-dp, which pool all steps into one run, and steps, which uses that they are
    independent. A last line refutes more than privacy: noise that is independent from canary to canary.
    """
    import torch

    from wardpose.simulation.auditing.audit import run_audit
    from wardpose.simulation.auditing.plan import BREAKS, AuditPlan, Break, Name

    _among("--mechanism", mechanism, get_args(Name))
    _among("--break", broken, get_args(Break))
    if rate is not None and not 0 < rate <= 1:
        raise ConfigError(f"audit: --rate is {rate}; allowed: above 0, at most 1")
    if noise_multiplier is not None and not 0 < noise_multiplier <= 100:
        raise ConfigError(f"audit: --noise-multiplier is {noise_multiplier}; allowed: above 0, at most 100")
    if not 0 < delta < 1 or not 0 < confidence < 1:
        raise ConfigError(f"audit: --delta is {delta}, --confidence {confidence}; allowed: between 0 and 1")
    plan = AuditPlan(
        mechanism=mechanism or ("feature" if broken == "shared-batch" else "dp-sgd"),  # type: ignore[arg-type]  # checked above
        canaries=canaries or (50_000 if mechanism in ("projected", "feature-projective") else 100_000),
        broken=broken,  # type: ignore[arg-type]  # checked above
        sample_rate=rate,
        noise_multiplier=noise_multiplier,
        delta=delta,
        confidence=confidence,
        pictures=pictures,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    errors = console(stderr=True)
    if plan.broken is not None:
        errors.print(
            line(
                (" BROKEN ENGINE ", "bold white on red"),
                (f" {plan.broken}: {BREAKS[plan.broken]}. This is a test of the audit, not of the engine.", "bold red"),
            )
        )
    torch.set_num_threads(1)  # thousands of small steps: on a busy machine a second thread is mostly waited for
    with errors.status(f"auditing: {plan.runs} steps with {plan.per_run} canaries each"):
        result = run_audit(plan)
    values = report(result)
    if png is not None:
        draw(result, png)
        errors.print(line(f"picture: {png}"))
    if as_json:
        typer.echo(json.dumps(values))
    else:
        _show(result, values)


def report(result: "Audit") -> dict[str, Any]:
    """Everything that the command shows, as plain values."""
    return {
        "mechanism": result.plan.mechanism,
        "broken": result.plan.broken,
        "epsilon_claimed": result.epsilon_claimed,
        "epsilon_lower": result.result.epsilon_lower,
        "epsilon_lower_by": dict(result.result.epsilons),
        "noise_multiplier_at_most": {method: _finite(noise) for method, noise in result.result.noise.items()},
        "independent_noise": {
            "epsilon_lower": result.result.independent_epsilon,
            "noise_multiplier_at_most": _finite(result.result.independent_noise),
        },
        "violated": result.violated,
        "delta": result.plan.delta,
        "confidence": result.plan.confidence,
        "canaries": result.result.canaries,
        "runs": result.plan.runs,
        "guesses": result.result.guesses,
        "correct": result.result.correct,
        "adjacency": result.claimed.adjacency,
        "sample_rate": result.claimed.sample_rate,
        "noise_multiplier": result.claimed.noise_multiplier,
        "max_grad_norm": result.claimed.max_grad_norm,
        "efficiency": result.efficiency,
        "pictures": result.plan.pictures,
        "seed": result.plan.seed,
    }


def draw(result: "Audit", path: Path) -> None:
    """Draw the scores of both kinds of canaries, and the bound beside the claim.

    Raises:
        ConfigError: the file cannot be written.

    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    guessable = np.isfinite(result.scores)
    low, high = np.quantile(result.scores[guessable], (0.001, 0.999)) if guessable.any() else (-1.0, 1.0)
    names = ("variant x", "variant x'") if result.plan.by_replacement else ("in", "out")
    for name, chosen, colour in zip(
        names, (result.included, ~result.included), ("firebrick", "steelblue"), strict=True
    ):
        scores = result.scores[chosen & guessable]
        left.hist(scores, bins=np.linspace(low, high, 81), alpha=0.5, color=colour, label=f"{name} ({len(scores)})")
        if len(scores):
            left.axvline(float(scores.mean()), color=colour, linewidth=1, linestyle="--")
    left.set(title="Scores of the canaries (dashed: means)", xlabel="score of the released gradient", ylabel="canaries")
    left.legend()
    bars = (result.epsilon_claimed, *result.result.epsilons.values())
    colours = ["firebrick" if bar > result.epsilon_claimed else "seagreen" for bar in bars[1:]]
    right.bar(("claimed", *result.result.epsilons), bars, color=("grey", *colours))
    right.axhline(result.epsilon_claimed, color="grey", linewidth=1, linestyle="--")
    for place, value in enumerate(bars):
        right.annotate(f"{value:.3g}", (place, value), ha="center", va="bottom")
    right.margins(y=0.15)
    right.set(title="CLAIM REFUTED" if result.violated else "Claim not refuted")
    right.set_xlabel(f"shown by attack, with {result.plan.confidence:.0%} confidence in all three")
    right.set_ylabel(f"epsilon at delta {result.plan.delta:.2g}")
    state = f"BROKEN ENGINE: {result.plan.broken}" if result.plan.broken else "intact engine"
    figure.suptitle(
        f"{result.plan.mechanism}, {state}; {result.result.canaries} canaries in {result.plan.runs} steps",
        color="firebrick" if result.plan.broken else "black",
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the picture cannot be written: {error}") from error


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _among(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise ConfigError(f"audit: {option} is {value!r}; allowed: {', '.join(allowed)}")


def _show(result: "Audit", values: dict[str, Any]) -> None:
    screen = console()
    noise = values["noise_multiplier_at_most"]
    rows: list[list[object]] = [["claimed", f"{values['epsilon_claimed']:.4g}", f"{values['noise_multiplier']:.4g}"]]
    for method, bound in values["epsilon_lower_by"].items():
        most = "" if method not in noise else "any" if noise[method] is None else f"≤ {noise[method]:.4g}"
        rows.append([f"shown by {method}", f"≥ {bound:.4g}", most])
    own = values["independent_noise"]
    if own["epsilon_lower"] is not None:
        most = "any" if own["noise_multiplier_at_most"] is None else f"≤ {own['noise_multiplier_at_most']:.4g}"
        rows.append(["if noise is independent", f"≥ {own['epsilon_lower']:.4g}", most])
    title = f"Audit of one step, {values['mechanism']}, at delta {values['delta']:.2g}"
    screen.print(table(["", "epsilon", "noise multiplier"], rows, title=title))
    screen.print(
        line(
            f"{values['confidence']:.0%} confidence in all bounds shown together; {values['canaries']} canaries in "
            f"{values['runs']} independent steps; rate {values['sample_rate']:g}, adjacency {values['adjacency']}"
        )
    )
    if result.violated:
        text = "VIOLATION: the attack shows more than the claim allows; the engine is not private"
        screen.print(line(text, style="bold red"))
    elif (own["epsilon_lower"] or 0) > values["epsilon_claimed"]:
        text = "not the claimed mechanism: its noise is less than claimed, or not independent from canary to canary"
        screen.print(line(text, style="bold red"))
    else:
        screen.print(line(("the attack shows no more than the claim allows", "green"), " (which proves nothing)"))
    if result.plan.broken is not None:
        screen.print(line(f"the engine was broken on purpose: {result.plan.broken}", style="bold red"))
