"""How a federation grows: seconds and memory per site with 10 to 1,000 sites, and nodes that one SuperLink holds.

Sites are in one process here, one after the other (`simulation/grid.py`), with two patients each and one step a round,
so that what is left is what the coordinator and a site do beside training: ledgers, seals, signatures, journals. Each
size is measured in a process of its own. Aggregation is measured by itself on the head's 91,000 weights. The nodes of
a real SuperLink are Flower's own connections, with keys and TLS, in threads of one process: they heartbeat and ask for
messages as SuperNodes do.
"""

import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from wardpose.server.aggregation import Aggregator, clip_to_median
from wardpose.server.home import ServerHome
from wardpose.server.journal import RunJournal
from wardpose.server.nodes import register
from wardpose.server.provision.certificates import create_node_key
from wardpose.server.superlink import registered_nodes
from wardpose.server.updates import Shortened, Updates
from wardpose.shared.config import AggregationConfig, FederationConfig
from wardpose.simulation.benchmarks.step import hardware
from wardpose.simulation.dev import Deployment
from wardpose.simulation.processes import Running
from wardpose.simulation.run import simulate

_WEIGHTS = 91_000
_ASKED_SECONDS = 20.0
_ONLINE_SECONDS = 120.0
_POLL_SECONDS = 3.0  # of a node that has nothing to do
_MEGABYTE = 1 << 20

Result = TypeVar("Result")


def measure_scale(sites: Sequence[int], *, rounds: int = 2, nodes: int = 50) -> dict[str, Any]:
    """Measure federations of these sizes, their aggregation, and nodes on a SuperLink.

    Args:
        sites: numbers of sites.
        rounds: of each federation.
        nodes: that connect to one SuperLink; with 0 none is started.

    Returns:
        `rows` of `what`, `sites`, seconds and memory, and what they were measured on.

    """
    rows = [_apart(_federation, number, rounds) for number in sites]
    rows += [_apart(_aggregation, number) for number in sites]
    if nodes:
        rows.append(_apart(_supernodes, nodes))
    return {
        "setting": {"rounds": rounds, "weights": _WEIGHTS, "rule": "fedavg"},
        "hardware": hardware("cpu") | {"cores": str(os.cpu_count()), "load": f"{os.getloadavg()[0]:.1f}"},
        "rows": rows,
    }


def _apart(work: Callable[..., Result], *arguments: Any) -> Result:
    """Do something in a new process, whose memory is nobody else's."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _peak() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE


def _plan(sites: int, rounds: int) -> FederationConfig:
    ward = {"kind": "ward", "hospital": "north", "patients": 2, "frames_per_patient": 1, "seed": 1}
    return FederationConfig.model_validate(
        {
            "name": "scale",
            "rounds": rounds,
            "sites": [{"name": f"site-{number:04}", "data": ward} for number in range(sites)],
            "mechanism": {"sample_rate": 0.5, "frames_per_unit": 1, "noise_multiplier": 3.0},
            "model": {"input_size": [32, 32], "weights": "random"},
            "privacy": {"epsilon": 50.0, "delta": 1e-3, "overlap": 1},
            "training": {"strategy": "head", "steps": 1, "optimizer": {"name": "sgd", "learning_rate": 0.3}},
        }
    )


def _federation(sites: int, rounds: int) -> dict[str, Any]:
    """Run a federation in this process."""
    before, began = _peak(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="wardpose-scale-") as folder:
        simulate(_plan(sites, rounds), Path(folder) / "run", report=False)
        journal = RunJournal(Path(folder) / "run" / "journal.sqlite")
        finished = journal.rounds(journal.runs()[-1]["run"])
    spent, grown = time.process_time() - began, _peak() - before
    return {
        "what": "federation",
        "sites": sites,
        "seconds": round(finished[-1].seconds, 2),
        "seconds_per_site": round(finished[-1].seconds / sites, 4),
        "processor_seconds_per_site": round(spent / sites, 4),
        "memory_mb": round(grown, 1),
        "memory_mb_per_site": round(grown / sites, 3),
    }


def _aggregation(sites: int) -> dict[str, Any]:
    """Take as many updates as there are sites through admission's shortening and the mean."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    generator = np.random.default_rng(1)
    weights = {"head.weight": np.zeros(_WEIGHTS, np.float32)}
    request = Message(RecordDict(), 1, "train", group_id="1", ttl=60)
    before, began = _peak(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="wardpose-scale-") as folder, Updates(Path(folder)) as updates:
        for number in range(sites):
            update = generator.standard_normal(_WEIGHTS, np.float32)
            updates.keep(f"site-{number:04}", {"head.weight": update}, norm=float(np.linalg.norm(update)))
        shortened = Shortened(updates, clip_to_median(updates.norms), dict.fromkeys(updates, 1.0))
        Aggregator(AggregationConfig()).combine(weights, shortened, round_number=1, request=request)
    spent, grown = time.process_time() - began, _peak() - before
    return {
        "what": "aggregation",
        "sites": sites,
        "processor_seconds_per_site": round(spent / sites, 4),
        "memory_mb": round(grown, 1),
        "memory_mb_per_site": round(grown / sites, 3),
    }


def _supernodes(nodes: int) -> dict[str, Any]:
    """Connect nodes to a real SuperLink and have them ask for messages for a while."""
    stop, asked, failed = threading.Event(), list[float](), list[str]()
    with tempfile.TemporaryDirectory(prefix="wardpose-scale-") as folder, _superlink(Path(folder)) as deployment:
        names = [f"node-{number:03}" for number in range(nodes)]
        keys = [create_node_key(Path(folder) / "keys" / name)[0] for name in names]
        for name, key in zip(names, keys, strict=True):
            shutil.copyfile(key.with_name("node.pub"), deployment.home.nodes / f"{name}.pub")
        register(deployment.home, names)
        threads = [
            threading.Thread(target=_node, args=(deployment.home, key, stop, asked, failed), daemon=True)
            for key in keys
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while _online(deployment, names) < nodes and time.monotonic() - began < _ONLINE_SECONDS:
            time.sleep(0.5)
        until_online, before = time.monotonic() - began, _processor_seconds(deployment)
        asked.clear()
        time.sleep(_ASKED_SECONDS)
        spent, waits, online = _processor_seconds(deployment) - before, sorted(asked), _online(deployment, names)
        memory = sum(_status(process.pid, "VmRSS") for process in _of_superlink(deployment)) / 1024
        stop.set()
        for thread in threads:
            thread.join(timeout=_ONLINE_SECONDS)
    return {
        "what": "supernodes",
        "sites": nodes,
        "online": online,
        "failed": len(failed),
        "seconds": round(until_online, 2),
        "asks_per_second": round(len(waits) / _ASKED_SECONDS, 1),
        "answer_median_s": round(statistics.median(waits), 3) if waits else None,
        "answer_longest_s": round(waits[-1], 3) if waits else None,
        "superlink_cores": round(spent / _ASKED_SECONDS, 2),
        "memory_mb": round(memory, 1),
        "memory_mb_per_site": round(memory / nodes, 2),
    }


@contextmanager
def _superlink(folder: Path) -> Iterator[Deployment]:
    """Have a server and one hospital, on loopback."""
    deployment = Deployment(folder / "deployment")
    try:
        deployment.up(_plan(1, 1))
        yield deployment
    finally:
        deployment.down()


def _online(deployment: Deployment, names: Sequence[str]) -> int:
    online = {node.name for node in registered_nodes(deployment.database) if node.online}
    return len(online & set(names))


def _of_superlink(deployment: Deployment) -> list[Running]:
    return [process for process in deployment.processes.alive() if process.role == "superlink"]


def _processor_seconds(deployment: Deployment) -> float:
    """Return what the SuperLink's processes have used so far."""
    total = 0
    for process in _of_superlink(deployment):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> int:
    """Return a size in kB from what Linux says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _node(home: ServerHome, key: Path, stop: threading.Event, asked: list[float], failed: list[str]) -> None:
    """Be a node without an app until told to stop."""
    private = load_ssh_private_key(key.read_bytes(), None)
    try:
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{key}: is no key of a node")
        keys = (private, private.public_key())
        with http_request_response(home.superlink, False, str(home.authority), keys) as (_, receive, *_rest):
            while not stop.is_set():
                began = time.monotonic()
                receive()
                asked.append(time.monotonic() - began)
                stop.wait(_POLL_SECONDS)
    except Exception as error:
        failed.append(f"{type(error).__name__}: {error}")
