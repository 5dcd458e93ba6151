"""The coordinator's status page: where the run stands, what each site spent, what went wrong, and what to do now."""

import time
from collections.abc import Mapping
from pathlib import Path

from wardpose.server.advice import AFTER_REFUSAL, AFTER_REJECTION, AFTER_RUN, AFTER_STATE, RENEW
from wardpose.server.apart import Alarm, open_alarms
from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.facts import (
    JOURNAL,
    Places,
    Runs,
    SiteAccount,
    Spending,
    before_first_run,
    find_runs,
    late_in_a_row,
    read_spending,
    run_folders,
)
from wardpose.server.journal import SiteRow
from wardpose.server.outcome import FAILED, RUNNING, Outcome, outcome
from wardpose.server.runs import LATEST, find_run
from wardpose.server.spent import ledger_of, state_of
from wardpose.server.status_tables import evaluation_table, round_table, site_table
from wardpose.server.summary import not_private
from wardpose.server.superlink import Node, registered_nodes
from wardpose.shared.expiry import certificate_ends
from wardpose.shared.refusals import Refusal
from wardpose.shared.status_view import (
    Curve,
    Fact,
    Finding,
    Reading,
    StatusView,
    Table,
    Tone,
    ago,
    budget_tone,
    by_urgency,
    certificate_findings,
    certificate_table,
    disk_facts,
    duration,
    listed,
    number,
    of_budget,
    score_label,
    size,
    worst,
)

_LATE_ROUNDS = 3  # in a row, from which somebody should look
_OVERDUE_SECONDS = 7200.0  # without a finished round
_FOOTER = (
    "Epsilon bounds what anybody who sees every release can learn about whether one patient took part; it is what both "
    "ledgers were charged, never an estimate. Scores are on public data unless it says otherwise."
)
_ENDED: Mapping[str, tuple[Tone, str]] = {
    "completed": ("good", "The run is completed: {done} of {planned} rounds."),
    "stopped": ("bad", "The run was stopped after round {done} of {planned}: too few sites could take part."),
    "interrupted": ("warning", "The run was interrupted after round {done} of {planned}."),
    "failed": ("bad", "The run failed after round {done} of {planned}."),
}


def server_status(places: Places, *, now: float | None = None) -> StatusView:
    """Make a coordinator's status page of its files; none of them is written or locked.

    Args:
        places: where the files are.
        now: Unix time; the clock's when absent.

    """
    now = time.time() if now is None else now
    reading = Reading()
    todo = "Look at the file that is named: another program may hold it, or the disk may be full."
    renew = f"Renew it: {RENEW}"
    ends = reading.read("A certificate", lambda: certificate_ends(places.certificates), dict[str, float](), todo=renew)
    nodes = [] if places.superlink is None else _nodes(places, reading)
    disk, disk_findings = disk_facts(places.directory)
    always = [*disk_findings, *certificate_findings(ends, now, todo=renew)]
    tables = [certificate_table(ends, now)] if ends else []
    runs = reading.read("The run journal", lambda: find_runs(places.directory), None, todo=todo)
    submitted = reading.read("The run that was submitted last", lambda: _submitted(places, runs), None, todo=todo)
    if runs is None and places.coordinator is not None and not run_folders(places.directory):
        lost = "Restore the backup of the folder that is named; what the ledger was charged stays charged."
        reading.read("The record of runs", lambda: before_first_run(places), None, todo=lost)
    if runs is None and submitted is not None:
        return StatusView(
            role="coordinator",
            name="",
            headline=f"Run {submitted.run} {submitted.status}: {submitted.why}.",
            tone="plain" if submitted.status == RUNNING else "bad",
            next_step=submitted.next,
            last_error=submitted.why if submitted.status == FAILED else "",
            findings=by_urgency([*reading.findings, *always]),
            facts=(*_connection(nodes, []), *disk),
            tables=tuple(tables),
            made=now,
        )
    if runs is None:
        return _without_runs(places, reading, always, facts=[*_connection(nodes, []), *disk], tables=tables, now=now)
    spending = reading.read("The coordinator's ledger", lambda: read_spending(runs), None, todo=_ledger_todo(runs))
    apart = reading.read("The record of contacts", lambda: open_alarms(_beside(runs)), list[Alarm](), todo=todo)
    contradicted = reading.read(
        "The record of alarms",
        lambda: _contradicted(runs),
        list[str](),
        todo=todo,
    )
    accounts = {} if spending is None else {site.name: site for site in spending.sites}
    known = {node.name: node for node in nodes}
    findings = by_urgency(
        [
            *reading.findings,
            *_about_submission(submitted),
            *_about_run(runs, now),
            *_about_ledgers(apart, contradicted),
            *_about_sites(runs, accounts, known if places.superlink is not None else None, now),
            *always,
        ]
    )
    tone, headline = _headline(runs)
    urgent = sum(finding.tone == "bad" for finding in findings)
    if urgent and runs.last["status"] in ("running", "completed"):
        headline = f"{headline.rstrip('.')}; {urgent} {'things need' if urgent > 1 else 'thing needs'} somebody now."
    return StatusView(
        role="coordinator",
        name=str(runs.last["federation"]),
        headline=headline,
        tone=worst([tone, *(finding.tone for finding in findings)]),
        next_step=_next_step(runs, findings),
        last_error=_last_error(runs),
        findings=findings,
        facts=(*_facts(runs, spending, now), *_connection(nodes, runs.names), *disk),
        tables=(
            site_table(runs, accounts, known if places.superlink is not None else None, apart, now),
            round_table(runs, now),
            *evaluation_table(runs),
            *tables,
        ),
        curve=_curve(runs),
        footer=_FOOTER,
        made=now,
    )


def _without_runs(
    places: Places, reading: Reading, always: list[Finding], *, facts: list[Fact], tables: list[Table], now: float
) -> StatusView:
    """Show a folder without a run: nobody began one, or its journal was lost."""
    todo = "Look at the files that are named; what ledgers were charged stays charged."
    journals = [folder / JOURNAL for folder in run_folders(places.directory)]
    if journals and not reading.findings:
        what = f"{listed([str(path) for path in journals])}: holds no run."
        ask = "If one was begun there, its journal was lost: restore its backup. The ledger keeps what was charged."
        reading.findings.append(Finding(tone="warning", what=what, todo=ask))
    broken = bool(reading.findings)
    return StatusView(
        role="coordinator",
        name="",
        headline="The runs cannot be read." if broken else "No run yet.",
        tone=worst([finding.tone for finding in (*reading.findings, *always)], "plain"),
        next_step=todo if broken else "Start a run: wardpose server submit federation.yaml",
        findings=by_urgency([*reading.findings, *always]),
        facts=tuple(facts),
        tables=tuple(tables),
        made=now,
    )


def _submitted(places: Places, runs: Runs | None) -> Outcome | None:
    """Tell what became of the run that was submitted last, where its ServerApp wrote nothing down (yet)."""
    latest = places.directory / LATEST
    if not latest.is_dir() or (runs is not None and runs.folder.resolve() == latest.resolve()):
        return None
    return outcome(find_run(places.directory), places.superlink)


def _about_submission(submitted: Outcome | None) -> list[Finding]:
    if submitted is None:
        return []
    tone: Tone = "plain" if submitted.status == RUNNING else "bad"
    what = f"Run {submitted.run}, submitted last, {submitted.status}: {submitted.why}."
    return [Finding(tone=tone, what=what, todo=submitted.next)]


def _nodes(places: Places, reading: Reading) -> list[Node]:
    todo = "See that the SuperLink runs, and that this user may read its database."
    return reading.read("The SuperLink's database", lambda: registered_nodes(places.superlink or Path()), [], todo=todo)


def _beside(runs: Runs, name: str = "contact.sqlite") -> Path:
    return ledger_of(runs.folder).path.with_name(name)


def _contradicted(runs: Runs) -> list[str]:
    return [alarm.site for alarm in Alarms(_beside(runs, ALARMS)).of()]


def _ledger_todo(runs: Runs) -> str:
    state, _ = state_of(runs.folder)
    return AFTER_STATE.get(state, "Look at the file that is named; do not delete it.")


def _headline(runs: Runs) -> tuple[Tone, str]:
    last, done = runs.last, len(runs.last_rounds)
    if last["status"] == "running":
        return "good", f"Round {min(done + 1, last['rounds'])} of {last['rounds']} is under way."
    tone, words = _ENDED.get(last["status"], ("warning", "The run is {status} after round {done} of {planned}."))
    return tone, words.format(done=done, planned=last["rounds"], status=last["status"])


def _next_step(runs: Runs, findings: tuple[Finding, ...]) -> str:
    last = runs.last
    urgent = [finding for finding in findings if finding.tone == "bad"]
    if urgent:
        return urgent[0].step
    if last["status"] == "completed":
        return "Nothing. The model and its report are in the run's folder: wardpose server report"
    if last["status"] != "running":
        return AFTER_RUN.get(str(last.get("reason", "")), AFTER_RUN[""])
    warned = [finding for finding in findings if finding.tone == "warning"]
    return warned[0].step if warned else "Nothing: wait for the round to end."


def _last_error(runs: Runs) -> str:
    """Return the last thing that went wrong in the latest run, in words."""
    last = runs.last
    if last.get("detail"):
        return str(last["detail"])
    for row in reversed(runs.here()):
        text = _words(row)
        if text:
            return f"{row.site}, {f'round {row.round}' if row.round else 'preflight'}: {text}"
    return ""


def _words(row: SiteRow) -> str:
    if row.status == "rejected":
        return f"its answer was not believed ({row.reason}): {row.detail}"
    if row.status in ("refused", "failed"):
        why = Refusal(row.code).sentence if row.code in set(Refusal) else f"error {row.code}"
        return f"{row.status}: {why}"
    return "it missed the deadline" if row.status == "late" else ""


def _about_run(runs: Runs, now: float) -> list[Finding]:
    last, found, rounds = runs.last, [], runs.last_rounds
    tone, headline = _headline(runs)
    reason = str(last.get("reason", ""))
    if last["status"] in ("failed", "stopped", "interrupted"):
        detail = str(last.get("detail", ""))
        what = f"{headline.rstrip('.')}{f': {detail}' if detail else '.'}"
        found.append(Finding(tone=tone, what=what, todo=AFTER_RUN.get(reason, AFTER_RUN[""])))
    why = not_private(last["mechanism"], runs.here())
    if why:
        todo = "Do not give this model away as private; the ledgers say so too."
        found.append(Finding(tone="bad", what=f"NOT PRIVATE: {why}.", todo=todo))
    released = {(row.run, row.round) for row in runs.sites if row.status == "released"}
    empty = [row.round for row in rounds if (row.run, row.round) not in released]
    if empty:
        what = (
            f"No release came in round {listed([str(number) for number in empty[-5:]])}: charged, and nothing learned."
        )
        todo = "See that deadline_seconds of the plan is longer than a round takes at the slowest site."
        found.append(Finding(tone="bad" if empty[-1] == rounds[-1].round else "warning", what=what, todo=todo))
    since = rounds[-1].started + rounds[-1].seconds if rounds else last["started"]
    if last["status"] == "running" and now - since > _OVERDUE_SECONDS:
        what = f"The run is under way and no round has ended for {duration(now - since)}."
        todo = "See whether its process lives (wardpose server log); if it does not: wardpose server resume"
        found.append(Finding(tone="bad", what=what, todo=todo))
    return found


def _about_ledgers(apart: list[Alarm], contradicted: list[str]) -> list[Finding]:
    found = [
        Finding(
            tone="bad",
            what=f"{alarm.site}: ledgers apart: {alarm.what}.",
            todo=AFTER_REFUSAL[Refusal.APART],
            about=alarm.site,
        )
        for alarm in apart
    ]
    for site in sorted(set(contradicted)):
        todo = f"Ask the site's staff; if they say why: wardpose server accept-ledger {site} --why ..."
        found.append(
            Finding(
                tone="bad",
                what=f"{site}: stated a ledger that contradicts one before.",
                todo=todo,
                about=site,
            )
        )
    return found


def _about_sites(
    runs: Runs, accounts: dict[str, SiteAccount], nodes: dict[str, Node] | None, now: float
) -> list[Finding]:
    found = []
    for name in runs.names:
        rows = [row for row in runs.here(name) if row.status != "absent"]
        last = rows[-1] if rows else None
        if last is not None and last.status == "refused":
            todo = AFTER_REFUSAL.get(last.code or 0, "Ask the site.")
            found.append(Finding(tone="bad", what=f"{name}: {_words(last)}.", todo=todo, about=name))
        elif last is not None and last.status == "rejected":
            todo = AFTER_REJECTION.get(last.reason, "Ask the site.")
            found.append(Finding(tone="bad", what=f"{name}: {_words(last)}.", todo=todo, about=name))
        elif last is not None and last.status == "failed":
            todo = AFTER_REFUSAL.get(last.code or 0, AFTER_REFUSAL[Refusal.FAILED])
            found.append(Finding(tone="warning", what=f"{name}: {_words(last)}.", todo=todo, about=name))
        late = late_in_a_row(rows)
        if late:
            what = f"{name}: late in {late} round{'s' if late > 1 else ''} in a row, each of them charged."
            todo = "Ask the site whether its machine is busy or off; give the plan a longer server.deadline_seconds."
            found.append(Finding(tone="bad" if late >= _LATE_ROUNDS else "warning", what=what, todo=todo, about=name))
        found += _about_budget(name, accounts.get(name))
        node = None if nodes is None else nodes.get(name)
        if nodes is not None and node is None:
            todo = "Register its key: wardpose server register"
            found.append(Finding(tone="warning", what=f"{name}: is not registered.", todo=todo, about=name))
        elif node is not None and not node.online:
            what = f"{name}: is not connected; last seen {ago(node.last_seen, now)}."
            todo = "Ask the site whether its SuperNode runs: wardpose site check --connect"
            found.append(Finding(tone="warning", what=what, todo=todo, about=name))
    return found


def _about_budget(name: str, account: SiteAccount | None) -> list[Finding]:
    if account is None or account.budget is None or budget_tone(account.spent, account.budget) == "good":
        return []
    figures = f"epsilon {number(account.spent)} of {account.budget:g}"
    if account.spent > account.budget:
        todo = "Find out how before another round runs: wardpose ledger verify"
        return [Finding(tone="bad", what=f"{name}: {figures} is spent, more than its budget.", todo=todo, about=name)]
    todo = "Nothing gives budget back; plan the rounds that are left, or go on with the other sites."
    return [Finding(tone="warning", what=f"{name}: {figures} is spent.", todo=todo, about=name)]


def _connection(nodes: list[Node], names: list[str]) -> list[Fact]:
    if not nodes:
        return []
    online, of = sum(node.online for node in nodes), max(len(nodes), len(names))
    return [Fact(name="sites connected", value=f"{online} of {of}", tone="good" if online == of else "warning")]


def _facts(runs: Runs, spending: Spending | None, now: float) -> list[Fact]:
    last, rounds = runs.last, runs.last_rounds
    done, planned = len(rounds), last["rounds"]
    found = [Fact(name="rounds", value=f"{done} of {planned}", share=min(1.0, done / planned) if planned else None)]
    found += _scores(runs)
    if spending is not None and spending.sites:
        top = max(spending.sites, key=lambda site: site.spent / (site.budget or 1.0))
        found.append(
            Fact(
                name="epsilon, the site that spent most of its budget",
                value=f"{number(top.spent)} of {number(top.budget, 2)}",
                note=f"{top.name}, at delta {top.delta:g}, one {last['unit']}",
                tone=budget_tone(top.spent, top.budget),
                share=of_budget(top.spent, top.budget),
            )
        )
        overlap = f"{number(spending.overlap)} for one who is at {last['overlap']} sites"
        found.append(Fact(name="epsilon of the federation", value=number(spending.disjoint), note=overlap))
        sigmas = [site.sigma for site in spending.sites if site.sigma is not None]
        if sigmas:
            note = f"mechanism {last['mechanism']}"
            found.append(Fact(name="noise multiplier (sigma)", value=number(min(sigmas), 2), note=note))
    if rounds:
        ended = rounds[-1].started + rounds[-1].seconds
        found.append(Fact(name="last round", value=duration(rounds[-1].seconds), note=f"ended {ago(ended, now)}"))
        up, down = sum(row.bytes_up for row in rounds), sum(row.bytes_down for row in rounds)
        found.append(Fact(name="releases received", value=size(up), note=f"{size(down)} of weights sent"))
    return found


def _scores(runs: Runs) -> list[Fact]:
    """Show the private score with the one that is free beside it."""
    last = runs.last
    name = score_label(str(last["score_name"]))
    before, after = ((last[f"score_{moment}"] or {}).get("score") for moment in ("initial", "final"))
    on = (last["score_final"] or last["score_initial"] or {}).get("on", "test")
    place = "patients" if on == "patients" else "public test data"
    scores = [row.score for row in runs.last_rounds if row.score is not None]
    if after is None and not scores:
        return [] if before is None else [Fact(name=f"{name}, {place}", value=number(before), note="before any round")]
    value, where = (after, place) if after is not None else (scores[-1], "public validation data")
    free = "" if before is None else f"free baseline, before any patient's round: {number(before)} ({place})"
    worse = after is not None and before is not None and after <= before
    note = f"{free}; the rounds were not worth it" if worse else free
    return [Fact(name=f"{name}, {where}", value=number(value), note=note, tone="warning" if worse else "plain")]


def _curve(runs: Runs) -> Curve | None:
    points = tuple((row.round, row.score) for row in runs.last_rounds if row.score is not None)
    if not points:
        return None
    name = score_label(str(runs.last["score_name"]))
    before = (runs.last["score_initial"] or {}).get("score")
    levels = () if before is None else (("free baseline (before any patient's round, test data)", before),)
    return Curve(title=f"{name} on public validation data, by round", points=points, levels=levels)
