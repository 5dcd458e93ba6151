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
def key(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Show the key that signs orders, made on first use; sites need its public half as coordinator.pub."""
    from wardpose.server.folder import coordinator_key

    public = coordinator_key(directory).public
    path = directory / "coordinator.pub"
    if as_json:
        typer.echo(json.dumps({"public": str(path), "fingerprint": public.fingerprint, "key": public.text}))
        return
    typer.echo(public.text)
    typer.echo(f"{path}: fingerprint {public.fingerprint}; give it to each site by a way you trust", err=True)


@app.command("accept-ledger")
def accept_ledger(
    site: Annotated[str, typer.Argument(help="The site whose ledger was lost, or restored from an old backup.")],
    directory: Directory,
    why: Annotated[str, typer.Option("--why", help="What happened, and who at the hospital says so; it is kept.")],
) -> None:
    """Let a site go on with another ledger than the one seen before; what the server charged it stays charged."""
    from wardpose.server.heads import Heads
    from wardpose.shared.errors import ConfigError

    heads = Heads(directory / "heads.sqlite")
    last = heads.last(site)
    if last is None:
        raise ConfigError(f'{heads.path}: no ledger of site "{site}" was seen, so that none has to be accepted')
    if not why.strip():
        raise ConfigError("--why: is empty (allowed: what happened, and who says so)")
    heads.accept_another(site, why)
    typer.echo(f"{site}: in the next run its ledger is believed, whatever it is; the last one had {last[0]} entries")


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
        rows.append((site["name"], site["status"], spent, budget, delta, site["steps"], site["detail"]))
    screen.print(table(("site", "status", "epsilon spent", "budget", "delta", "steps", "why"), rows, left=7))
    if summary["not_private"]:
        screen.print(line(("NOT PRIVATE", "bold red"), f": {summary['not_private']}"))


@app.command()
def bundle(folder: Annotated[Path, typer.Argument(help="Where it is written; made when missing.")]) -> None:
    """Write the bundle without code that `flwr run` takes and sites accept."""
    from wardpose.server.bundle import write_bundle

    write_bundle(folder)
    typer.echo(f"{folder}: written; start a run with: flwr run {folder}", err=True)
