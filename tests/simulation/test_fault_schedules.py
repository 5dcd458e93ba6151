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
    steps_in,
)
from support.schedules import MISHAPS, SITES, Disk, World, clock_off_by
from support.small_networks import small_networks

from wardpose.server.heads import Heads
from wardpose.server.journal import RunJournal
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site

DISKS: list[Disk] = []
NUMBERS = itertools.count()

sites = st.sampled_from(SITES)
mishaps = st.fixed_dictionaries({site: st.sampled_from(MISHAPS) for site in SITES})


class Federation(RuleBasedStateMachine):
    """A federation and what may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(f"schedule-{next(NUMBERS)}", *DISKS)
        self.safe = Path(f"{self.world.office}-safe")
        self.backups: dict[str, list[Path]] = {site: [] for site in SITES}
        self.tampered: dict[str, Path] = {}  # site -> its newest files

    def teardown(self) -> None:
        try:
            for site in list(self.tampered):
                self.cure(site)
            self.take(resume=False)
            self.ends_complete()
            self.nothing_is_forgotten()
            no_leftovers(self.world.home)
            no_leftovers(self.world.office)
        finally:
            self.world.close()
            shutil.rmtree(self.safe, ignore_errors=True)

    @rule(mishaps=mishaps, resume=st.booleans())
    def some_round(self, mishaps: dict[str, Any], resume: bool) -> None:
        self.world.network.mishaps = mishaps
        assert self.take(resume=resume) is None

    @rule(what=st.sampled_from(["another federation", "the same"]), mishaps=mishaps)
    def two_runs_at_once(self, what: str, mishaps: dict[str, Any]) -> None:
        self.world.network.mishaps = mishaps
        assert self.take(meanwhile=what) is None

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
        with DISKS[side].full(kilobytes):
            error = self.take()
        assert side == 1 or error is None, "a site's disk is no matter of the server's"

    @precondition(lambda self: DISKS[0].mounted)
    @rule(side=st.sampled_from([0, 1]))
    def disk_read_only(self, side: int) -> None:
        before = len(self.world.left)
        with DISKS[side].read_only():
            error = self.take()
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

    @invariant()
    def nothing_is_forgotten(self) -> None:
        left = self.world.left
        for site in SITES:
            own = [release for release in left if release.site == site]
            heads = [Heads(folder / "heads.sqlite") for folder in self.servers()]
            if site not in self.tampered:
                ledger = self.ledger(site)
                nothing_left_unpaid(ledger, own)
                assert steps_in(ledger, f"{site}-cohort") >= sum(release.steps for release in own)
                for known in heads:
                    agrees(known, site, ledger)
        for folder in self.servers():
            ledger = Ledger(folder / "ledger.sqlite")
            ledger.verify()
            for site in SITES:
                mine = [r for r in left if r.site == site and r.run.startswith(f"{folder.name}-")]
                nothing_left_uncharged(ledger, site, mine)

    def take(self, **options: Any) -> Exception | None:
        """Take a round; a site whose ledger is not the whole story sends nothing in it."""
        before = len(self.world.left)
        error = self.world.round(**options)
        self.world.network.mishaps = {}
        self.silent(before)
        if error is None:
            self.ends_complete()
        return error

    def silent(self, before: int) -> None:
        sent = {release.site for release in self.world.left[before:]}
        assert not sent & set(self.tampered), "a site that lost its ledger goes on spending"

    def ends_complete(self) -> None:
        journal = RunJournal(self.world.server() / "journal.sqlite")
        run = journal.runs()[-1]
        rounds = [row.round for row in journal.rounds(run["run"])]
        assert rounds == list(range(1, len(rounds) + 1))
        assert run["status"] == "stopped" or (run["status"] == "completed" and len(rounds) == run["rounds"])
        ledger = Ledger(self.world.server() / "ledger.sqlite")
        for site in SITES:
            shown = sum(row.steps for row in journal.sites(run["run"]) if row.site == site and row.round in rounds)
            assert shown <= steps_in(ledger, site, run["run"])
            assert shown == steps_in(ledger, site, run["run"]) or run["status"] == "stopped"

    def servers(self) -> Iterator[Path]:
        return (folder for folder in (self.world.server(), self.world.server("other")) if folder.exists())

    def ledger(self, site: str) -> Ledger:
        config = load_site(self.world.paths[site])
        return open_site_ledger(config.ledger, config.state / "journal.sqlite")

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
        names = ("ledger.sqlite*", "journal.sqlite*") if what == "both" else ("ledger.sqlite*",)
        for path in [path for name in names for path in (kept.rglob(name) if kept else ())]:
            shutil.copy(path, self.world.home / path.relative_to(kept or path))

    def tamper(self, site: str, what: str, older: Path | None) -> None:
        """Put an older state in the place of a site's, if anybody can know that it is one."""
        newest, head = self.keep(site), self.ledger(site).head()
        if what == "both":
            known = [Heads(folder / "heads.sqlite").last(site) for folder in self.servers()]
            kept = next(iter(older.rglob("ledger.sqlite")), None) if older is not None else None
            sequence = Ledger(kept).head()[0] if kept is not None else 0
            if any(seen is None or seen[0] <= sequence for seen in (known or [None])):
                return
        self.put(site, what, older)
        try:
            if self.ledger(site).head() == head:
                return
        except (LedgerError, ConfigError):
            pass
        self.tampered[site] = newest

    def cure(self, site: str) -> None:
        self.put(site, "both", self.tampered.pop(site))


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
    run_schedules(int(__import__("os").environ.get("N", "30")), 5)


@pytest.mark.slow
@pytest.mark.guard
def test_a_thousand_schedules(disks: list[Disk]) -> None:
    run_schedules(1000, 10)
