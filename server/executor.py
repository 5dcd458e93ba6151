"""Starts the ServerApp of each run that is submitted, and outlives whatever goes wrong between it and the SuperLink.

A ServerApp is a process of its own, with a token of its own, and needs this one no more once it runs. So it is tied to
the launcher, where there is one: an executor that dies is started again, and no run is lost. Without a launcher it is
tied to the executor.
"""

import logging
import os
import time
from pathlib import Path
from typing import NoReturn

from wardpose.server.contract import check_flower
from wardpose.shared.children import Child, end_on_signals, start_child, stop_children
from wardpose.shared.files import private_process, refuse_missing, refuse_readable
from wardpose.shared.flower_tasks import task_asker, task_client

LAUNCHER = "WARDPOSE_LAUNCHER"
"""Variable with the launcher's process number."""

_POLL_SECONDS = 0.3
_GRACE_SECONDS = 15.0

logger = logging.getLogger("wardpose.server")


def run_executor(*, address: str, authority: Path, secret_file: Path) -> NoReturn:
    """Start ServerApps until signalled; those that run are then asked to end.

    Args:
        address: the SuperLink's, host:port.
        authority: PEM file of the authority that signed its certificate.
        secret_file: what this process proves itself with to the SuperLink.

    Raises:
        ConfigError: a file is missing, the secret is not the SuperLink's, or the installed Flower is not one that was
            checked.

    """
    from flwr.supercore.constant import TaskType

    refuse_missing({"--ca": authority, "--secret-file": secret_file})
    refuse_readable(secret_file)
    private_process()
    check_flower()
    client = task_client(address, secret_file, authority=authority)
    ask = task_asker(client, f"the SuperLink at {address}", TaskType.SERVER_APP, logger)
    parent = os.environ.get(LAUNCHER) or str(os.getpid())
    children: list[Child] = []
    end_on_signals()
    try:
        while True:
            token = ask()
            if token:
                app = ("wardpose.server.serverapp", address, str(authority.resolve()), parent)
                children.append(start_child(*app, stdin=f"{token}\n", tied=False))
            children = [child for child in children if _lives(child)]
            time.sleep(_POLL_SECONDS)
    finally:
        stop_children(children, grace=_GRACE_SECONDS)


def _lives(child: Child) -> bool:
    status = child.poll()
    if status:
        logger.error("a run's process ended with status %d (see: wardpose server status)", status)
    return status is None
