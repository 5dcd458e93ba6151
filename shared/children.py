"""Processes that we start: this interpreter, a clean path to its modules, and an end with their parent."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import FrameType

from wardpose.shared.files import OTHERS

# Nothing is reported, looked up or installed by Flower.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_PR_SET_PDEATHSIG = 1

Child = subprocess.Popen[str]


def start_child(
    module: str,
    *arguments: str,
    stdin: str | None = None,
    talk: bool = False,
    environment: Mapping[str, str] | None = None,
    tied: bool = True,
) -> Child:
    """Start a module of this installation in a process group of its own.

    The working folder is not on its path. If `tied`, on Linux, it is sent SIGTERM when this process dies, however.

    Args:
        module: run by `python -m`.
        arguments: of the module.
        stdin: what it reads on standard input; nothing when absent.
        talk: keep its standard input open, for `Child.stdin`.
        environment: variables beside the inherited ones.
        tied: to this process; one that is not must find out by itself that nobody waits for it.

    """
    child = subprocess.Popen(  # noqa: S603 (a module of this package, by this interpreter)
        [sys.executable, "-P", "-m", module, *arguments],
        env={**os.environ, **QUIET, "PYTHONSAFEPATH": "1", **(environment or {})},
        cwd="/",  # an empty entry of PYTHONPATH stands for the working folder
        stdin=subprocess.PIPE if talk or stdin is not None else subprocess.DEVNULL,
        text=True,
        process_group=0,
        umask=OTHERS,
        preexec_fn=_end_with_parent() if tied else None,  # safe: whoever starts a child here has no other thread
    )
    if stdin is not None and child.stdin is not None:
        with suppress(BrokenPipeError), child.stdin as pipe:  # one that died at once says so by its exit status
            pipe.write(stdin)
    return child


def signal_children(children: Iterable[Child], number: int) -> None:
    """Signal living children and what they started."""
    for child in children:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)


def stop_children(children: Sequence[Child], *, grace: float, number: int = signal.SIGTERM) -> None:
    """Ask children to end, wait, and end those that have not after `grace` seconds."""
    signal_children(children, number)
    until = time.monotonic() + grace
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    signal_children(children, signal.SIGKILL)
    for child in children:
        child.wait()


def end_on_signals() -> None:
    """End this process by an exception at SIGTERM (status 0) and SIGINT, so that what is to be done at the end is."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0 if number == signal.SIGTERM else 128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def log_to_stderr() -> None:
    """Write the log where systemd and containers collect it; Flower writes its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("wardpose")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def tie_to_parent(parent: int) -> None:
    """On Linux, have this process be sent SIGTERM when its parent dies, or end at once where it has died already."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _end_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    parent = os.getpid()
    return lambda: tie_to_parent(parent)
