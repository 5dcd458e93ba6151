"""A process that forks, for each line on its input, a child in which server and sites take rounds and may be killed.

It has imported everything once and is started under `durable_writes.c`; see `durable_writes.Processes`.
"""

import contextlib
import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy.strategy_utils  # noqa: F401 (would be imported by the first round)
from flwr.app import Context, Message
from support.federations import tiny_federation
from support.invariants import Left
from support.small_networks import small_networks

from wardpose.client.app import app as client_app
from wardpose.server.app import run_federation
from wardpose.shared.messages import TRAIN, SiteRelease
from wardpose.shared.wire import unpack
from wardpose.simulation.grid import InProcessGrid
from wardpose.simulation.layout import prepare_sites

ROUNDS = 2


class Sending:
    """The client app, with a note of each release at the moment it is handed to Flower."""

    def __init__(self, note: Callable[[Left], None]) -> None:
        self._note = note

    def __call__(self, message: Message, context: Context) -> Message:
        answer = client_app(message, context)
        if message.metadata.message_type == TRAIN and not answer.has_error():
            release, _ = unpack(answer.content, SiteRelease)
            self._note(Left.of(release))
        return answer


def run_rounds(folder: Path, note: Callable[[Left], None], *, sites: Sequence[str], resume: bool) -> None:
    """A server takes the rounds of a run, the sites in the same process."""
    plan = tiny_federation(sites, rounds=ROUNDS)
    with InProcessGrid(Sending(note), prepare_sites(plan, folder)) as grid:  # type: ignore[arg-type]
        run_federation(grid, plan, folder, resume=resume)


def child(request: dict[str, Any], out: int) -> None:
    """Do the work of a request, with the fault that it asks for; never returns."""

    def say(kind: str, content: Any) -> None:
        os.write(out, f"{json.dumps([kind, content])}\n".encode())

    status = 0
    try:
        folder = Path(request["folder"])
        begin = ctypes.CDLL(None).begin
        below, but = os.fsencode(request["below"]), os.fsencode(request["but"])
        begin(below, but, ctypes.c_long(request["at"]), request["mode"], request["error"], request["log"])
        run_rounds(folder, lambda left: say("left", vars(left)), **request["options"])
    except BaseException as error:
        say("error", [type(error).__name__, str(error), traceback.format_exc()])
        status = 1
    os._exit(status)


def serve() -> None:
    """Fork one child after the other until the input ends."""
    log = os.open(os.devnull, os.O_WRONLY)
    answers = os.dup(1)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with small_networks():
        warm = Path(sys.argv[1])
        run_rounds(warm, lambda left: None, sites=("north", "south"), resume=False)
        gc.collect()
        gc.freeze()  # a collector that walks over everything would copy it in each child
        os.write(answers, b"ready\n")
        for line in sys.stdin:
            request = json.loads(line)
            read, write = os.pipe()
            record_read, record_write = (
                os.open(request["record"], os.O_RDONLY | os.O_CREAT),
                os.open(request["record"], os.O_WRONLY | os.O_TRUNC),
            )
            pid = os.fork()
            if pid == 0:
                os.close(read)
                child({**request, "log": record_write}, write)
            os.close(write)
            os.close(record_write)
            with open(read) as pipe:
                said = [json.loads(text) for text in pipe]
            _, status = os.waitpid(pid, 0)
            with open(record_read) as record:
                calls = record.read().splitlines()
            answer = {"status": os.waitstatus_to_exitcode(status), "said": said, "calls": calls}
            os.write(answers, f"{json.dumps(answer)}\n".encode())


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve()
