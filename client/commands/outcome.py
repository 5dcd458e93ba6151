"""What `wardpose anonymize` and `wardpose recover` say at their end."""

from typing import TYPE_CHECKING

from wardpose.shared.terminal import say, say_step

if TYPE_CHECKING:
    from wardpose.client.anonymize.apply import Outcome


def say_outcome(outcome: "Outcome", *, as_json: bool, **more: str) -> None:
    """Print what became of a picture, a folder or a video."""
    for name in outcome.skipped:
        say_step(f"skipped: {name}")
    content = {"frames": outcome.frames, "resumed": outcome.resumed, "skipped": outcome.skipped, **more}
    say(content, as_json=as_json)
