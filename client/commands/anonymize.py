"""`wardpose anonymize`: pictures, folders and videos before they go anywhere."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wardpose.client.commands.outcome import say_outcome
from wardpose.shared.terminal import Json, progress

if TYPE_CHECKING:
    from wardpose.client.recovery.vault import Vault
    from wardpose.shared.anonymize.frame_methods import Box, FrameMethod

_METHODS = ("recoverable", "public-view", "blur", "mosaic", "noise", "edges")

Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
OnBad = Annotated[
    str, typer.Option(help="A frame that cannot be read: error, or skip (left out of a folder, black in a video).")
]


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("anonymize")(anonymize)


def anonymize(
    source: Annotated[Path, typer.Argument(help="Picture, folder of pictures, or video.")],
    destination: Annotated[Path, typer.Argument(help="Of the same sort; recoverable results are stored without loss.")],
    method: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(_METHODS)}; recoverable with --vault, else public-view, unless said."),
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
    """Anonymise a picture, a folder or a video; can be interrupted and run again."""
    from wardpose.client.anonymize.apply import Job, run
    from wardpose.client.recovery.vault import Vault
    from wardpose.shared import files
    from wardpose.shared.errors import ConfigError

    if keep_originals and vault is None:
        raise ConfigError("--keep-originals needs --vault")
    chosen = _method(method, strength, weights, vault)
    persons = _read_boxes(boxes)
    with progress(f"anonymising with {chosen.name}") as update:
        job = Job(
            source=source,
            destination=destination,
            change=lambda frame, name: chosen(frame, persons.get(name, persons.get(name.split("#")[0]))),
            identity=chosen.identity() + ("" if boxes is None else files.sha256_file(boxes)),
            lossless=chosen.lossless,
            force=force,
            on_bad=checked_on_bad(on_bad),
            progress=update,
        )
        outcome = run(job)
    if keep_originals and vault is not None:
        _seal_originals(Vault(vault), source, destination)
    say_outcome(outcome, as_json=as_json, method=chosen.name, destination=str(destination))


def checked_on_bad(value: str) -> Literal["error", "skip"]:
    """Return the option's value.

    Raises:
        ConfigError: it is neither error nor skip.

    """
    from wardpose.shared.errors import ConfigError

    if value not in ("error", "skip"):
        raise ConfigError(f'--on-bad "{value}" is not allowed (error, skip)')
    return "skip" if value == "skip" else "error"


def _method(method: str | None, strength: float | None, weights: Path | None, vault: Path | None) -> "FrameMethod":
    from pydantic import ValidationError

    from wardpose.client.recovery.vault import Vault
    from wardpose.shared.anonymize.desensitise import Desensitise
    from wardpose.shared.anonymize.frame_methods import DesensitiseMethod, PublicViewMethod, RecoverableMethod
    from wardpose.shared.anonymize.weights_file import bundled, read_info
    from wardpose.shared.errors import ConfigError

    name = method or ("public-view" if vault is None else "recoverable")
    if name not in _METHODS:
        raise ConfigError(f'--method "{name}" is not allowed ({", ".join(_METHODS)})')
    if name == "public-view":
        return PublicViewMethod(bundled("public-view") if weights is None else weights)
    if name == "recoverable":
        if vault is None:
            raise ConfigError("method recoverable needs --vault: whose people may recover?")
        path = bundled("recoverable") if weights is None else weights
        opened = Vault(vault)
        if read_info(path).sha256 != opened.weights_sha256:
            raise ConfigError(f"{path}: the vault {vault} holds the G_Y of other weights, it could not recover these")
        return RecoverableMethod(path, opened.public_key)
    try:
        return DesensitiseMethod(Desensitise.model_validate({"kind": name, "strength": strength}))
    except ValidationError as error:
        raise ConfigError(f"--strength {strength}: {error.errors()[0]['msg']}") from error


def _seal_originals(vault: "Vault", source: Path, destination: Path) -> None:
    from wardpose.client.anonymize.apply import pairs
    from wardpose.shared import files

    for original, anonymised in pairs(source, destination):
        digest = files.sha256_file(anonymised)
        if not vault.original_path(digest).exists():
            vault.seal_original(digest, original.name, original.read_bytes())


def _read_boxes(path: Path | None) -> "dict[str, list[Box]]":
    from wardpose.shared.errors import ConfigError

    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
        return {
            str(name): [(float(x), float(y), float(w), float(h)) for x, y, w, h in rows]
            for name, rows in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: must map file names to lists of [x, y, width, height]") from error
