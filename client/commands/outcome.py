"""What `wardpose anonymize` and `wardpose recover` say at their end."""

from typing import TYPE_CHECKING

import typer

from wardpose.shared.terminal import say

if TYPE_CHECKING:
    from wardpose.client.anonymize.apply import Outcome


def say_outcome(outcome: "Outcome", *, as_json: bool, **more: str) -> None:
    """Print what became of a picture, a folder or a video."""
    for line in outcome.skipped:
        typer.echo(f"skipped: {line}", err=True)
    content = {"frames": outcome.frames, "resumed": outcome.resumed, "skipped": outcome.skipped, **more}
    say(content, as_json=as_json)
