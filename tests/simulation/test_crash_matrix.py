"""Sites and servers killed at every durable write of a round, by real processes: what is left is enough to go on from.

A write is whatever changes a file: SQLite's, those of `shared.files`, of caches and checkpoints. A process that is
killed after one write and before the next leaves the same files behind, so killing before each one covers both; writes
are also torn in two. What a power failure adds (writes that the disk never saw, without an fsync) is not simulated.
"""

import errno
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.durable_writes import Outcome, Processes, processes
from support.federations import tiny_federation
from support.invariants import (
    Left,
    agrees,
    no_leftovers,
    nothing_left_uncharged,
    nothing_left_unpaid,
    open_site_ledger,
    shows_all,
    steps_in,
)

from wardpose.client.journal import SiteJournal
from wardpose.server.heads import Heads
from wardpose.server.journal import RunJournal
from wardpose.server.summary import summarise
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site
from wardpose.simulation.layout import prepare_sites

KILLED = -9
SAID = ("StorageError", "LedgerError", "DataError")  # of a disk that refused
PARTS = 16  # in which the long tests are run, each in a few minutes


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with processes(tmp_path_factory.mktemp("processes")) as made:
        yield made


def site_ledger(folder: Path, site: str) -> Ledger:
    return open_site_ledger(folder / "sites" / site / "site.yaml")


class Runs:
    """A server and its sites take two rounds; the writes of one side are counted. Each run starts from the same files.

    Attributes:
        calls: the writes of a run to which nothing happens.

    """

    def __init__(self, start: Processes, folder: Path, sites: Sequence[str], below: str, but: str = "") -> None:
        self._start, self._sites = start, sites
        self._work, self._saved = folder / "work", folder / "saved"
        self._counted: dict[str, Any] = {"below": self._work / below, "but": but}
        prepare_sites(tiny_federation(sites), self._work)
        shutil.copytree(self._work, self._saved)
        done = self._run(resume=False, **self._counted)
        assert (done.status, len(done.left), done.error) == (0, 2 * len(sites), None)
        self.calls = done.calls

    def check(self, fault: str, at: int, error: int = errno.ENOSPC) -> None:
        """Let a write fail, go on, and hold journals, ledgers and heads of both sides against what left."""
        shutil.rmtree(self._work)
        shutil.copytree(self._saved, self._work)
        outcome = self._run(resume=False, fault=fault, at=at, error=error, **self._counted)
        killed = fault in ("kill", "tear")
        assert (outcome.status == KILLED) == killed, outcome
        assert outcome.error is None or outcome.error[0] in SAID, outcome
        self._accounts(outcome.left)
        again = self._run(resume=killed)  # a site that refused has left the run that it refused in
        assert (again.status, again.error) == (0, None), again
        left = [*outcome.left, *again.left]
        self._accounts(left)
        no_leftovers(self._work)
        self._ends_complete()

    def _run(self, **options: Any) -> Outcome:
        return self._start(self._work, sites=self._sites, **options)

    def _accounts(self, left: Sequence[Left]) -> None:
        server, heads = Ledger(self._work / "ledger.sqlite"), Heads(self._work / "heads.sqlite")
        server.verify()
        for site in self._sites:
            sent, own = [release for release in left if release.site == site], site_ledger(self._work, site)
            nothing_left_unpaid(own, sent)
            nothing_left_uncharged(server, site, sent)
            agrees(heads, site, own)
            assert steps_in(own, f"{site}-cohort") >= sum(release.steps for release in sent)

    def _ends_complete(self) -> None:
        journal, ledger = RunJournal(self._work / "journal.sqlite"), Ledger(self._work / "ledger.sqlite")
        run = journal.runs()[-1]
        assert (run["status"], len(journal.rounds(run["run"]))) == ("completed", 2)
        assert (self._work / "latest-run").read_text().strip() == run["run"]
        assert summarise(self._work)["rounds"] == 2
        assert {row["status"] for row in journal.runs()} <= {"completed", "interrupted", "failed", "stopped"}
        for site in self._sites:
            rows = [row for row in journal.sites(run["run"]) if row.site == site]
            assert [row.status for row in rows if row.round] == ["released"] * 2
            shows_all(sum(row.steps for row in rows), ledger, site, run["run"])
            assert Heads(self._work / "heads.sqlite").last(site) == site_ledger(self._work, site).head()
            state = load_site(self._work / "sites" / site / "site.yaml").state
            orders = SiteJournal(state / "journal.sqlite").orders()
            assert "training" not in {order.status for order in orders}, "a killed order trains for ever"


def all_of(points: Sequence[tuple[object, ...]], check: Callable[..., None]) -> None:
    """Check every point, and tell of all that fail."""
    failures = {}
    for point in points:
        try:
            check(*point)
        except Exception as error:
            failures[point] = f"{type(error).__name__}: {error}"
            print(point, failures[point], flush=True)
    assert not failures, f"{len(failures)} of {len(points)}: " + "\n".join(map(str, list(failures.items())[:40]))


@pytest.fixture(scope="module")
def site(start: Processes, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(start, tmp_path_factory.mktemp("site"), ["north"], "sites/north")


@pytest.fixture(scope="module")
def server(start: Processes, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(start, tmp_path_factory.mktemp("server"), ["north", "south"], "", but="/sites/")


def writes(calls: Sequence[str], pattern: str = "") -> list[int]:
    """Numbers of the calls that a pattern is in."""
    return [number for number, call in enumerate(calls, start=1) if re.search(pattern, call)]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    return [numbers[len(numbers) * part // count] for part in range(count)]


def test_a_site_killed_at_some_writes_of_a_round_goes_on_from_there(site: Runs) -> None:
    ledger = [("kill", at) for at in spread(writes(site.calls, "/ledger"), 5)]
    torn = [("tear", at) for at in spread(writes(site.calls, "^write .*journal.sqlite-wal"), 2)]
    all_of([*ledger, *torn, ("kill", writes(site.calls, "cache")[-1])], site.check)


def test_a_server_killed_at_some_writes_of_a_run_goes_on_from_there(server: Runs) -> None:
    kinds = (("checkpoint", 2), ("^[a-z]* /ledger", 1), ("^[a-z]* /journal", 1), ("heads", 1))
    all_of([("kill", at) for kind, count in kinds for at in spread(writes(server.calls, kind), count)], server.check)


def part_of(points: Sequence[tuple[object, ...]], part: int) -> Sequence[tuple[object, ...]]:
    return points[part::PARTS]


# One part of each stands guard at every submission; all of them are for a night (`make test-all`).
parts = pytest.mark.parametrize("part", [pytest.param(0, marks=pytest.mark.guard), *range(1, PARTS)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@parts
def test_a_site_killed_at_every_write_of_a_round_goes_on_from_there(site: Runs, part: int) -> None:
    points = [("kill", at) for at in writes(site.calls)]
    assert len(points) >= 200
    all_of(part_of([*points, *(("tear", at) for at in writes(site.calls, "^write"))], part), site.check)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("fault", ["fail once", "fail on"])
@parts
def test_a_site_whose_disk_refuses_any_write_sends_nothing_unpaid(
    site: Runs, fault: str, error: int, part: int
) -> None:
    needing = "^(write|open|allocate|mkdir)" if error == errno.ENOSPC else ""
    all_of(part_of([(fault, at, error) for at in writes(site.calls, needing)[::2]], part), site.check)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@parts
def test_a_server_killed_at_every_write_of_a_run_goes_on_from_there(server: Runs, part: int) -> None:
    for what in ("checkpoint", "ledger", "journal", "heads", "model", "initial", "latest-run", "lock"):
        assert writes(server.calls, what)
    points = [("kill", at) for at in writes(server.calls)]
    all_of(part_of([*points, *(("tear", at) for at in writes(server.calls, "^write"))], part), server.check)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@parts
def test_a_server_whose_disk_is_full_from_any_write_on_goes_on_when_there_is_room(server: Runs, part: int) -> None:
    full = [("fail on", at) for at in writes(server.calls, "^(write|open|allocate|mkdir)")]
    all_of(part_of(full, part), server.check)
