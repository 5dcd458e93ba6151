"""A coordinator and hospitals on machines of their own, with nothing but what `wardpose provision` packed for them.

Every process is that of a user without rights: on this machine's user number, in a user namespace of which it is not
root. What systemd or cron would do (start again what ended) a loop of the shell does.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.network import Host, Network, SmallDisk, unavailable
from wardpose.client.home import SiteHome, open_site_home
from wardpose.client.journal import OrderRow, SiteJournal
from wardpose.server.home import ServerHome, open_server_home
from wardpose.server.journal import SiteRow
from wardpose.server.operator import program
from wardpose.server.runs import Run, find_run
from wardpose.shared.files import write_text
from wardpose.shared.ledger_views import Difference, compare
from wardpose.shared.privacy.ledger import Ledger

SITES = ("north", "south", "west")
LATER = "east"
ADDRESS = "fed.example.test"
SERVER = "server"
PORTS = {
    "fleet": 8443,
    "budget": 9443,
    "superlink": 8000,
    "budget_service": 9444,
    "metrics": 9464,
    "prometheus": 9090,
}
PEOPLE = 60
ANSWER_SECONDS = 4
DEADLINE_SECONDS = 45
_DISK_BYTES = 1200 << 20  # `site install` wants a gigabyte free
_NOBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
_AGAIN = 'while :; do "$@"; echo "ended with status $?"; sleep 2; done'
_ASK = """
import sys, urllib.request

print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
"""

Condition = Callable[[], bool]


def impossible() -> str:
    """Say why there can be no such machines here; nothing where there can."""
    reason = unavailable()
    if reason:
        return reason
    tried = subprocess.run([*_NOBODY, "true"], capture_output=True, text=True, check=False)
    return f"no user namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def wait_for(condition: Condition, *, what: str, seconds: float = 300, every: float = 0.5) -> None:
    """Wait until something is so; fails when it takes too long."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)


def write_plan(folder: Path, data_root: Path) -> Path:
    """Write the plan of three hospitals, with as little training as there can be, scored on real frames."""
    lspet = data_root / "lspet"
    content = json.loads((lspet / "annotations" / "val_coco17.json").read_text())
    write_text(folder / "val.json", json.dumps([Path(image["file_name"]).stem for image in content["images"][:8]]))
    plan = {
        "name": "gait",
        "rounds": 3,
        "sites": list(SITES),
        "mechanism": {"name": "dp-sgd", "sample_rate": 0.1, "noise_multiplier": 4.0, "frames_per_unit": 1},
        "data": {"validation": [{"kind": "lsp", "path": str(lspet), "split": "val", "records": "val.json"}]},
        "model": {"input_size": [64, 64], "weights": "random"},
        "privacy": {"epsilon": 400.0, "delta": 1e-3},
        "training": {"strategy": "head", "steps": 2},
        "server": {
            "minimum_sites": 2,
            "deadline_seconds": DEADLINE_SECONDS,
            "minimum_deadline_seconds": DEADLINE_SECONDS,
        },
        "deployment": {"address": ADDRESS, "ports": PORTS},
    }
    write_text(folder / "federation.yaml", yaml.safe_dump(plan, sort_keys=False))
    return folder / "federation.yaml"


def write_frames(folder: Path, data_root: Path, number: int) -> Path:
    """Give a hospital real people of its own, as COCO with a side file that says who is who."""
    lspet = data_root / "lspet"
    content = json.loads((lspet / "annotations" / "extra_coco17.json").read_text())
    images = content["images"][number * PEOPLE : (number + 1) * PEOPLE]
    numbers = {image["id"] for image in images}
    content |= {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in numbers]}
    (folder / "images").mkdir(parents=True)
    for image in images:
        shutil.copyfile(lspet / "images" / "extra" / image["file_name"], folder / "images" / image["file_name"])
    write_text(folder / "keypoints.json", json.dumps(content))
    rows = "".join(f"{image['file_name']},p{image['id']}\n" for image in images)
    write_text(folder / "patients.csv", f"record,patient\n{rows}")
    return folder


class Hospitals:
    """The machines of one federation.

    Attributes:
        folder: everything lies below it; a folder a machine.
        network: of the machines.
        kits: what `provision` wrote.
        plan: the coordinator's own copy of the plan.
        fingerprint: of the signing key, as the coordinator's people say it on the telephone.

    """

    def __init__(self, folder: Path, data_root: Path) -> None:
        self.folder, self._data = folder, data_root
        self.kits, self.plan, self.fingerprint = folder / "kits", write_plan(folder, data_root), ""
        for machine in (SERVER, *SITES, LATER):
            (folder / machine).mkdir(mode=0o700)
        self._disk = SmallDisk(folder / "south", _DISK_BYTES)
        try:
            self.network = Network((SERVER, *SITES, LATER), aliases={SERVER: ADDRESS})
        except BaseException:
            self._disk.close()
            raise

    def close(self) -> None:
        """End every process; remove machines and disk."""
        self.network.close()
        self._disk.close()

    # What people type.

    def command(self, machine: str, *words: str | Path, timeout: float = 400, within: Path | None = None) -> Any:
        """Run a command on a machine as a user without rights."""
        return self.network[machine].run(
            *_NOBODY,
            *map(str, words),
            environment=self._environment(machine),
            timeout=timeout,
            cwd=within or self.folder,
        )

    def wardpose(self, machine: str, *words: str | Path, timeout: float = 400) -> Any:
        """Run `wardpose` in a machine's home."""
        return self.command(machine, program("wardpose"), *words, timeout=timeout, within=self.home(machine))

    def provision(self, *words: str) -> dict[str, Any]:
        """Run `wardpose provision` at the coordinator's desk; returns what it says."""
        done = self.command(SERVER, program("wardpose"), "provision", self.plan, "--out", self.kits, *words, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        self.fingerprint = found["fingerprint"]
        return found

    def unpack(self, machine: str, place: Path) -> Path:
        """Unpack a machine's archive as tar does; returns its folder."""
        place.mkdir(parents=True, exist_ok=True)
        done = self.command(machine, "tar", "-xzf", self.kits / f"{machine}.tar.gz", "-C", place)
        assert done.returncode == 0, done.stderr
        return place / f"wardpose-{machine}"

    def install(self, machine: str, kit: Path, *options: str | Path) -> Any:
        """Run an archive's own installer."""
        words = ("--prefix", self.home(machine), "--python", sys.executable, "--fingerprint", self.fingerprint)
        return self.command(machine, "sh", kit / "install.sh", *words, *(("--", *options) if options else ()))

    # Whole machines.

    def install_server(self) -> None:
        """Install the server's archive, and put the public data beside its plan."""
        done = self.install(SERVER, self.unpack(SERVER, self.folder / "unpacked"))
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.copyfile(self.folder / "val.json", self.home(SERVER) / "val.json")
        prometheus = self.home(SERVER) / "prometheus" / "prometheus.yml"
        change(prometheus, "scrape_interval: 15s", "scrape_interval: 5s")
        change(prometheus, "evaluation_interval: 15s", "evaluation_interval: 5s")

    def install_site(self, site: str) -> None:
        """Install a hospital's archive for its frames; its people allow what the tests need."""
        number = (*SITES, LATER).index(site)
        data = write_frames(self.folder / "data" / site, self._data, number)
        done = self.install(site, self.unpack(site, self.folder / "unpacked"), "--data", data)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{PEOPLE} records of {PEOPLE} patients" in done.stdout
        there = self.home(site) / "site.yaml"
        change(there, "\n  epsilon: 4.0 ", "\n  epsilon: 400.0 ")
        change(there, "\nanswer_seconds: 300 ", f"\nanswer_seconds: {ANSWER_SECONDS} ")

    def start_server(self, prometheus: str, nginx: str) -> None:
        """Start all that the READ-ME says, and wait until the door is open."""
        home = self.home(SERVER)
        self._start(SERVER, "server", program("wardpose"), "server", "run")
        self._start(
            SERVER, "nginx", nginx, "-e", home / "log" / "nginx.log", "-c", home / "nginx.conf", "-g", "daemon off;"
        )
        self._start(
            SERVER,
            "prometheus",
            prometheus,
            f"--config.file={home / 'prometheus' / 'prometheus.yml'}",
            f"--storage.tsdb.path={home / 'prometheus' / 'data'}",
            f"--web.listen-address=127.0.0.1:{PORTS['prometheus']}",
        )
        wait_for(lambda: self.get(SERVER, f"https://{ADDRESS}:{PORTS['fleet']}/health") != "", what="the server")

    def start_site(self, site: str) -> None:
        """Start a hospital's site, and its exporter, which it shares with the coordinator."""
        self._start(site, "site", program("wardpose"), "site", "run")
        address = self.network[site].address
        self._start(site, "metrics", program("wardpose"), "site", "metrics", "--home", ".", "--host", address)
        targets = self.home(SERVER) / "prometheus" / "targets" / f"{site}.yml"
        write_text(targets, yaml.safe_dump([{"targets": [f"{address}:9465"]}]))

    def home(self, machine: str) -> Path:
        """Return a machine's home."""
        return self.folder / machine / "home"

    def log(self, machine: str, name: str) -> str:
        """Return what a machine's process wrote."""
        return (self.folder / f"{machine}-{name}.log").read_text(errors="replace")

    @property
    def server(self) -> ServerHome:
        """The server's home."""
        return open_server_home(self.home(SERVER))

    def site(self, site: str) -> SiteHome:
        """Return a hospital's home."""
        return open_site_home(self.home(site))

    # What is seen.

    def get(self, machine: str, url: str) -> str:
        """Fetch a page on a machine; "" where nothing answers."""
        environment = self._environment(machine) | {"SSL_CERT_FILE": str(self.home(SERVER) / "keys" / "ca.crt")}
        found = self.network[machine].run(sys.executable, "-I", "-c", _ASK, url, environment=environment)
        return found.stdout if found.returncode == 0 else ""

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Ask Prometheus; label values (without job and instance) in the order of the labels -> value."""
        query = urllib.parse.urlencode({"query": expression})
        answer = self.get(SERVER, f"http://127.0.0.1:{PORTS['prometheus']}/api/v1/query?{query}")
        ignored = {"__name__", "instance", "job"}
        samples = json.loads(answer)["data"]["result"] if answer else []
        return {
            tuple(value for name, value in sorted(sample["metric"].items()) if name not in ignored): float(
                sample["value"][1]
            )
            for sample in samples
        }

    def shows(self, expression: str, *, seconds: float = 60) -> None:
        """Wait until Prometheus shows something."""
        wait_for(lambda: bool(self.query(expression)), what=f"Prometheus: {expression}", seconds=seconds, every=1)

    def online(self) -> set[str]:
        """Return the sites that the coordinator sees."""
        done = self.wardpose(SERVER, "server", "nodes", "--json")
        assert done.returncode == 0, done.stderr
        return {node["name"] for node in json.loads(done.stdout)["nodes"] if node["online"]}

    def wait_online(self, *sites: str) -> None:
        """Wait until sites are there, as Prometheus sees them."""
        names = "|".join(sites)
        self.shows(f'count(wardpose_site_online{{site=~"{names}"}} == 1) == {len(sites)}', seconds=200)

    def run(self) -> Run:
        """Return the latest run."""
        return find_run(self.server.runs)

    def rows(self, run: Run) -> dict[tuple[int, str], SiteRow]:
        """Return what each site did in each round of a run."""
        name = run.journal.runs()[-1]["run"]
        return {(row.round, row.site): row for row in run.journal.sites(name)}

    def order(self, site: str) -> OrderRow | None:
        """Return the last order that a site received."""
        orders = SiteJournal(self.home(site) / "state" / "journal.sqlite").orders()
        return orders[-1] if orders else None

    def differences(self, site: str) -> list[Difference]:
        """Hold a site's ledger against the coordinator's, as `wardpose ledger compare` does."""
        mine, theirs = Ledger.open_readonly(self.home(site) / "ledger.sqlite"), Ledger.open_readonly(self.server.ledger)
        mine.verify()
        theirs.verify()
        return compare(mine.entries(), theirs.entries(), site)

    # What happens to them.

    def kill(self, machine: str, containing: str) -> list[int]:
        """SIGKILL processes of a machine by their command line, and see that there were some."""
        killed = self.network[machine].kill(containing)
        assert killed, f"{machine}: no process {containing}"
        return killed

    def kill_numbers(self, numbers: list[int]) -> None:
        """SIGKILL processes that were just found."""
        for number in numbers:
            os.kill(number, signal.SIGKILL)

    def forks(self, site: str) -> list[int]:
        """Return the processes of messages in hand at a site: forks of the one that has imported everything."""
        found = self.network[site].processes("wardpose.client.zygote")
        return [number for number in found if _parent(number) in found]

    @contextmanager
    def cut(self, site: str) -> Iterator[Host]:
        """Pull a hospital's cable, and plug it in again."""
        host = self.network[site]
        host.cut()
        try:
            yield host
        finally:
            host.mend()

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Fill the disk of south, and free it again."""
        self._disk.fill()
        try:
            yield
        finally:
            self._disk.free()

    def _start(self, machine: str, name: str, *words: str | Path) -> None:
        self.network[machine].start(
            *(*_NOBODY, "sh", "-c", _AGAIN, name, *map(str, words)),
            log=self.folder / f"{machine}-{name}.log",
            environment=self._environment(machine),
            cwd=self.home(machine),
        )

    def _environment(self, machine: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PYTHONPATH", "WARDPOSE_DATA") if name in os.environ}
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        user = {"HOME": str(self.folder / machine), "USER": machine, "LOGNAME": machine}
        return {**kept, **user, "PATH": path, "LANG": "C.UTF-8", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def change(path: Path, old: str, new: str) -> None:
    """Change one place in a file that people write."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def _parent(number: int) -> int:
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
