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

import pytest
from support.durable_writes import Processes, processes
from support.invariants import (
    Left,
    agrees,
    no_leftovers,
    nothing_left_uncharged,
    nothing_left_unpaid,
    open_site_ledger,
    steps_in,
)

from wardpose.client.journal import SiteJournal
from wardpose.server.heads import Heads
from wardpose.server.journal import RunJournal
from wardpose.server.summary import summarise
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site

SITES = ("north", "south")
KILLED = -9
PARTS = 8  # in which the long tests are run, each in less than ten minutes


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with processes(tmp_path_factory.mktemp("processes")) as made:
        yield made


class Bench:
    """A folder that is put back to one of several states before each kill; paths in it stay the same."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self._saved = folder / "saved"

    def save(self, name: str) -> None:
        shutil.copytree(self.work, self._saved / name)

    def restore(self, name: str) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self._saved / name, self.work)


def site_ledger(folder: Path, site: str) -> Ledger:
    config = load_site(folder / "sites" / site / "site.yaml")
    return open_site_ledger(config.ledger, config.state / "journal.sqlite")


def check_site(folder: Path, site: str, left: Sequence[Left]) -> None:
    """A site's ledger is whole, and knows of all that left."""
    own = [release for release in left if release.site == site]
    ledger = site_ledger(folder, site)
    nothing_left_unpaid(ledger, own)
    assert steps_in(ledger, f"{site}-cohort") >= sum(release.steps for release in own)


class SiteRounds:
    """One site answers the orders of rounds 1 and 2."""

    def __init__(self, start: Processes, folder: Path) -> None:
        self.start, self.bench = start, Bench(folder)
        self.before: dict[int, list[Left]] = {}
        self.calls: dict[int, list[str]] = {}
        work = self.bench.work
        start("order", work, round=1)
        shutil.rmtree(work / "sites" / "north" / "state")
        for file in work.glob("sites/north/ledger*"):
            file.unlink()
        left: list[Left] = []
        for number in (1, 2):
            self.bench.save(f"before {number}")
            self.before[number] = list(left)
            done = start("order", work, round=number)
            assert (done.status, len(done.left), done.error) == (0, 1, None)
            left += done.left
            self.calls[number] = done.calls

    def check(self, number: int, fault: str, at: int, error: int = errno.ENOSPC) -> None:
        """Let a write of a round fail, start again, and hold what is there against what left."""
        self.bench.restore(f"before {number}")
        work, left = self.bench.work, self.before[number]
        heads = Heads(work.parent / f"heads-{number}-{fault}-{at}-{error}.sqlite")
        for release in left:
            heads.remember(release.site, release.sequence, release.head)
        outcome = self.start("order", work, round=number, fault=fault, at=at, error=error)
        assert outcome.status == (KILLED if fault in ("kill", "tear") else 0), outcome
        left = left + outcome.left
        check_site(work, "north", left)
        for release in outcome.left:
            heads.check("north", release.sequence, release.head, grown=True)
        again = self.start("order", work, round=number)
        assert (again.status, again.said, len(again.left)) == (0, {"code": 0}, 1), again
        left = left + again.left
        check_site(work, "north", left)
        agrees(heads, "north", site_ledger(work, "north"))
        heads.check("north", again.left[0].sequence, again.left[0].head, grown=True)
        no_leftovers(work)
        orders = SiteJournal(work / "sites" / "north" / "state" / "journal.sqlite").orders()
        assert orders[-1].status == "released"
        assert "training" not in {order.status for order in orders}, "a killed order trains for ever"


class Runs:
    """A server takes two rounds of two sites; the sites' own files are not counted."""

    def __init__(self, start: Processes, folder: Path) -> None:
        self.start, self.bench = start, Bench(folder)
        server = self.bench.work / "server"
        start("run", server, resume=False)
        shutil.rmtree(server)
        for file in [*self.bench.work.glob("sites/*/ledger*"), *self.bench.work.glob("sites/*/state/journal*")]:
            file.unlink()
        server.mkdir()
        self.bench.save("before")
        done = start("run", server, resume=False)
        assert (done.status, len(done.left), done.error) == (0, 4, None)
        self.calls = done.calls

    def check(self, fault: str, at: int, error: int = errno.ENOSPC) -> None:
        """Let a write of a run fail, resume, and hold journal, ledgers and heads against what left."""
        self.bench.restore("before")
        work, server = self.bench.work, self.bench.work / "server"
        outcome = self.start("run", server, fault=fault, at=at, error=error, resume=False)
        if fault in ("kill", "tear"):
            assert outcome.status == KILLED, outcome
        self._accounts(work, outcome.left)
        again = self.start("run", server, resume=True)
        assert (again.status, again.error) == (0, None), again
        left = [*outcome.left, *again.left]
        self._accounts(work, left)
        no_leftovers(work)
        journal = RunJournal(server / "journal.sqlite")
        run = journal.runs()[-1]
        assert (run["status"], len(journal.rounds(run["run"]))) == ("completed", 2)
        assert (server / "latest-run").read_text().strip() == run["run"]
        assert summarise(server)["rounds"] == 2
        assert {row["status"] for row in journal.runs()} <= {"completed", "interrupted", "failed"}
        ledger, heads = Ledger(server / "ledger.sqlite"), Heads(server / "heads.sqlite")
        for site in SITES:
            rows = [row for row in journal.sites(run["run"]) if row.site == site]
            assert [row.status for row in rows if row.round] == ["released"] * 2
            assert sum(row.steps for row in rows) == steps_in(ledger, site, run["run"]), "steps shown = charged"
            assert heads.last(site) == site_ledger(work, site).head()

    def _accounts(self, work: Path, left: Sequence[Left]) -> None:
        server = Ledger(work / "server" / "ledger.sqlite")
        server.verify()
        heads = Heads(work / "server" / "heads.sqlite")
        for site in SITES:
            check_site(work, site, left)
            own = site_ledger(work, site)
            agrees(heads, site, own)
            nothing_left_uncharged(server, site, [release for release in left if release.site == site])
            assert steps_in(server, site) >= steps_in(own, f"{site}-cohort"), "the server charges before it orders"


def all_of(points: Sequence[tuple[object, ...]], check: Callable[..., None]) -> None:
    """Check every point, and tell of all that fail."""
    failures = {}
    for point in points:
        try:
            check(*point)
        except Exception as error:
            failures[point] = f"{type(error).__name__}: {error}"
    assert not failures, f"{len(failures)} of {len(points)}: " + "\n".join(map(str, list(failures.items())[:40]))


@pytest.fixture(scope="module")
def site(start: Processes, tmp_path_factory: pytest.TempPathFactory) -> SiteRounds:
    return SiteRounds(start, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(start: Processes, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(start, tmp_path_factory.mktemp("server"))


def writes(calls: Sequence[str], pattern: str = "") -> list[int]:
    """Numbers of the calls that a pattern is in."""
    return [number for number, call in enumerate(calls, start=1) if re.search(pattern, call)]


def spread(numbers: Sequence[int], count: int) -> list[int]:
    return [numbers[len(numbers) * part // count] for part in range(count)]


def test_a_site_killed_at_some_writes_of_a_round_goes_on_from_there(site: SiteRounds) -> None:
    ledger = [(1, "kill", at) for at in spread(writes(site.calls[1], "ledger"), 6)]
    journal = [(2, "tear", at) for at in spread(writes(site.calls[2], "^write .*journal.sqlite-wal"), 3)]
    others = [(1, "kill", at) for at in spread(writes(site.calls[1], "cache"), 2)]
    all_of([*ledger, *journal, *others], site.check)


def test_a_server_killed_at_some_writes_of_a_run_goes_on_from_there(server: Runs) -> None:
    for pattern, count in (("checkpoint", 3), ("ledger", 2), ("journal", 2), ("heads", 1)):
        all_of([("kill", at) for at in spread(writes(server.calls, pattern), count)], server.check)


def part_of(points: Sequence[tuple[object, ...]], part: int) -> Sequence[tuple[object, ...]]:
    return points[part::PARTS]


parts = pytest.mark.parametrize("part", range(PARTS))


@pytest.mark.slow
@pytest.mark.guard
@parts
def test_a_site_killed_at_every_write_of_a_round_goes_on_from_there(site: SiteRounds, part: int) -> None:
    points = [(number, "kill", at) for number in (1, 2) for at in writes(site.calls[number])]
    torn = [(number, "tear", at) for number in (1, 2) for at in writes(site.calls[number], "^write")]
    assert len(points) >= 200
    all_of(part_of([*points, *torn], part), site.check)


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("fault", ["fail once", "fail on"])
def test_a_site_whose_disk_refuses_any_write_sends_nothing_unpaid(site: SiteRounds, fault: str, error: int) -> None:
    needing = "^(write|open|allocate|mkdir)" if error == errno.ENOSPC else ""
    all_of([(2, fault, at, error) for at in writes(site.calls[2], needing)], site.check)


@pytest.mark.slow
@pytest.mark.guard
@parts
def test_a_server_killed_at_every_write_of_a_run_goes_on_from_there(server: Runs, part: int) -> None:
    for what in ("checkpoint", "ledger", "journal", "heads", "model", "initial", "latest-run", "lock"):
        assert writes(server.calls, what)
    all_of(part_of([("kill", at) for at in writes(server.calls)], part), server.check)


@pytest.mark.slow
@pytest.mark.guard
@parts
def test_a_server_whose_write_is_torn_or_refused_goes_on_from_there(server: Runs, part: int) -> None:
    torn = [("tear", at) for at in writes(server.calls, "^write")]
    full = [("fail on", at) for at in writes(server.calls, "^(write|open|allocate|mkdir)")]
    all_of(part_of([*torn, *full], part), server.check)
