"""`wardpose server`: what a coordinator does."""

import json
from pathlib import Path
from typing import Annotated

import typer

from wardpose.shared.terminal import console, line, table

app = typer.Typer(no_args_is_help=True)

Directory = Annotated[Path, typer.Option("--directory", help="The coordinator's run directory.")]


@app.command()
def metrics(
    directory: Directory,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 9464,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    superlink_database: Annotated[
        Path | None, typer.Option("--superlink-database", help="The SuperLink's SQLite file, to see who is online.")
    ] = None,
) -> None:
    """Serve Prometheus metrics from the run journal and the ledger until stopped."""
    from wardpose.server.exporter import ServerExporter
    from wardpose.shared.exposition import serve

    serve(ServerExporter(directory, superlink_database).collector(), host=host, port=port)


@app.command()
def status(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Show the latest run: its state, rounds and scores, and every site's epsilon against its budget."""
    from wardpose.server.summary import summarise

    summary = summarise(directory)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    screen = console()
    screen.print(
        line(
            f"run {summary['run']}: ",
            (summary["status"], "bold"),
            f", round {summary['rounds']} of {summary['rounds_planned']}, mechanism {summary['mechanism']}, "
            f"unit {summary['unit']}",
        )
    )
    if summary["history"]:
        last = summary["history"][-1]["score"]
        screen.print(line(f"{summary['score_name']}: {'-' if last is None else f'{last:.3f}'} in the last round"))
    rows = []
    for site in summary["sites"]:
        spent = "infinite" if site["epsilon_spent"] is None else f"{site['epsilon_spent']:.4f}"
        budget = "-" if site["epsilon_budget"] is None else f"{site['epsilon_budget']:g}"
        delta = "-" if site["delta"] is None else f"{site['delta']:g}"
        rows.append((site["name"], site["status"], spent, budget, delta, site["steps"]))
    screen.print(table(("site", "status", "epsilon spent", "budget", "delta", "steps"), rows, left=6))
    if summary["not_private"]:
        screen.print(line(("NOT PRIVATE", "bold red"), f": {summary['not_private']}"))
