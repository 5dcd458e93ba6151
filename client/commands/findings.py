"""How findings of a check are printed: a line each, or one JSON object; something wrong is exit status 1."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from wardpose.shared.terminal import console, line

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
        screen = console()
        for found in findings:
            status = (f"{found.status:8} ", _COLOURS[found.status])
            screen.print(line(status, f"{found.name:14} {found.text}"), soft_wrap=True)
            for example in found.examples if found.status != "ok" else ():
                screen.print(line(f"{'':24}{example}"), soft_wrap=True)
        screen.print(line(verdict, style="bold"), soft_wrap=True)
    if not ok:
        raise typer.Exit(1)
