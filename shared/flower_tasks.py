"""Asking Flower for work: the tasks that a SuperLink or a SuperNode has for the programs of its machine.

This stands where Flower has `flower-superexec`, which starts whatever kind of program a task names, found by its name
on PATH, and which ends at the first answer 500. Here a task is asked for of one kind, and no answer ends the asking but
one that says that the secret is wrong.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wardpose.shared.errors import ConfigError

if TYPE_CHECKING:
    from flwr.supercore.constant import TaskType
    from flwr.supercore.runtime import RuntimeHttpClient

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_RETRY_SECONDS = 2.0
_UNAUTHORIZED = 401


def task_client(address: str, secret_file: Path, *, authority: Path | None = None) -> "RuntimeHttpClient":
    """Return a connection to whoever has tasks.

    Args:
        address: host:port.
        secret_file: what this process proves itself with.
        authority: PEM file of the authority that signed the other side's certificate; without TLS when absent.

    Raises:
        ConfigError: the secret cannot be used.

    """
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
        insecure=authority is None,
        root_certificates=None if authority is None else authority.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({_ACQUIRE})),
        ],
    )


def task_asker(client: "RuntimeHttpClient", who: str, kind: "TaskType", logger: logging.Logger) -> Callable[[], str]:
    """Return what asks for a task of one kind and gets its token, or "" where there is none.

    Args:
        client: the connection.
        who: has tasks, in a log line.
        kind: of the tasks that are asked for.
        logger: hears that nobody answers, and that somebody does again.

    """
    import httpx
    from flwr.proto.runtime_pb2 import AcquireTaskRequest

    request = AcquireTaskRequest(supported_task_types=[kind])
    absent = False

    def ask() -> str:
        nonlocal absent
        try:
            answer = client.AcquireTask(request)
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == _UNAUTHORIZED:
                raise ConfigError(
                    f"{who} does not accept the secret (allowed: the same --secret-file for both)"
                ) from error
            if not absent:
                logger.warning("%s does not answer (%s); asking again", who, type(error).__name__)
            absent = True
            time.sleep(_RETRY_SECONDS)
            return ""
        if absent:
            logger.info("%s answers again", who)
        absent = False
        return str(answer.token) if answer.HasField("task") else ""

    return ask
