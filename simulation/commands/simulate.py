"""`wardpose simulate`: a federation of hospitals on this machine."""

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.terminal import console as screen_of
from wardpose.shared.terminal import line, table, task_column

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from wardpose.server.journal import RoundRow, SiteRow
    from wardpose.shared.config import FederationConfig


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
    from wardpose.shared.yaml_config import to_yaml

    config = load_plan(federation, rounds=rounds, mechanism=mechanism)
    if show_config:
        typer.echo(to_yaml(config), nl=False)
        return
    check_files(config, federation)
    screen = screen_of(stderr=True)
    folder = run_folder(config.name, out, resume=resume)
    announce(screen, config, folder)
    try:
        summary = run_and_watch(screen, config, folder, resume=resume, workers=share_cores(config, workers))
    except KeyboardInterrupt:
        screen.print(
            line(f"interrupted; go on with: wardpose simulate {federation} --out {folder} --resume"), soft_wrap=True
        )
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(screen, summary, folder)


def load_plan(federation: str, *, rounds: int | None = None, mechanism: str | None = None) -> "FederationConfig":
    """Read a plan by path or bundled name, with another number of rounds or another mechanism, whose sigma is anew.

    Raises:
        ConfigError: there is no such plan, or it is wrong.

    """
    from wardpose.shared.config import changed, find_federation, load_federation

    config = load_federation(find_federation(federation))
    changes: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if mechanism is not None:
        changes["mechanism"] = config.mechanism.model_dump() | {"name": mechanism, "noise_multiplier": 0.0}
    return changed(config, changes)


def check_files(config: "FederationConfig", federation: str) -> None:
    """Look for everything that the plan names, before anything is shown or made.

    Raises:
        ConfigError: one line that names the plan's file and what is missing.

    """
    from wardpose.shared.config import find_federation
    from wardpose.shared.data.source import check_paths
    from wardpose.shared.pose.model import NAMED_WEIGHTS
    from wardpose.shared.pose.weights import read_metadata

    try:
        check_paths(config)
        if config.model.weights not in NAMED_WEIGHTS:
            read_metadata(Path(config.model.weights))
    except DataError as error:
        raise ConfigError(f"{find_federation(federation)}: {error}") from error


def run_folder(name: str, out: Path | None, *, resume: bool) -> Path:
    """Return the run folder: the one asked for, else the newest of that name to resume, else a new one.

    Raises:
        ConfigError: there is no run to resume.

    """
    if out is not None:
        return out.resolve()
    if resume:
        found = sorted(Path("runs").glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime)
        if not found:
            raise ConfigError(f"runs/{name}-*: no run to resume (allowed: --out with a run folder)")
        return found[-1].resolve()
    return Path("runs", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").resolve()


def share_cores(config: "FederationConfig", workers: int | None) -> int:
    """Return how many sites train at a time, one a core by default, and give each its share of torch's threads."""
    import torch

    cores = os.cpu_count() or 1
    chosen = min(workers or cores, len(config.sites))
    torch.set_num_threads(max(1, cores // chosen))
    return chosen


def run_and_watch(
    console: "Console", config: "FederationConfig", folder: Path, *, resume: bool, workers: int
) -> dict[str, Any]:
    """Run a federation and show what it does while it does it; returns its summary."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from wardpose.simulation.run import simulate as run_simulation

    logging.getLogger("flwr").setLevel(logging.WARNING)  # Flower counts replies on its own; the round line does too
    columns = (task_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        watch = Watch(progress, config)
        return run_simulation(
            config,
            folder,
            resume=resume,
            workers=workers,
            observe_round=watch.round,
            observe_site=watch.site,
            observe_message=lambda text: console.print(line(text, style="dim")),
        )


class Watch:
    """A progress bar over sites and rounds, and a line a round.

    Attributes:
        progress: where the bar is, above which the lines go.
        config: the plan.

    """

    def __init__(self, progress: "Progress", config: "FederationConfig") -> None:
        self.progress = progress
        self.config = config
        self._task = progress.add_task("preparing", total=config.rounds * len(config.sites))
        self._training: set[str] = set()

    def site(self, site: str, event: str) -> None:
        """Show that a site has `started` or `finished` an order."""
        if event == "started":
            self._training.add(site)
        else:
            self._training.discard(site)
            self.progress.advance(self._task)
        busy = f"training {', '.join(sorted(self._training))}" if self._training else "aggregating"
        self.progress.update(self._task, description=busy)

    def round(self, row: "RoundRow", sites: "list[SiteRow]") -> None:
        """Print what a finished round came to."""
        from wardpose.shared.ledger_views import finite

        self.progress.update(self._task, completed=row.round * len(self.config.sites))
        spent = " ".join(
            f"{site.site} {'inf' if finite(site.epsilon_spent) is None else f'{site.epsilon_spent:.2f}'}"
            for site in sites
        )
        score = "-" if row.score is None else f"{row.score:.3f}"
        self.progress.console.print(
            line(
                f"round {row.round}/{self.config.rounds}  {self.config.server.score} {score}  epsilon {spent}  "
                f"up {row.bytes_up / 1e6:.1f} MB  {row.seconds:.1f} s"
            )
        )


def announce(console: "Console", config: "FederationConfig", folder: Path) -> None:
    """Say what is about to run, and whether it is private."""
    console.print(
        line(
            (config.name, "bold"),
            f": {len(config.sites)} hospitals, {config.rounds} rounds, mechanism ",
            (config.mechanism.name, "bold"),
            f", unit {config.mechanism.unit}, run folder {folder}",
        )
    )
    if config.seed is not None:
        console.print(line(("NOT PRIVATE", "bold red"), ": the run is seeded"))


def print_summary(console: "Console", summary: dict[str, Any], folder: Path) -> None:
    """Show a run's scores, what every site spent, and where the report is."""
    if summary["score_initial"] is not None and summary["score_final"] is not None:
        gain = summary["score_final"] - summary["score_initial"]
        console.print()
        console.print(
            line(
                f"{summary['score_name']} on {summary['score_on']}: {summary['score_initial']:.3f} before, ",
                (f"{summary['score_final']:.3f}", "bold"),
                f" after ({gain:+.3f})",
            )
        )
    _print_evaluation(console, summary)
    console.print(_site_table(summary))
    together = summary["epsilon_federation"]
    shown = {key: "infinite" if together[key] is None else f"{together[key]:.4f}" for key in ("disjoint", "overlap")}
    console.print(
        line(
            f"federation: epsilon {shown['disjoint']} if patients are disjoint, {shown['overlap']} if a patient may be "
            f"at {together['overlap_sites']} sites"
        )
    )
    for site in summary["sites"]:
        if site["status"] == "rejected":
            console.print(line((f"{site['name']} was rejected", "bold red"), f": {site['detail']}"))
    if summary["not_private"]:
        console.print(line(("NOT PRIVATE", "bold red"), f": {summary['not_private']}"))
    if summary["status"] != "completed":
        console.print(
            line((summary["status"], "bold yellow"), f" after round {summary['rounds']} of {summary['rounds_planned']}")
        )
    console.print(line(f"report: {folder / 'report.html'}"), soft_wrap=True)


def _print_evaluation(console: "Console", summary: dict[str, Any]) -> None:
    """Say what was measured on patients, what that cost them, and which model is kept."""
    from wardpose.server.evaluation import shown_values

    found = summary["evaluation"]
    if found is None:
        return
    cost = "infinite" if found["epsilon_alone"] is None else f"{found['epsilon_alone']:.3f}"
    console.print(
        line(
            f"on patients: {summary['score_name']} {shown_values(found['score'])}, {shown_values(found['units'], 0)} "
            f"{summary['unit']}s; {found['times']} evaluations cost epsilon {cost} by themselves, part of what is spent"
        )
    )
    if found["chosen"] is not None:
        console.print(
            line(
                f"public-only, which costs nothing: {shown_values(found['score_public_only'])}; difference "
                f"{shown_values(found['difference'])}; kept: ",
                (found["chosen"], "bold"),
            )
        )


def _site_table(summary: dict[str, Any]) -> "Table":
    rows = []
    for site in summary["sites"]:
        spent = "infinite" if site["epsilon_spent"] is None else f"{site['epsilon_spent']:.4f}"
        budget = "-" if site["epsilon_budget"] is None else f"{site['epsilon_budget']:.2f}"
        rows.append((site["name"], spent, budget, site["steps"], f"{site['bytes_up'] / 1e6:.1f}"))
    title = f"privacy, {summary['unit']} level, delta {summary['delta']:g}"
    return table(("site", "epsilon spent", "budget", "steps", "MB up"), rows, title=title)
