"""Runs the hospital's app on the messages that its SuperNode pulled. It sees the patients' data, and runs nothing else.

This stands where Flower has `flower-superexec`, which starts whatever kind of program a task names, found by its name
on PATH. Here a task is asked for of one kind, the ClientApp, and answered by one program, `client.clientapp` of this
installation, in a process of its own: memory and device are free again after each message, and one that dies takes
nothing with it.
"""

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from wardpose.client.children import Child, start_child, stop_children
from wardpose.client.contract import check_flower
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_process, refuse_readable

if TYPE_CHECKING:
    from flwr.supercore.runtime import RuntimeHttpClient

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_POLL_SECONDS = 0.3
_RETRY_SECONDS = 2.0
_GRACE_SECONDS = 10.0
_UNAUTHORIZED = 401

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
    from wardpose.shared.version import code_hash

    for option, file in (("SITE.yaml", site), ("--secret-file", secret_file)):
        if not file.is_file():
            raise ConfigError(f"{option} {file}: no such file")
    refuse_readable(secret_file)
    private_process()
    check_flower()
    ask = _asker(_client(address, secret_file), address)
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


def _client(address: str, secret_file: Path) -> "RuntimeHttpClient":
    from flwr.supercore.auth import load_superexec_auth_secret
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    try:
        secret = load_superexec_auth_secret(str(secret_file))
    except ValueError as error:
        raise ConfigError(f"--secret-file {secret_file}: {error}") from error
    if secret is None:
        raise ConfigError(f"--secret-file {secret_file}: is empty")
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({_ACQUIRE})),
        ],
    )


def _asker(client: "RuntimeHttpClient", address: str) -> Callable[[], str]:
    """Return what asks the SuperNode for a ClientApp task and gets its token, or "" where there is none."""
    import httpx
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType

    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    absent = False

    def ask() -> str:
        nonlocal absent
        try:
            answer = client.AcquireTask(request)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == _UNAUTHORIZED:
                raise ConfigError(
                    f"the SuperNode at {address} does not accept the secret (allowed: the same --secret-file for both)"
                ) from error
            if not absent:
                logger.warning("the SuperNode at %s does not answer (%s); asking again", address, type(error).__name__)
            absent = True
            time.sleep(_RETRY_SECONDS)
            return ""
        if absent:
            logger.info("the SuperNode at %s answers again", address)
        absent = False
        return str(answer.token) if answer.HasField("task") else ""

    return ask
