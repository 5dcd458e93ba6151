"""Keeping processes going: a child that ended, or lives and does not answer, is started again; nothing outlives it.

What answers is asked, and only asked: a child that is busy, or waits for a network that is away, answers all the same.
"""

import fcntl
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import FrameType

from wardpose.shared.children import Child, signal_children, stop_children
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_folder, private_opener, storage_error

AGAIN = 75  # exit status of a child that asks to be started again (EX_TEMPFAIL)
LOCK = "launcher.lock"
_POLL_SECONDS = 0.2
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_GRACE_SECONDS = 20.0
_ASK_SECONDS = 10.0
PATIENCE_SECONDS = 150.0  # longer than a SuperLink may wait for its database
_TO_BEGIN = 4.0  # times as long may pass before the first answer: a busy machine takes minutes to start a process
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

Start = Callable[[], Child]


@dataclass(frozen=True, kw_only=True)
class Service:
    """One child that is kept going.

    Attributes:
        name: in a log line.
        start: starts it.
        answers: asks it whether it is alive; it is enough that its process is when absent.
        leads: whether its end, unless it asks to be started again, is the end of all.
        stage: when it is asked to end: those of the lowest stage first.

    """

    name: str
    start: Start
    answers: Callable[[], bool] | None = None
    leads: bool = False
    stage: int = 0


def supervise(services: Sequence[Service], logger: logging.Logger, *, patience: float = PATIENCE_SECONDS) -> int:
    """Keep all services going until this process is signalled or one that leads ends.

    Args:
        services: in the order in which they are started.
        logger: hears what is started again, and why.
        patience: seconds without an answer after which a child is killed; several times that before its first.

    Returns:
        The exit status of whoever led to the end, 128 and its number for a signal; 0 where none leads.

    """
    stopping: int = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        # A terminal that is gone ends all as systemd does: Flower signs off at SIGTERM, but dies of SIGHUP.
        stopping = signal.SIGTERM if number == signal.SIGHUP else number

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    kept: list[_Kept] = []
    try:
        for service in services:
            kept += [_Kept(service, logger, patience)]  # not at once: those that began are stopped if one cannot
        while not stopping and not any(each.led_to_the_end for each in kept):
            for each in kept:
                each.keep()
            time.sleep(_POLL_SECONDS)
    finally:
        for stage in sorted({each.service.stage for each in kept}):
            children = [each.child for each in kept if each.service.stage == stage]
            stop_children(children, grace=_GRACE_SECONDS, number=stopping or signal.SIGTERM)
        for number, handler in before.items():
            signal.signal(number, handler)
    status = next((int(each.child.returncode) for each in kept if each.service.leads), 0)
    return status if status >= 0 else 128 - status


@contextmanager
def only_launcher(folder: Path) -> Iterator[None]:
    """Be the only launcher of a home; the system lets it go when this process ends, however it ends.

    Raises:
        ConfigError: another one is at work.
        StorageError: the folder is not writable.

    """
    with ExitStack() as stack:
        try:
            private_folder(folder)
            file = stack.enter_context(FileIO(folder / LOCK, "a+", opener=private_opener))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: is run by another process already (allowed: one launcher a home)") from error
        except OSError as error:
            raise storage_error(error, folder / LOCK) from error
        yield


class _Kept:
    """A child that is started again after it ended, sooner the longer it had lived."""

    def __init__(self, service: Service, logger: logging.Logger, patience: float) -> None:
        self.service, self._logger, self._patience = service, logger, patience
        self._pause, self._due = _FIRST_PAUSE, 0.0
        self._begin()

    @property
    def led_to_the_end(self) -> bool:
        return self.service.leads and self.child.poll() not in (None, AGAIN)

    def keep(self) -> None:
        status, now = self.child.poll(), time.monotonic()
        if status is None:
            self._ask(now)
        elif not self._due:
            lived = now - self._started
            self._pause = _FIRST_PAUSE if lived > _LONGEST_PAUSE else min(2 * self._pause, _LONGEST_PAUSE)
            self._due = now + self._pause
            self._logger.error(
                "the %s ended with status %d; starting it again in %.0f s", self.service.name, status, self._pause
            )
        elif now >= self._due:
            self._begin()

    def _begin(self) -> None:
        self.child = self.service.start()
        self._started = self._answered = self._asked = time.monotonic()
        self._limit, self._due = _TO_BEGIN * self._patience, 0.0

    def _ask(self, now: float) -> None:
        if self.service.answers is None or now - self._asked < min(_ASK_SECONDS, self._patience / 2):
            return
        self._asked = now
        if self.service.answers():
            self._answered, self._limit = now, self._patience
        elif now - self._answered > self._limit:
            self._logger.error("the %s lives but has not answered for %.0f s", self.service.name, now - self._answered)
            signal_children([self.child], signal.SIGKILL)
            self.child.wait()
