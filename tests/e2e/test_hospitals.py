"""From archives to a federation that outlives what happens to machines: one coordinator, three hospitals, then four.

The order of the tests is that of an afternoon, on one deployment, because starting costs most. Each fault is followed
by a look at what must hold after it: the run's rounds are there once each, no side's ledger says less than was charged,
and Prometheus shows what the journal says.
"""

import json
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.hospitals import ADDRESS, LATER, PORTS, SERVER, SITES, Hospitals, change, impossible, wait_for
from wardpose.server.bundle import run_config
from wardpose.server.journal import RunJournal
from wardpose.server.outcome import COMPLETED, FAILED, RUNNING, Outcome, outcome
from wardpose.server.runs import Run
from wardpose.shared.files import write_text
from wardpose.shared.refusals import Refusal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(impossible()), reason=impossible() or "-"),
]
NORTH, SOUTH, WEST = SITES


@pytest.fixture(scope="module")
def hospitals(
    tmp_path_factory: pytest.TempPathFactory, data_root: Path, installed: Callable[[str], str]
) -> Iterator[Hospitals]:
    """Archives are made and unpacked, the server runs, and nobody is registered yet."""
    prometheus, nginx = installed("prometheus"), installed("nginx")
    made = Hospitals(tmp_path_factory.mktemp("hospitals"), data_root)
    try:
        found = made.provision()
        assert set(found["archives"]) == {SERVER, *SITES}
        made.install_server()
        made.start_server(prometheus, nginx)
        with ThreadPoolExecutor(2) as people:  # each at a hospital of their own
            list(people.map(made.install_site, SITES))
        yield made
    finally:
        made.close()
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert not [host for host in made.network.hosts.values() if host.namespace in left]


@pytest.fixture(scope="module")
def federation(hospitals: Hospitals) -> Hospitals:
    """All three hospitals are registered and there."""
    done = hospitals.wardpose(SERVER, "server", "register", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(SITES, "registered")
    for site in SITES:
        if not hospitals.network[site].processes("site run"):
            hospitals.start_site(site)
    hospitals.wait_online(*SITES)
    return hospitals


class Watched:
    """A run that something is done to.

    Attributes:
        hospitals: the machines.
        run: its folder.
        rounds: that it takes.

    """

    def __init__(self, hospitals: Hospitals, rounds: int) -> None:
        self.hospitals, self.rounds = hospitals, rounds
        self._before = hospitals.query("sum by (site) (wardpose_sites_failed_total)")
        plan = yaml.safe_load(hospitals.server.plan.read_text()) | {"rounds": rounds}
        path = hospitals.home(SERVER) / "next.yaml"
        write_text(path, yaml.safe_dump(plan, sort_keys=False))
        done = hospitals.wardpose(SERVER, "server", "submit", path, "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["answers"] == dict.fromkeys(plan["sites"], "ready"), said
        self.run: Run = hospitals.run()
        self.name: str = self.run.journal.runs()[-1]["run"]

    @property
    def done(self) -> int:
        """Rounds that are finished."""
        return len(self.run.journal.rounds(self.name))

    def outcome(self) -> Outcome:
        """Say where the run is."""
        return outcome(self.run, self.hospitals.server.database)

    def wait_in_round(self, site: str) -> int:
        """Wait until a site is in a round and has not answered yet; returns the round."""
        number = 0

        def found() -> bool:
            nonlocal number
            number = self._training(site)
            return number > 0

        wait_for(found, what=f"a round at {site}", every=0.05)
        return number

    def _training(self, site: str) -> int:
        order = self.hospitals.order(site)
        at_work = order is not None and (order.run, order.status) == (self.name, "training")
        return order.round if order is not None and at_work else 0

    def end(self) -> Outcome:
        """Wait until the run has ended."""
        wait_for(lambda: self.outcome().status != RUNNING, what="the run's end", seconds=600)
        return self.outcome()

    def resume(self, *words: str | Path) -> None:
        """Go on by the one command."""
        done = self.hospitals.wardpose(SERVER, "server", "resume", *words, timeout=600)
        assert done.returncode == 0, done.stderr

    def statuses(self, site: str) -> dict[int, str]:
        """Return what a site did in each round."""
        return {number: row.status for (number, name), row in self.hospitals.rows(self.run).items() if name == site}

    def settle(self) -> None:
        """See that the run is complete, that the ledgers agree, and that Prometheus shows what happened."""
        ended = self.end()
        assert ended.status == COMPLETED, ended.sentence
        rows = self.run.journal.rounds(self.name)
        assert [row.round for row in rows] == list(range(1, self.rounds + 1))
        assert self.run.model.is_file()
        plan = yaml.safe_load(self.run.plan.read_text())["sites"]
        sites = [entry["name"] for entry in plan]
        for site in sites:
            alarming = [found for found in self.hospitals.differences(site) if found.alarming]
            assert not alarming, f"{site}: {alarming}"
        missed = Counter(
            site
            for (number, site), row in self.hospitals.rows(self.run).items()
            if number > 0 and row.status != "released"
        )
        self.hospitals.shows('wardpose_run_status{status="completed"} == 1')
        self.hospitals.shows(f"wardpose_round == {self.rounds}")
        for site in sites:
            total = missed[site] + self._before.get((site,), 0.0)
            self.hospitals.shows(f'sum(wardpose_sites_failed_total{{site="{site}"}}) == {total}')
        assert self.hospitals.query("sum(wardpose_ledgers_apart)") == {(): 0.0}
        assert self.hospitals.query("sum(wardpose_ledger_alarms) or vector(0)") == {(): 0.0}


def findings(hospitals: Hospitals, site: str) -> dict[str, dict[str, str]]:
    """Return the red lines of `wardpose site check --connect`, by name."""
    done = hospitals.wardpose(site, "site", "check", "--connect", "--json")
    assert done.stdout.startswith("{"), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    return {each["name"]: each for each in found["findings"] if each["status"] == "failure"}


# Before anybody is registered.


def test_an_archive_that_was_changed_is_refused(hospitals: Hospitals) -> None:
    kit = hospitals.unpack(NORTH, hospitals.folder / "changed")
    (wheel,) = (kit / "wheel").glob("*.whl")
    flip(wheel)
    before = sorted(hospitals.home(NORTH).iterdir())
    done = hospitals.install(NORTH, kit, "--data", hospitals.folder / "data" / NORTH)
    assert done.returncode == 2, done.stdout
    assert "is not what was packed" in done.stderr
    assert sorted(hospitals.home(NORTH).iterdir()) == before


def flip(path: Path) -> None:
    """Change one bit of one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_whoever_is_not_registered_is_refused_and_told_why(hospitals: Hospitals) -> None:
    hospitals.start_site(NORTH)
    (wheel,) = (hospitals.home(NORTH) / "wheel").glob("*.whl")
    flip(wheel)
    red = findings(hospitals, NORTH)
    flip(wheel)
    assert set(red) == {"registered", "installed"}
    assert "it is not registered, or was revoked" in red["registered"]["text"]
    assert "wardpose server register" in red["registered"]["text"]
    assert "it was changed or replaced" in red["installed"]["text"]
    wait_for(lambda: "is not registered, or was revoked" in hospitals.log(NORTH, "site"), what="the reason in its log")
    assert hospitals.online() == set()


# A federation.


def test_three_rounds_on_real_frames(federation: Hospitals) -> None:
    assert findings(federation, NORTH) == {}
    done = federation.wardpose(SERVER, "server", "submit", "--wait", "--json", timeout=600)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["status"], said["answers"]) == ("completed", dict.fromkeys(SITES, "ready"))
    assert "3 of 3 rounds are done" in said["why"]
    shown = federation.wardpose(SERVER, "server", "status", "--json")
    assert shown.returncode == 0, shown.stderr
    summary = json.loads(shown.stdout)
    assert (summary["rounds"], summary["not_private"]) == (3, None)
    assert {site["name"]: site["rounds_released"] for site in summary["sites"]} == dict.fromkeys(SITES, 3)
    for site in SITES:
        assert federation.differences(site) == []
    federation.shows("wardpose_rounds_total == 3")
    spent = {(site["name"],): pytest.approx(site["epsilon_spent"], rel=1e-9) for site in summary["sites"]}
    assert federation.query("wardpose_epsilon_spent") == spent
    assert all(value > 0 for value in federation.query("wardpose_site_epsilon_spent").values())
    assert len(federation.query("wardpose_site_epsilon_spent")) == len(SITES)
    assert federation.query("min(up)") == {(): 1.0}
    assert federation.query('sum by (status) (wardpose_site_orders_total{status="released"})') == {("released",): 9.0}


_SOCKETS = """
import json, socket, sys

host, *ports = sys.argv[1:]
found = []
for port in map(int, ports):
    with socket.socket() as knock:
        knock.settimeout(5)
        if knock.connect_ex((host, port)) == 0:
            found.append(port)
print(json.dumps(found))
"""
_PLAIN = """
import socket, sys

with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as talk:
    talk.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
    print(talk.makefile("rb").read().decode(errors="replace"))
"""
_POST = """
import http.client, json, ssl, sys

host, port, authority, *paths = sys.argv[1:]
found, believed = {}, ssl.create_default_context(cafile=authority)
for path in paths:
    talk = http.client.HTTPSConnection(host, int(port), timeout=20, context=believed)
    talk.request("POST", path, body=b"", headers={"Content-Type": "application/x-protobuf"})
    found[path] = talk.getresponse().status
    talk.close()
print(json.dumps(found))
"""


def python(hospitals: Hospitals, machine: str, code: str, *words: object) -> str:
    done = hospitals.command(machine, "python", "-I", "-c", code, *map(str, words))
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_hospitals_reach_two_doors_by_tls_and_no_more(federation: Hospitals) -> None:
    open_ports = json.loads(python(federation, NORTH, _SOCKETS, ADDRESS, *PORTS.values()))
    assert open_ports == [PORTS["fleet"], PORTS["budget"]]
    assert json.loads(python(federation, SERVER, _SOCKETS, "127.0.0.1", *PORTS.values())) == list(PORTS.values())

    plain = python(federation, NORTH, _PLAIN, ADDRESS, PORTS["fleet"])
    assert plain.startswith("HTTP/1.1 400")
    assert "plain HTTP request was sent to HTTPS port" in plain

    authority, control = federation.server.authority, "/v1/control/list-runs"
    ways = (
        control,
        "/v1/control/start-run",
        "//v1/control/list-runs",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/control/../fleet/../control/list-runs",
        "/v1/control/%2e%2e/fleet/pull-messages",
        "/v1/runtime/pull-task",
        "/openapi.json",
    )
    refused = json.loads(python(federation, NORTH, _POST, ADDRESS, PORTS["fleet"], authority, *ways))
    assert set(refused) == set(ways)
    assert set(refused.values()) <= {400, 403, 404}, refused
    assert refused[control] == 403
    there = json.loads(python(federation, SERVER, _POST, "localhost", PORTS["superlink"], authority, control))
    assert there[control] not in (403, 404)  # whoever reaches the SuperLink itself is heard


_LOOT = """
from flwr.clientapp import ClientApp

open("{marker}", "w").close()
app = ClientApp()
"""


def test_a_bundle_with_code_is_refused(federation: Hospitals) -> None:
    bundle, folder = federation.folder / "bundle", federation.home(SERVER) / "checks" / "hostile"
    assert federation.wardpose(SERVER, "server", "bundle", bundle).returncode == 0
    change(bundle / "pyproject.toml", "wardpose.client.app:app", "loot.app:app")
    write_text(bundle / "loot" / "__init__.py", "")
    looted = federation.folder / "looted"
    write_text(bundle / "loot" / "app.py", _LOOT.format(marker=looted))
    folder.mkdir(parents=True, mode=0o700)
    plan = federation.home(SERVER) / "federation.yaml"
    write_text(federation.folder / "run-config.toml", run_config(plan, folder, resume=False, preflight="strict"))
    words = ("run", bundle, "--run-config", federation.folder / "run-config.toml", "--format", "json")
    done = federation.command(
        SERVER, "env", f"FLWR_HOME={federation.server.operator}", "FLWR_TELEMETRY_ENABLED=0", "flwr", *words
    )
    assert json.loads(done.stdout)["success"], done.stdout
    journal = RunJournal(folder / "journal.sqlite")
    wait_for(lambda: bool(journal.runs()) and journal.runs()[-1]["status"] != "running", what="the run's end")
    (run,) = journal.runs()
    assert run["status"] == "stopped", run["detail"]
    rows = {row.site: (row.round, row.status, row.code) for row in journal.sites(run["run"])}
    assert rows == dict.fromkeys(SITES, (0, "refused", int(Refusal.CODE)))
    assert not looted.exists()
    for site in SITES:
        order = federation.order(site)
        assert order is not None
        assert order.status == "refused"
        assert "loot" in order.detail
        assert order.detail in federation.log(site, "site")
        assert federation.differences(site) == []


# What happens to machines, one after the other.


def test_a_superlink_and_its_executor_are_killed(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=3)
    (app,) = federation.network[SERVER].processes("wardpose.server.serverapp")
    first = watched.wait_in_round(NORTH)
    (killed,) = federation.kill(SERVER, "wardpose.server superlink")
    wait_for(
        lambda: federation.network[SERVER].processes("wardpose.server superlink") not in ([], [killed]),
        what="another SuperLink",
    )
    wait_for(lambda: watched.done >= first, what="the round's end")
    watched.wait_in_round(NORTH)
    (killed,) = federation.kill(SERVER, "wardpose.server exec")
    wait_for(
        lambda: federation.network[SERVER].processes("wardpose.server exec") not in ([], [killed]),
        what="another executor",
    )
    assert federation.network[SERVER].processes("wardpose.server.serverapp") == [app]
    watched.settle()


def test_a_clientapp_and_its_executor_are_killed(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=4)
    first = watched.wait_in_round(NORTH)
    wait_for(lambda: bool(federation.forks(NORTH)), what="a process in hand", every=0.02)
    in_hand = federation.forks(NORTH)
    assert in_hand
    federation.kill_numbers(in_hand)
    wait_for(lambda: watched.done >= first, what="the round's end")
    assert watched.statuses(NORTH)[first] in ("failed", "late")
    assert watched.statuses(SOUTH)[first] == watched.statuses(WEST)[first] == "released"
    watched.wait_in_round(SOUTH)
    (killed,) = federation.kill(SOUTH, "wardpose.client exec")
    wait_for(
        lambda: federation.network[SOUTH].processes("wardpose.client exec") not in ([], [killed]),
        what="another executor",
    )
    watched.settle()  # a message in hand may have outlived the executor, and then it is answered
    assert watched.statuses(NORTH)[4] == watched.statuses(SOUTH)[4] == "released"


def test_a_supernode_is_killed_and_comes_back(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=3)
    number = watched.wait_in_round(NORTH)
    federation.kill(NORTH, "wardpose.client node")
    federation.shows(f'wardpose_site_online{{site="{NORTH}"}} == 0')
    watched.end()
    assert watched.statuses(NORTH)[number] in ("failed", "late")
    federation.wait_online(*SITES)
    watched.settle()
    more(watched, 1)
    assert watched.statuses(NORTH)[watched.rounds] == "released"


def test_a_serverapp_is_killed_and_the_run_goes_on_by_one_command(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=3)
    watched.wait_in_round(NORTH)
    federation.kill(SERVER, "wardpose.server.serverapp")
    ended = watched.end()
    assert ended.status == FAILED
    assert "server resume" in ended.next
    federation.shows('wardpose_run_end_reason{reason="killed"} == 1 or wardpose_run_status{status="failed"} == 1')
    federation.shows('ALERTS{alertname=~"WardposeRunFailed|WardposeRunInterrupted"}')
    watched.resume()
    watched.settle()


def test_a_hospital_is_cut_off_and_comes_back(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=3)
    number = watched.wait_in_round(WEST)
    with federation.cut(WEST):
        federation.shows(f'wardpose_site_online{{site="{WEST}"}} == 0')
        watched.end()
        assert watched.statuses(WEST)[number] in ("failed", "late")
        assert watched.statuses(NORTH) | watched.statuses(SOUTH) == watched.statuses(NORTH)
        federation.shows('ALERTS{alertname="WardposeSiteMissing", alertstate="pending"}')
    federation.wait_online(*SITES)
    watched.settle()
    more(watched, 1)
    assert watched.statuses(WEST)[watched.rounds] == "released"


def test_the_superlinks_database_is_locked_for_twenty_seconds(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=3)
    watched.wait_in_round(NORTH)
    with closing(sqlite3.connect(federation.server.database, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(20)
        connection.execute("ROLLBACK")
    watched.settle()
    for site in SITES:
        assert set(watched.statuses(site).values()) == {"ready", "released"}


def test_the_disk_of_a_hospital_is_full(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=3)
    number = watched.wait_in_round(NORTH) + 1
    wait_for(lambda: watched.done >= number - 1, what="the round's end", every=0.05)
    with federation.full_disk():
        watched.end()
        assert "released" not in {status for at, status in watched.statuses(SOUTH).items() if at > number}
        red = federation.query(f'increase(wardpose_sites_failed_total{{site="{SOUTH}"}}[5m]) > 0')
        assert red
    watched.settle()
    more(watched, 1)
    assert watched.statuses(SOUTH)[watched.rounds] == "released"


def more(watched: Watched, rounds: int) -> None:
    """Let a run that is complete take more rounds, by the one command."""
    watched.rounds += rounds
    plan = yaml.safe_load(watched.run.plan.read_text()) | {"rounds": watched.rounds}
    path = watched.hospitals.home(SERVER) / "more.yaml"
    write_text(path, yaml.safe_dump(plan, sort_keys=False))
    watched.resume("--plan", path)
    watched.settle()


# One more, and one less.


def test_a_fourth_hospital_joins_between_rounds_and_leaves(federation: Hospitals) -> None:
    watched = Watched(federation, rounds=1)
    watched.settle()
    before = {path.name: path.read_bytes() for path in federation.kits.glob("*.tar.gz")}
    for plan in (federation.plan, federation.home(SERVER) / "federation.yaml"):
        content = yaml.safe_load(plan.read_text())
        write_text(plan, yaml.safe_dump(content | {"sites": [*SITES, LATER]}, sort_keys=False))
    found = federation.provision("--add", LATER)
    assert list(found["archives"]) == [LATER]
    assert {name: (federation.kits / name).read_bytes() for name in before} == before
    shutil.copyfile(federation.kits / "authority" / "nodes" / f"{LATER}.pub", federation.server.nodes / f"{LATER}.pub")
    federation.install_site(LATER)
    done = federation.wardpose(SERVER, "server", "register", LATER, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {LATER: "registered"})
    federation.start_site(LATER)
    federation.wait_online(*SITES, LATER)

    grown = yaml.safe_load(watched.run.plan.read_text()) | {"sites": [*SITES, LATER], "rounds": 2}
    path = federation.home(SERVER) / "grown.yaml"
    write_text(path, yaml.safe_dump(grown, sort_keys=False))
    watched.rounds = 2
    watched.resume("--plan", path)
    watched.settle()
    assert watched.statuses(LATER) == {0: "ready", 2: "released"}
    assert watched.statuses(NORTH)[2] == "released"
    federation.shows(f'wardpose_sites_released_total{{site="{LATER}"}} == 1')

    assert federation.wardpose(SERVER, "server", "revoke", LATER).returncode == 0
    federation.provision("--revoke", LATER)
    shutil.copyfile(federation.kits / "authority" / "revoked.txt", federation.server.keys / "revoked.txt")
    log = federation.folder / f"{LATER}-site.log"
    mark = log.stat().st_size
    wait_for(lambda: b"it is not registered, or was revoked" in log.read_bytes()[mark:], what="the reason in its log")
    red = findings(federation, LATER)
    assert "it is not registered, or was revoked" in red["registered"]["text"]
    assert "account" in red or "certificate" in red, red
    assert federation.online() == set(SITES)
