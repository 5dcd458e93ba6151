"""The coordinator's Prometheus exporter: run journal, ledger and SuperLink database, read at every scrape.

It is a process of its own: a ServerApp lives for one run only. `METRICS` is the catalogue; a test holds it
against what is exposed, against the Grafana dashboard and against the alert rules.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

from wardpose.server.apart import open_alarms, receipts_waiting
from wardpose.server.budget import GlobalBudget
from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.journal import Reason, RunJournal, SiteRow
from wardpose.server.spent import ledger_of, refuse_lost, state_of
from wardpose.server.superlink import registered_nodes
from wardpose.shared.errors import DataError
from wardpose.shared.exposition import (
    FileCollector,
    Samples,
    Source,
    counter,
    gauge,
    state_samples,
    summary,
    verified_sample,
)
from wardpose.shared.version import version

RUN_STATES = ("running", "completed", "stopped", "interrupted", "failed")
FAILURES = ("refused", "rejected", "failed", "late", "absent")
_SHOWN_BEFORE_ROUNDS = ("refused", "rejected")  # by what a preflight met for good; the others may still be made up for

METRICS = {
    "wardpose_exporter_up": "1 when every source could be read.",
    "wardpose_exporter_source_up": "1 when the source could be read.",
    "wardpose_run_info": "The latest run; the value is always 1.",
    "wardpose_run_status": "1 for the state that the latest run is in.",
    "wardpose_run_secure": "0 when a site's noise in the latest run is repeatable, hence no privacy.",
    "wardpose_runs": "Runs in the journal by state.",
    "wardpose_rounds_total": "Finished rounds, all runs.",
    "wardpose_rounds_planned": "Rounds that the latest run is to take.",
    "wardpose_round": "Last finished round of the latest run.",
    "wardpose_round_duration_seconds": "Duration of finished rounds, all runs.",
    "wardpose_round_duration_last_seconds": "Duration of the last finished round.",
    "wardpose_round_last_timestamp_seconds": "When the last finished round ended.",
    "wardpose_bytes_up_total": "Bytes of releases received, all runs.",
    "wardpose_bytes_down_total": "Bytes of weights sent, all runs.",
    "wardpose_sites_planned": "Sites of the latest run's plan.",
    "wardpose_sites_answered": "Sites that answered the last round, or the preflight.",
    "wardpose_sites_failed_total": "Rounds without a site's release, by site and reason, all runs.",
    "wardpose_releases_rejected_total": "Answers that the coordinator did not believe, by site and reason, all runs.",
    "wardpose_sites_released_total": "Releases received, by site, all runs.",
    "wardpose_score": "Score of the last finished round on public validation data.",
    "wardpose_test_score": "Score of the latest run on public test data, before and after.",
    "wardpose_epsilon_spent": "Highest epsilon of a site in its own or the server's ledger, all runs.",
    "wardpose_epsilon_budget": "Epsilon that a site allows, as it stated it.",
    "wardpose_epsilon_remaining": "Budget less what is spent, at least 0.",
    "wardpose_epsilon_delta": "Delta at which a site's epsilons are stated.",
    "wardpose_epsilon_federation": "Epsilon of a patient who is at one site (disjoint) or several (overlap).",
    "wardpose_ledger_entries": "Entries of the server's ledger.",
    "wardpose_ledger_verified": "1 when the ledger's hash chain is unbroken.",
    "wardpose_ledger_state": "1 for the state that the ledger is in; all but ok and none need somebody.",
    "wardpose_ledger_alarms": "Ledgers that a site stated and that do not continue the one seen before, not settled.",
    "wardpose_ledgers_apart": "1 for a site whose ledger and the coordinator's do not agree; it takes no part.",
    "wardpose_receipts_waiting": "Receipts that a site has not acknowledged yet.",
    "wardpose_sites_online": "Registered SuperNodes with a good heartbeat.",
    "wardpose_sites_registered": "Registered SuperNodes.",
    "wardpose_site_online": "1 when a registered SuperNode has a good heartbeat.",
}


class ServerExporter:
    """Read a coordinator's folder for Prometheus.

    Attributes:
        directory: the run directory; its journal says where the ledger is.
        superlink: the SuperLink's database file, if it may be read.

    """

    def __init__(self, directory: Path, superlink: Path | None = None) -> None:
        self.directory = directory
        self.superlink = superlink
        self._journal = RunJournal(directory / "journal.sqlite")

    def collector(self) -> FileCollector:
        """Return what `serve` needs."""
        sources: dict[str, Source] = {
            "journal": self.journal,
            "ledger": self.ledger,
            "chain": self.chain,
            "contact": self.contact,
            "alarms": self.alarms,
        }
        if self.superlink is not None:
            sources["superlink"] = self.nodes
        return FileCollector(sources)

    def journal(self) -> Iterable[Metric]:
        """Read runs, rounds, bytes, sites and scores.

        Raises:
            DataError: there is no journal, or no run in it, yet.
            sqlite3.Error: the journal is locked or broken.

        """
        runs = self._runs()
        last = runs[-1]
        rounds = [row for run in runs for row in self._journal.rounds(run["run"])]
        latest = [row for row in rounds if row.run == last["run"]]
        sites = [row for run in runs for row in self._journal.sites(run["run"])]
        here = [row for row in sites if row.run == last["run"]]
        names = _names(last)
        about = {
            **{key: last[key] for key in ("run", "federation", "mechanism", "unit")},
            "version": version(),
        }
        states = Counter(run["status"] for run in runs)
        failures = Counter((row.site, row.status) for row in sites if _is_failure(row))
        rejected = Counter((row.site, row.reason) for row in sites if row.status == "rejected")
        released = Counter(row.site for row in sites if row.status == "released")
        everybody = sorted({*names, *(row.site for row in sites)})
        yield _gauge("wardpose_run_info", [(about, 1.0)])
        yield _gauge(
            "wardpose_run_status",
            [({"status": state}, float(state == last["status"])) for state in RUN_STATES],
        )
        yield _gauge("wardpose_run_secure", [({}, float(all(row.secure is not False for row in here)))])
        yield _gauge("wardpose_runs", [({"status": state}, states[state]) for state in RUN_STATES])
        yield _counter("wardpose_rounds_total", [({}, len(rounds))])
        yield _gauge("wardpose_rounds_planned", [({}, last["rounds"])])
        yield _gauge("wardpose_round", [({}, latest[-1].round if latest else 0)])
        yield summary(
            "wardpose_round_duration_seconds",
            METRICS["wardpose_round_duration_seconds"],
            count=len(rounds),
            total=sum(row.seconds for row in rounds),
        )
        yield _gauge("wardpose_round_duration_last_seconds", [({}, rounds[-1].seconds if rounds else None)])
        yield _gauge(
            "wardpose_round_last_timestamp_seconds",
            [({}, rounds[-1].started + rounds[-1].seconds if rounds else None)],
        )
        yield _counter("wardpose_bytes_up_total", [({}, sum(row.bytes_up for row in rounds))])
        yield _counter("wardpose_bytes_down_total", [({}, sum(row.bytes_down for row in rounds))])
        yield _gauge("wardpose_sites_planned", [({}, len(names))])
        yield _gauge("wardpose_sites_answered", [({}, _answered(here))])
        yield _counter(
            "wardpose_sites_failed_total",
            [({"site": site, "reason": reason}, failures[site, reason]) for site in everybody for reason in FAILURES],
        )
        yield _counter(
            "wardpose_releases_rejected_total",
            [({"site": site, "reason": reason}, rejected[site, reason]) for site in everybody for reason in Reason],
        )
        yield _counter("wardpose_sites_released_total", [({"site": site}, released[site]) for site in everybody])
        score = {"score": last["score_name"]}
        scores = [row.score for row in latest if row.score is not None]
        yield _gauge("wardpose_score", [(score, scores[-1] if scores else None)])
        tests = [
            ({**score, "moment": moment}, (last[f"score_{moment}"] or {}).get("score"))
            for moment in ("initial", "final")
        ]
        yield _gauge("wardpose_test_score", tests)

    def ledger(self) -> Iterable[Metric]:
        """Read epsilons of sites and federation, from the server's ledger.

        Raises:
            DataError: there is no run yet.
            LedgerError: the ledger is missing, empty, locked, broken or rolled back.

        """
        last = self._runs()[-1]
        refuse_lost(self.directory)
        ledger = ledger_of(self.directory).open()
        budget_of_all = GlobalBudget(ledger, delta=last["delta"], overlap=last["overlap"], unit=last["unit"])
        names = _names(last)
        rows = [row for run in self._journal.runs() for row in self._journal.sites(run["run"])]
        spent, budgets, deltas, remaining = [], [], [], []
        for name in names:
            label = {"site": name}
            budget, delta, stated = _stated(last, [row for row in rows if row.site == name], name)
            value = max(stated, budget_of_all.epsilon(name, delta=delta))
            spent.append((label, value))
            budgets.append((label, budget))
            deltas.append((label, delta))
            remaining.append((label, max(0.0, budget - value)))
        yield _gauge("wardpose_epsilon_spent", spent)
        yield _gauge("wardpose_epsilon_budget", budgets)
        yield _gauge("wardpose_epsilon_remaining", remaining)
        yield _gauge("wardpose_epsilon_delta", deltas)
        yield _gauge("wardpose_epsilon_federation", _federation(budget_of_all, names))
        yield _gauge("wardpose_ledger_entries", [({}, ledger.head()[0])])

    def chain(self) -> Iterable[Metric]:
        """Check the ledger's file, its hash chain, and that it holds what the journal knows was charged."""
        state, _ = state_of(self.directory)
        yield _gauge("wardpose_ledger_verified", verified_sample(state))
        yield _gauge("wardpose_ledger_state", state_samples(state))

    def alarms(self) -> Iterable[Metric]:
        """Read what the Budget service found of sites' ledgers.

        Raises:
            DamagedError: the file cannot be read.

        """
        found = Counter(alarm.site for alarm in Alarms(ledger_of(self.directory).path.with_name(ALARMS)).of())
        yield _gauge("wardpose_ledger_alarms", [({"site": site}, number) for site, number in sorted(found.items())])

    def contact(self) -> Iterable[Metric]:
        """Read which sites' ledgers and the coordinator's do not agree, and which receipts wait.

        Raises:
            DataError: there is no run yet, or the record of contacts cannot be read.

        """
        path = ledger_of(self.directory).path.with_name("contact.sqlite")
        names, apart, waiting = _names(self._runs()[-1]), open_alarms(path), receipts_waiting(path)
        everybody = sorted({*names, *(alarm.site for alarm in apart)})
        alarmed = {alarm.site for alarm in apart}
        yield _gauge("wardpose_ledgers_apart", [({"site": name}, float(name in alarmed)) for name in everybody])
        yield _gauge("wardpose_receipts_waiting", [({"site": name}, waiting.get(name, 0)) for name in everybody])

    def nodes(self) -> Iterable[Metric]:
        """Read which sites are connected.

        Raises:
            sqlite3.Error: the database is missing, locked or not a SuperLink's.

        """
        nodes = registered_nodes(self.superlink or Path())
        yield _gauge("wardpose_sites_online", [({}, sum(node.online for node in nodes))])
        yield _gauge("wardpose_sites_registered", [({}, len(nodes))])
        yield _gauge("wardpose_site_online", [({"site": node.name}, float(node.online)) for node in nodes if node.name])

    def _runs(self) -> list[dict[str, Any]]:
        runs = self._journal.runs()
        if not runs:
            raise DataError(f"{self._journal.path}: holds no run")
        return runs


def _gauge(name: str, samples: Samples) -> Metric:
    return gauge(name, METRICS[name], samples)


def _counter(name: str, samples: Samples) -> Metric:
    return counter(name, METRICS[name], samples)


def _names(run: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in run["config"]["sites"]]


def _is_failure(row: SiteRow) -> bool:
    """Count what will not be taken back: a preflight that was late today is ready when it is asked again."""
    return row.status in (FAILURES if row.round > 0 else _SHOWN_BEFORE_ROUNDS)


def _answered(rows: list[SiteRow]) -> int:
    last = max((row.round for row in rows), default=0)
    return sum(row.round == last and row.status in ("ready", "released") for row in rows)


def _stated(run: dict[str, Any], rows: list[SiteRow], site: str) -> tuple[float, float, float]:
    """Return the budget and delta that the site last stated (else the plan's) and its highest epsilon."""
    plan = next(entry for entry in run["config"]["sites"] if entry["name"] == site)
    privacy = run["config"]["privacy"]
    budgets = [row.epsilon_budget for row in rows if row.epsilon_budget is not None]
    deltas = [row.delta for row in rows if row.delta is not None]
    budget = budgets[-1] if budgets else plan["epsilon"] or privacy["epsilon"]
    return (
        budget,
        deltas[-1] if deltas else run["delta"],
        max((row.epsilon_spent or 0.0 for row in rows), default=0.0),
    )


def _federation(budget: GlobalBudget, names: Sequence[str]) -> Samples:
    disjoint, overlap = budget.federation(names)
    yield {"assumption": "disjoint"}, disjoint
    yield {"assumption": "overlap"}, overlap
