"""What `wardpose anonymize` and `wardpose recover` say at their end."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from wardpose.shared.terminal import say, say_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wardpose.client.anonymize.job import LeftOut, Outcome


def say_outcome(outcome: "Outcome", *, as_json: bool, **more: str) -> None:
    """Print what became of a picture, a folder or a video; what was left out comes last, every name of it."""
    for line in outcome.skipped:
        say_step(f"skipped: {line}")
    content = {"frames": outcome.frames, "resumed": outcome.resumed, "skipped": outcome.skipped, **more}
    if as_json:
        say({**content, "left_out": [asdict(left) for left in outcome.left_out]}, as_json=True)
        return
    say(content, as_json=False)
    say({"left_out": _listed(outcome.left_out)}, as_json=False)


def _listed(left_out: "Sequence[LeftOut]") -> str:
    by_reason: dict[str, list[str]] = {}
    for left in left_out:
        by_reason.setdefault(left.reason, []).append(left.name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items()) or "nothing"
