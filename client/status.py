"""A site's status page: what its patients were charged, what the coordinator asked, what went wrong, what to do now.

Parts that depend on patients' frames, or hold the text of an error (which may name a file of a patient), are marked
`local`: they are shown on the site's own machine and nowhere else.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wardpose.client.apart import Alarm, open_alarms
from wardpose.client.facts import Rate, as_told, certified, charged_entries, rate_of, spent_of
from wardpose.client.journal import OrderRow, SiteJournal
from wardpose.client.spent import refuse_lost, state_of
from wardpose.client.telemetry import QUANTILES, TrainingRow, training_rows
from wardpose.shared.errors import ConfigError
from wardpose.shared.expiry import certificate_ends
from wardpose.shared.files import existing
from wardpose.shared.known_server import FILE, KnownServer
from wardpose.shared.ledger_state import LedgerState
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.rounds_left import MOST_ROUNDS
from wardpose.shared.site_config import SiteConfig, load_site
from wardpose.shared.status_view import (
    Cell,
    Fact,
    Finding,
    Reading,
    StatusView,
    Table,
    Tone,
    ago,
    budget_tone,
    by_urgency,
    cells,
    certificate_findings,
    certificate_table,
    disk_facts,
    duration,
    moment,
    number,
    of_budget,
    size,
    worst,
)

_ORDERS_SHOWN, _ROUNDS_SHOWN = 12, 8
_OPEN_SECONDS = 7200.0  # that an order may take until somebody should look
_AFTER_STATE: Mapping[LedgerState, str] = {
    "missing": "Stop the site (its SuperNode) and restore the newest backup; what was charged since stays charged.",
    "empty": "Stop the site (its SuperNode) and restore the newest backup; what was charged since stays charged.",
    "locked": "Find the process that holds it (a backup program?); it passes by itself.",
    "broken": "Stop the site (its SuperNode), keep the file as it is, and restore the newest backup.",
    "rolled-back": "Stop the site (its SuperNode) and restore the newest backup; this one lacks what was paid for.",
}
_TONES: Mapping[str, Tone] = {"released": "good", "training": "plain", "refused": "warning", "failed": "bad"}
_FOOTER = (
    "Epsilon bounds what anybody who sees every release can learn about whether one patient took part. What is marked "
    '"this machine only" was never noised: looking at it is free, choosing by it what is sent is not.'
)


@dataclass(frozen=True, kw_only=True)
class _Ledger:
    entries: int
    spent: float
    rate: Rate


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What was read; each part its default where it could not be.

    `orders` are as the coordinator knows them, `own` as they are, for the machine itself.
    """

    state: LedgerState
    problem: str
    ledger: _Ledger | None
    orders: Sequence[OrderRow]
    own: Sequence[OrderRow]
    alarms: Sequence[Alarm]
    contradictions: int
    trained: Sequence[TrainingRow]
    ends: Mapping[str, float] = field(default_factory=dict)


def site_status(path: Path, *, certificates: Mapping[str, Path] | None = None, now: float | None = None) -> StatusView:
    """Make a site's status page of its files; none of them is written or locked.

    Args:
        path: the site.yaml.
        certificates: by name, to see when they end.
        now: Unix time; the clock's when absent.

    """
    now = time.time() if now is None else now
    reading = Reading()
    try:
        site = load_site(path)
    except ConfigError as error:
        todo = "Correct the key that is named, then: wardpose site check"
        return StatusView(
            role="site", name="", headline="The site's settings cannot be used.", tone="bad", next_step=todo,
            last_error=str(error), last_error_local=True, made=now,
        )  # fmt: skip
    read = _read(site, certificates or {}, reading, now)
    disk, disk_findings = disk_facts(existing(site.state), local=True)
    findings = by_urgency(
        [
            *reading.findings,
            *_about_ledger(read),
            *_about_budget(site, read),
            *_about_orders(read.orders, now),
            *disk_findings,
            *certificate_findings(read.ends, now, todo="Ask the coordinator for a new archive (provision --renew)."),
        ]
    )
    tone, headline = _headline(read, now)
    tables = [_orders(read.own, now), *_training(read.trained, now)]
    if read.ends:
        tables.append(certificate_table(read.ends, now))
    return StatusView(
        role="site",
        name=site.site,
        headline=headline,
        tone=worst([tone, *(finding.tone for finding in findings)]),
        next_step=_next_step(read, findings),
        last_error=_last_error(read.own),
        last_error_local=True,
        findings=findings,
        facts=(*_facts(site, read, now), *disk),
        tables=tuple(tables),
        footer=_FOOTER,
        made=now,
    )


def _read(site: SiteConfig, certificates: Mapping[str, Path], reading: Reading, now: float) -> _Read:
    todo = "Look at the file that is named: another program may hold it, or the disk may be full."
    state, problem = state_of(site)
    ask = _AFTER_STATE.get(state, "Look at the file that is named; do not delete it.")
    journal = SiteJournal(site.state / "journal.sqlite")
    known = KnownServer(site.state / FILE)
    own: list[OrderRow] = reading.read("The journal of orders", journal.orders, [], todo=todo, local=True)
    return _Read(
        state=state,
        problem=problem,
        ledger=None if problem else reading.read("The ledger", lambda: _ledger(site), None, todo=ask, local=True),
        orders=as_told(own, answer_seconds=site.answer_seconds, now=now),
        own=own,
        alarms=reading.read(
            "The record of contacts", lambda: open_alarms(site.state / "contact.sqlite"), [], todo=todo, local=True
        ),
        contradictions=reading.read(
            "The record of the coordinator's ledger", lambda: len(known.alarms()), 0, todo=todo, local=True
        ),
        trained=reading.read("The record of trainings", lambda: training_rows(site.state), [], todo=todo, local=True),
        ends=reading.read("A certificate", lambda: certificate_ends(certificates), {}, todo=todo, local=True),
    )


def _ledger(site: SiteConfig) -> _Ledger:
    refuse_lost(site)
    ledger = Ledger(site.ledger, readonly=site.ledger.exists())
    return _Ledger(entries=charged_entries(ledger), spent=spent_of(site, ledger), rate=rate_of(site, ledger))


def _headline(read: _Read, now: float) -> tuple[Tone, str]:
    if not read.orders:
        return "plain", "This site has not taken part in a round yet."
    last = read.orders[-1]
    if last.status == "training":
        return "good", f"Round {last.round} of {last.federation} is in training since {ago(last.received, now)}."
    words = {"released": "answered", "refused": "refused", "failed": "failed"}.get(last.status, last.status)
    when = ago(last.finished or last.received, now)
    return _TONES.get(last.status, "plain"), f"The last order, round {last.round} of {last.federation}, {words} {when}."


def _next_step(read: _Read, findings: Sequence[Finding]) -> str:
    pressing = [finding for finding in findings if finding.tone in ("bad", "warning")]
    if pressing:
        return pressing[0].step
    if not read.orders:
        return "See that all is ready (wardpose site check --connect), then wait for the coordinator's first order."
    return "Nothing: wait for the next order."


def _last_error(orders: Sequence[OrderRow]) -> str:
    for order in reversed(orders):
        if order.status in ("refused", "failed"):
            return f"round {order.round} of {order.federation}, {order.status}: {order.detail or 'nobody knows why'}"
    return ""


def _about_ledger(read: _Read) -> list[Finding]:
    found = []
    if read.problem:
        todo = _AFTER_STATE.get(read.state, "Look at the file that is named; do not delete it.")
        found.append(Finding(tone="bad", what=f"The ledger is {read.state}: {read.problem}.", todo=todo, local=True))
        found.append(Finding(tone="bad", what=f"The ledger is {read.state}.", todo=todo))
    if read.alarms:
        todo = "Find out with the coordinator whose ledger was lost or put back. No order is carried out until then."
        found += [Finding(tone="bad", what=f"Ledgers apart: {alarm.what}.", todo=todo) for alarm in read.alarms]
    if read.contradictions:
        what = f"The coordinator showed a ledger that contradicts one before ({read.contradictions} times)."
        todo = "Ask the coordinator's staff before another round is taken: wardpose ledger remote compare"
        found.append(Finding(tone="bad", what=what, todo=todo))
    return found


def _about_budget(site: SiteConfig, read: _Read) -> list[Finding]:
    found = []
    if site.simulation_seed is not None:
        what = "NOT PRIVATE: simulation_seed is set, so that whoever knows it can subtract the noise."
        found.append(Finding(tone="bad", what=what, todo="Remove simulation_seed from site.yaml."))
    if read.ledger is not None and budget_tone(read.ledger.spent, site.policy.epsilon) != "good":
        tone = budget_tone(read.ledger.spent, site.policy.epsilon)
        what = f"Epsilon {number(read.ledger.spent)} of {site.policy.epsilon:g} is spent."
        todo = "Nothing gives budget back; a larger one is a decision of the hospital (policy.epsilon)."
        found.append(Finding(tone=tone, what=what, todo=todo))
    return found


def _about_orders(orders: Sequence[OrderRow], now: float) -> list[Finding]:
    if not orders:
        return []
    last, found = orders[-1], []
    if last.status == "failed":
        todo = "Look at the error (on this machine), then: wardpose data check; the round stays charged."
        found.append(Finding(tone="bad", what=f"Round {last.round} failed here.", todo=todo))
    if last.status == "refused":
        todo = "See which bound it crosses: wardpose site policy. If the refusal is right, tell the coordinator."
        found.append(Finding(tone="warning", what=f"Round {last.round} was refused by this site.", todo=todo))
    if last.status == "training" and now - last.received > _OPEN_SECONDS:
        what = f"Round {last.round} came {ago(last.received, now)} and was never answered; its cost stays charged."
        found.append(Finding(tone="bad", what=what, todo="See whether the site's processes run: wardpose site check"))
    return found


def _facts(site: SiteConfig, read: _Read, now: float) -> list[Fact]:
    policy, found = site.policy, []
    if read.ledger is not None:
        spent, rate = read.ledger.spent, read.ledger.rate
        found.append(
            Fact(
                name="epsilon spent",
                value=f"{number(spent)} of {policy.epsilon:g}",
                note=f"cohort {site.cohort.name}, at delta {policy.delta:g}, one {policy.unit}",
                tone=budget_tone(spent, policy.epsilon),
                share=of_budget(spent, policy.epsilon),
            )
        )
        if rate.left is not None:
            left = f"more than {MOST_ROUNDS}" if rate.left >= MOST_ROUNDS - 1 else str(rate.left)
            tone: Tone = "bad" if rate.left == 0 else "warning" if rate.left < 3 else "plain"
            found.append(Fact(name="rounds left", value=left, note="at the last round's rate", tone=tone))
            found.append(Fact(name="noise multiplier (sigma)", value=number(rate.sigma, 2), note="of the last round"))
    outcomes = Counter(order.status for order in read.orders)
    if read.orders:
        others = ", ".join(f"{outcomes[status]} {status}" for status in ("refused", "failed") if outcomes[status])
        found.append(Fact(name="rounds answered", value=str(outcomes["released"]), note=others))
        found.append(Fact(name="last order", value=ago(read.orders[-1].received, now)))
        found.append(Fact(name="releases sent", value=size(sum(order.bytes_up for order in read.orders))))
    state: Tone = "good" if read.state in ("ok", "none") else "bad"
    entries = f"{read.ledger.entries} entries" if read.ledger is not None and read.ledger.entries else ""
    words = {"ok": "whole", "none": "none yet"}.get(read.state, read.state)
    found.append(Fact(name="ledger", value=words, note=entries, tone=state))
    return [*found, *_view(site, now)]


def _view(site: SiteConfig, now: float) -> list[Fact]:
    try:
        made = certified(site)
    except Exception:  # a certificate that cannot be read refuses every order that needs it, and says why
        return [Fact(name="public view", value="certificate cannot be read", tone="bad")]
    if made is None:
        return []
    return [Fact(name="public view certified", value=ago(made, now), note=moment(made))]


def _orders(orders: Sequence[OrderRow], now: float) -> Table:
    rows = [
        cells(
            f"{order.federation}, round {order.round}",
            Cell(text=ago(order.received, now), note=moment(order.received)),
            Cell(text=order.status, note=order.detail, tone=_TONES.get(order.status, "plain")),
            size(order.bytes_up) if order.bytes_up else "",
            order.mechanism,
        )
        for order in reversed(orders[-_ORDERS_SHOWN:])
    ]
    return Table(
        title="Orders",
        headings=("order", "came", "became", "sent", "mechanism"),
        rows=tuple(rows),
        empty="No order has come yet.",
        local=True,
    )


def _training(trained: Sequence[TrainingRow], now: float) -> list[Table]:
    if not trained:
        return []
    rows = [
        cells(
            str(row.round),
            Cell(text=ago(row.ended, now), note=moment(row.ended)),
            number(row.loss),
            Cell(text="" if row.clipped is None else f"{row.clipped:.0%}", note=f"C = {row.max_grad_norm:g}"),
            " / ".join(f"{norm:.3g}" for norm in row.norms),
            Cell(text=_rate(row.frames_per_second), note=duration(row.seconds)),
            _rate(row.views_per_second),
            "" if row.gpu_bytes is None else size(row.gpu_bytes),
        )
        for row in reversed(trained[-_ROUNDS_SHOWN:])
    ]
    shares = " / ".join(f"{share:.0%}" for share in QUANTILES)
    headings = ("round", "ended", "loss", "clipped", f"norms ({shares})", "speed", "anonymiser", "GPU memory")
    return [Table(title="Training, from inside", headings=headings, rows=tuple(rows), local=True)]


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f"{per_second:.3g} frames/s"
