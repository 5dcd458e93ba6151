"""A process that has imported everything and knows nothing: `python -m wardpose.client.zygote SITE.yaml ADDRESS`.

Importing torch, timm and Flower takes seconds of processor time. This process does it once, and then forks a child for
each message that `client.executor` hands it: memory and device are free again after each, one that dies takes nothing
along, and what a message leaves behind in memory no later one can see. It holds no patient's data, opens neither site
nor ledger, and reads of the network nothing but tokens, one a line on its standard input; when that ends, it ends.

What a fork may not inherit:

* Threads. A lock that another thread holds would stay held for ever in the child, and an OpenMP or CUDA runtime that
  was used before does not work after it. So nothing is computed here, CUDA is not asked for, and a fork is refused
  while there is a second thread.
* Random numbers. Generators of numpy and torch are seeded anew in each child; privacy rests on neither of them, but on
  keys that the operating system draws in the child (`shared/privacy/noise.py`).

After an upgrade the executor starts another one, so that old code in memory is never mixed with new code on the disk.
"""

import gc
import logging
import os
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from wardpose.client.clientapp import answer_task, stop_by_signal
from wardpose.shared.children import log_to_stderr, tie_to_parent

_POLL_SECONDS, _IDLE_SECONDS = 0.05, 0.5  # between looks at children, and at nothing but signals
_GRACE_SECONDS = 8.0  # for messages in hand, once this process is asked to end

logger = logging.getLogger("wardpose.client")


def preload() -> None:
    """Import what answering a message needs, and compute what is the same for all of them."""
    import flwr.clientapp
    import flwr.supercore.heartbeat
    import flwr.supercore.runtime
    import flwr.supernode.runtime.run_clientapp

    import wardpose.client.app
    from wardpose.shared.version import code_hash

    del flwr, wardpose
    code_hash()


def threads() -> int:
    """Return how many threads this process has."""
    return len(os.listdir("/proc/self/task"))


class Zygote:
    """Forks a child for each message.

    Attributes:
        children: process numbers of those that have not ended.

    """

    def __init__(self, site: Path, address: str) -> None:
        self.children: set[int] = set()
        self._site, self._address = site, address

    def answer(self, token: str) -> None:
        """Fork a child that answers one message.

        Raises:
            RuntimeError: this process has a second thread.

        """
        if threads() != 1:
            raise RuntimeError(f"{threads()} threads in the process that is to be forked (allowed: 1)")
        parent = os.getpid()
        number = os.fork()
        if number == 0:
            _be_the_child(parent, self._site, self._address, token)
        self.children.add(number)

    def reap(self) -> None:
        """Forget children that have ended, and say which ended badly."""
        for number in list(self.children):
            found, status = os.waitpid(number, os.WNOHANG)
            if not found:
                continue
            self.children.discard(number)
            code = os.waitstatus_to_exitcode(status)
            if code:
                logger.error("the process of a message ended with status %d; the server hears of a failure", code)

    def finish(self, seconds: float) -> None:
        """Wait for the children, and kill those that have not ended after so long."""
        until = time.monotonic() + seconds
        while self.children and time.monotonic() < until:
            self.reap()
            time.sleep(_POLL_SECONDS)
        for number in self.children:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)


def _be_the_child(parent: int, site: Path, address: str, token: str) -> NoReturn:
    """Answer one message and end; nothing of the parent's own loop runs in the child."""
    status = 1
    try:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, stop_by_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        tie_to_parent(parent)
        os.close(sys.stdin.fileno())  # the tokens of other messages
        _new_random_numbers()
        answer_task(site, address, token)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        logger.error("the task is given up: %s: %s", type(error).__name__, error)
    finally:
        logging.shutdown()
        os._exit(status)


def _new_random_numbers() -> None:
    import numpy as np
    import torch

    np.random.seed()  # noqa: NPY002 (the global one, which a library may use)
    torch.default_generator.seed()


def serve(site: Path, address: str) -> None:
    """Answer the tokens on standard input until it ends, or until signalled.

    Args:
        site: the site.yaml, absolute.
        address: the SuperNode's, host:port.

    """
    preload()
    gc.collect()
    gc.freeze()  # the collector of a child would otherwise copy all of it
    zygote = Zygote(site, address)
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    tokens, rest = sys.stdin.fileno(), b""
    while not stopping:
        ready, _, _ = select.select([tokens], [], [], _POLL_SECONDS if zygote.children else _IDLE_SECONDS)
        if ready:
            received = os.read(tokens, 65536)
            if not received:
                break
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                zygote.answer(line.decode())
        zygote.reap()
    zygote.finish(_GRACE_SECONDS if stopping else float("inf"))


if __name__ == "__main__":
    log_to_stderr()
    serve(Path(sys.argv[1]), sys.argv[2])
