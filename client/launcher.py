"""A whole site as one command: the SuperNode, which has the key, and the executor, which has the data.

Both are children of this process. It passes signals on, starts an executor that died again, starts a SuperNode that
signed off again, and ends with the status of a SuperNode that ended otherwise. Nothing that it started outlives it.
Where key and data are to be apart (two containers, two units), the two are started without it.
"""

import logging
import secrets
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from wardpose.client.children import Child, start_child, stop_children
from wardpose.client.contract import check_flower
from wardpose.client.supernode import SIGNED_OFF
from wardpose.shared.files import private_process, refuse_readable, write_bytes

LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.2
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_GRACE_SECONDS = 20.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)

logger = logging.getLogger("wardpose.client")

Start = Callable[[], Child]


def run_site(site: Path, *, superlink: str, root_certificates: Path, private_key: Path, port: int) -> int:
    """Serve a site until signalled.

    Args:
        site: the site.yaml.
        superlink: the server's address, host:port.
        root_certificates: PEM file of the authority that signed the server's certificate.
        private_key: the node's key, OpenSSH format.
        port: on loopback, at which executor and SuperNode meet.

    Returns:
        The SuperNode's exit status; 128 and its number for a signal.

    Raises:
        ConfigError: a file is missing or wrong, or the installed Flower is not one that was checked.

    """
    from wardpose.shared.site_config import load_site

    name = load_site(site).site
    refuse_readable(private_key)
    private_process()
    check_flower()
    with tempfile.TemporaryDirectory(prefix="wardpose-site-") as folder:
        secret = Path(folder) / "superexec.secret"
        write_bytes(secret, secrets.token_bytes(48), mode=0o600)
        home = {"FLWR_HOME": folder}
        node = (
            *("node", "--superlink", superlink, "--root-certificates", str(root_certificates.resolve())),
            *("--auth-private-key", str(private_key.resolve()), "--secret-file", str(secret), "--port", str(port)),
        )
        executor = (
            *("exec", str(site.resolve()), "--runtime-api-address", f"{LOOPBACK}:{port}"),
            *("--secret-file", str(secret)),
        )
        logger.info("site %s: connecting to %s", name, superlink)
        return supervise(
            lambda: start_child("wardpose.client", *node, environment=home),
            lambda: start_child("wardpose.client", *executor, environment=home),
        )


def supervise(start_node: Start, start_executor: Start) -> int:
    """Keep both processes going until the SuperNode ends, and return its status.

    Args:
        start_node: starts the SuperNode.
        start_executor: starts the executor.

    """
    stopping: int = 0

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        # A terminal that is gone ends the site as systemd does: Flower signs off at SIGTERM, but dies of SIGHUP.
        stopping = signal.SIGTERM if number == signal.SIGHUP else number

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    kept: list[_Kept] = []
    try:
        node = _Kept("SuperNode", start_node)
        kept.append(node)
        executor = _Kept("executor", start_executor)
        kept.append(executor)
        while not stopping:
            status = node.child.poll()
            if status not in (None, SIGNED_OFF):
                break
            node.keep()
            executor.keep()
            time.sleep(_POLL_SECONDS)
    finally:
        stop_children([each.child for each in kept], grace=_GRACE_SECONDS, number=stopping or signal.SIGTERM)
        for number, handler in before.items():
            signal.signal(number, handler)
    status = node.child.returncode
    return status if status >= 0 else 128 - status


class _Kept:
    """A child that is started again after it ended, sooner the longer it had lived."""

    def __init__(self, name: str, start: Start) -> None:
        self._name, self._start = name, start
        self._pause, self._due = _FIRST_PAUSE, 0.0
        self.child, self._started = start(), time.monotonic()

    def keep(self) -> None:
        status, now = self.child.poll(), time.monotonic()
        if status is None:
            return
        if not self._due:
            lived = now - self._started
            self._pause = _FIRST_PAUSE if lived > _LONGEST_PAUSE else min(2 * self._pause, _LONGEST_PAUSE)
            self._due = now + self._pause
            logger.error("the %s ended with status %d; starting it again in %.0f s", self._name, status, self._pause)
        elif now >= self._due:
            self.child, self._started, self._due = self._start(), now, 0.0
