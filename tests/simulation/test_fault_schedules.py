"""Whatever happens to a federation, in whatever order: nothing leaves unpaid, and nobody forgets what was spent.

Hypothesis draws the schedules: rounds with crashed, late, refusing and repeating sites, processes killed in the middle,
disks that are full or read-only, clocks set back, two coordinators at once, and ledgers that are lost or put back.

A site whose ledger *and* journal are put back to what the server saw last is beyond this: nobody whom it talks to knows
better. Such a step is left out here; the server's account, charged before the order went out, still covers it.
"""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.invariants import (
    agrees,
    no_leftovers,
    nothing_left_uncharged,
    nothing_left_unpaid,
    open_site_ledger,
    shows_all,
    steps_in,
)
from support.schedules import MISHAPS, SITES, Disk, World, clock_off_by
from support.small_networks import small_networks

from wardpose.client.site import open_site
from wardpose.server.heads import Heads
from wardpose.server.journal import RunJournal
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.privacy.ledger import Ledger

DISKS: list[Disk] = []
NUMBERS = itertools.count()

sites = st.sampled_from(SITES)
mishaps = st.fixed_dictionaries({site: st.sampled_from(MISHAPS) for site in SITES})


class Federation(RuleBasedStateMachine):
    """A federation and what may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(f"schedule-{next(NUMBERS)}", *DISKS)
        self.safe = Path(f"{self.world.server}-safe")
        self.backups: dict[str, list[Path]] = {site: [] for site in SITES}
        self.tampered: dict[str, Path] = {}  # site -> its newest files
        self.servers: list[Path] = []  # older files of the server
        self.newest: Path | None = None  # the server's, while older ones are in their place

    def teardown(self) -> None:
        """When everything is in its place again, a new run goes through; settled alarms stop nobody."""
        try:
            for site in list(self.tampered):
                self.cure(site)
            if self.newest is not None:
                self.restore_the_server()
            before = len(self.world.left)
            assert self.take(resume=False) is None
            if {release.site for release in self.world.left[before:]} != set(SITES):
                before = len(self.world.left)
                assert self.take(resume=False) is None  # an alarm is settled by the next contact
            assert {release.site for release in self.world.left[before:]} == set(SITES)
            self.nothing_is_forgotten()
            no_leftovers(self.world.home)
            no_leftovers(self.world.server)
        finally:
            self.world.close()
            shutil.rmtree(self.safe, ignore_errors=True)

    @rule(mishaps=mishaps, resume=st.booleans())
    def some_round(self, mishaps: dict[str, Any], resume: bool) -> None:
        self.world.network.mishaps = mishaps
        assert self.take(resume=resume) is None

    @rule(mishaps=mishaps)
    def two_runs_at_once(self, mishaps: dict[str, Any]) -> None:
        self.world.network.mishaps = mishaps
        assert self.take(twice=True) is None

    @rule(at=st.integers(1, 60))
    def killed(self, at: int) -> None:
        before = len(self.world.left)
        self.world.killed_round(at)
        self.silent(before)

    @rule(hours=st.sampled_from([1, 24 * 365, -1, -24 * 365 * 30]))
    def clock_set(self, hours: int) -> None:
        with clock_off_by(3600 * hours):
            assert self.take() is None

    @rule(side=st.sampled_from([0, 1]), kilobytes=st.sampled_from([0, 4, 16, 40, 64, 120]))
    def disk_full(self, side: int, kilobytes: int) -> None:
        done = self.world.rounds_done()
        with DISKS[side].full(kilobytes):
            error = self.round(done=done)
        self.check(error)  # which opens ledgers, and they need room
        assert side == 1 or error is None, "a site's disk is no matter of the server's"

    @precondition(lambda self: DISKS[0].mounted)
    @rule(side=st.sampled_from([0, 1]))
    def disk_read_only(self, side: int) -> None:
        before, done = len(self.world.left), self.world.rounds_done()
        with DISKS[side].read_only():
            error = self.take(done=done)
        assert (error is not None) == (side == 1)
        assert len(self.world.left) == before, "without a ledger nothing leaves"

    @precondition(lambda self: not self.tampered)
    @rule(site=sites)
    def back_up(self, site: str) -> None:
        self.backups[site].append(self.keep(site))

    @rule(site=sites, what=st.sampled_from(["ledger", "both"]), age=st.integers(0, 5))
    def put_back(self, site: str, what: str, age: int) -> None:
        known = self.backups[site]
        if site not in self.tampered and known:
            self.tamper(site, what, known[-1 - age % len(known)])

    @rule(site=sites, what=st.sampled_from(["ledger", "both"]))
    def lose(self, site: str, what: str) -> None:
        if site not in self.tampered:
            self.tamper(site, what, None)

    @precondition(lambda self: self.tampered)
    @rule(data=st.data())
    def restore_the_newest(self, data: st.DataObject) -> None:
        self.cure(data.draw(st.sampled_from(sorted(self.tampered))))

    @precondition(lambda self: self.newest is None)
    @rule()
    def back_up_the_server(self) -> None:
        self.servers.append(self.copy_of_server())

    @precondition(lambda self: self.servers and self.newest is None and not self.tampered)
    @rule(data=st.data())
    def put_the_server_back(self, data: st.DataObject) -> None:
        """Sites remember what they saw of the coordinator's ledger; an older one than that is found at the contact."""
        older = data.draw(st.sampled_from(self.servers))
        count = Ledger(older / "ledger.sqlite").head()[0]
        if all(remembered(self.world.paths[site]) > count for site in SITES):
            self.newest = self.copy_of_server()
            self.put_server(older)

    @precondition(lambda self: self.newest is not None)
    @rule()
    def restore_the_server(self) -> None:
        assert self.newest is not None
        self.put_server(self.newest)
        self.newest = None

    def copy_of_server(self) -> Path:
        copy = self.safe / f"server-{next(NUMBERS)}"
        shutil.copytree(self.world.server, copy)
        return copy

    def put_server(self, kept: Path) -> None:
        shutil.rmtree(self.world.server)
        shutil.copytree(kept, self.world.server)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        left = self.world.left
        for site in SITES:
            own = [release for release in left if release.site == site]
            if site not in self.tampered:
                ledger = self.ledger(site)
                nothing_left_unpaid(ledger, own)
                assert steps_in(ledger, f"{site}-cohort") >= sum(release.steps for release in own)
                if self.newest is None:
                    agrees(Heads(self.world.server / "heads.sqlite"), site, ledger)
        ledger = Ledger(self.world.server / "ledger.sqlite")
        ledger.verify()
        for site in SITES if self.newest is None else ():
            nothing_left_uncharged(ledger, site, [release for release in left if release.site == site])

    def take(self, **options: Any) -> Exception | None:
        """Take a round; a site whose ledger is not the whole story sends nothing in it."""
        error = self.round(**options)
        self.check(error)
        return error

    def round(self, **options: Any) -> Exception | None:
        before = len(self.world.left)
        error = self.world.round(**options)
        self.world.network.mishaps = {}
        self.silent(before)
        return error

    def check(self, error: Exception | None) -> None:
        if error is None and self.newest is None:
            self.ends_complete()

    def silent(self, before: int) -> None:
        sent = {release.site for release in self.world.left[before:]}
        assert not sent & set(self.tampered), "a site that lost its ledger goes on spending"
        assert not sent or self.newest is None, "a server that lost its ledger is given more"

    def ends_complete(self) -> None:
        journal = RunJournal(self.world.server / "journal.sqlite")
        run = journal.runs()[-1]
        rounds = [row.round for row in journal.rounds(run["run"])]
        assert rounds == list(range(1, len(rounds) + 1))
        assert run["status"] == "stopped" or (run["status"] == "completed" and len(rounds) == run["rounds"])
        ledger = Ledger(self.world.server / "ledger.sqlite")
        for site in SITES:
            shown = sum(row.steps for row in journal.sites(run["run"]) if row.site == site and row.round in rounds)
            if run["status"] == "completed":
                shows_all(shown, ledger, site, run["run"])

    def ledger(self, site: str) -> Ledger:
        return open_site_ledger(self.world.paths[site])

    def keep(self, site: str) -> Path:
        folder = self.safe / f"{site}-{next(NUMBERS)}"
        for path in self.world.files(site, "both"):
            target = folder / path.relative_to(self.world.home)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        return folder

    def put(self, site: str, what: str, kept: Path | None) -> None:
        for path in self.world.files(site, what):
            path.unlink()
        names = ("*.sqlite*",) if what == "both" else ("ledger.sqlite*",)
        for path in [path for name in names for path in (kept.rglob(name) if kept else ())]:
            shutil.copy(path, self.world.home / path.relative_to(kept or path))

    def tamper(self, site: str, what: str, older: Path | None) -> None:
        """Put an older state in the place of a site's, if anybody can know that it is one."""
        newest, head = self.keep(site), self.ledger(site).head()
        if what == "both":
            seen = Heads(self.world.server / "heads.sqlite").last(site)
            kept = next(iter(older.rglob("ledger.sqlite")), None) if older is not None else None
            sequence = Ledger(kept).head()[0] if kept is not None else 0
            if self.newest is not None or seen is None or seen[0] <= sequence:
                return
        self.put(site, what, older)
        try:
            ledger = self.ledger(site)
            if ledger.head() == head or not self.known_better(site, ledger):
                return
        except (LedgerError, ConfigError):
            pass
        self.tampered[site] = newest

    def known_better(self, site: str, ledger: Ledger) -> bool:
        """Tell whether the coordinator knows a newer ledger than one that the site's own journal lets pass.

        A kill between a transaction and its witness leaves entries that the lost file alone has heard of. Nobody can
        know better then, and nothing may have come of them.
        """
        seen = Heads(self.world.server / "heads.sqlite").last(site)
        if seen is not None and not ledger.contains(seen):
            return True
        nothing_left_unpaid(ledger, [release for release in self.world.left if release.site == site])
        return False

    def cure(self, site: str) -> None:
        self.put(site, "both", self.tampered.pop(site))


def remembered(path: Path) -> int:
    """Entries of the coordinator's ledger that a site has seen."""
    site = open_site(path)
    return site.contact.remembered().sequence


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Disk]]:
    DISKS.extend(Disk(tmp_path_factory.mktemp(name)) for name in ("hospitals", "servers"))
    with small_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDPOSE_HOME", str(tmp_path_factory.mktemp("home")))
        yield DISKS
    for disk in DISKS:
        disk.close()
    DISKS.clear()


def run_schedules(count: int, steps: int) -> None:
    run_state_machine_as_test(
        Federation,
        settings=settings(
            max_examples=count, stateful_step_count=steps, deadline=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), print_blob=True,
        ),
    )  # fmt: skip


def test_thirty_schedules(disks: list[Disk]) -> None:
    run_schedules(30, 3)


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.timeout(1800)
def test_a_hundred_longer_schedules(disks: list[Disk]) -> None:
    run_schedules(100, 6)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_thousand_schedules(disks: list[Disk]) -> None:
    run_schedules(1000, 10)
