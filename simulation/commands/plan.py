"""`wardpose plan`: what a privacy budget buys, before there is any data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.shared.errors import ConfigError
from wardpose.shared.terminal import console, line, say_step, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("plan")(plan)


def draw(values: dict[str, Any], path: Path) -> None:
    """Draw a `report` as a picture of three panels.

    Raises:
        ConfigError: the file cannot be written.

    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    over_rounds, by_epsilon, by_patients = figure.subplots(1, 3)
    rounds = [point["round"] for point in values["epsilon_by_round"]]
    for key, label, style in (("pld", "spent", "o-"), ("rdp", "cross-check (RDP)", "--")):
        over_rounds.plot(rounds, [point[key] for point in values["epsilon_by_round"]], style, label=label)
    over_rounds.axhline(values["epsilon"], color="firebrick", linewidth=1, label="budget")
    over_rounds.set(title="Epsilon over rounds", xlabel="round", ylabel=f"epsilon at delta {values['delta']:.2g}")
    over_rounds.set_ylim(bottom=0)
    over_rounds.set_xlim(left=0)
    over_rounds.locator_params(axis="x", integer=True)
    over_rounds.legend()
    _ladder(by_epsilon, values["by_epsilon"], "epsilon", values["epsilon"])
    by_epsilon.set(title="What a larger budget buys", xlabel="epsilon")
    _ladder(by_patients, values["by_patients"], "patients", values["patients"])
    by_patients.set(
        title=f"What more patients buy (about {values['expected_batch']:g} in a step)", xlabel="patients at the site"
    )
    figure.suptitle(
        f"{values['patients']} patients, {values['steps']} steps, rate {values['sample_rate']:.3g}: "
        f"noise multiplier {values['noise_multiplier']:g}"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the picture cannot be written: {error}") from error


def _ladder(axes: "Axes", rows: list[dict[str, Any]], key: str, chosen: float) -> None:
    places = [row[key] for row in rows]
    rows = [row for row in rows if row["noise_multiplier"] is not None]
    axes.plot(
        [row[key] for row in rows], [row["noise_multiplier"] for row in rows], "o-", label="noise multiplier (sigma)"
    )
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.margins(x=0.18, y=0.15)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("noise multiplier")
    axes.axvline(chosen, color="grey", linewidth=1, linestyle=":", label="this plan")
    for row in rows:
        axes.annotate(
            f"{row['noise_per_step']:.2g} C", (row[key], row["noise_multiplier"]), xytext=(4, 6),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axes.legend(title="beside points: noise on the mean\ngradient, in clip norms", fontsize=8, title_fontsize=8)


def plan(
    patients: Annotated[int, typer.Option(min=1, help="Patients of the site (declared).")] = 200,
    epsilon: Annotated[float, typer.Option(help="Budget of the whole training.")] = 4.0,
    delta: Annotated[float | None, typer.Option(help="By default 1 / (10 patients), at most 1e-5.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Local steps of a round.")] = 5,
    batch: Annotated[float | None, typer.Option(help="Patients expected in a step; 20 by default.")] = None,
    rate: Annotated[float | None, typer.Option(help="Sampling rate, instead of --batch.")] = None,
    adjacency: Annotated[str, typer.Option(help="add-remove or replace-one.")] = "add-remove",
    noise: Annotated[str, typer.Option(help="gaussian or discrete-gaussian.")] = "gaussian",
    tier: Annotated[
        list[str] | None, typer.Option(help="A consent tier's own budget, NAME=EPSILON: at what rate to draw it.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Plan a site's budget: the noise it needs, how epsilon grows, what more patients would buy. Needs no data."""
    from wardpose.shared.privacy.accounting import MINIMUM_DELTA
    from wardpose.simulation.planning import make_plan, report

    tiers = _budgets(tier or [])
    if batch is not None and rate is not None:
        raise ConfigError("plan: --batch and --rate say the same thing; give one of them")
    if noise not in ("gaussian", "discrete-gaussian"):
        raise ConfigError(f"plan: noise is {noise!r}; it must be gaussian or discrete-gaussian")
    expected = rate * patients if rate is not None else batch if batch is not None else min(20.0, patients / 2)
    with console(stderr=True).status("calibrating"):
        chosen = make_plan(
            patients=patients,
            epsilon=epsilon,
            delta=delta if delta is not None else max(MINIMUM_DELTA, min(1e-5, 0.1 / patients)),
            rounds=rounds,
            steps_per_round=steps,
            expected_batch=expected,
            adjacency=adjacency,  # type: ignore[arg-type]  # checked by the accountant
            noise=noise,  # type: ignore[arg-type]  # checked above
        )
        values = report(chosen, tiers)
        if png is not None:
            draw(values, png)
    if as_json:
        typer.echo(json.dumps(values))
    else:
        _show(values)
    if png is not None:
        say_step(f"picture: {png}")


def _budgets(texts: list[str]) -> dict[str, float]:
    budgets = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            budgets[name] = float(number)
        except ValueError:
            budgets[name] = -1.0
        if not name or not 0 < budgets[name] < float("inf"):
            raise ConfigError(f"plan: --tier is {text!r}; it must be NAME=EPSILON, epsilon above 0")
    return budgets


def _show(values: dict[str, Any]) -> None:
    screen = console()
    screen.print(
        line(
            (f"noise multiplier {values['noise_multiplier']:g}", "bold"),
            f" keeps {values['rounds']} rounds of {values['steps_per_round']} steps within epsilon "
            f"{values['epsilon']:g} at delta {values['delta']:.2g}",
        )
    )
    screen.print(
        line(
            f"{values['patients']} patients, rate {values['sample_rate']:.4g} (about {values['expected_batch']:g} in a "
            f"step), {values['adjacency']}, {values['noise']}; "
            f"noise on the mean gradient {values['noise_per_step']:.3g} C"
        )
    )
    screen.print(
        line(
            f"epsilon {values['epsilon_spent']:.4g} is spent ({values['epsilon_rdp']:.4g} by Rényi divergences alone), "
            f"{values['epsilon_replace_one']:.4g} if a patient is replaced rather than removed"
        )
    )
    for title, rows in (
        ("Epsilon over rounds", values["epsilon_by_round"]),
        ("What more patients buy, with as many in a step", values["by_patients"]),
        ("What a larger budget buys", values["by_epsilon"]),
        ("Rates at which consent tiers spend their own budgets", values["tiers"]),
    ):
        if not rows:
            continue
        cells = (["-" if v is None else v if isinstance(v, str) else f"{v:.4g}" for v in row.values()] for row in rows)
        screen.print(table([name.replace("_", " ") for name in rows[0]], cells, title=title, left=0))
