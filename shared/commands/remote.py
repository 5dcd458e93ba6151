"""`wardpose ledger remote`: ask the coordinator's Budget service, and check what it answers."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.shared.terminal import Json, console, line, say, table

if TYPE_CHECKING:
    from wardpose.shared.head_statements import ServerHead
    from wardpose.shared.known_server import KnownServer
    from wardpose.shared.remote_ledger import RemoteLedger, RemoteRow

app = typer.Typer(
    help="Ask the coordinator's Budget service; every answer is checked, and must continue what was shown before.",
    no_args_is_help=True,
)

Service = Annotated[str, typer.Option(help="The Budget service, host:port.", show_default=False)]
Authority = Annotated[Path, typer.Option("--ca", help="Certificate of the federation's authority.")]
Certificate = Annotated[Path, typer.Option(help="The client certificate: a site's, or an auditor's.")]
Key = Annotated[Path, typer.Option(help="The client certificate's private key.")]
State = Annotated[
    Path, typer.Option(help="Folder that keeps what was shown before: a site's `state`, always the same.")
]
ServerKey = Annotated[
    Path | None, typer.Option(help="The coordinator's public key: refuse heads that it did not sign.", show_default="")
]


@app.command()
def account(
    service: Service,
    ca: Authority,
    certificate: Certificate,
    key: Key,
    state: State,
    server_key: ServerKey = None,
    site: Annotated[str, typer.Option(help="This site only (for auditors).", show_default="all that may be seen")] = "",
    as_json: Json = False,
) -> None:
    """Show what the coordinator says was spent, and what the federation adds up to."""
    with _remote(service, ca, certificate, key, state, server_key) as (remote, known):
        answer, head = remote.account(site)
        alarms = [alarm.what for alarm in known.alarms()]
    federation = answer.federation
    shown = {
        "sites": [_account(found) for found in answer.sites],
        "federation": {
            "disjoint": _finite(federation.disjoint),
            "overlap": _finite(federation.overlap),
            "overlap_sites": federation.overlap_sites,
            "delta": federation.delta,
            "sites": federation.sites,
        },
        **_head(head),
        "alarms": alarms,
    }
    if as_json:
        typer.echo(json.dumps(shown))
        return
    screen = console()
    rows = [
        (found["site"], _number(found["epsilon"]), _limit(found["budget"]), found["rows"], "; ".join(_remarks(found)))
        for found in shown["sites"]
    ]
    screen.print(table(("site", "epsilon spent", "budget", "rows", "remarks"), rows))
    screen.print(
        line(
            f"federation of {federation.sites}, delta {federation.delta:g}: epsilon "
            f"{_number(_finite(federation.disjoint))} of a patient at one site, "
            f"{_number(_finite(federation.overlap))} at up to {federation.overlap_sites}"
        ),
        soft_wrap=True,
    )
    screen.print(line(f"ledger: {head.sequence}:{head.hash}"), soft_wrap=True)
    for alarm in alarms:
        screen.print(line(("ALARM", "bold red"), f": the coordinator's ledger {alarm}"), soft_wrap=True)


@app.command()
def entries(
    destination: Annotated[Path, typer.Argument(help="JSON lines, an entry each.", metavar="EXPORT.jsonl")],
    service: Service,
    ca: Authority,
    certificate: Certificate,
    key: Key,
    state: State,
    server_key: ServerKey = None,
    as_json: Json = False,
) -> None:
    """Write the coordinator's ledger as text, other sites' rows as hashes; `ledger verify` checks it again."""
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.files import written_whole

    if destination.suffix != ".jsonl":
        raise ConfigError(f"{destination}: an export ends in .jsonl")
    if destination.exists():
        raise ConfigError(f"{destination}: exists already (allowed: a new file)")
    full = 0
    with (
        _remote(service, ca, certificate, key, state, server_key) as (remote, _),
        written_whole(destination, mode=0o600) as file,
    ):

        def write(row: "RemoteRow") -> None:
            nonlocal full
            full += row.entry is not None
            file.write(f"{json.dumps(_line(row), sort_keys=True)}\n".encode())

        head = remote.entries(write)
    say({"entries": head.sequence, "in_full": full, **_head(head), "export": str(destination)}, as_json=as_json)


@app.command()
def verify(
    service: Service,
    ca: Authority,
    certificate: Certificate,
    key: Key,
    state: State,
    server_key: ServerKey = None,
    sequence: Annotated[
        int | None, typer.Option(min=1, help="Prove that this entry is in it, too.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that the coordinator's ledger continues the one that was shown before. Exits 2 where it does not."""
    with _remote(service, ca, certificate, key, state, server_key) as (remote, known):
        before = known.last()
        if sequence is None:
            head, proven = remote.head(), {}
        else:
            digest, head = remote.verify(sequence)
            proven = {"sequence": sequence, "hash": digest}
    say({**_head(head), "continues": 0 if before is None else before.sequence, **proven}, as_json=as_json)


@app.command()
def submit(
    ledger: Annotated[Path, typer.Argument(help="The site's own ledger.", metavar="LEDGER.sqlite")],
    node_key: Annotated[Path, typer.Option(help="The site's node key, which signs.")],
    service: Service,
    ca: Authority,
    certificate: Certificate,
    key: Key,
    state: State,
    server_key: ServerKey = None,
    as_json: Json = False,
) -> None:
    """State the head of the site's own ledger, signed; take the coordinator's in return."""
    from wardpose.shared.privacy.ledger import Ledger
    from wardpose.shared.remote_ledger import name_in
    from wardpose.shared.signing import load_signer

    signer, mine = load_signer(node_key), Ledger.open_readonly(ledger)
    with _remote(service, ca, certificate, key, state, server_key) as (remote, _):
        head = remote.submit(mine, name_in(certificate), signer)
    say({"submitted": ":".join(map(str, mine.head())), **_head(head)}, as_json=as_json)


@app.command()
def compare(
    ledger: Annotated[Path, typer.Argument(help="The site's own ledger.", metavar="LEDGER.sqlite")],
    service: Service,
    ca: Authority,
    certificate: Certificate,
    key: Key,
    state: State,
    server_key: ServerKey = None,
    name: Annotated[
        str, typer.Option(help="The site's name, where an auditor asks.", show_default="the certificate's")
    ] = "",
    as_json: Json = False,
) -> None:
    """Hold the site's ledger against the coordinator's account of it. Exits 1 where that believes less was spent."""
    from wardpose.shared.commands.ledger import say_differences
    from wardpose.shared.ledger_views import compare as differences_of
    from wardpose.shared.privacy.ledger import Ledger
    from wardpose.shared.remote_ledger import name_in

    mine = Ledger.open_readonly(ledger)
    mine.verify()
    theirs: list[Any] = []
    with _remote(service, ca, certificate, key, state, server_key) as (remote, _):
        remote.entries(lambda row: None if row.entry is None else theirs.append(row.entry))
    say_differences(differences_of(mine.entries(), theirs, name or name_in(certificate)), as_json=as_json)


@app.command("accept-another")
def accept_another(
    state: State,
    why: Annotated[str, typer.Option(help="What became of the old ledger, and who at the coordinator says so.")],
) -> None:
    """Believe the next ledger that the coordinator shows, whatever it is; what it showed before is kept."""
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.known_server import FILE, KnownServer

    known = KnownServer(state / FILE)
    last = known.last()
    if last is None:
        raise ConfigError(f"{known.path}: no ledger was shown yet, so that none has to be accepted")
    if not why.strip():
        raise ConfigError("--why: is empty (allowed: what happened, and who says so)")
    known.accept_another(why)
    typer.echo(f"the next ledger is believed, whatever it is; the last one had {last.sequence} entries")


@contextmanager
def _remote(
    service: str, ca: Path, certificate: Path, key: Path, state: Path, server_key: Path | None
) -> "Iterator[tuple[RemoteLedger, KnownServer]]":
    from wardpose.shared.known_server import FILE, KnownServer
    from wardpose.shared.remote_ledger import RemoteLedger, connect
    from wardpose.shared.signing import load_public_key

    known = KnownServer(state / FILE)
    known.last()  # a record that cannot be read is found before anything is asked
    signed_by = None if server_key is None else load_public_key(server_key)
    with connect(service, authority=ca, certificate=certificate, key=key) as channel:
        yield RemoteLedger(channel, known, server_key=signed_by), known


def _account(found: Any) -> dict[str, Any]:
    return {
        "site": found.site,
        "epsilon": _finite(found.epsilon),
        "budget": found.budget if found.HasField("budget") else None,
        "delta": found.delta,
        "unit": found.unit,
        "rows": found.rows,
        "not_private": found.not_private,
        "seen": f"{found.seen_sequence}:{found.seen_hash}",
        "alarms": [alarm.what for alarm in found.alarms],
    }


def _remarks(found: dict[str, Any]) -> Iterator[str]:
    if found["not_private"]:
        yield f"NOT PRIVATE: {found['not_private']}"
    for alarm in found["alarms"]:
        yield f"ALARM: {alarm}"


def _line(row: "RemoteRow") -> dict[str, Any]:
    """Write a row as `wardpose ledger export` does; somebody else's says nothing but its hash."""
    place = {"sequence": row.sequence, "previous": row.previous, "hash": row.hash}
    if row.entry is None:
        return {**place, "kind": "", "body": {}, "redacted": True}
    return {**place, "kind": row.entry.kind, "body": row.entry.body}


def _head(head: "ServerHead") -> dict[str, Any]:
    return {"head": f"{head.sequence}:{head.hash}", "root": head.root.hex()}


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _number(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else f"{epsilon:.4f}"


def _limit(budget: float | None) -> str:
    return "-" if budget is None else f"{budget:g}"
