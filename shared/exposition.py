"""How both exporters speak to Prometheus: metric families from durable files, read at every scrape (`status_server`).

Nothing is counted in memory, so a restarted exporter shows what it showed before. A source that is missing,
locked or broken costs its own metrics and sets `wardpose_exporter_up` to 0; the scrape itself always
succeeds.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from wardpose.shared.ledger_state import LEDGER_STATES, LedgerState

logger = logging.getLogger("wardpose.exporter")

Labels = Mapping[str, str]
Samples = Iterable[tuple[Labels, float | None]]
Source = Callable[[], Iterable[Metric]]


def gauge(name: str, documentation: str, samples: Samples) -> Metric:
    """Make a family of values that go up and down; a sample without a value is left out."""
    return _fill(GaugeMetricFamily, name, documentation, samples)


def counter(name: str, documentation: str, samples: Samples) -> Metric:
    """Make a family of values that only go up; `name` ends in `_total`."""
    return _fill(CounterMetricFamily, name, documentation, samples)


def summary(name: str, documentation: str, *, count: int, total: float) -> Metric:
    """Make the number and sum of observations, as `name_count` and `name_sum`."""
    return SummaryMetricFamily(name, documentation, count_value=count, sum_value=total)


def state_samples(state: LedgerState) -> Samples:
    """1 for the state that a ledger is in, 0 for the others."""
    return [({"state": known}, float(known == state)) for known in LEDGER_STATES]


def verified_sample(state: LedgerState) -> Samples:
    """1 when the chain is whole, 0 when it is not; nothing while a locked file cannot be asked."""
    return [({}, None if state == "locked" else float(state in ("ok", "none")))]


def _fill(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, documentation: str, samples: Samples
) -> Metric:
    known = [(labels, value) for labels, value in samples if value is not None]
    names = sorted({label for labels, _ in known for label in labels})
    family = kind(name, documentation, labels=names)
    for labels, value in known:
        family.add_metric([labels.get(label, "") for label in names], value)
    return family


class FileCollector(Collector):
    """Collect from named sources; each is a function that reads its files anew.

    Attributes:
        sources: name of a source -> its reader.
        prefix: of the two metrics that say which sources could be read.

    """

    def __init__(self, sources: Mapping[str, Source], *, prefix: str = "wardpose_exporter") -> None:
        self.sources = dict(sources)
        self.prefix = prefix
        self._lock = threading.Lock()  # two scrapers at once must not compute the same epsilons twice

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the files."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all families of the sources that can be read, then which could."""
        up: dict[str, bool] = {}
        with self._lock:
            for name, read in self.sources.items():
                try:
                    families = list(read())
                except Exception as error:
                    logger.warning("%s: %s: %s", name, type(error).__name__, error)
                    up[name] = False
                    continue
                up[name] = True
                yield from families
        yield gauge(f"{self.prefix}_up", "1 when every source could be read.", [({}, float(all(up.values())))])
        yield gauge(
            f"{self.prefix}_source_up",
            "1 when the source could be read.",
            [({"source": name}, float(value)) for name, value in up.items()],
        )
