"""`wardpose experiment`: the tables behind what is claimed, run, continued and shown."""

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wardpose.shared.errors import ConfigError
from wardpose.shared.terminal import console, line, table

experiment = typer.Typer(help="Run the experiments and show their tables.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Name = Annotated[str, typer.Argument(help="As `wardpose experiment list` names it.")]
_KNOWN = {
    "gap": "how much of the way from the best free model to training without privacy is won back",
    "free": "what each thing that costs no patient anything gives the public phase",
    "label-ridge": "one noised ridge regression of the last layer beside steps of dp-sgd",
}


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.add_typer(experiment, name="experiment")


@experiment.command("list")
def list_experiments(as_json: AsJson = False) -> None:
    """Name the experiments, and say which have results that come with the package."""
    from wardpose.simulation.experiments.records import COMMITTED

    rows = [
        {"name": name, "about": about, "results": (COMMITTED / f"{name}.json").exists()}
        for name, about in _KNOWN.items()
    ]
    if as_json:
        typer.echo(json.dumps({"rows": rows}))
        return
    console().print(table(["name", "about", "results"], ([row[key] for key in row] for row in rows), left=2))


@experiment.command()
def run(
    name: Name,
    plan: Annotated[str, typer.Option(help="federation.yaml, or the name of a bundled one.")] = "lspet",
    size: Annotated[str, typer.Option(help="small (CPU) or full (GPU).")] = "small",
    out: Annotated[Path | None, typer.Option(help="JSON file; what is in it is not run again.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Weights of the free model, instead of the plan's public phase.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", "--mechanisms", help="Some of the size's mechanisms, or of what is left out, with commas."
        ),
    ] = None,
) -> None:
    """Run what is not in the results yet; it may be interrupted and started again."""
    from wardpose.shared.config import find_federation, load_federation

    module = _module(name)
    if size not in module.SIZES:
        raise ConfigError(f'--size "{size}" is unknown (allowed: {", ".join(module.SIZES)})')
    setting = module.SIZES[size]
    parts: tuple[str, ...] = setting.without if name == "free" else setting.mechanisms
    chosen = parts if only is None else tuple(only.split(","))
    odd = sorted(set(chosen) - set(parts))
    if odd:
        raise ConfigError(f'--only "{odd[0]}" is unknown (allowed: {", ".join(parts)})')
    target = out or Path(f"{name}.json")
    screen = console(stderr=True)
    config = load_federation(find_federation(plan))
    module.run(config, setting, target, start=start, only=chosen, say=lambda text: screen.print(line(text)))
    screen.print(line(f"results: {target}; wardpose experiment report {name} --results {target} shows them"))


@experiment.command()
def report(
    name: Name,
    results: Annotated[Path | None, typer.Option(help="JSON file of a run; what comes with the package.")] = None,
    page: Annotated[Path | None, typer.Option(help="Also write an HTML page, and a PNG beside it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show an experiment's table."""
    from wardpose.simulation.experiments.page import shown, write_page
    from wardpose.simulation.experiments.records import COMMITTED, read_results

    module = _module(name)
    content: dict[str, Any] = read_results(results or COMMITTED / f"{name}.json")
    rows = module.rows_of(content)
    if page is not None:
        write_page(page, name, content, about=module.__doc__, rows_of=module.rows_of, draw=module.draw)
        module.draw(content, page.with_suffix(".png"))
    if as_json:
        typer.echo(json.dumps({"rows": rows, "facts": content["facts"], "free": content.get("free")}))
        return
    headings = list(rows[0]) if rows else []
    console().print(table(headings, ([shown(row[key]) for key in headings] for row in rows), left=0))


def _module(name: str) -> Any:
    """Import an experiment: `SIZES`, `run`, `rows_of` and `draw`."""
    if name not in _KNOWN:
        raise ConfigError(f'experiment "{name}" is unknown (allowed: {", ".join(_KNOWN)})')
    return importlib.import_module(f"wardpose.simulation.experiments.{name.replace('-', '_')}")
