"""`wardpose site`: what a hospital engineer does."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from wardpose.client.commands.findings import say_findings
from wardpose.client.home import open_site_home
from wardpose.shared.commands.kits import Fingerprint, KitPath
from wardpose.shared.errors import ConfigError
from wardpose.shared.home import become_owner
from wardpose.shared.terminal import console, line, table

app = typer.Typer(no_args_is_help=True)


def _as_its_owner(path: Path | None) -> Path | None:
    if path is not None and path.is_file():
        become_owner(path.parent)
    return path


SiteFile = Annotated[
    Path, typer.Argument(help="The hospital's site.yaml.", metavar="SITE.yaml", callback=_as_its_owner)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Given = TypeVar("Given")
NODE_PORT = 9094
_OF_HOME = "the home's"
AnySiteFile = Annotated[
    Path | None,
    typer.Argument(
        help="The hospital's site.yaml.", metavar="SITE.yaml", show_default=_OF_HOME, callback=_as_its_owner
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(help="The site's home.", show_default="WARDPOSE_SITE_HOME, else the working directory"),
]
Superlink = Annotated[str | None, typer.Option(help="The server, host:port.", show_default=_OF_HOME)]
RootCertificates = Annotated[
    Path | None, typer.Option(help="Certificate of the authority that signed the server's.", show_default=_OF_HOME)
]
PrivateKey = Annotated[
    Path | None,
    typer.Option(help="The node's key, whose public half is registered with the server.", show_default=_OF_HOME),
]
SecretFile = Annotated[
    Path | None,
    typer.Option(help="Secret that SuperNode and executor share: any bytes, kept private.", show_default=_OF_HOME),
]
Port = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, help="Where SuperNode and executor meet.", show_default=f"the home's, or {NODE_PORT}"
    ),
]


@app.command()
def metrics(
    site: Annotated[
        Path | None,
        typer.Argument(
            help="The hospital's site.yaml.", metavar="[SITE.yaml]", show_default=_OF_HOME, callback=_as_its_owner
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 9465,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    local: Annotated[
        bool,
        typer.Option(help="Show this machine, and nobody else, losses and speeds at /metrics/local and on the page."),
    ] = True,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="The site's home, instead of SITE.yaml.", show_default="see `site run`"),
    ] = None,
) -> None:
    """Serve a status page at / and Prometheus metrics at /metrics, from ledger and journal, until stopped."""
    from wardpose.client.pages import site_pages
    from wardpose.shared.status_server import serve

    serve(site_pages(site, home=home, local=local), host=host, port=port)


@app.command()
def run(
    site: AnySiteFile = None,
    superlink: Superlink = None,
    root_certificates: RootCertificates = None,
    auth_private_key: PrivateKey = None,
    port: Port = None,
    home: Home = None,
) -> None:
    """Take part in federations until stopped: SuperNode and executor, of which only the installed app is run.

    Without SITE.yaml it runs the home's site, and takes from the home whatever no option says.
    """
    from wardpose.client.launcher import run_home, run_site
    from wardpose.shared.children import log_to_stderr

    log_to_stderr()
    if site is None:
        _refuse_mixed(superlink, root_certificates, auth_private_key)
        raise typer.Exit(run_home(open_site_home(home), port=port))
    status = run_site(
        site,
        superlink=_needed(superlink, "--superlink"),
        root_certificates=_needed(root_certificates, "--root-certificates"),
        private_key=_needed(auth_private_key, "--auth-private-key"),
        port=port or NODE_PORT,
    )
    raise typer.Exit(status)


@app.command()
def node(
    superlink: Superlink = None,
    root_certificates: RootCertificates = None,
    auth_private_key: PrivateKey = None,
    secret_file: SecretFile = None,
    host: Annotated[str, typer.Option(help="Address that the executor reaches this process at.")] = "127.0.0.1",
    port: Port = None,
    home: Home = None,
) -> None:
    """Run the half of `run` that holds the node's key and reaches the server, and sees no patient's data."""
    from wardpose.shared.children import QUIET, log_to_stderr

    os.environ.update(QUIET)  # Flower reads them when it is imported
    from wardpose.client.supernode import run_supernode

    log_to_stderr()
    if superlink is None:
        place = open_site_home(home)
        superlink, port = place.superlink, port or place.settings.ports.node
        root_certificates = root_certificates or place.authority
        auth_private_key, secret_file = auth_private_key or place.node_key, secret_file or place.secret
    run_supernode(
        superlink=superlink,
        root_certificates=_needed(root_certificates, "--root-certificates"),
        private_key=_needed(auth_private_key, "--auth-private-key"),
        secret_file=_needed(secret_file, "--secret-file"),
        host=host,
        port=port or NODE_PORT,
    )


@app.command("exec")
def execute(
    site: AnySiteFile = None,
    secret_file: SecretFile = None,
    runtime_api_address: Annotated[
        str | None, typer.Option(help="Where the SuperNode listens, host:port.", show_default=f"127.0.0.1:{NODE_PORT}")
    ] = None,
    home: Home = None,
) -> None:
    """Run the half of `run` that sees the patients' data and reaches nothing but the SuperNode."""
    from wardpose.shared.children import QUIET, log_to_stderr

    os.environ.update(QUIET)  # Flower reads them when it is imported
    from wardpose.client.executor import run_executor

    log_to_stderr()
    if site is None:
        place = open_site_home(home)
        site, secret_file = place.site, secret_file or place.secret
        runtime_api_address = runtime_api_address or place.node
    run_executor(
        site,
        address=runtime_api_address or f"127.0.0.1:{NODE_PORT}",
        secret_file=_needed(secret_file, "--secret-file"),
    )


def _needed(value: Given | None, option: str) -> Given:
    """Return what an option says that only a home could stand for.

    Raises:
        ConfigError: neither is there.

    """
    if value is None:
        raise ConfigError(f"{option}: missing (allowed: give it, or leave out SITE.yaml and name a site's --home)")
    return value


def _refuse_mixed(*values: object) -> None:
    if any(value is not None for value in values):
        raise ConfigError("SITE.yaml: missing (allowed: give it with these options, or run a site's --home without)")


@app.command()
def install(
    kit: KitPath,
    data: Annotated[
        Path | None,
        typer.Option(
            help="What there is: COCO, MPII, LSP, CVAT, Label Studio, video or frames with labels.",
            show_default="as site.yaml has it",
        ),
    ] = None,
    fingerprint: Fingerprint = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Below which everything goes.", show_default="the whole machine, as root"),
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="Side file: whose record is whose.", show_default="one beside the labels")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="What the guarantee protects.", show_default="patient, where they are named")
    ] = None,
    declared_patients: Annotated[
        int | None, typer.Option(help="A public number near that of the patients.", show_default="rounded")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad-records", help="Leave records out that cannot be used.")
    ] = False,
    skeleton: Annotated[str, typer.Option(help="Joints that the federation trains.")] = "lsp14",
    as_json: AsJson = False,
) -> None:
    """Install this hospital's archive, with a site.yaml filled in from its data. Exits 1 when a check fails."""
    from wardpose.client.install import enable, install_site
    from wardpose.shared.commands.kits import open_confirmed

    opened = open_confirmed(kit, role="site", fingerprint=fingerprint, home=home)
    done = install_site(
        opened,
        data,
        home=home,
        patients=patients,
        unit=unit,
        declared=declared_patients,
        skip_bad=skip_bad,
        skeleton=skeleton,
    )
    placed = done.installed.placed
    enabled = enable(done.installed.units)
    failed = any(found.status == "failure" for found in done.findings)
    summary = {
        "home": str(placed.home),
        "new": placed.new,
        "site_yaml": "kept" if done.cohort is None or done.differs else "written",
        "differs": list(done.differs),
        "units": list(done.installed.units),
        "enabled": enabled,
        "next": f"wardpose site check --connect --home {placed.home}",
    }
    if done.cohort is not None:
        cohort = done.cohort
        summary["data"] = f"{cohort.what}: {cohort.records} records of {cohort.patients} patients"
        summary["declared_patients"] = done.declared
    if not as_json:
        _say_summary(summary)
    verdict = "installed, but this site cannot take part yet" if failed else "installed; this site can take part"
    shown = done.findings if as_json else [found for found in done.findings if found.status != "ok"]
    say_findings(shown, ok=not failed, verdict=f"{verdict}; next: {summary['next']}", counts=summary, as_json=as_json)


def _say_summary(summary: dict[str, Any]) -> None:
    screen = console()
    screen.print(line(f"{summary['home']}: {'installed' if summary['new'] else 'brought up to date'}"), soft_wrap=True)
    if "data" in summary:
        text = f"{summary['data']}; declared_patients {summary['declared_patients']}, which is public"
        screen.print(line(text), soft_wrap=True)
    for difference in summary["differs"]:
        screen.print(line(f"site.yaml stays as you have it: {difference}"), soft_wrap=True)
    if summary["units"]:
        state = "start with the machine" if summary["enabled"] else "are in place, and not enabled"
        screen.print(line(f"{', '.join(summary['units'])} {state}"), soft_wrap=True)


@app.command()
def check(
    site: Annotated[
        Path | None,
        typer.Argument(
            help="The hospital's site.yaml.", metavar="SITE.yaml", show_default=_OF_HOME, callback=_as_its_owner
        ),
    ] = None,
    skeleton: Annotated[str, typer.Option(help="Joints that the federation trains.")] = "lsp14",
    connect: Annotated[
        bool, typer.Option("--connect", help="The way to the server, too: TLS, clock, registration, versions, plan.")
    ] = False,
    home: Home = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="Plan to hold against the policy, with --connect.", metavar="PLAN", show_default="the kit's"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that this site could take part: files, data, budget, device, clock. Exits 1 when something fails."""
    from wardpose.client.check import check_site
    from wardpose.client.connection.check import check_connection
    from wardpose.client.home import open_site_home
    from wardpose.shared.children import QUIET
    from wardpose.shared.errors import ConfigError

    if connect:
        os.environ.update(QUIET)  # Flower reads them when it is imported
        opened = open_site_home(home)
        if site is not None and site.resolve() != opened.site:
            raise ConfigError(f"{site}: is not the site.yaml of {opened.folder} (allowed with --connect: leave it out)")
        findings = check_connection(opened, plan=plan, skeleton=skeleton)
    elif plan is not None:
        raise ConfigError("--plan: is looked at with --connect alone (allowed: both)")
    else:
        findings = check_site(open_site_home(home).site if site is None else site, skeleton=skeleton)
    failed = any(finding.status == "failure" for finding in findings)
    verdict = "this site cannot take part" if failed else "this site can take part"
    say_findings(findings, ok=not failed, verdict=verdict, counts={}, as_json=as_json)


@app.command()
def status(home: Home = None, as_json: AsJson = False) -> None:
    """Show on one screen where this site stands: last round, budget, what went wrong, what to do now."""
    from wardpose.client.facts import certificates_of
    from wardpose.client.home import open_site_home
    from wardpose.client.status import site_status
    from wardpose.shared.status_terminal import show
    from wardpose.shared.status_view import finite

    opened = open_site_home(home)
    view = site_status(opened.site, certificates=certificates_of(opened))
    if as_json:
        typer.echo(json.dumps(finite(view.to_json())))
    else:
        console().print(show(view))


@app.command()
def ledger(site: SiteFile, as_json: AsJson = False) -> None:
    """Show what was charged to this site's patients, entry by entry, and the epsilon it amounts to."""
    from wardpose.client.overview import overview

    shown = overview(site)
    if as_json:
        typer.echo(json.dumps(shown))
        return
    screen = console()
    screen.print(line(f"{shown['ledger']}: {len(shown['entries'])} entries, chain unbroken"), soft_wrap=True)
    headings = ("entry", "time", "kind", "cohort", "run", "round", "charged")
    keys = ("sequence", "time", "kind", "cohort", "run", "round")
    rows = ([*(entry[key] for key in keys), "; ".join(entry["charged"])] for entry in shown["entries"])
    screen.print(table(headings, rows, left=len(headings)))
    for cohort in shown["cohorts"]:
        if cohort["not_private"]:
            screen.print(line(("NOT PRIVATE", "bold red"), f": {cohort['name']}: {cohort['not_private']}"))
        other = "replace-one" if shown["adjacency"] == "add-remove" else "add-remove"
        screen.print(
            line(
                f"{cohort['name']}: epsilon {_spent(cohort)} at delta {shown['delta']:g}, {shown['adjacency']} "
                f"({_number(cohort['epsilon_by_adjacency'][other])} {other})"
            )
        )
        screen.print(
            line(
                f"  enforced: {_RULES[cohort['enforced_by']]}; one declared course "
                f"{_number(cohort['epsilon_course'])}, Rényi filter {_number(cohort['epsilon_renyi_filter'])}, "
                f"as a bare list {_number(cohort['epsilon_composed'])}"
            )
        )
        if cohort["epsilon_of_patient"] is not None:
            screen.print(line(f"  of a patient with all their frames: epsilon {cohort['epsilon_of_patient']:.4f}"))
        for tier in cohort["tiers"]:
            screen.print(line(f"  tier {tier['tier']}: epsilon {_spent(tier)}"))
    for row in shown["patients"]:
        screen.print(
            line(f"{row['patients']} patients have spent epsilon {_number(row['epsilon_spent'])} in all cohorts")
        )


_RULES = {"course": "the declared course", "renyi-filter": "the Rényi filter (orders of several courses)"}


@app.command()
def policy(site: SiteFile, as_json: AsJson = False) -> None:
    """Show every knob of a round: who may turn it, within what, and what that protects."""
    from wardpose.client.policy import knobs
    from wardpose.shared.site_config import load_site

    rows = knobs(load_site(site))
    if as_json:
        typer.echo(json.dumps([vars(row) for row in rows]))
        return
    headings = ("knob", "turned by", "bound", "protects")
    shown = [(row.knob, row.turned_by, row.bound, row.protects) for row in rows]
    console().print(table(headings, shown, left=len(headings)))


def _spent(row: dict[str, Any]) -> str:
    budget = "" if row["epsilon_budget"] is None else f" of {row['epsilon_budget']:g}"
    return _number(row["epsilon_spent"]) + budget


def _number(epsilon: float | None) -> str:
    return "infinite" if epsilon is None else f"{epsilon:.4f}"


@app.command("accept-coordinator-ledger")
def accept_coordinator_ledger(
    site: SiteFile,
    why: Annotated[str, typer.Option("--why", help="What happened, and who of the coordinator says so; it is kept.")],
) -> None:
    """Go on with a coordinator whose ledger was lost or put back; what this site's ledger charged stays charged."""
    from wardpose.client.site import open_site
    from wardpose.shared.errors import ConfigError

    if not why.strip():
        raise ConfigError("--why: is empty (allowed: what happened, and who says so)")
    open_site(site).contact.accept_another(why)
    typer.echo("the coordinator's ledger is believed at its next order, whatever it is", err=True)


@app.command("clear-cache")
def clear_cache(site: SiteFile) -> None:
    """Delete the crops and features that training keeps of this site's patients. Ledger and journal stay."""
    from wardpose.shared.site_config import load_site
    from wardpose.shared.training.cache import cache_bytes, delete_cache

    folder = load_site(site).cache_folder
    size = cache_bytes(folder)
    delete_cache(folder)
    typer.echo(f"{folder}: {size / 1e6:.1f} MB deleted", err=True)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where site.yaml is written; made when missing.")],
    name: Annotated[str, typer.Option(help="The site's name, as registered with the server.")] = "my-hospital",
) -> None:
    """Write a commented site.yaml to start from."""
    from wardpose.client.template import write_template

    path = write_template(folder, name)
    typer.echo(
        f"{path}: fill in cohort and policy, send {folder / 'node.pub'} to the coordinator, put their coordinator.pub "
        f"beside it, then run: wardpose site check {path}",
        err=True,
    )


@app.command()
def request(
    name: Annotated[str, typer.Argument(help="The site's name in the federation.")],
    home: Annotated[Path, typer.Option(help="Where the site's archive will be installed; the keys stay in it.")],
) -> None:
    """Make this site's keys here, and the one file that asks the coordinator for an archive to them."""
    from wardpose.client.request import make_request

    path, fingerprint = make_request(name, home)
    typer.echo(f"{path}: send it to the coordinator; nothing in it is secret")
    typer.echo(f"node key {fingerprint}: tell it to the coordinator by telephone or in person")
