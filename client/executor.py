"""Runs the hospital's app on the messages that its SuperNode pulled. It sees the patients' data, and runs nothing else.

A task is asked for of one kind, the ClientApp (`shared.flower_tasks`), and answered by one program, `client.clientapp`
of this installation, in a process of its own: memory and device are free again after each message, and one that dies
takes nothing with it.
"""

import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from wardpose.client.contract import check_flower
from wardpose.shared.children import Child, start_child, stop_children
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_process, refuse_readable
from wardpose.shared.flower_tasks import task_asker, task_client

_POLL_SECONDS = 0.3
_GRACE_SECONDS = 10.0

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

    for option, file in (("SITE.yaml", site), ("--secret-file", secret_file)):
        if not file.is_file():
            raise ConfigError(f"{option} {file}: no such file")
    refuse_readable(secret_file)
    private_process()
    check_flower()
    ask = task_asker(task_client(address, secret_file), f"the SuperNode at {address}", TaskType.CLIENT_APP, logger)
    children: list[Child] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0 if number == signal.SIGTERM else 128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    logger.info("only the installed app runs here, code %s", code_hash()[:12])
    try:
        while True:
            token = ask()
            if token:
                children.append(
                    start_child("wardpose.client.clientapp", str(site.resolve()), address, stdin=f"{token}\n")
                )
            children = [child for child in children if _lives(child)]
            time.sleep(_POLL_SECONDS)
    finally:
        stop_children(children, grace=_GRACE_SECONDS)


def _lives(child: Child) -> bool:
    status = child.poll()
    if status:
        logger.error("the process of a message ended with status %d; the server hears of a failure", status)
    return status is None
