"""`wardpose anonymize`, `wardpose recover` and the group `wardpose anonymizer`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wardpose.shared.anonymize.apply import Change, Job, Outcome
    from wardpose.shared.anonymize.generator import Box, FrameMethod
    from wardpose.shared.anonymize.vault import Credential, OpenVault

_METHODS = ("recoverable", "public-view", "blur", "mosaic", "noise", "edges")
_RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "anonymizer.json"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
OnBad = Annotated[
    str, typer.Option(help="A frame that cannot be read: error, or skip (left out of a folder, black in a video).")
]
VaultFolder = Annotated[Path, typer.Option("--vault", help="Folder of the vault.")]

anonymizer = typer.Typer(help="Train, certify and measure the anonymiser; keep its vault.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the root."""
    app.command("anonymize")(anonymize)
    app.command("recover")(recover)
    app.add_typer(anonymizer, name="anonymizer")


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
            help="JSON: file name -> persons' boxes [x, y, width, height]. Without them a frame is changed everywhere: "
            "safe, but a public view shows limbs only where it is told the person."
        ),
    ] = None,
    keep_originals: Annotated[bool, typer.Option("--keep-originals", help="Seal the originals in the vault.")] = False,
    force: Force = False,
    on_bad: OnBad = "error",
    as_json: Json = False,
) -> None:
    """Anonymise a picture, a folder or a video; can be interrupted and run again."""
    from wardpose.shared.anonymize.apply import Job
    from wardpose.shared.anonymize.vault import Vault
    from wardpose.shared.errors import ConfigError

    if keep_originals and vault is None:
        raise ConfigError("--keep-originals needs --vault")
    chosen = _method(method, strength, weights, vault)
    persons = _read_boxes(boxes)
    job = Job(
        source=source,
        destination=destination,
        change=lambda frame, name: chosen(frame, None if persons is None else persons.get(name.split("#")[0])),
        identity=chosen.identity() + ("" if boxes is None else _hash(boxes)),
        lossless=chosen.lossless,
        force=force,
        on_bad=_on_bad(on_bad),
    )
    outcome = _run(job, f"anonymising with {chosen.name}")
    if keep_originals and vault is not None:
        _seal_originals(Vault(vault), source, destination)
    _done(outcome, as_json, method=chosen.name, destination=str(destination))


def recover(
    source: Annotated[Path, typer.Argument(help="Recoverable picture, folder of them, or video.")],
    destination: Annotated[Path, typer.Argument(help="Where the recovered one goes.")],
    vault: VaultFolder,
    person: Annotated[list[str], typer.Option(help="Who recovers; twice where the vault demands two.")],
    why: Annotated[str, typer.Option(help="The reason; it is logged.")],
    key: Annotated[list[str] | None, typer.Option(help="NAME=FILE with that person's private key.")] = None,
    passphrase_file: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE with that person's passphrase; asked for where it is missing.")
    ] = None,
    original: Annotated[bool, typer.Option("--original", help="Write the exact sealed original of one file.")] = False,
    force: Force = False,
    on_bad: OnBad = "error",
    as_json: Json = False,
) -> None:
    """Recover what a recoverable anonymiser wrote; every use is logged in the vault."""
    from wardpose.shared import files
    from wardpose.shared.anonymize.apply import Job
    from wardpose.shared.anonymize.generator import Recoverer
    from wardpose.shared.anonymize.vault import Vault
    from wardpose.shared.errors import ConfigError

    locked = Vault(vault)
    unlocked = locked.unlock(_credentials(person, key or [], passphrase_file or []), why=why)
    if original:
        if destination.exists() and not force:
            raise ConfigError(f"{destination}: exists already (--force overwrites)")
        name, content = unlocked.original(source)
        files.write_bytes(destination, content, mode=0o600)
        _say(as_json, {"original": name, "destination": str(destination), "bytes": len(content)})
        return
    recoverer = Recoverer(unlocked.weights())
    job = Job(
        source=source,
        destination=destination,
        change=_recovering(recoverer, unlocked, source),
        identity="recover " + locked.public_key.hex(),
        force=force,
        on_bad=_on_bad(on_bad),
    )
    _done(_run(job, "recovering"), as_json, destination=str(destination))


@anonymizer.command("train")
def train(
    config: Annotated[Path, typer.Argument(help="Training configuration (YAML).")],
    out: Annotated[Path, typer.Option(help="Folder for weights, checkpoint and pictures.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Train G_X (and G_Y) on public data."""
    from rich.progress import Progress

    from wardpose.shared.anonymize.training import TrainingConfig
    from wardpose.shared.anonymize.training import train as run_training
    from wardpose.shared.anonymize.weights_file import read_info
    from wardpose.shared.config import load_yaml
    from wardpose.shared.errors import ConfigError

    if device not in ("cpu", "cuda"):
        raise ConfigError(f'--device "{device}" is not allowed (cpu, cuda)')
    settings = load_yaml(config, TrainingConfig)
    with Progress(console=_console(), transient=True) as progress:
        task = progress.add_task(settings.kind, total=None)

        def show(step: int, total: int, terms: dict[str, float]) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
            progress.update(task, completed=step, total=total, description=text)

        path = run_training(
            settings,
            out,
            resume=resume,
            device="cuda" if device == "cuda" else "cpu",
            command=f"wardpose anonymizer train {config} --out {out}",
            progress=show,
        )
    info = read_info(path)
    _say(as_json, {"weights": str(path), "kind": info.kind, "sha256": info.sha256, "data": info.data})


@anonymizer.command("certify")
def certify(
    config: Annotated[Path, typer.Argument(help="What to measure (YAML).")],
    out: Annotated[Path, typer.Option(help="Folder for certificate.json and certificate.html.")],
    signing_key: Annotated[Path, typer.Option(help="Ed25519 key file (wardpose anonymizer keygen).")],
    as_json: Json = False,
) -> None:
    """Attack a public view and sign what was found."""
    from wardpose.shared.anonymize import certificate, report
    from wardpose.shared.anonymize.certify import CertifyConfig, measure
    from wardpose.shared.config import load_yaml

    settings = load_yaml(config, CertifyConfig)
    key = certificate.read_signing_key(signing_key)
    table = measure(settings, _step)
    signed = certificate.sign(table.certificate, key)
    thresholds = certificate.Thresholds()
    certificate.write(signed, out / "certificate.json")
    report.write_page(out / "certificate.html", report.certificate_html(signed, table.pictures, thresholds))
    failed = certificate.failures(signed.measures, thresholds)
    _say(
        as_json,
        {
            "certificate": str(out / "certificate.json"),
            "view": signed.view_identity,
            "signer": signed.signer,
            "measures": signed.measures,
            "fails_default_thresholds": failed,
            "rows": signed.rows,
        },
    )


@anonymizer.command("report")
def report_command(
    config: Annotated[
        Path | None, typer.Option("--measure", help="Measure anew by this configuration (half an hour and more).")
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML page.")] = Path("anonymizer.html"),
    as_json: Json = False,
) -> None:
    """Show one table over all methods: the measured results that come with the project, or new ones."""
    from wardpose.shared.anonymize import report
    from wardpose.shared.anonymize.certify import CertifyConfig, measure
    from wardpose.shared.config import load_yaml
    from wardpose.shared.errors import DataError

    pictures: dict[str, Any] = {}
    if config is None:
        if not _RESULTS.is_file():
            raise DataError(f"{_RESULTS}: no measured results; measure some with --measure CONFIG")
        stored = json.loads(_RESULTS.read_text())
        rows, setting, lead = stored["rows"], stored["setting"], f"Measured {stored['created']}: {stored['about']}"
    else:
        table = measure(load_yaml(config, CertifyConfig), _step)
        rows, setting, pictures = table.rows, table.certificate.setting, table.pictures
        lead = f"Measured {table.certificate.created} by {config}."
    verdicts = report.targets(rows)
    html = report.page(
        title="Anonymiser: what an attacker gets and what a pose model keeps",
        lead=lead,
        verdict_title="Targets",
        verdicts=verdicts,
        rows=rows,
        pictures=pictures,
        setting=setting,
    )
    report.write_page(out, html)
    reached = {verdict.name: verdict.reached for verdict in verdicts}
    _say(as_json, {"page": str(out), "targets": reached, "rows": rows, "setting": setting, "about": lead})


@anonymizer.command("benchmark")
def benchmark(
    height: Annotated[int, typer.Option(help="Of the crop, a multiple of 64.")] = 256,
    width: Annotated[int, typer.Option(help="Of the crop, a multiple of 64.")] = 192,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    as_json: Json = False,
) -> None:
    """Compare G_X's and G_Y's time with TinyViT-5M's at the same size, in one run."""
    from wardpose.simulation.benchmarks.anonymizer import measure

    _say(as_json, measure((height, width), batch_size=batch_size))


@anonymizer.command("keygen")
def keygen(
    path: Annotated[Path, typer.Argument(help="Private key file; the public key is printed.")],
    purpose: Annotated[str, typer.Option(help="sign (certificates) or recover (a person of a vault).")],
    as_json: Json = False,
) -> None:
    """Make a key file that only its owner can read."""
    from wardpose.shared import files
    from wardpose.shared.anonymize import certificate, sealing
    from wardpose.shared.errors import ConfigError

    if purpose == "sign":
        public = certificate.new_signing_key(path)
    elif purpose == "recover":
        if path.exists():
            raise ConfigError(f"{path}: exists already; a key is never overwritten")
        private = sealing.generate()
        files.write_bytes(path, private.hex().encode() + b"\n", mode=0o600)
        public = sealing.public_of(private).hex()
    else:
        raise ConfigError(f'--purpose "{purpose}" is not allowed (sign, recover)')
    _say(as_json, {"private_key": str(path), "public_key": public})


@anonymizer.command("vault")
def vault_command(
    folder: Annotated[Path, typer.Argument(help="Folder of the new vault.")],
    person: Annotated[
        list[str], typer.Option(help="NAME (a passphrase is asked for) or NAME=PUBLIC_KEY (64 hexadecimal digits).")
    ],
    two_persons: Annotated[bool, typer.Option("--two-persons", help="A recovery takes two of them.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Recoverable weights; the bundled ones by default.")] = None,
    passphrase_file: Annotated[list[str] | None, typer.Option(help="NAME=FILE with that person's passphrase.")] = None,
    as_json: Json = False,
) -> None:
    """Create a vault: a fresh recovery key, and the people who may use it."""
    from wardpose.shared.anonymize.vault import NewPerson, create_vault
    from wardpose.shared.anonymize.weights_file import bundled
    from wardpose.shared.errors import ConfigError

    passphrases = _pairs(passphrase_file or [], "--passphrase-file")
    people = []
    for entry in person:
        name, _, public = entry.partition("=")
        try:
            key = bytes.fromhex(public) if public else None
        except ValueError as error:
            raise ConfigError(f"{name}: a public key has 64 hexadecimal digits") from error
        secret = None if key else _passphrase(name, passphrases, confirm=True)
        people.append(NewPerson(name=name, passphrase=secret, public_key=key))
    path = bundled("recoverable") if weights is None else weights
    created = create_vault(folder, people, weights_path=path, two_persons=two_persons)
    _say(
        as_json,
        {"vault": str(folder), "people": list(created.people), "public_key": created.public_key.hex()},
    )


@anonymizer.command("log")
def log_command(vault: VaultFolder, as_json: Json = False) -> None:
    """Show and check who recovered what, and why."""
    from dataclasses import asdict

    from wardpose.shared.anonymize.vault import Vault

    entries = [asdict(entry) for entry in Vault(vault).log.entries()]
    if as_json:
        _say(as_json, {"entries": entries})
        return
    for entry in entries:
        who = ", ".join(entry["who"])
        typer.echo(
            f"{entry['sequence']:5d}  {entry['time']}  {entry['action']:14s} {who}: {entry['why']} [{entry['what']}]"
        )


def _method(method: str | None, strength: float | None, weights: Path | None, vault: Path | None) -> "FrameMethod":
    from pydantic import ValidationError

    from wardpose.shared.anonymize.desensitise import Desensitise
    from wardpose.shared.anonymize.generator import DesensitiseMethod, PublicViewMethod, RecoverableMethod
    from wardpose.shared.anonymize.vault import Vault
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


def _recovering(recoverer: Any, unlocked: "OpenVault", source: Path) -> "Change":
    from wardpose.shared.data.records import Frame

    keys: dict[str, bytes] = {}

    def change(frame: Frame, name: str) -> Frame:
        file = name.split("#")[0]
        if file not in keys:
            path = source / file if source.is_dir() else source
            keys[file] = unlocked.authorise(f"{file} {_hash(path)}")
        out: Frame = recoverer(frame, keys[file])
        return out

    return change


def _seal_originals(vault: Any, source: Path, destination: Path) -> None:
    from wardpose.shared.anonymize.apply import pairs

    for original, anonymised in pairs(source, destination):
        digest = _hash(anonymised)
        if not vault.original_path(digest).exists():
            vault.seal_original(digest, original.name, original.read_bytes())


def _read_boxes(path: Path | None) -> "dict[str, list[Box]] | None":
    from wardpose.shared.errors import ConfigError

    if path is None:
        return None
    try:
        content = json.loads(path.read_text())
        return {
            str(name): [(float(x), float(y), float(w), float(h)) for x, y, w, h in rows]
            for name, rows in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: must map file names to lists of [x, y, width, height]") from error


def _credentials(people: list[str], keys: list[str], passphrase_files: list[str]) -> "list[Credential]":
    from wardpose.shared.anonymize.certificate import read_signing_key
    from wardpose.shared.anonymize.vault import Credential

    by_key, by_passphrase = _pairs(keys, "--key"), _pairs(passphrase_files, "--passphrase-file")
    return [
        Credential(name=name, private_key=read_signing_key(by_key[name]))
        if name in by_key
        else Credential(name=name, passphrase=_passphrase(name, by_passphrase))
        for name in people
    ]


def _passphrase(name: str, stored: dict[str, Path], *, confirm: bool = False) -> str:
    from wardpose.shared.errors import ConfigError

    if name in stored:
        try:
            return stored[name].read_text().rstrip("\n")
        except OSError as error:
            raise ConfigError(f"{stored[name]}: cannot be read ({error.strerror})") from error
    answer: str = typer.prompt(f"Passphrase of {name}", hide_input=True, confirmation_prompt=confirm, err=True)
    return answer


def _pairs(entries: list[str], option: str) -> dict[str, Path]:
    from wardpose.shared.errors import ConfigError

    out = {}
    for entry in entries:
        name, separator, path = entry.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f'{option} "{entry}" must be NAME=FILE')
        out[name] = Path(path)
    return out


def _on_bad(value: str) -> Any:
    from wardpose.shared.errors import ConfigError

    if value not in ("error", "skip"):
        raise ConfigError(f'--on-bad "{value}" is not allowed (error, skip)')
    return value


def _run(job: "Job", title: str) -> "Outcome":
    from dataclasses import replace

    from rich.progress import Progress

    from wardpose.shared.anonymize.apply import run

    with Progress(console=_console(), transient=True) as progress:
        task = progress.add_task(title, total=None)
        return run(replace(job, progress=lambda done, total: progress.update(task, completed=done, total=total)))


def _done(outcome: "Outcome", as_json: bool, **more: str) -> None:
    for line in outcome.skipped:
        typer.echo(f"skipped: {line}", err=True)
    _say(as_json, {"frames": outcome.frames, "resumed": outcome.resumed, "skipped": outcome.skipped, **more})


def _say(as_json: bool, content: dict[str, Any]) -> None:
    if as_json:
        typer.echo(json.dumps(content))
        return
    for name, value in content.items():
        typer.echo(f"{name.replace('_', ' ')}: {value if isinstance(value, str | int | float) else json.dumps(value)}")


def _step(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _hash(path: Path) -> str:
    from wardpose.shared import files

    return files.sha256_file(path)
