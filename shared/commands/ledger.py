"""`wardpose ledger`: what an auditor or a privacy officer does with a ledger file, a site's or the server's."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.shared.commands import remote
from wardpose.shared.terminal import Json, console, line, say, table

if TYPE_CHECKING:
    from wardpose.shared.ledger_views import Difference
    from wardpose.shared.privacy.entries import Entry
    from wardpose.shared.privacy.ledger import Ledger

app = typer.Typer(help="Read, check, compare and explain a ledger, a site's or the server's.", no_args_is_help=True)
app.add_typer(remote.app, name="remote")

LedgerFile = Annotated[Path, typer.Argument(help="The ledger's SQLite file.", metavar="LEDGER.sqlite")]
Cohort = Annotated[str | None, typer.Option(help="This cohort only (at the server: this site).", show_default="all")]


def register(root: typer.Typer) -> None:
    """Add the group to the console script."""
    root.add_typer(app, name="ledger")


@app.command()
def show(path: LedgerFile, cohort: Cohort = None, as_json: Json = False) -> None:
    """Show what each cohort has spent, and on which studies."""
    from wardpose.shared.ledger_views import cohort_views

    ledger, entries = _checked(path)
    views = cohort_views(ledger, entries, cohort)
    if as_json:
        shown = {"ledger": str(path), "entries": len(entries), "cohorts": [asdict(view) for view in views]}
        typer.echo(json.dumps(shown))
        return
    screen = console()
    for view in views:
        budget = "" if view.budget is None else f" of {view.budget:g}"
        spent = f"epsilon {_number(view.spent)}{budget} at delta {view.delta:g}"
        screen.print(line(f"{view.cohort}: {spent}, {view.adjacency}, by {view.rule}"), soft_wrap=True)
        if view.local is not None:
            alone = (
                f"epsilon {_number(view.local)} against whoever could see this site's own sums, with its noise alone"
            )
            screen.print(line(f"{view.cohort}: noise was shared out over sites; {alone}"), soft_wrap=True)
        if view.not_private:
            screen.print(line(("NOT PRIVATE", "bold red"), f": {view.not_private}"))
        for window in (view.month, *view.federations):
            if window is not None:
                of = "" if window.budget is None else f" of {window.budget:g}"
                screen.print(line(f"  in {window.window}: epsilon {_number(window.spent)}{of}"), soft_wrap=True)
        rows = (
            (study.run, study.federation, ", ".join(study.mechanisms), study.rounds, _number(study.epsilon))
            for study in view.studies
        )
        screen.print(table(("run", "study", "mechanism", "rounds", "epsilon alone"), rows, left=3))


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A ledger, or what `export` wrote.", metavar="LEDGER")],
    head: Annotated[
        str | None, typer.Option(help="SEQUENCE:HASH that was seen before and must still be in it.", show_default=False)
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="Public key of whoever keeps the ledger: the last row must be signed by it.", show_default=False
        ),
    ] = None,
    site_key: Annotated[
        Path | None,
        typer.Option(help="A site's public key: every word by which it took a charge back must be its own."),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Whose key it is.", show_default="of all words")] = None,
    as_json: Json = False,
) -> None:
    """Check every entry of a ledger, or of an export. Exits 2 when something is wrong."""
    from wardpose.shared.ledger_views import verify_export
    from wardpose.shared.privacy.expiry import verify_expiries
    from wardpose.shared.signing import load_public_key

    if path.suffix == ".jsonl":
        for option, value in (("--head", head), ("--key", key), ("--site-key", site_key)):
            _refuse_for_export(option, value)
        count, digest, redacted = verify_export(path)
        say({"entries": count, "head": digest, "redacted": redacted}, as_json=as_json)
        return
    ledger, entries = _checked(path)
    ledger.verify(None if head is None else _head(head))
    taken = verify_expiries(entries, None if site_key is None else load_public_key(site_key), site)
    facts = {"entries": len(entries), "head": f"{len(entries)}:{ledger.head()[1]}", "redacted": 0, "taken_back": taken}
    if key is not None:
        facts["signed"], facts["not_signed"] = ledger.check_signatures(load_public_key(key))
    say(facts, as_json=as_json)


@app.command("renew-key")
def renew_key(
    path: LedgerFile,
    key: Annotated[Path, typer.Option(help="The private key that signs from here on.")],
    why: Annotated[str, typer.Option(help="What became of the old key, and who says so; it is kept.")],
    as_json: Json = False,
) -> None:
    """Let a new key sign a ledger's rows from here on. What was charged stays charged."""
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.privacy.ledger import Ledger
    from wardpose.shared.signing import load_signer

    if not why.strip():
        raise ConfigError("--why: is empty (allowed: what happened, and who says so)")
    signer = load_signer(key)
    entry = Ledger(path).renewed(signer, why)
    say({"entry": entry.sequence, "key": signer.public.fingerprint}, as_json=as_json)


@app.command()
def export(
    path: LedgerFile,
    destination: Annotated[Path, typer.Argument(help="JSON lines, an entry each.", metavar="EXPORT.jsonl")],
    members: Annotated[bool, typer.Option(help="Keep patients' keyed hashes: confidential as the ledger is.")] = False,
    as_json: Json = False,
) -> None:
    """Write a ledger's entries as text that anybody can check."""
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.files import write_bytes
    from wardpose.shared.ledger_views import export_lines

    if destination.suffix != ".jsonl":
        raise ConfigError(f"{destination}: an export ends in .jsonl")
    if destination.exists():
        raise ConfigError(f"{destination}: exists already (allowed: a new file)")
    _, entries = _checked(path)
    content = "".join(f"{text}\n" for text in export_lines(entries, members=members))
    write_bytes(destination, content.encode(), mode=0o600)
    say({"entries": len(entries), "export": str(destination)}, as_json=as_json)


@app.command()
def compare(
    site: Annotated[Path, typer.Argument(help="The site's ledger.", metavar="SITE.sqlite")],
    server: Annotated[Path, typer.Argument(help="The server's ledger.", metavar="SERVER.sqlite")],
    name: Annotated[str, typer.Option(help="The site's name, as the server knows it.")],
    as_json: Json = False,
) -> None:
    """Hold a site's ledger against the server's account of it. Exits 1 when the server believes less was spent."""
    from wardpose.shared.errors import LedgerError
    from wardpose.shared.ledger_views import compare as differences_of

    _, mine = _checked(site)
    ledger, theirs = _checked(server)
    if name not in ledger.cohorts():
        raise LedgerError(f"{server}: site {name!r} is unknown (allowed: {', '.join(ledger.cohorts()) or 'none yet'})")
    say_differences(differences_of(mine, theirs, name), as_json=as_json)


def say_differences(differences: "list[Difference]", *, as_json: bool) -> None:
    """Print how a site's ledger and the server's account of it differ; exits 1 when the server believes less."""
    alarming = any(difference.alarming for difference in differences)
    if as_json:
        typer.echo(json.dumps({"agree": not alarming, "differences": [asdict(found) for found in differences]}))
    else:
        screen = console()
        if differences:
            rows = ((found.run, found.round, found.what, "ALARM" if found.alarming else "") for found in differences)
            screen.print(table(("run", "round", "charged", ""), rows, left=4))
        verdict = "the server believes that less was spent" if alarming else "the server counts at least as much"
        screen.print(line(verdict, style="bold"))
    if alarming:
        raise typer.Exit(1)


@app.command()
def statement(
    path: LedgerFile,
    destination: Annotated[Path, typer.Argument(help="The page, written anew.", metavar="STATEMENT.html")],
    holder: Annotated[str, typer.Option(help="Who keeps the ledger, as the page says it.")],
    cohort: Cohort = None,
    as_json: Json = False,
) -> None:
    """Write a page for a privacy officer: what was spent, by whom, and what that means for one patient."""
    from wardpose.shared.ledger_statement import statement as made
    from wardpose.shared.ledger_statement import write_statement
    from wardpose.shared.ledger_views import cohort_views

    ledger, entries = _checked(path)
    content = made(cohort_views(ledger, entries, cohort), holder=holder, head=ledger.head())
    write_statement(destination, content)
    if as_json:
        typer.echo(json.dumps(content))
        return
    say({"statement": str(destination), "entries": len(entries)}, as_json=False)


def _checked(path: Path) -> "tuple[Ledger, tuple[Entry, ...]]":
    from wardpose.shared.privacy.ledger import Ledger

    ledger = Ledger.open_readonly(path)
    ledger.verify()
    return ledger, ledger.entries()


def _head(text: str) -> tuple[int, str]:
    from wardpose.shared.errors import ConfigError

    sequence, _, digest = text.partition(":")
    if not (sequence.isascii() and sequence.isdigit() and len(sequence) < 19) or len(digest) != 64:
        raise ConfigError(f"--head {text!r} (allowed: SEQUENCE:HASH, as `verify` prints it)")
    return int(sequence), digest


def _refuse_for_export(option: str, value: object) -> None:
    from wardpose.shared.errors import ConfigError

    if value is not None:
        raise ConfigError(f"{option} is for ledgers (an export holds its head in its last line, and no signatures)")


def _number(epsilon: Any) -> str:
    return "infinite" if epsilon is None else f"{epsilon:.4f}"
