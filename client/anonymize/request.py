"""What `wardpose anonymize` does, to be called from a notebook or a program.

method = choose_method("blur", strength=8)
outcome = anonymize(Path("frames"), Path("public"), method)
outcome.left_out  # what is not there, and why
"""

from pathlib import Path

from pydantic import ValidationError

from wardpose.client.anonymize.apply import run
from wardpose.client.anonymize.boxes import PersonBoxes
from wardpose.client.anonymize.job import Job, OnBad, Outcome, Progress
from wardpose.client.anonymize.manifest import log_entries
from wardpose.client.recovery.vault import Vault
from wardpose.shared import files
from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.anonymize.frame_methods import FrameMethod, RecoverableMethod, ViewMethod
from wardpose.shared.anonymize.generator_view import GeneratorView
from wardpose.shared.anonymize.public_view import DesensitisedCrop
from wardpose.shared.anonymize.weights_file import bundled, read_info
from wardpose.shared.errors import ConfigError

METHODS = ("recoverable", "public-view", "blur", "mosaic", "noise", "edges")
"""Names of the ways to anonymise a frame."""


def anonymize(
    source: Path,
    destination: Path,
    method: FrameMethod,
    *,
    boxes: Path | None = None,
    vault: Path | None = None,
    originals: Path | None = None,
    force: bool = False,
    on_bad: OnBad = "error",
    progress: Progress | None = None,
) -> Outcome:
    """Anonymise a picture, a video or a folder of them; can be interrupted and called again.

    Args:
        source: what to anonymise.
        destination: of the same sort.
        method: how.
        boxes: JSON file that maps file names (`clip.mp4#12`: one frame) to persons' boxes [x, y, width, height]; a
            frame without any is changed everywhere.
        vault: whose log is held against what the destination knows of it, and noted there.
        originals: a vault in which the originals are sealed.
        force: overwrite what exists.
        on_bad: what becomes of what cannot be read, as for `Job`.
        progress: called with what is done and what there is in all.

    Raises:
        ConfigError: the destination exists, or is of another sort than the source; boxes or vault cannot be used.
        RecoveryError: the vault's log was tampered with.
        DataError: a source cannot be read, a box misses its frame, or the disk is full; what was finished before stays.

    """
    persons = PersonBoxes(boxes)
    sealed = None if originals is None else Vault(originals)
    logged = sealed if vault is None else Vault(vault)
    if logged is not None:
        logged.log.check_seen(seen_beside(logged, destination))
    job = Job(
        source=source,
        destination=destination,
        change=lambda frame, name: method(frame, persons.of(frame, name)),
        change_many=(lambda frames, names: method.many(frames, list(map(persons.of, frames, names))))
        if isinstance(method, ViewMethod)
        else None,
        identity=method.identity() + ("" if boxes is None else files.sha256_file(boxes)),
        lossless=method.lossless,
        force=force,
        on_bad=on_bad,
        progress=progress,
        log=None if logged is None else logged.noted,
    )
    outcome = run(job)
    outcome.left_out += persons.unused(source)
    if sealed is not None:
        for original, anonymised in outcome.made:
            digest = files.sha256_file(anonymised)
            if not sealed.original_path(digest).exists():
                sealed.seal_original(digest, original.name, original.read_bytes())
    return outcome


def seen_beside(vault: Vault, *paths: Path) -> dict[str, Path]:
    """Return the entries of a vault's log that folders, or the folders of files, have seen."""
    seen: dict[str, Path] = {}
    for path in paths:
        folder = path if path.is_dir() else path.parent
        seen |= log_entries(folder).get(vault.fingerprint, {})
    return seen


def choose_method(
    name: str | None = None, *, strength: float | None = None, weights: Path | None = None, vault: Path | None = None
) -> FrameMethod:
    """Make a method by its name.

    Args:
        name: one of `METHODS`; recoverable with a vault and public-view without one when absent.
        strength: of blur, mosaic, noise and edges.
        weights: other weights than the bundled ones.
        vault: whose people will be able to recover.

    Raises:
        ConfigError: the name is unknown, the vault is missing or holds other weights, or the strength is not allowed.
        DataError: weights cannot be read.

    """
    chosen = name or ("public-view" if vault is None else "recoverable")
    if chosen not in METHODS:
        raise ConfigError(f'--method "{chosen}" is not allowed ({", ".join(METHODS)})')
    if chosen == "public-view":
        return ViewMethod(GeneratorView(bundled("public-view") if weights is None else weights))
    if chosen == "recoverable":
        if vault is None:
            raise ConfigError("method recoverable needs --vault: whose people may recover?")
        path = bundled("recoverable") if weights is None else weights
        opened = Vault(vault)
        if read_info(path).sha256 != opened.weights_sha256:
            raise ConfigError(f"{path}: the vault {vault} holds the G_Y of other weights, it could not recover these")
        return RecoverableMethod(path, opened.public_key)
    try:
        return ViewMethod(DesensitisedCrop(Desensitise.model_validate({"kind": chosen, "strength": strength})))
    except ValidationError as error:
        raise ConfigError(f"--strength {strength}: {error.errors()[0]['msg']}") from error
