"""What `wardpose anonymize`, `recover` and `predict` say at their end."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from wardpose.shared.terminal import say, say_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wardpose.client.anonymize.job import LeftOut, Outcome


def say_outcome(outcome: "Outcome", *, as_json: bool, **more: str) -> None:
    """Print what became of a picture, a folder or a video; what was left out comes last, every name of it."""
    for line in outcome.skipped:
        say_step(f"skipped: {line}")
    content = {"frames": outcome.frames, "resumed": outcome.resumed, "skipped": outcome.skipped, **more}
    say_left_out(content, outcome.left_out, as_json=as_json)


def say_left_out(content: dict[str, Any], left_out: "Sequence[LeftOut]", *, as_json: bool) -> None:
    """Print a result, and last what is not in it."""
    if as_json:
        say({**content, "left_out": [asdict(left) for left in left_out]}, as_json=True)
        return
    say(content, as_json=False)
    say({"left_out": _listed(left_out)}, as_json=False)


def _listed(left_out: "Sequence[LeftOut]") -> str:
    by_reason: dict[str, list[str]] = {}
    for left in left_out:
        by_reason.setdefault(left.reason, []).append(left.name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items()) or "nothing"
