"""Runs the hospital's app on the messages that its SuperNode pulled. It sees the patients' data, and runs nothing else.

A task is asked for of one kind, the ClientApp (`shared.flower_tasks`), and answered by one program, `client.clientapp`
of this installation, in a process of its own: memory and device are free again after each message, and one that dies
takes nothing with it. On Linux that process is a fork of one that has imported everything (`client.zygote`), which
spares each message some seconds of processor time; elsewhere it is started anew.
"""

import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from wardpose.client.contract import check_flower
from wardpose.shared.children import Child, end_on_signals, start_child, stop_children
from wardpose.shared.files import private_process, refuse_missing, refuse_readable
from wardpose.shared.flower_tasks import task_asker, task_client

_FASTEST_POLL, _SLOWEST_POLL = 0.05, 0.3  # seconds between two questions for a task, on this machine
_SHARE = 0.02  # of the time since the last task that the next one may have to wait
_AGAIN_SECONDS = 2.0  # before a process that ended is started once more
_GRACE_SECONDS = 10.0
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}  # numpy's would start its threads at the import; torch has its own

logger = logging.getLogger("wardpose.client")


def run_executor(site: Path, *, address: str, secret_file: Path) -> NoReturn:
    """Answer messages until signalled; a message in hand is then answered as failed.

    Args:
        site: the site.yaml; the only place that says what may be done and where the patients are.
        address: the SuperNode's, host:port; on this machine or on a network that nobody else is on.
        secret_file: what this process proves itself with to the SuperNode.

    Raises:
        ConfigError: a file is missing, the secret is not the SuperNode's, or the installed Flower is not one that was
            checked.

    """
    from flwr.supercore.constant import TaskType

    from wardpose.shared.version import code_hash

    refuse_missing({"SITE.yaml": site, "--secret-file": secret_file})
    refuse_readable(secret_file)
    private_process()
    check_flower()
    ask = task_asker(task_client(address, secret_file), f"the SuperNode at {address}", TaskType.CLIENT_APP, logger)
    answering = Forks(site.resolve(), address) if _can_fork() else Starts(site.resolve(), address)
    end_on_signals()
    logger.info("only the installed app runs here, code %s", code_hash()[:12])
    busy = time.monotonic()
    try:
        while True:
            token = ask()
            if token:
                answering.take(token)
                busy = time.monotonic()
            answering.tidy()
            time.sleep(min(_SLOWEST_POLL, max(_FASTEST_POLL, _SHARE * (time.monotonic() - busy))))
    finally:
        stop_children(answering.children, grace=_GRACE_SECONDS)


def _can_fork() -> bool:
    return sys.platform.startswith("linux")  # elsewhere system libraries that torch uses do not survive a fork


class Starts:
    """Answers each message by a process that is started for it.

    Attributes:
        children: those that have not ended.

    """

    def __init__(self, site: Path, address: str) -> None:
        self.children: list[Child] = []
        self._arguments = (str(site), address)

    def take(self, token: str) -> None:
        """Answer a task."""
        self.children.append(start_child("wardpose.client.clientapp", *self._arguments, stdin=f"{token}\n"))

    def tidy(self) -> None:
        """Forget what has ended, and say what ended badly."""
        self.children = [child for child in self.children if _lives(child)]


class Forks:
    """Answers each message by a fork of a process that has imported everything.

    Attributes:
        children: that process; beside it those that it took the place of, until their last message is answered.

    """

    def __init__(self, site: Path, address: str) -> None:
        self.children: list[Child] = []
        self._arguments = (str(site), address)
        self._files: dict[str, tuple[int, int]] = {}
        self._zygote = self._start()

    def take(self, token: str) -> None:
        """Answer a task, by the code that is installed now."""
        from wardpose.shared.version import installed_files

        changed = installed_files() != self._files
        if changed:
            logger.warning("the installed code has changed; it is imported anew")
        if changed or self._zygote.poll() is not None:
            self._retire()
            self._zygote = self._start()
        if not self._write(token):  # it died this very moment
            self._zygote = self._start()
            self._write(token)

    def tidy(self) -> None:
        """Forget what has ended, say what ended badly, and have a process ready for the next message."""
        self.children = [child for child in self.children if _lives(child)]
        if self._zygote.poll() is not None and time.monotonic() - self._started > _AGAIN_SECONDS:
            self._zygote = self._start()

    def _start(self) -> Child:
        from wardpose.shared.version import installed_files

        self._files, self._started = installed_files(), time.monotonic()
        child = start_child("wardpose.client.zygote", *self._arguments, talk=True, environment=_ONE_THREAD)
        self.children.append(child)
        return child

    def _retire(self) -> None:
        """Let the process end when the messages that it has are answered."""
        if self._zygote.stdin is not None:
            with suppress(BrokenPipeError):
                self._zygote.stdin.close()

    def _write(self, token: str) -> bool:
        pipe = self._zygote.stdin
        try:
            if pipe is not None:
                pipe.write(f"{token}\n")
                pipe.flush()
        except BrokenPipeError:
            return False
        return True


def _lives(child: Child) -> bool:
    status = child.poll()
    if status:
        logger.error("the process of a message ended with status %d; the server hears of a failure", status)
    return status is None
