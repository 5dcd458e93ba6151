"""A federation in this process, to which everything happens: what goes wrong at a site, a server, a disk or a clock."""

import ctypes
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from flwr.app import Context, Message
from support.federations import tiny_federation
from support.invariants import Left

import wardpose.client.app
from wardpose.server.app import run_federation
from wardpose.server.journal import RunJournal
from wardpose.shared.errors import ConfigError, WardposeError
from wardpose.shared.messages import TRAIN, SiteRelease
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site
from wardpose.shared.wire import unpack
from wardpose.simulation.grid import Fault, InProcessGrid
from wardpose.simulation.layout import prepare_sites

SITES = ("north", "south")
READ_ONLY, REMOUNT = 1, 32  # of mount(2)

Mishap = Literal[
    "none", "crash", "crash-after-training", "straggle", "refuse", "answer twice", "old answer first", "replay",
    "order twice",
]  # fmt: skip
MISHAPS: tuple[Mishap, ...] = (
    "none", "crash", "crash-after-training", "straggle", "refuse", "answer twice", "old answer first", "replay",
    "order twice",
)  # fmt: skip


class Disk:
    """A folder that can be full or read-only: a file system in memory where one may be mounted.

    Attributes:
        mounted: whether it is one of its own; else it cannot become read-only, and is full by a limit on files.

    """

    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mounted = _mount(folder, 0, f"size={megabytes}m")

    def close(self) -> None:
        """Let the file system go."""
        if self.mounted:
            ctypes.CDLL(None).umount2(os.fsencode(self.folder), 2)

    @contextmanager
    def full(self, kilobytes: int) -> Iterator[None]:
        """Leave so much room."""
        if not self.mounted:
            import resource

            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, before[1]))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            return
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file:
            size = shutil.disk_usage(self.folder).free - 1024 * kilobytes
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nothing be written."""
        assert _mount(self.folder, REMOUNT | READ_ONLY, "")
        try:
            yield
        finally:
            assert _mount(self.folder, REMOUNT, "")


def _mount(folder: Path, flags: int, options: str) -> bool:
    found: int = ctypes.CDLL(None).mount(
        b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options.encode()
    )
    return found == 0


@contextmanager
def clock_off_by(seconds: float) -> Iterator[None]:
    """Show everybody another time."""
    real = time.time
    with patch("time.time", lambda: real() + seconds), patch.dict(Ledger.__init__.__kwdefaults__, clock=time.time):
        yield


class Network:
    """Carries the messages of a round to one site's app, with what goes wrong on the way.

    Attributes:
        left: every release, at the moment it left.

    """

    def __init__(self, left: Callable[[Left], None]) -> None:
        self._left = left
        self.mishaps: dict[str, Mishap] = {}
        self.old: dict[int, Message] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        """Hand a message over, once or twice, and note what comes back."""
        site = Path(str(context.node_config["site-config"])).parent.name
        if message.metadata.message_type == TRAIN and self.mishaps.get(site) == "order twice":
            self._answer(message, context)
        return self._answer(message, context)

    def _answer(self, message: Message, context: Context) -> Message:
        answer = wardpose.client.app.app(message, context)
        if message.metadata.message_type == TRAIN and not answer.has_error():
            release, _ = unpack(answer.content, SiteRelease)
            self._left(Left.of(release))
        return answer

    def faults(self, round_number: int) -> list[Fault]:
        """Return the grid's faults for the mishaps."""
        return [
            Fault(site=site, round=round_number, kind="replace", replace=self._replacing(kind))
            if kind in ("none", "answer twice", "old answer first", "replay", "order twice")
            else Fault(site=site, round=round_number, kind=kind)
            for site, kind in self.mishaps.items()
        ]

    def _replacing(self, kind: Mishap) -> Callable[[Message, Message], Sequence[Message]]:
        def replace(message: Message, answer: Message) -> Sequence[Message]:
            node = message.metadata.dst_node_id
            old = self.old.get(node)
            self.old[node] = answer
            if kind == "answer twice":
                return (answer, answer)
            if kind == "old answer first" and old is not None:
                old.metadata.__dict__["_reply_to_message_id"] = "of an earlier round"  # grids here count from 0 again
                return (old, answer)
            if kind == "replay" and old is not None and not old.has_error():
                return (Message(old.content, reply_to=message),)
            return (answer,)

        return replace


class World:
    """Two hospitals and the coordinators that order rounds of them.

    Attributes:
        hospitals: disk of the sites.
        servers: disk of the coordinators.
        left: what left the sites, in order.

    """

    def __init__(self, name: str, hospitals: Disk, servers: Disk) -> None:
        self.hospitals, self.servers = hospitals, servers
        self.home, self.server = hospitals.folder / name, servers.folder / name
        self.paths = prepare_sites(tiny_federation(SITES), self.home)
        self.server.mkdir()
        for key in self.home.glob("coordinator.*"):  # whose public half the sites know
            shutil.copy(key, self.server)
        self.left: list[Left] = []
        self.network = Network(self.left.append)

    def close(self) -> None:
        """Remove everything."""
        for folder in (self.home, self.server):
            shutil.rmtree(folder, ignore_errors=True)

    def files(self, site: str, what: str) -> list[Path]:
        """Return the ledger, or ledger and journals, of a site, with SQLite's files beside them."""
        config = load_site(self.paths[site])
        found = list(config.ledger.parent.glob(f"{config.ledger.name}*"))
        return found + (list(config.state.glob("*.sqlite*")) if what == "both" else [])

    def rounds_done(self) -> int:
        """Rounds of the last run that are in its journal."""
        journal = RunJournal(self.server / "journal.sqlite")
        runs = journal.runs()
        return max((row.round for row in journal.rounds(runs[-1]["run"])), default=0) if runs else 0

    def round(self, *, done: int | None = None, resume: bool = True, twice: bool = False) -> WardposeError | None:
        """Take one more round; returns what a coordinator said that could not.

        Args:
            done: rounds that the run has; the journal says so when absent.
            resume: the run that is there, else begin another.
            twice: a second coordinator is started in the same folder while a site trains.

        """
        if done is None or not resume:
            done = self.rounds_done() if resume else 0
        plan = tiny_federation(SITES, rounds=done + 1, server={"deadline_seconds": 0.001, "wait_seconds": 0.001})
        faults = self.network.faults(done + 1)
        with ExitStack() as stack:
            if twice:
                stack.enter_context(self._second())
            grid = stack.enter_context(InProcessGrid(self.network, self.paths, faults=faults))  # type: ignore[arg-type]
            try:
                run_federation(grid, plan, self.server, resume=resume)
            except WardposeError as error:
                return error
        return None

    @contextmanager
    def _second(self) -> Iterator[None]:
        """Let another coordinator try to take a round in the middle of a site's."""
        train, once = wardpose.client.app.train_round, []

        def interrupted(*arguments: Any, **options: Any) -> Any:
            if not once:
                once.append(True)
                assert isinstance(self.round(), ConfigError)
            return train(*arguments, **options)

        with patch("wardpose.client.app.train_round", interrupted):
            yield

    def killed_round(self, at: int) -> None:
        """Take a round in a process of its own that dies, server and sites at once, at its n-th durable operation."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                os.close(read)
                self.network._left = lambda left: os.write(write, f"{json.dumps(vars(left))}\n".encode()) and None
                _die_at(at)
                self.round()
            os._exit(0)
        os.close(write)
        with open(read) as pipe:
            self.left += [Left(**json.loads(line)) for line in pipe]
        os.waitpid(pid, 0)


def _die_at(at: int) -> None:
    """Kill this process in front of its n-th fsync, renaming, link or commit."""
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def operation(*arguments: Any, **options: Any) -> Any:
            counted()
            return real(*arguments, **options)

        return operation

    for name in ("fsync", "replace", "rename", "link"):
        setattr(os, name, counting(name))
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(lambda statement: counted() if statement == "COMMIT" else None)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]
