"""`wardpose vault` and `wardpose recover`: who may see a recoverable frame as it was, and who did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardpose.client.commands.anonymize import Force, OnBad, checked_on_bad
from wardpose.client.commands.outcome import say_outcome
from wardpose.shared.errors import one_line
from wardpose.shared.terminal import Json, progress, say

if TYPE_CHECKING:
    from wardpose.client.anonymize.job import Change
    from wardpose.client.recovery.keyholders import Credential
    from wardpose.client.recovery.vault import OpenVault
    from wardpose.shared.anonymize.frame_methods import Recoverer

Folder = Annotated[Path, typer.Option("--vault", help="Folder of the vault.")]
PassphraseFiles = Annotated[
    list[str] | None, typer.Option(help="NAME=FILE with that person's passphrase; asked for where it is missing.")
]


def register(app: typer.Typer) -> None:
    """Add the command and the group to the root."""
    group = typer.Typer(help="Keep what recovery needs under lock, and the log of its use.", no_args_is_help=True)
    group.command("create")(create)
    group.command("keygen")(keygen)
    group.command("log")(log)
    app.command("recover")(recover)
    app.add_typer(group, name="vault")


def create(
    folder: Annotated[Path, typer.Argument(help="Folder of the new vault.")],
    person: Annotated[
        list[str], typer.Option(help="NAME (a passphrase is asked for) or NAME=PUBLIC_KEY (64 hexadecimal digits).")
    ],
    two_persons: Annotated[bool, typer.Option("--two-persons", help="A recovery takes two of them.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Recoverable weights; the bundled ones by default.")] = None,
    passphrase_file: PassphraseFiles = None,
    as_json: Json = False,
) -> None:
    """Create a vault: a fresh recovery key, and the people who may use it."""
    from wardpose.client.recovery.keyholders import NewPerson
    from wardpose.client.recovery.vault import create_vault
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
    say({"vault": str(folder), "people": list(created.people), "public_key": created.public_key.hex()}, as_json=as_json)


def keygen(
    path: Annotated[Path, typer.Argument(help="Private key file; the public key is printed, for `vault create`.")],
    as_json: Json = False,
) -> None:
    """Make the key pair of a person; the file can be read by its owner only."""
    from wardpose.shared import files
    from wardpose.shared.anonymize import key_exchange
    from wardpose.shared.errors import ConfigError

    if path.exists():
        raise ConfigError(f"{path}: exists already; a key is never overwritten")
    private = key_exchange.generate()
    with files.storing(path):
        files.write_bytes(path, private.hex().encode() + b"\n", mode=0o600)
    say({"private_key": str(path), "public_key": key_exchange.public_of(private).hex()}, as_json=as_json)


def log(
    vault: Folder,
    beside: Annotated[
        list[Path] | None, typer.Option(help="Folder of anonymised or recovered frames: what it has seen of the log.")
    ] = None,
    expect: Annotated[list[str] | None, typer.Option(help="Hash of an entry that was noted before.")] = None,
    as_json: Json = False,
) -> None:
    """Show and check who recovered what, and why."""
    from dataclasses import asdict

    from wardpose.client.anonymize.request import seen_beside
    from wardpose.client.recovery.vault import Vault

    opened = Vault(vault)
    entries = opened.log.entries()
    opened.log.check_seen(seen_beside(opened, *(beside or [])) | dict.fromkeys(expect or [], Path("--expect")))
    if as_json:
        say({"entries": [asdict(entry) for entry in entries], "last": entries[-1].hash()}, as_json=True)
        return
    for entry in entries:
        who = ", ".join(entry.who)
        typer.echo(
            one_line(f"{entry.sequence:5d}  {entry.time}  {entry.action:14s} {who}: {entry.why} [{entry.what}]", 4000)
        )
    typer.echo(f"last entry: {entries[-1].hash()}")


def recover(
    source: Annotated[Path, typer.Argument(help="Recoverable picture, folder of them, or video.")],
    destination: Annotated[Path, typer.Argument(help="Where the recovered one goes.")],
    vault: Folder,
    person: Annotated[list[str], typer.Option(help="Who recovers; twice where the vault demands two.")],
    why: Annotated[str, typer.Option(help="The reason; it is logged.")],
    key: Annotated[list[str] | None, typer.Option(help="NAME=FILE with that person's private key.")] = None,
    passphrase_file: PassphraseFiles = None,
    original: Annotated[bool, typer.Option("--original", help="Write the exact sealed original of one file.")] = False,
    force: Force = False,
    on_bad: OnBad = "error",
    as_json: Json = False,
) -> None:
    """Recover what a recoverable anonymiser wrote; every use is logged in the vault."""
    from wardpose.client.anonymize.apply import run
    from wardpose.client.anonymize.job import Job
    from wardpose.client.anonymize.request import seen_beside
    from wardpose.client.recovery.vault import Vault
    from wardpose.shared import files
    from wardpose.shared.anonymize.frame_methods import Recoverer
    from wardpose.shared.errors import ConfigError

    locked = Vault(vault)
    locked.log.check_seen(seen_beside(locked, source, destination))
    unlocked = locked.unlock(_credentials(person, key or [], passphrase_file or []), why=why)
    if original:
        if destination.exists() and not force:
            raise ConfigError(f"{destination}: exists already (--force overwrites)")
        name, content = unlocked.original(source)
        with files.storing(destination):
            files.write_bytes(destination, content, mode=0o600)
        say(
            {"original": name, "destination": str(destination), "bytes": len(content), "log": locked.noted()["entry"]},
            as_json=as_json,
        )
        return
    change = _recovering(Recoverer(unlocked.weights()), unlocked, source)
    with progress("recovering") as update:
        job = Job(
            source=source,
            destination=destination,
            change=change,
            identity="recover " + locked.public_key.hex(),
            force=force,
            on_bad=checked_on_bad(on_bad),
            progress=update,
            mode=0o600,
            log=locked.noted,
        )
        outcome = run(job)
    say_outcome(outcome, as_json=as_json, destination=str(destination), log=locked.noted()["entry"])


def _recovering(recoverer: "Recoverer", unlocked: "OpenVault", source: Path) -> "Change":
    from wardpose.client.anonymize.job import file_of
    from wardpose.shared import files
    from wardpose.shared.data.records import Frame

    keys: dict[str, bytes] = {}

    def change(frame: Frame, name: str) -> Frame:
        file = file_of(name)
        if file not in keys:
            path = source / file if source.is_dir() else source
            keys[file] = unlocked.authorise(f"{file} {files.sha256_file(path)}")
        return recoverer(frame, keys[file])

    return change


def _credentials(people: list[str], keys: list[str], passphrase_files: list[str]) -> "list[Credential]":
    from wardpose.client.recovery.keyholders import Credential
    from wardpose.shared.anonymize.certificate import read_signing_key

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
        except UnicodeDecodeError as error:
            raise ConfigError(f"{stored[name]}: is no passphrase (allowed: UTF-8 text)") from error
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
