"""`wardpose simulate`: a federation of hospitals on this machine."""

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.terminal import console, line, table, task_column

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("simulate")(simulate)


def simulate(
    federation: Annotated[
        str, typer.Argument(help="federation.yaml, or the name of a bundled configuration.")
    ] = "demo",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME-TIME by default.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, or with the newest run of that name."),
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Other number of rounds than the file says.")] = None,
    mechanism: Annotated[str | None, typer.Option(help="Another mechanism than the file says.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Sites that train at the same time; one a core by default.")
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the configuration with every default and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object on standard output.")
    ] = False,
) -> None:
    """Run a federation of hospitals on this machine, with the apps that hospitals run."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from wardpose.server.journal import RoundRow, SiteRow
    from wardpose.server.summary import finite
    from wardpose.shared.config import changed, find_federation, load_federation
    from wardpose.shared.data.source import check_paths
    from wardpose.shared.pose.model import NAMED_WEIGHTS
    from wardpose.shared.pose.weights import read_metadata
    from wardpose.shared.yaml_config import to_yaml
    from wardpose.simulation.run import simulate as run_simulation

    logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower counts replies on its own; the round line does too
    screen = console(stderr=True)
    path = find_federation(federation)
    config = load_federation(path)
    changes = {"rounds": rounds, "mechanism": mechanism}
    config = changed(config, {key: value for key, value in changes.items() if value is not None})
    if show_config:
        typer.echo(to_yaml(config), nl=False)
        return
    try:
        check_paths(config)
        if config.model.weights not in NAMED_WEIGHTS:
            read_metadata(Path(config.model.weights))
    except DataError as error:
        raise ConfigError(f"{path}: {error}") from error
    cores = os.cpu_count() or 1
    workers = min(workers or cores, len(config.sites))
    torch.set_num_threads(max(1, cores // workers))
    folder = _folder(config.name, out, resume=resume)
    screen.print(
        line(
            (config.name, "bold"),
            f": {len(config.sites)} hospitals, {config.rounds} rounds, mechanism ",
            (config.mechanism, "bold"),
            f", unit {config.privacy.unit}, run folder {folder}",
        )
    )
    if config.seed is not None:
        screen.print(line(("NOT PRIVATE", "bold red"), ": the run is seeded"))
    columns = (task_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task("preparing", total=config.rounds * len(config.sites))
        training: set[str] = set()

        def observe_site(site: str, event: str) -> None:
            if event == "started":
                training.add(site)
            else:
                training.discard(site)
                progress.advance(task)
            progress.update(task, description=f"training {', '.join(sorted(training))}" if training else "aggregating")

        def observe_round(row: RoundRow, sites: list[SiteRow]) -> None:
            progress.update(task, completed=row.round * len(config.sites))
            spent = " ".join(
                f"{site.site} {'inf' if finite(site.epsilon_spent) is None else f'{site.epsilon_spent:.2f}'}"
                for site in sites
            )
            score = "-" if row.score is None else f"{row.score:.3f}"
            screen.print(
                line(
                    f"round {row.round}/{config.rounds}  {config.server.score} {score}  epsilon {spent}  "
                    f"up {row.bytes_up / 1e6:.1f} MB  {row.seconds:.1f} s"
                )
            )

        try:
            summary = run_simulation(
                config,
                folder,
                resume=resume,
                workers=workers,
                observe_round=observe_round,
                observe_site=observe_site,
                observe_message=lambda text: screen.print(line(text, style="dim")),
            )
        except KeyboardInterrupt:
            screen.print(
                line(f"interrupted; go on with: wardpose simulate {federation} --out {folder} --resume"), soft_wrap=True
            )
            raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        _print_summary(screen, summary, folder)


def _folder(name: str, out: Path | None, *, resume: bool) -> Path:
    if out is not None:
        return out.resolve()
    if resume:
        found = sorted(Path("runs").glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime)
        if not found:
            raise ConfigError(f"runs/{name}-*: no run to resume (allowed: --out with a run folder)")
        return found[-1].resolve()
    return Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").resolve()


def _print_summary(screen: "Console", summary: dict[str, Any], folder: Path) -> None:
    if summary["score_initial"] is not None and summary["score_final"] is not None:
        gain = summary["score_final"] - summary["score_initial"]
        screen.print()
        screen.print(
            line(
                f"{summary['score_name']} on test: {summary['score_initial']:.3f} before, ",
                (f"{summary['score_final']:.3f}", "bold"),
                f" after ({gain:+.3f})",
            )
        )
    rows = []
    for site in summary["sites"]:
        spent = "infinite" if site["epsilon_spent"] is None else f"{site['epsilon_spent']:.4f}"
        budget = "-" if site["epsilon_budget"] is None else f"{site['epsilon_budget']:.2f}"
        rows.append((site["name"], spent, budget, site["steps"], f"{site['bytes_up'] / 1e6:.1f}"))
    title = f"privacy, {summary['unit']} level, delta {summary['delta']:g}"
    screen.print(table(("site", "epsilon spent", "budget", "steps", "MB up"), rows, title=title))
    together = summary["epsilon_federation"]
    shown = {key: "infinite" if together[key] is None else f"{together[key]:.4f}" for key in ("disjoint", "overlap")}
    screen.print(
        line(
            f"federation: epsilon {shown['disjoint']} if patients are disjoint, {shown['overlap']} if a patient may be "
            f"at {together['overlap_sites']} sites"
        )
    )
    if summary["not_private"]:
        screen.print(line(("NOT PRIVATE", "bold red"), f": {summary['not_private']}"))
    if summary["status"] != "completed":
        screen.print(
            line((summary["status"], "bold yellow"), f" after round {summary['rounds']} of {summary['rounds_planned']}")
        )
    screen.print(line(f"report: {folder / 'report.html'}"), soft_wrap=True)
