"""`wardpose anonymize`: pictures, folders and videos before they go anywhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardpose.client.commands.outcome import say_outcome
from wardpose.shared.terminal import Json, progress

if TYPE_CHECKING:
    from wardpose.client.anonymize.job import OnBad as Rule

Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
OnBad = Annotated[
    str,
    typer.Option(
        help="What cannot be read: error stops there (the rest is kept, and the next run goes on); skip leaves a "
        "picture out, makes a frame in the middle of a video black so that the others keep their numbers, and takes of "
        "a video that was cut off what is there. Either way it is said."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("anonymize")(anonymize)


def anonymize(
    source: Annotated[Path, typer.Argument(help="Picture, video, or folder of them.")],
    destination: Annotated[
        Path,
        typer.Argument(
            help="Of the same sort; recoverable results are stored without loss. In a folder pictures become .png, "
            "each page of several one of its own (scan-0001.png), videos .mp4, or .mkv where nothing may be lost."
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="recoverable, public-view, blur, mosaic, noise, edges; recoverable with --vault, else public-view, "
            "unless said."
        ),
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Of blur, mosaic, noise, edges.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Other weights than the bundled ones.")] = None,
    vault: Annotated[Path | None, typer.Option(help="Vault whose people will be able to recover.")] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON: file name (clip.mp4#12: one frame) -> persons' boxes [x, y, width, height]. Without them a "
            "frame is changed everywhere: safe, but a public view shows limbs only where it is told the person."
        ),
    ] = None,
    keep_originals: Annotated[bool, typer.Option("--keep-originals", help="Seal the originals in the vault.")] = False,
    force: Force = False,
    on_bad: OnBad = "error",
    as_json: Json = False,
) -> None:
    """Anonymise a picture, a video or a folder; can be interrupted and run again.

    A video keeps its frames and their times; sound and metadata are gone. What is not in the result is named at the
    end.
    """
    from wardpose.client.anonymize import request
    from wardpose.shared.errors import ConfigError

    if keep_originals and vault is None:
        raise ConfigError("--keep-originals needs --vault")
    rule = checked_on_bad(on_bad)
    chosen = request.choose_method(method, strength=strength, weights=weights, vault=vault)
    with progress(f"anonymising with {chosen.name}") as update:
        outcome = request.anonymize(
            source,
            destination,
            chosen,
            boxes=boxes,
            vault=vault,
            originals=vault if keep_originals else None,
            force=force,
            on_bad=rule,
            progress=update,
        )
    say_outcome(outcome, as_json=as_json, method=chosen.name, destination=str(destination))


def checked_on_bad(value: str) -> "Rule":
    """Return the option's value.

    Raises:
        ConfigError: it is neither error nor skip.

    """
    from wardpose.shared.errors import ConfigError

    if value not in ("error", "skip"):
        raise ConfigError(f'--on-bad "{value}" is not allowed (error, skip)')
    return "skip" if value == "skip" else "error"
