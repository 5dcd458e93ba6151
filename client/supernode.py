"""Flower's SuperNode, which holds the node's key and speaks with the server, with a few things added to it.

* A bundle that may not come to a site (`client.bundle`) is replaced by an empty one before Flower reads it, so that a
  malformed one cannot end the SuperNode, and reaches the executor as a refusal with its reason.
* A run's own settings are dropped: the executor is asked for the ClientApp and nothing else (Flower starts an
  AgentApp where the server says so), and no run config comes in.
* An answer of the app is found within some hundredths of a second and not within half of one (`shared.flower_pace`).
* How long the app took is not reported: releases say no time below a second.
* The next message is asked for soon after the last one was answered, and less and less often after that; Flower asks
  every three seconds, of which a round would wait half on average.
* Flower 1.41 signs off after an answer it cannot deal with (HTTP 500 of a busy SuperLink) and then hangs: its loop
  returns while the thread of its own HTTP server goes on. Here the process ends with `SIGNED_OFF`, and whoever started
  it starts it again. So it does when the node hangs otherwise (`client.watchdog`).

It sees no patient's data. That no other code runs does not depend on it: `client.clientapp` decides for itself.
"""

import dataclasses
import hashlib
import io
import logging
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wardpose.client.bundle import PYPROJECT, BundleRefused, check_bundle
from wardpose.client.connection.why import why_not_taken_in
from wardpose.client.contract import check_flower
from wardpose.client.watchdog import Watchdog
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_process, refuse_missing, refuse_readable
from wardpose.shared.flower_pace import ask_soon_again, look_soon_again
from wardpose.shared.health import healthy
from wardpose.shared.supervision import AGAIN

if TYPE_CHECKING:
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

SIGNED_OFF = AGAIN  # exit status: the connection to the server ended
REFUSED = "refused"  # key of Flower's record of verifications under which the executor is told why
_FASTEST_POLL, _SLOWEST_POLL = 0.1, 3.0  # seconds between two questions for a message; Flower's own are 3 apart
_SHARE = 0.02  # of the time since the last message that the next one may have to wait
_CALLBACKS = 8  # that Flower's connection yields: node, receive, send, get_run, get_fab and three more

_EMPTY = """\
[project]
name = "refused"
version = "0"

[tool.flwr.app]
publisher = "wardpose"

[tool.flwr.app.components]
serverapp = "refused:refused"
clientapp = "refused:refused"
"""

logger = logging.getLogger("wardpose.client")

Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]


def run_supernode(
    *, superlink: str, root_certificates: Path, private_key: Path, secret_file: Path, host: str, port: int
) -> NoReturn:
    """Be a SuperNode until signalled; the process ends with Flower's exit status, or with `SIGNED_OFF`.

    Args:
        superlink: the server's address, host:port.
        root_certificates: PEM file of the authority that signed the server's certificate.
        private_key: the node's key, OpenSSH format.
        secret_file: what the executor proves itself with.
        host: address that the executor reaches this process at.
        port: likewise.

    Raises:
        ConfigError: a file is missing, or the installed Flower is not one that was checked.

    """
    refuse_missing(
        {"--root-certificates": root_certificates, "--auth-private-key": private_key, "--secret-file": secret_file}
    )
    for secret in (private_key, secret_file):
        refuse_readable(secret)
    private_process()
    check_flower()
    ask_soon_again()
    import flwr.supernode.fleet_http_connection as connection
    import flwr.supernode.start_client_internal as flower
    from flwr.supernode.cli import flower_supernode

    look_soon_again(flower)
    watchdog = Watchdog(lambda: healthy(superlink, root_certificates, seconds=10.0))
    vars(flower)["http_request_response"] = guard(vars(flower)["http_request_response"], watchdog)
    vars(connection)["HeartbeatSender"] = heard(vars(connection)["HeartbeatSender"], watchdog)
    sys.argv = [
        "flower-supernode",
        *("--superlink", superlink, "--root-certificates", str(root_certificates)),
        *("--auth-supernode-private-key", str(private_key)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret_file)),
        *("--host", host, "--port", str(port)),
    ]
    watchdog.start(SIGNED_OFF)
    try:
        flower_supernode()
    except SystemExit as ended:
        if ended.code:  # Flower has logged a number of its own, and one of the server's
            logger.error("the SuperNode ended: %s", why_not_taken_in(superlink, root_certificates, private_key))
        raise
    logger.error("the connection to %s ended; the SuperNode signed off", superlink)
    logging.shutdown()
    os._exit(SIGNED_OFF)  # Flower's HTTP server would keep the process for ever


def heard(sender: Callable[[Callable[[], bool]], Any], watchdog: Watchdog) -> Callable[[Callable[[], bool]], Any]:
    """Wrap Flower's sender of heartbeats, so that the watchdog hears of each that the server took."""

    def watched(heartbeat: Callable[[], bool]) -> Any:
        def beat() -> bool:
            taken = heartbeat()
            if taken:
                watchdog.spoke("heartbeat")
            return taken

        return sender(beat)

    return watched


def guard(connect: Connect, watchdog: Watchdog | None = None) -> Connect:
    """Wrap Flower's connection to the server, so that what comes through it is checked before Flower reads it."""

    def spoken(callback: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            answer = callback(*arguments)
            if watchdog is not None:
                watchdog.spoke("loop")
            return answer

        return called

    @contextmanager
    def connected(*arguments: Any, **keywords: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **keywords) as yielded:
            if len(yielded) != _CALLBACKS:
                raise ConfigError(f"Flower's connection has {len(yielded)} callbacks (allowed: {_CALLBACKS})")
            node, *callbacks = yielded
            receive, send, get_run, get_fab, *rest = (spoken(callback) for callback in callbacks)
            runs: dict[int, Run] = {}

            def receive_soon() -> Any:
                return wait_for_message(receive)

            def send_untimed(message: Any, tree: Any, _seconds: float) -> Any:
                return send(message, tree, 0.0)

            def get_plain_run(run_id: int) -> "Run":
                runs[run_id] = plain_run(get_run(run_id))
                return runs[run_id]

            def get_checked_fab(announced: str, run_id: int) -> "Fab":
                fab = checked_fab(get_fab(announced, run_id), announced)
                runs.pop(run_id).fab_hash = fab.hash_str  # Flower looks the bundle up by it
                return fab

            yield node, receive_soon, send_untimed, get_plain_run, get_checked_fab, *rest

    return connected


def wait_for_message(receive: Callable[[], Any], *, sleep: Callable[[float], None] = time.sleep) -> Any:
    """Ask for a message until there is one; what asking raises, Flower's loop meets as before.

    Args:
        receive: Flower's; `None` where there is no message.
        sleep: between two questions.

    """
    waited = 0.0
    while (received := receive()) is None:
        pause = min(_SLOWEST_POLL, max(_FASTEST_POLL, _SHARE * waited))
        sleep(pause)
        waited += pause
    return received


def plain_run(run: "Run") -> "Run":
    """Return a run without settings of its own, to be answered by the ClientApp."""
    from flwr.supercore.constant import TaskType

    return dataclasses.replace(run, override_config={}, primary_task_type=TaskType.CLIENT_APP)


def checked_fab(fab: "Fab", announced: str) -> "Fab":
    """Return a bundle that may come to a site, or an empty one that says why this one may not."""
    from flwr.common.config import get_fused_config_from_fab
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

    try:
        check_bundle(fab.content, announced=announced)
        try:
            get_fused_config_from_fab(fab.content, Run.create_empty(0))  # what Flower is about to do
        except Exception as error:
            digest = hashlib.sha256(fab.content).hexdigest()
            raise BundleRefused(f"bundle {digest}: Flower cannot read it ({type(error).__name__})") from error
    except BundleRefused as refused:
        logger.warning("refused: %s", refused)
        empty = _empty_bundle()
        return Fab(hash_str=hashlib.sha256(empty).hexdigest(), content=empty, verifications={REFUSED: str(refused)})
    return Fab(hash_str=announced, content=fab.content, verifications={})


def _empty_bundle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(PYPROJECT, _EMPTY)
    return buffer.getvalue()
