"""The coordinator's Prometheus exporter: run journals, ledger and SuperLink database, read at every scrape.

It is a process of its own: a ServerApp lives for one run only. `METRICS` is the catalogue; a test holds it
against what is exposed, against the Grafana dashboards and against the alert rules. What it shows is what the
coordinator knows anyway: releases' facts, its own scores on public data, what patients were charged for, and what it
saw of the network.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from wardpose.server.apart import open_alarms, receipts_waiting
from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.facts import (
    Places,
    Runs,
    before_first_run,
    coordinator_ledger,
    find_runs,
    late_in_a_row,
    read_spending,
)
from wardpose.server.journal import Ending, Reason, SiteRow
from wardpose.server.spent import LedgerPlace, ledger_of, state_at
from wardpose.server.superlink import registered_nodes
from wardpose.shared.errors import DataError
from wardpose.shared.expiry import certificate_ends
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
from wardpose.shared.files import existing
from wardpose.shared.refusals import Refusal
from wardpose.shared.version import version

RUN_STATES = ("running", "completed", "stopped", "interrupted", "failed")
REFUSALS = (*(refusal.name.lower() for refusal in Refusal), "other")
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
    "wardpose_run_end_reason": "1 for why the latest run did not complete; 0 for all while it runs or where it did.",
    "wardpose_rounds_without_release_total": "Finished rounds in which no site's release came, all runs.",
    "wardpose_round_releases": "Releases of the last finished round of the latest run.",
    "wardpose_sites_refused_total": "Orders that a site refused, by site and reason, all runs.",
    "wardpose_site_late_rounds": "Rounds in a row, up to its last one in the latest run, that a site was late in.",
    "wardpose_rounds_left": "More rounds like its last one that a site's budget bears, at most 10000.",
    "wardpose_noise_multiplier": "Smallest sigma of the last round that a site was charged for in the latest run.",
    "wardpose_evaluations_total": "Evaluations on patients in the latest run.",
    "wardpose_evaluation_score": "Score on patients at the last evaluation of the latest run, by model.",
    "wardpose_evaluation_score_error": "Standard error of that score.",
    "wardpose_evaluation_noise_multiplier": "Sigma of the last evaluation at each site.",
    "wardpose_evaluation_sites": "What became of sites in the last evaluation.",
    "wardpose_certificate_expiry_timestamp_seconds": "When a certificate of the server ends.",
    "wardpose_disk_free_bytes": "Free bytes of the disk that holds the runs.",
    "wardpose_disk_size_bytes": "Size of the disk that holds the runs.",
    "wardpose_sites_online": "Registered SuperNodes whose last heartbeat is not overdue.",
    "wardpose_sites_registered": "Registered SuperNodes.",
    "wardpose_site_online": "1 when a registered SuperNode's last heartbeat is not overdue: 0 within 35 s of a kill.",
    "wardpose_site_last_seen_timestamp_seconds": "A SuperNode's last heartbeat, at the latest.",
}


class ServerExporter:
    """Read a coordinator's folder for Prometheus.

    Attributes:
        places: where its files are.

    """

    def __init__(self, places: Places) -> None:
        self.places = places

    def collector(self) -> FileCollector:
        """Return what `serve` needs."""
        sources: dict[str, Source] = {
            "journal": self.journal,
            "evaluations": self.evaluations,
            "ledger": self.ledger,
            "chain": self.chain,
            "contact": self.contact,
            "alarms": self.alarms,
            "certificates": self.certificates,
            "disk": self.disk,
        }
        if self.places.superlink is not None:
            sources["superlink"] = self.nodes
        return FileCollector(sources)

    def journal(self) -> Iterable[Metric]:
        """Read runs, rounds, bytes, sites and scores.

        Raises:
            DataError: there is no journal, or no run in it, where one must have begun; or it is locked or broken.

        """
        runs = self._runs()
        if runs is None:
            yield _gauge("wardpose_runs", [({"status": state}, 0) for state in RUN_STATES])
            return
        yield from _of_runs(runs)
        yield from _of_rounds(runs)
        yield from _of_sites(runs)
        score, last = {"score": runs.last["score_name"]}, runs.last
        scores = [row.score for row in runs.last_rounds if row.score is not None]
        yield _gauge("wardpose_score", [(score, scores[-1] if scores else None)])
        tests = [
            ({**score, "moment": moment}, (last[f"score_{moment}"] or {}).get("score"))
            for moment in ("initial", "final")
        ]
        yield _gauge("wardpose_test_score", tests)

    def evaluations(self) -> Iterable[Metric]:
        """Read what patients were charged to measure.

        Raises:
            DataError: as for `journal`.

        """
        runs = self._runs()
        if runs is None:
            return
        made = runs.evaluations
        yield _counter("wardpose_evaluations_total", [({}, len(made))])
        models = made[-1].scores["models"] if made and made[-1].scores else []
        named = list(zip(("private", "public-only"), (model["score"] for model in models), strict=False))
        for metric, key in (("", "value"), ("_error", "error")):
            yield _gauge(f"wardpose_evaluation_score{metric}", [({"model": name}, of[key]) for name, of in named])
        sigma = made[-1].noise_multiplier if made else None
        yield _gauge("wardpose_evaluation_noise_multiplier", [({}, sigma)])
        became = Counter(made[-1].sites.values() if made else ())
        yield _gauge("wardpose_evaluation_sites", [({"status": status}, count) for status, count in became.items()])

    def ledger(self) -> Iterable[Metric]:
        """Read epsilons of sites and federation, from the server's ledger.

        Raises:
            DataError: as for `journal`.
            LedgerError: the ledger is missing, empty, locked, broken or rolled back.

        """
        runs = self._runs()
        if runs is None:
            return
        spending = read_spending(runs)
        sites = [({"site": site.name}, site) for site in spending.sites]
        yield _gauge("wardpose_epsilon_spent", [(label, site.spent) for label, site in sites])
        yield _gauge("wardpose_epsilon_budget", [(label, site.budget) for label, site in sites])
        yield _gauge("wardpose_epsilon_remaining", [(label, site.remaining) for label, site in sites])
        yield _gauge("wardpose_epsilon_delta", [(label, site.delta) for label, site in sites])
        yield _gauge("wardpose_rounds_left", [(label, site.rounds_left) for label, site in sites])
        yield _gauge("wardpose_noise_multiplier", [(label, site.sigma) for label, site in sites])
        both = [({"assumption": "disjoint"}, spending.disjoint), ({"assumption": "overlap"}, spending.overlap)]
        yield _gauge("wardpose_epsilon_federation", both)
        yield _gauge("wardpose_ledger_entries", [({}, spending.entries)])

    def chain(self) -> Iterable[Metric]:
        """Check the ledger's file, its hash chain, and that it holds what the journal knows was charged."""
        folder, place = self._ledger()
        state, _ = state_at(folder, place)
        yield _gauge("wardpose_ledger_verified", verified_sample(state))
        yield _gauge("wardpose_ledger_state", state_samples(state))

    def alarms(self) -> Iterable[Metric]:
        """Read what the Budget service found of sites' ledgers.

        Raises:
            DamagedError: the file cannot be read.

        """
        _, place = self._ledger()
        path = place.path.with_name(ALARMS)
        found = Counter(alarm.site for alarm in Alarms(path).of())
        yield _gauge("wardpose_ledger_alarms", [({"site": site}, number) for site, number in sorted(found.items())])

    def contact(self) -> Iterable[Metric]:
        """Read which sites' ledgers and the coordinator's do not agree, and which receipts wait.

        Raises:
            DataError: as for `journal`, or the record of contacts cannot be read.

        """
        runs = self._runs()
        _, place = self._ledger()
        path = place.path.with_name("contact.sqlite")
        apart, waiting = open_alarms(path), receipts_waiting(path)
        everybody = sorted({*(runs.names if runs is not None else ()), *(alarm.site for alarm in apart)})
        alarmed = {alarm.site for alarm in apart}
        yield _gauge("wardpose_ledgers_apart", [({"site": name}, float(name in alarmed)) for name in everybody])
        yield _gauge("wardpose_receipts_waiting", [({"site": name}, waiting.get(name, 0)) for name in everybody])

    def certificates(self) -> Iterable[Metric]:
        """Read when the server's certificates end.

        Raises:
            DataError: one cannot be read.

        """
        ends = certificate_ends(self.places.certificates)
        yield _gauge(
            "wardpose_certificate_expiry_timestamp_seconds",
            [({"certificate": name}, end) for name, end in ends.items()],
        )

    def disk(self) -> Iterable[Metric]:
        """Ask how much room is left where the runs are.

        Raises:
            OSError: the folder is not there, nor the home in which the first run makes it.

        """
        folder, home = self.places.directory, self.places.coordinator
        usage = shutil.disk_usage(folder if home is None else existing(folder))
        yield _gauge("wardpose_disk_free_bytes", [({}, usage.free)])
        yield _gauge("wardpose_disk_size_bytes", [({}, usage.total)])

    def nodes(self) -> Iterable[Metric]:
        """Read which sites are connected.

        Raises:
            sqlite3.Error: the database is missing, locked or not a SuperLink's.

        """
        nodes = registered_nodes(self.places.superlink or Path())
        named = [({"site": node.name}, node) for node in nodes if node.name]
        yield _gauge("wardpose_sites_online", [({}, sum(node.online for node in nodes))])
        yield _gauge("wardpose_sites_registered", [({}, len(nodes))])
        yield _gauge("wardpose_site_online", [(label, float(node.online)) for label, node in named])
        yield _gauge("wardpose_site_last_seen_timestamp_seconds", [(label, node.last_seen) for label, node in named])

    def _runs(self) -> Runs | None:
        """Read all journals; `None` in a home in which no run began yet, and raises where one must have."""
        runs = find_runs(self.places.directory)
        if runs is None:
            before_first_run(self.places)
        return runs

    def _ledger(self) -> tuple[Path, LedgerPlace]:
        """Return the folder of the latest run and the ledger that it charges; a home's where none can be told."""
        directory = self.places.directory
        try:
            runs = find_runs(directory)
        except DataError:
            runs = None
        if runs is None and self.places.coordinator is not None:
            return directory, coordinator_ledger(self.places.coordinator)
        folder = directory if runs is None else runs.folder
        return folder, ledger_of(folder)


def _of_runs(runs: Runs) -> Iterable[Metric]:
    last = runs.last
    about = {**{key: last[key] for key in ("run", "federation", "mechanism", "unit")}, "version": version()}
    states = Counter(run["status"] for run in runs.runs)
    ended = last.get("reason", "")
    yield _gauge("wardpose_run_info", [(about, 1.0)])
    yield _gauge("wardpose_run_status", [({"status": state}, float(state == last["status"])) for state in RUN_STATES])
    yield _gauge("wardpose_run_end_reason", [({"reason": reason}, float(reason == ended)) for reason in Ending])
    yield _gauge("wardpose_run_secure", [({}, float(all(row.secure is not False for row in runs.here())))])
    yield _gauge("wardpose_runs", [({"status": state}, states[state]) for state in RUN_STATES])


def _of_rounds(runs: Runs) -> Iterable[Metric]:
    rounds, latest = runs.rounds, runs.last_rounds
    releases = Counter((row.run, row.round) for row in runs.sites if row.status == "released")
    empty = sum(not releases[row.run, row.round] for row in rounds)
    yield _counter("wardpose_rounds_total", [({}, len(rounds))])
    yield _counter("wardpose_rounds_without_release_total", [({}, empty)])
    yield _gauge("wardpose_round_releases", [({}, releases[latest[-1].run, latest[-1].round] if latest else None)])
    yield _gauge("wardpose_rounds_planned", [({}, runs.last["rounds"])])
    yield _gauge("wardpose_round", [({}, latest[-1].round if latest else 0)])
    name = "wardpose_round_duration_seconds"
    yield summary(name, METRICS[name], count=len(rounds), total=sum(row.seconds for row in rounds))
    yield _gauge("wardpose_round_duration_last_seconds", [({}, rounds[-1].seconds if rounds else None)])
    ended = rounds[-1].started + rounds[-1].seconds if rounds else None
    yield _gauge("wardpose_round_last_timestamp_seconds", [({}, ended)])
    yield _counter("wardpose_bytes_up_total", [({}, sum(row.bytes_up for row in rounds))])
    yield _counter("wardpose_bytes_down_total", [({}, sum(row.bytes_down for row in rounds))])


def _of_sites(runs: Runs) -> Iterable[Metric]:
    failures = Counter((row.site, row.status) for row in runs.sites if _is_failure(row))
    rejected = Counter((row.site, row.reason) for row in runs.sites if row.status == "rejected")
    refused = Counter((row.site, _refusal(row)) for row in runs.sites if row.status == "refused")
    released = Counter(row.site for row in runs.sites if row.status == "released")
    everybody = sorted({*runs.names, *(row.site for row in runs.sites)})
    yield _gauge("wardpose_sites_planned", [({}, len(runs.names))])
    yield _gauge("wardpose_sites_answered", [({}, _answered(runs.here()))])
    yield _counter(
        "wardpose_sites_failed_total",
        [({"site": site, "reason": reason}, failures[site, reason]) for site in everybody for reason in FAILURES],
    )
    yield _counter(
        "wardpose_releases_rejected_total",
        [({"site": site, "reason": reason}, rejected[site, reason]) for site in everybody for reason in Reason],
    )
    yield _counter(
        "wardpose_sites_refused_total",
        [({"site": site, "reason": reason}, refused[site, reason]) for site in everybody for reason in REFUSALS],
    )
    yield _counter("wardpose_sites_released_total", [({"site": site}, released[site]) for site in everybody])
    late = [({"site": site}, late_in_a_row(runs.here(site))) for site in runs.names]
    yield _gauge("wardpose_site_late_rounds", late)


def _refusal(row: SiteRow) -> str:
    return Refusal(row.code).name.lower() if row.code in set(Refusal) else "other"


def _gauge(name: str, samples: Samples) -> Metric:
    return gauge(name, METRICS[name], samples)


def _counter(name: str, samples: Samples) -> Metric:
    return counter(name, METRICS[name], samples)


def _is_failure(row: SiteRow) -> bool:
    """Count what will not be taken back: a preflight that was late today is ready when it is asked again."""
    return row.status in (FAILURES if row.round > 0 else _SHOWN_BEFORE_ROUNDS)


def _answered(rows: list[SiteRow]) -> int:
    last = max((row.round for row in rows), default=0)
    return sum(row.round == last and row.status in ("ready", "released") for row in rows)
