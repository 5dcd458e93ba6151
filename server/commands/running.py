"""`wardpose server register | nodes | revoke | submit | resume | stop | status | log | report`: a coordinator's day."""

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.server.commands.launching import Home, entered
from wardpose.shared.terminal import Json, console, line, say, say_step, table

if TYPE_CHECKING:
    from wardpose.server.home import ServerHome
    from wardpose.server.journal import SiteRow
    from wardpose.server.outcome import Outcome

_STYLE = re.compile(r"\x1b\[[0-9;]*m")  # of Flower's own lines

RunId = Annotated[str | None, typer.Argument(help="ID of the run.", metavar="RUN", show_default="the latest")]
Wait = Annotated[bool, typer.Option("--wait", help="Show the rounds, and end with the run's exit status.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to `wardpose server`."""
    for command in (register, nodes, revoke, submit, resume, stop, status, log, report):
        app.command()(command)


def register(
    names: Annotated[
        list[str] | None, typer.Argument(help="Sites.", metavar="NAME", show_default="all in the home's nodes/")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Register sites' keys with the SuperLink, under their names."""
    from wardpose.server.nodes import register as registered

    say(dict(registered(entered(home), names or ())), as_json=as_json)


def nodes(home: Home = None, as_json: Json = False) -> None:
    """Show the sites by name: who is registered, who is there, with which key, and what each was charged."""
    from wardpose.server.nodes import views

    found = views(entered(home))
    if as_json:
        typer.echo(json.dumps({"nodes": [vars(view) for view in found]}))
        return
    rows = [
        (
            view.name,
            "yes" if view.registered else "no",
            "online" if view.online else "offline",
            _ago(view.last_seen),
            _number(view.epsilon),
            view.fingerprint,
        )
        for view in found
    ]
    delta = f"epsilon at delta {found[0].delta:g}" if found else "epsilon"
    console().print(table(("site", "registered", "now", "last seen", delta, "key"), rows, left=6))


def revoke(
    name: Annotated[str, typer.Argument(help="The site.", metavar="NAME")], home: Home = None, as_json: Json = False
) -> None:
    """Take a site's key back: its SuperNode is refused from now on; what it was charged stays charged."""
    from wardpose.server.nodes import revoke as revoked

    revoked(entered(home), name)
    say({"site": name, "revoked": True}, as_json=as_json)


def submit(
    plan: Annotated[
        Path | None, typer.Argument(help="The federation.yaml of the run.", metavar="PLAN", show_default="the home's")
    ] = None,
    connection: Annotated[
        str | None, typer.Argument(help="Without a home: Flower's name of the connection.", show_default="its default")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say whether it would be refused, and by whom.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--directory", help="Without a home: the run's folder.", show_default="")
    ] = None,
    again: Annotated[bool, typer.Option("--resume", help="Without a home: go on with the run in the folder.")] = False,
    spend_rest: Annotated[
        bool, typer.Option("--spend-rest", help="Also if the run would train on noise with what is left.")
    ] = False,
    wait: Wait = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Hold a plan against the coordinator's limits and every site's policy, and run it; exits 2 when it is refused."""
    from wardpose.server.submission import check_plan, submit_plan
    from wardpose.shared.errors import ConfigError

    if plan is not None and not _has_home(home):
        found = check_plan(plan, directory=directory, resume=again, spend_rest=spend_rest)
        if not check:
            found |= {"flower_run": submit_plan(plan, connection, directory=directory, resume=again)}
        say(found, as_json=as_json)
        return
    if connection is not None or directory is not None or again:
        raise ConfigError(
            "CONNECTION, --directory, --resume: are for a server without a home (allowed: leave them out)"
        )
    _submit(entered(home), plan, check=check, spend_rest=spend_rest, wait=wait, as_json=as_json)


def _submit(home: "ServerHome", plan: Path | None, *, check: bool, spend_rest: bool, wait: bool, as_json: bool) -> None:
    from wardpose.server.outcome import RUNNING, outcome
    from wardpose.server.submission import ask_sites, check_plan, discard, submit_new, wait_for_end
    from wardpose.shared.health import healthy

    plan, started = plan or home.plan, time.time()
    if check and not healthy(home.superlink, home.authority):
        found = check_plan(plan, directory=home.runs, spend_rest=spend_rest, coordinator=home.coordinator)
        _say_costs(found, as_json=as_json)
        say_step("the SuperLink does not answer, so that no site was asked (see: wardpose server run)")
        return
    run, found = submit_new(home, plan, preflight="only" if check else "strict", spend_rest=spend_rest)
    if not as_json:
        _say_costs(found, as_json=False)
        say_step("waiting for the sites' answers" if check else f"run {run.name}")
    answers = ask_sites(home, run, report=say_step)
    refused = [row for row in answers if row.status in ("refused", "rejected")]
    if not as_json:
        _say_answers(answers)
    if check:
        ended = wait_for_end(home, run, after=started)
        if not answers:
            say_step(ended.sentence)
        discard(run)
        if as_json:
            typer.echo(json.dumps(found | {"answers": _answers(answers)}))
        raise typer.Exit(2 if refused else 0 if answers else 1)
    now = outcome(run, home.database)
    if wait or refused or now.status != RUNNING:
        now = wait_for_end(home, run, after=started, report=say_step)
    if as_json:
        typer.echo(json.dumps(found | {"run": run.name, "answers": _answers(answers), **_outcome(now)}))
    say_step(now.sentence)
    raise typer.Exit(2 if refused else 0 if now.status == RUNNING else now.exit_status)


def resume(
    run: RunId = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="A plan with other rounds or server settings.", metavar="PLAN", show_default="as submitted"),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the run's end.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Go on with a run from its last finished round, and end with its exit status."""
    from wardpose.server.outcome import finished
    from wardpose.server.runs import find_run

    place = entered(home)
    chosen, started = find_run(place.runs, run), time.time()
    found = finished(chosen, place.database, plan)
    if found is not None:
        _end(found, as_json=as_json)
    from wardpose.server.submission import check_plan, hand_over, wait_for_end
    from wardpose.shared.config import load_federation
    from wardpose.shared.files import write_text

    check_plan(plan or chosen.plan, directory=chosen.folder, resume=True, coordinator=place.coordinator)
    if plan is not None:
        from wardpose.shared.yaml_config import to_yaml

        write_text(chosen.plan, to_yaml(load_federation(plan)))
    hand_over(place, chosen, resume=True)
    if no_wait:
        say({"run": chosen.name, "status": "running"}, as_json=as_json)
        return
    _end(wait_for_end(place, chosen, after=started, report=say_step), as_json=as_json)


def stop(run: RunId = None, home: Home = None, as_json: Json = False) -> None:
    """Stop a run; the round in hand is charged, and `resume` goes on after the last finished one."""
    from wardpose.server.operator import ask
    from wardpose.server.outcome import RUNNING, outcome
    from wardpose.server.runs import find_run
    from wardpose.shared.errors import ConfigError

    place = entered(home)
    chosen = find_run(place.runs, run)
    found = outcome(chosen, place.database)
    if found.status != RUNNING or not chosen.flower_runs:
        raise ConfigError(f"{found.sentence} (allowed: a run that is at work)")
    ask(place.operator, "stop", str(chosen.flower_runs[-1]))
    say({"run": chosen.name, "status": "told to stop"}, as_json=as_json)


def status(
    run: RunId = None,
    directory: Annotated[Path | None, typer.Option("--directory", help="A run's folder.", show_default="")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show a run: its state, rounds and scores, and every site's epsilon against its budget.

    Exits 0 when it completed, 1 when it failed, 3 when it stopped, 4 while it runs.
    """
    from wardpose.server.outcome import outcome
    from wardpose.server.runs import Run, find_run
    from wardpose.server.summary import summarise

    database = None
    if directory is not None:
        chosen = Run(directory.resolve())
    else:
        place = entered(home)
        chosen, database = find_run(place.runs, run), place.database
    begun = directory is not None or chosen.journal.runs()
    summary = summarise(chosen.folder) if begun else {}
    found = outcome(chosen, database)
    if as_json:
        typer.echo(json.dumps(summary | ({} if directory is not None and summary else _outcome(found))))
    else:
        if summary:
            _say_summary(summary if directory is not None else summary | {"run": chosen.name})
        say_step(found.sentence)
    raise typer.Exit(found.exit_status)


def log(run: RunId = None, home: Home = None) -> None:
    """Print what a run's ServerApp wrote, resumes included."""
    from wardpose.server.link_state import run_log
    from wardpose.server.runs import find_run

    place = entered(home)
    for number in find_run(place.runs, run).flower_runs:
        for text in run_log(place.database, number).splitlines():
            console().print(line(_STYLE.sub("", text)), soft_wrap=True)


def report(run: RunId = None, home: Home = None, as_json: Json = False) -> None:
    """Write the report of a run as one HTML file, and say where it is."""
    from wardpose.server.reporting import report_run
    from wardpose.server.runs import find_run

    path = report_run(find_run(entered(home).runs, run))
    say({"report": str(path)}, as_json=as_json)


def _has_home(home: Path | None) -> bool:
    import os

    from wardpose.server.home import FILE, VARIABLE

    return home is not None or VARIABLE in os.environ or Path(FILE).is_file()


def _end(found: "Outcome", *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run": found.run, **_outcome(found)}))
    say_step(found.sentence)
    raise typer.Exit(found.exit_status)


def _outcome(found: "Outcome") -> dict[str, Any]:
    return {"status": found.status, "why": found.why, "next": found.next}


def _answers(rows: "list[SiteRow]") -> dict[str, str]:
    return {row.site: _said(row) for row in rows}


def _said(row: "SiteRow") -> str:
    from wardpose.server.roll import sentence

    why = row.detail or ("" if row.code is None else sentence(row.code))
    return f"{row.status}: {why}" if why else row.status


def _say_answers(rows: "list[SiteRow]") -> None:
    for row in rows:
        say_step(f"  {row.site}: {_said(row)}")


def _say_costs(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found))
        return
    sigma = found["noise_multiplier"]
    screen = console()
    noise = "" if sigma is None else f", sigma {sigma:.4g}"
    screen.print(line(f"{found['federation']}: {found['rounds']} rounds{noise}"))
    rows = [
        (site["name"], _number(site["epsilon_spent"]), _number(site["epsilon_after"]), f"{site['epsilon_budget']:g}")
        for site in found["sites"]
    ]
    screen.print(table(("site", "epsilon so far", "after this run", "of"), rows))


def _say_summary(summary: dict[str, Any]) -> None:
    screen = console()
    screen.print(
        line(
            f"run {summary['run']}: ",
            (summary["status"], "bold"),
            f", round {summary['rounds']} of {summary['rounds_planned']}, mechanism {summary['mechanism']}, "
            f"unit {summary['unit']}",
        )
    )
    if summary["history"]:
        last = summary["history"][-1]["score"]
        screen.print(line(f"{summary['score_name']}: {'-' if last is None else f'{last:.3f}'} in the last round"))
    rows = []
    for site in summary["sites"]:
        budget = "-" if site["epsilon_budget"] is None else f"{site['epsilon_budget']:g}"
        delta = "-" if site["delta"] is None else f"{site['delta']:g}"
        spent = _number(site["epsilon_spent"])
        rows.append((site["name"], site["status"], spent, budget, delta, site["steps"], site["detail"]))
    screen.print(table(("site", "status", "epsilon spent", "budget", "delta", "steps", "why"), rows, left=7))
    if summary["not_private"]:
        screen.print(line(("NOT PRIVATE", "bold red"), f": {summary['not_private']}"))


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
