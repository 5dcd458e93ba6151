"""`wardpose site`: what a hospital engineer does."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wardpose.shared.terminal import console, line, table

app = typer.Typer(no_args_is_help=True)

SiteFile = Annotated[Path, typer.Argument(help="The hospital's site.yaml.", metavar="SITE.yaml")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
_COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


@app.command()
def metrics(
    site: SiteFile,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 9465,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve Prometheus metrics from the ledger and the journal of orders until stopped."""
    from wardpose.client.exporter import SiteExporter
    from wardpose.shared.exposition import serve
    from wardpose.shared.site_config import load_site

    load_site(site)
    serve(SiteExporter(site).collector(), host=host, port=port)


@app.command()
def check(
    site: SiteFile,
    skeleton: Annotated[str, typer.Option(help="Joints that the federation trains.")] = "lsp14",
    as_json: AsJson = False,
) -> None:
    """Check that this site could take part: files, data, budget, device, clock. Exits 1 when something fails."""
    from wardpose.client.check import check_site

    findings = check_site(site, skeleton=skeleton)
    failed = any(finding.status == "failure" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "findings": [vars(finding) for finding in findings]}))
    else:
        shown = console()
        for finding in findings:
            status = (f"{finding.status:8}", _COLOURS[finding.status])
            shown.print(line(status, f" {finding.name:14} ", finding.text), soft_wrap=True)
        shown.print("this site cannot take part" if failed else "this site can take part", style="bold")
    if failed:
        raise typer.Exit(1)


@app.command()
def ledger(site: SiteFile, as_json: AsJson = False) -> None:
    """Show what was charged to this site's patients, entry by entry, and the epsilon it amounts to."""
    from wardpose.client.overview import overview

    shown = overview(site)
    if as_json:
        typer.echo(json.dumps(shown))
        return
    screen = console()
    screen.print(line(f"{shown['ledger']}: {len(shown['entries'])} entries, chain unbroken"), soft_wrap=True)
    headings = ("entry", "time", "kind", "cohort", "run", "round", "charged")
    keys = ("sequence", "time", "kind", "cohort", "run", "round")
    rows = ([*(entry[key] for key in keys), "; ".join(entry["charged"])] for entry in shown["entries"])
    screen.print(table(headings, rows, left=len(headings)))
    for cohort in shown["cohorts"]:
        other = "replace-one" if shown["adjacency"] == "add-remove" else "add-remove"
        screen.print(
            line(
                f"{cohort['name']}: epsilon {_spent(cohort)} at delta {shown['delta']:g}, {shown['adjacency']} "
                f"({_number(cohort['epsilon_by_adjacency'][other])} {other})"
            )
        )
        for tier in cohort["tiers"]:
            screen.print(line(f"  tier {tier['tier']}: epsilon {_spent(tier)}"))


def _spent(row: dict[str, Any]) -> str:
    budget = "" if row["epsilon_budget"] is None else f" of {row['epsilon_budget']:g}"
    return _number(row["epsilon_spent"]) + budget


def _number(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else f"{epsilon:.4f}"


@app.command("clear-cache")
def clear_cache(site: SiteFile) -> None:
    """Delete the crops and features that training keeps of this site's patients. Ledger and journal stay."""
    from wardpose.shared.site_config import load_site
    from wardpose.shared.training.cache import cache_bytes, delete_cache

    folder = load_site(site).cache_folder
    size = cache_bytes(folder)
    delete_cache(folder)
    typer.echo(f"{folder}: {size / 1e6:.1f} MB deleted", err=True)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where site.yaml is written; made when missing.")],
    name: Annotated[str, typer.Option(help="The site's name, as registered with the server.")] = "my-hospital",
) -> None:
    """Write a commented site.yaml to start from."""
    from wardpose.client.template import write_template

    path = write_template(folder, name)
    typer.echo(f"{path}: fill in cohort and policy, then run: wardpose site check {path}", err=True)
