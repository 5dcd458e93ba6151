"""How findings of a check are printed: a line each, or one JSON object; something wrong is exit status 1."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from wardpose.client.findings import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failure": "red"}


def say_findings(
    findings: "Sequence[Finding]", *, ok: bool, verdict: str, counts: Mapping[str, Any], as_json: bool
) -> None:
    """Print findings and the verdict.

    Raises:
        typer.Exit: with status 1, when something is wrong.

    """
    if as_json:
        typer.echo(json.dumps({"ok": ok, **counts, "findings": [asdict(found) for found in findings]}))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console()
        for found in findings:
            line = Text(f"{found.status:8} ", style=_COLOURS[found.status]).append(
                f"{found.name:14} {found.text}", "default"
            )
            console.print(line, highlight=False, soft_wrap=True)
            for example in found.examples if found.status != "ok" else ():
                console.print(Text(f"{'':24}{example}"), highlight=False, soft_wrap=True)
        console.print(Text(verdict, style="bold"), soft_wrap=True)
    if not ok:
        raise typer.Exit(1)
