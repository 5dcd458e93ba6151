"""`wardpose server`: what a coordinator does."""

import json
from pathlib import Path
from typing import Annotated

import typer

from wardpose.server.commands import launching, running
from wardpose.shared.commands.kits import Fingerprint, KitPath
from wardpose.shared.terminal import Json, say

app = typer.Typer(no_args_is_help=True)
for _part in (launching, running):
    _part.add_to(app)

Why = Annotated[str, typer.Option("--why", help="What happened, and who at the hospital says so; it is kept.")]
Directory = Annotated[Path, typer.Option("--directory", help="The coordinator's run directory.")]


@app.command()
def metrics(
    directory: Annotated[
        Path | None,
        typer.Option("--directory", help="A run's folder, or that of all runs.", show_default="the home's runs"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port to listen on; 0 takes a free one.", show_default="the home's, else 9464"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    superlink_database: Annotated[
        Path | None, typer.Option("--superlink-database", help="The SuperLink's SQLite file, to see who is online.")
    ] = None,
    certificate: Annotated[
        list[Path] | None, typer.Option("--certificate", help="A certificate to watch; may be repeated.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="The server's home, instead of all these.", show_default="see README"),
    ] = None,
) -> None:
    """Serve a status page at / and Prometheus metrics at /metrics, from journals and ledger, until stopped."""
    from wardpose.server.exporter import ServerExporter
    from wardpose.server.facts import Places, places_of
    from wardpose.server.home import open_server_home
    from wardpose.server.status import server_status
    from wardpose.shared.status_server import Pages, serve

    if directory is None:
        found = open_server_home(home)
        places, port = places_of(found), found.settings.ports.metrics if port is None else port
    else:
        certificates = {path.stem: path for path in certificate or ()}
        places = Places(directory=directory, superlink=superlink_database, certificates=certificates)
    collector = ServerExporter(places).collector()
    serve(
        Pages(metrics=collector, status=lambda: server_status(places)), host=host, port=9464 if port is None else port
    )


@app.command("budget-service")
def budget_service(
    listen: Annotated[
        str | None, typer.Option(help="Address to listen on, host:port.", show_default="127.0.0.1:9443")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(help="A run's folder, whose journal says delta, overlap and unit.", show_default="")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="The ledger to show.", show_default="the coordinator's")] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder of what the service remembers: heads and alarms.", show_default="the ledger's"),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The service's certificate, which names its host.", show_default="")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key.", show_default="")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Certificate of the authority that signs sites' and auditors'.", show_default="")
    ] = None,
    site_keys: Annotated[
        Path | None,
        typer.Option(help="Folder of sites' node keys, SITE.pub each.", show_default="as bound in the ledger"),
    ] = None,
    signing_key: Annotated[
        Path | None, typer.Option(help="The key that signs heads that are shown.", show_default="the coordinator's")
    ] = None,
    delta: Annotated[float, typer.Option(help="Delta of the figures, where no journal says it.")] = 1e-5,
    overlap: Annotated[int, typer.Option(min=1, help="At how many sites a patient may be, likewise.")] = 1,
    unit: Annotated[str, typer.Option(help="Whose epsilon it is, likewise: patient, frame or record.")] = "patient",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Without TLS, everybody an auditor: on loopback alone.")
    ] = False,
    accept_another: Annotated[
        str | None, typer.Option(help="Why another ledger is shown than before, and who says so.", show_default="")
    ] = None,
    home: launching.Home = None,
) -> None:
    """Show the ledger to sites and auditors over gRPC, with proofs, until stopped."""
    from wardpose.server.budget_service.settings import ServiceSettings, start
    from wardpose.server.runs import LATEST

    if home is not None:
        place = launching.entered(home)
        latest = place.runs / LATEST
        listen, directory = listen or place.budget_service, directory or (latest if latest.exists() else None)
        certificate, key, ca = certificate or place.certificate, key or place.key, ca or place.authority
        site_keys = site_keys or (place.nodes if place.nodes.is_dir() else None)
    start(
        ServiceSettings(
            listen=listen or "127.0.0.1:9443",
            directory=directory,
            ledger=ledger,
            state=state,
            certificate=certificate,
            key=key,
            authority=ca,
            site_keys=site_keys,
            signing_key=signing_key,
            delta=delta,
            overlap=overlap,
            unit=unit,
            insecure=insecure,
            accept_another=accept_another,
        )
    )


@app.command()
def key(
    directory: Annotated[
        Path | None, typer.Option("--directory", help="A simulated run's folder.", show_default="the coordinator's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Show the key that signs orders, made on first use; sites need its public half as coordinator.pub."""
    from wardpose.server.coordinator import coordinator_accounts, folder_accounts, load_coordinator

    accounts = coordinator_accounts(load_coordinator()) if directory is None else folder_accounts(directory)
    public, path = accounts.signer().public, accounts.ledger_path.with_name("coordinator.pub")
    if as_json:
        typer.echo(json.dumps({"public": str(path), "fingerprint": public.fingerprint, "key": public.text}))
        return
    typer.echo(public.text)
    typer.echo(f"{path}: fingerprint {public.fingerprint}; give it to each site by a way you trust", err=True)


@app.command("accept-ledger")
def accept_ledger(
    site: Annotated[str, typer.Argument(help="The site whose ledger was lost, or restored from an old backup.")],
    why: Why,
    directory: Annotated[
        Path | None, typer.Option("--directory", help="A simulated run's folder.", show_default="the coordinator's")
    ] = None,
    budget_state: Annotated[
        Path | None, typer.Option(help="The Budget service's --state.", show_default="the ledger's folder")
    ] = None,
) -> None:
    """Let a site go on with another ledger than the one seen before; what the server charged it stays charged."""
    from wardpose.server.budget_service.submissions import accept_another
    from wardpose.server.coordinator import coordinator_accounts, folder_accounts, load_coordinator
    from wardpose.shared.errors import ConfigError

    _refuse_empty(why)
    accounts = coordinator_accounts(load_coordinator()) if directory is None else folder_accounts(directory)
    heads = accounts.heads
    last = accept_another(budget_state or accounts.ledger_path.parent, site, why) or heads.last(site)
    if last is None:
        raise ConfigError(f'{heads.path}: no ledger of site "{site}" was seen, so that none has to be accepted')
    heads.accept_another(site, why, charged=accounts.ledger().head()[0])
    typer.echo(f"{site}: in the next run its ledger is believed, whatever it is; the last one had {last[0]} entries")


@app.command("import-ledger")
def import_ledger(
    old: Annotated[Path, typer.Argument(help="The ledger of an old run folder.", metavar="LEDGER.sqlite")],
    as_json: Json = False,
) -> None:
    """Charge in the coordinator's ledger, once, all that a run folder's own ledger holds."""
    from wardpose.server.coordinator import coordinator_accounts, load_coordinator
    from wardpose.server.coordinator import import_ledger as imported

    accounts = coordinator_accounts(load_coordinator())
    number = imported(accounts, old)
    say({"ledger": str(accounts.ledger_path), "reservations": number}, as_json=as_json)


@app.command("accept-witness")
def accept_witness(why: Why, as_json: Json = False) -> None:
    """Begin with a new witness of the coordinator's ledger, because the old one was lost: vouch that it is whole."""
    from wardpose.server.coordinator import accept_ledger_as_it_is, coordinator_accounts, load_coordinator

    _refuse_empty(why)
    sequence, digest = accept_ledger_as_it_is(coordinator_accounts(load_coordinator()), why)
    say({"entries": sequence, "head": f"{sequence}:{digest}"}, as_json=as_json)


@app.command("accept-key")
def accept_key(
    site: Annotated[str, typer.Argument(help="The site, as it is registered.")],
    key: Annotated[Path, typer.Argument(help="Its new public key.", metavar="NODE.pub")],
    why: Why,
    account: Annotated[
        str, typer.Option(help="The account, where the hospital has another name now.", show_default="the site's own")
    ] = "",
    as_json: Json = False,
) -> None:
    """Let a site go on with another key; its account stays, with all that was charged."""
    from wardpose.server.coordinator import coordinator_accounts, load_coordinator
    from wardpose.shared.signing import load_public_key

    _refuse_empty(why)
    public = load_public_key(key)
    bound = coordinator_accounts(load_coordinator()).ledger().bind(site, public, why=why, account=account)
    say({"site": site, "account": bound, "key": public.fingerprint}, as_json=as_json)


def _refuse_empty(why: str) -> None:
    from wardpose.shared.errors import ConfigError

    if not why.strip():
        raise ConfigError("--why: is empty (allowed: what happened, and who says so)")


@app.command()
def bundle(folder: Annotated[Path, typer.Argument(help="Where it is written; made when missing.")]) -> None:
    """Write the bundle without code that `flwr run` takes and sites accept."""
    from wardpose.server.bundle import write_bundle

    write_bundle(folder)
    typer.echo(f"{folder}: written; start a run with: flwr run {folder}", err=True)


@app.command()
def install(
    kit: KitPath,
    home: Annotated[
        Path | None, typer.Option(help="Everything goes below it.", show_default="/var/lib/wardpose-server, as root")
    ] = None,
    fingerprint: Fingerprint = None,
    as_json: Json = False,
) -> None:
    """Check the archive of the server, and put its files where they belong; as root with user and units."""
    from wardpose.shared.commands.kits import open_confirmed, say_installed
    from wardpose.shared.kits.machine import install as installed

    done = installed(open_confirmed(kit, role="server", fingerprint=fingerprint, home=home), home=home)
    below = f"cd {done.placed.home} && wardpose server run"
    say_installed(done, start=below, as_json=as_json)
