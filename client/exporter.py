"""The site's Prometheus exporter: its ledger and its journal of orders, read at every scrape.

Nothing at `/metrics` depends on a patient's data. What is shown follows from the orders (which the server knows), from
site.yaml and from the ledger: no loss, no sample count, no text of an error, and no duration of training, which varies
with the frames drawn: an order is in training until its answer leaves (`facts.as_told`). A hospital may therefore show
it to others. What does depend on frames is at `/metrics/local`, which only the machine itself is shown
(`local_exporter`). `METRICS` is the catalogue; a test holds it against what is exposed, against the Grafana dashboards
and against the alert rules.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.core import Metric

from wardpose.client.apart import open_alarms
from wardpose.client.facts import as_told, certified, charged_entries, rate_of, spent_of
from wardpose.client.journal import SiteJournal
from wardpose.client.spent import refuse_lost, state_of
from wardpose.shared.errors import DataError
from wardpose.shared.expiry import certificate_ends
from wardpose.shared.exposition import FileCollector, Samples, counter, gauge, state_samples, verified_sample
from wardpose.shared.known_server import FILE, KnownServer
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import SiteConfig, load_site
from wardpose.shared.version import code_hash, version

OUTCOMES = ("released", "refused", "failed")

METRICS = {
    "wardpose_exporter_up": "1 when every source could be read.",
    "wardpose_exporter_source_up": "1 when the source could be read.",
    "wardpose_site_info": "The site; the value is always 1.",
    "wardpose_site_noise_secure": "0 when the site's noise is repeatable (simulation), hence no privacy.",
    "wardpose_site_epsilon_spent": "Epsilon of the cohort's most charged unit, all runs composed.",
    "wardpose_site_epsilon_budget": "Epsilon that the site's policy allows the cohort.",
    "wardpose_site_epsilon_remaining": "Budget less what is spent, at least 0.",
    "wardpose_site_epsilon_delta": "Delta at which the site's epsilons are stated.",
    "wardpose_site_tier_epsilon_spent": "Epsilon of a consent tier of the cohort.",
    "wardpose_site_tier_epsilon_budget": "Epsilon that the site's policy allows a consent tier.",
    "wardpose_site_ledger_entries": "Entries of the site's ledger, up to its newest charge.",
    "wardpose_site_ledger_verified": "1 when the ledger's hash chain is unbroken.",
    "wardpose_site_ledger_state": "1 for the state that the ledger is in; all but ok and none need somebody.",
    "wardpose_site_server_alarms": "Ledgers that the coordinator showed and that contradict one before, not settled.",
    "wardpose_site_ledgers_apart": "1 while the coordinator's ledger and the site's do not agree; no order is taken.",
    "wardpose_site_orders_total": "Orders that were answered, by outcome.",
    "wardpose_site_orders_open": "Orders not answered (yet, or because the process died).",
    "wardpose_site_bytes_up_total": "Bytes of releases.",
    "wardpose_site_last_order_timestamp_seconds": "When the last order came.",
    "wardpose_site_rounds_left": "More rounds like the last one that the cohort's budget bears, at most 10000.",
    "wardpose_site_noise_multiplier": "Smallest sigma of the last round that the cohort was charged for.",
    "wardpose_site_certificate_expiry_timestamp_seconds": "When a certificate of the site ends.",
    "wardpose_site_public_view_certified_timestamp_seconds": "When the public view's certificate was made (none ends).",
}


class SiteExporter:
    """Read a site's files for Prometheus.

    Attributes:
        path: the site.yaml; read anew at every scrape, so that an edited policy is shown at once.
        certificates: by name, to see when they end.

    """

    def __init__(self, path: Path, certificates: Mapping[str, Path] | None = None) -> None:
        self.path = path
        self._certificates = dict(certificates or {})

    def collector(self) -> FileCollector:
        """Return what `serve` needs."""
        return FileCollector(
            {
                "config": self.config,
                "ledger": self.ledger,
                "chain": self.chain,
                "journal": self.journal,
                "server": self.server,
                "contact": self.contact,
                "certificates": self.certificates,
                "public_view": self.public_view,
            }
        )

    def config(self) -> Iterable[Metric]:
        """Who the site is.

        Raises:
            ConfigError: site.yaml is missing or wrong.

        """
        site = load_site(self.path)
        about = {
            "site": site.site,
            "cohort": site.cohort.name,
            "version": version(),
            "code": code_hash()[:12],
        }
        yield _gauge("wardpose_site_info", [(about, 1.0)])
        yield _gauge("wardpose_site_noise_secure", [({}, float(site.simulation_seed is None))])
        yield _gauge("wardpose_site_epsilon_budget", [(_label(site), site.policy.epsilon)])
        yield _gauge("wardpose_site_epsilon_delta", [(_label(site), site.policy.delta)])
        tiers = [({**_label(site), "tier": tier}, budget) for tier, budget in site.policy.tiers.items()]
        yield _gauge("wardpose_site_tier_epsilon_budget", tiers)

    def ledger(self) -> Iterable[Metric]:
        """Read what is spent; a site that was never asked has no ledger yet and has spent nothing.

        Raises:
            ConfigError: site.yaml is missing or wrong.
            LedgerError: the ledger is gone, empty, locked, broken or rolled back.

        """
        site = load_site(self.path)
        policy, mine = site.policy, site.cohort.name
        refuse_lost(site)
        ledger = Ledger(site.ledger, readonly=site.ledger.exists())
        names = dict.fromkeys([mine, *ledger.cohorts()])
        spent = {name: ledger.epsilon(name, policy.delta, adjacency=policy.adjacency) for name in names}
        spent[mine] = spent_of(site, ledger)
        tiers = ledger.epsilon_by_tier(mine, policy.delta, adjacency=policy.adjacency)
        yield _gauge("wardpose_site_epsilon_spent", [({"cohort": name}, value) for name, value in spent.items()])
        yield _gauge("wardpose_site_epsilon_remaining", [(_label(site), max(0.0, policy.epsilon - spent[mine]))])
        known = [tier for tier in dict.fromkeys([*policy.tiers, *tiers]) if tier]
        named = [({**_label(site), "tier": tier}, tiers.get(tier, tiers[""])) for tier in known]
        yield _gauge("wardpose_site_tier_epsilon_spent", named)
        yield _gauge("wardpose_site_ledger_entries", [({}, charged_entries(ledger))])
        rate = rate_of(site, ledger)
        yield _gauge("wardpose_site_rounds_left", [(_label(site), rate.left)])
        yield _gauge("wardpose_site_noise_multiplier", [(_label(site), rate.sigma)])

    def chain(self) -> Iterable[Metric]:
        """Check the ledger's file, its hash chain, and that it holds what the journal knows was charged.

        Raises:
            ConfigError: site.yaml is missing or wrong.

        """
        state, _ = state_of(load_site(self.path))
        yield _gauge("wardpose_site_ledger_verified", verified_sample(state))
        yield _gauge("wardpose_site_ledger_state", state_samples(state))

    def server(self) -> Iterable[Metric]:
        """Read what was found of the coordinator's ledger, as its Budget service showed it.

        Raises:
            ConfigError: site.yaml is missing or wrong.
            DamagedError: the record cannot be read.

        """
        known = KnownServer(load_site(self.path).state / FILE)
        yield _gauge("wardpose_site_server_alarms", [({}, len(known.alarms()))])

    def journal(self) -> Iterable[Metric]:
        """Read what was ordered; a site that was never asked has no journal, which is no failure.

        Raises:
            ConfigError: site.yaml is missing or wrong.
            DataError: the journal is gone or empty although orders were charged.
            sqlite3.Error: the journal is locked or broken.

        """
        site = load_site(self.path)
        journal = SiteJournal(site.state / "journal.sqlite")
        orders = journal.orders()
        if not orders and state_of(site)[0] == "ok" and Ledger.open_readonly(site.ledger).cohorts():
            raise DataError(f"{journal.path}: holds no order, but the ledger holds charges")
        orders = as_told(orders, answer_seconds=site.answer_seconds, now=time.time())
        outcomes = Counter(order.status for order in orders)
        yield counter(
            "wardpose_site_orders_total",
            METRICS["wardpose_site_orders_total"],
            [({"status": status}, outcomes[status]) for status in OUTCOMES],
        )
        yield _gauge("wardpose_site_orders_open", [({}, outcomes["training"])])
        yield counter(
            "wardpose_site_bytes_up_total",
            METRICS["wardpose_site_bytes_up_total"],
            [({}, sum(order.bytes_up for order in orders))],
        )
        last = orders[-1].received if orders else None
        yield _gauge("wardpose_site_last_order_timestamp_seconds", [({}, last)])

    def contact(self) -> Iterable[Metric]:
        """Read whether the coordinator's ledger and the site's agree.

        Raises:
            ConfigError: site.yaml is missing or wrong.
            DataError: the record of contacts cannot be read.

        """
        alarms = open_alarms(load_site(self.path).state / "contact.sqlite")
        yield _gauge("wardpose_site_ledgers_apart", [({}, float(bool(alarms)))])

    def certificates(self) -> Iterable[Metric]:
        """Read when the site's certificates end.

        Raises:
            DataError: one cannot be read.

        """
        yield _gauge(
            "wardpose_site_certificate_expiry_timestamp_seconds",
            [({"certificate": name}, end) for name, end in certificate_ends(self._certificates).items()],
        )

    def public_view(self) -> Iterable[Metric]:
        """Read when the public view's certificate was made.

        Raises:
            ConfigError: site.yaml is missing or wrong.
            DataError: the certificate cannot be read.

        """
        made = certified(load_site(self.path))
        yield _gauge("wardpose_site_public_view_certified_timestamp_seconds", [({}, made)])


def _gauge(name: str, samples: Samples) -> Metric:
    return gauge(name, METRICS[name], samples)


def _label(site: SiteConfig) -> dict[str, str]:
    return {"cohort": site.cohort.name}
