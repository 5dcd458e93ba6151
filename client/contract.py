"""The parts of Flower, beyond its public API, that a site's processes are made of, and what they rely on in each.

`client.supernode`, `client.executor` and `client.clientapp` are put together from these parts, so a part that is gone
stops them by itself. `check_flower` finds what would go wrong more quietly, a part that has changed, and says so with
Flower's version before a site goes online.
"""

import dataclasses
import inspect
import pkgutil
from importlib.metadata import version as distribution_version
from typing import Any

from wardpose.shared.errors import ConfigError

# What is called or wrapped -> its parameters.
CALLS = {
    "flwr.supernode.start_client_internal:http_request_response": (
        *("server_address", "insecure", "root_certificates", "authentication_keys", "max_retries", "max_wait_time"),
    ),
    "flwr.supernode.cli:flower_supernode": (),
    "flwr.supernode.runtime.run_clientapp:pull_task_input": ("client",),
    "flwr.supernode.runtime.run_clientapp:push_message": ("client", "message", "context"),
    "flwr.supernode.runtime.run_clientapp:push_task_output": ("client", "context", "sub_status", "details"),
    "flwr.common.config:get_fused_config_from_fab": ("fab_file", "run"),
    "flwr.supernode.node_auth_http_interceptor:NodeAuthHttpInterceptor": ("private_key", "public_key"),
    "flwr.supernode.fleet_http_client:FleetHttpClient.ActivateNode": ("self", "request"),
    "flwr.supercore.primitives.asymmetric:public_key_to_bytes": ("public_key",),
    "flwr.supercore.auth:load_superexec_auth_secret": ("secret_file",),
    "flwr.supercore.heartbeat:make_task_heartbeat_fn_http": ("client",),
    "flwr.supercore.heartbeat:HeartbeatSender": ("heartbeat_fn",),
    "flwr.supercore.interceptors:RuntimeTokenHttpInterceptor": ("token",),
    "flwr.supercore.interceptors:RuntimeVersionHttpInterceptor": ("component_name",),
    "flwr.supercore.interceptors:SuperExecAuthHttpInterceptor": ("master_secret", "protected_methods"),
    "flwr.supercore.retry:make_simple_http_retry_invoker": (),
    "flwr.supercore.runtime:RuntimeHttpClient.from_server_address": (
        *("server_address", "insecure", "root_certificates", "interceptors", "retry_invoker"),
    ),
    "flwr.supercore.runtime:RuntimeHttpClient.AcquireTask": ("self", "request"),
}
# What is built or replaced field by field -> all of its fields.
FIELDS = {
    "flwr.supercore.fab:Fab": ("hash_str", "content", "verifications"),
    "flwr.app:Context": ("run_id", "node_id", "node_config", "state", "run_config", "series_id"),
}
# What is compared or sent -> its value.
VALUES = {
    "flwr.supercore.constant:TaskType.CLIENT_APP": "flwr-clientapp",
    "flwr.common.constant:SubStatus.COMPLETED": "completed",
    "flwr.supercore.error:ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL": "2003",
    "flwr.supercore.error:ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED": "2004",
}
# How the SuperNode uses what is wrapped -> words of its source.
SOURCES = {
    "flwr.supernode.start_client_internal:_init_connection": ("with http_request_response(", "yield conn"),
    "flwr.supernode.start_client_internal:_pull_and_store_message": (
        "run_info = get_run(run_id)",
        "fab = get_fab(run_info.fab_hash, run_id)",
        "get_fused_config_from_fab(fab.content, run_info)",
        "run_info.primary_task_type == TaskType.AGENT_APP",
        "state.store_fab(fab)",
    ),
    "flwr.supernode.servicer.runtime.runtime_handlers:pull_task_input": ("state.get_fab(run.fab_hash)",),
}
# Fields of `flwr.supercore.run:Run` that are replaced or read; it has more.
RUN_FIELDS = ("run_id", "fab_hash", "override_config", "primary_task_type")
SUPERNODE_OPTIONS = (
    *("--superlink", "--root-certificates", "--auth-supernode-private-key", "--host", "--port"),
    *("--isolation", "--superexec-auth-secret-file"),
)


def check_flower() -> None:
    """Hold the installed Flower against what a site relies on.

    Raises:
        ConfigError: a part is missing or has changed; names Flower's version and the part.

    """
    for name, parameters in CALLS.items():
        _expect(name, "parameters", tuple(inspect.signature(_part(name)).parameters), parameters)
    for name, fields in FIELDS.items():
        _expect(name, "fields", _fields(_part(name)), fields)
    for name, value in VALUES.items():
        _expect(name, "value", str(_part(name)), value)
    run = "flwr.supercore.run:Run"
    for field in RUN_FIELDS:
        if field not in _fields(_part(run)):
            raise _changed(run, f"has no field {field}")
    for name, words in SOURCES.items():
        text = inspect.getsource(_part(name))
        for word in words:
            if word not in text:
                raise _changed(name, f'no longer does "{word}"')
    parser = "flwr.supernode.cli.flower_supernode:_parse_args_run_supernode"
    known = _part(parser)().format_help()
    for option in SUPERNODE_OPTIONS:
        if option not in known:
            raise _changed("flower-supernode", f"has no option {option}")


def _part(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise _changed(name, "is missing") from error


def _fields(part: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(part):
        return tuple(field.name for field in dataclasses.fields(part))
    return tuple(inspect.signature(part).parameters)


def _expect(name: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise _changed(name, f"has the {what} {found}, not {expected}")


def _changed(name: str, text: str) -> ConfigError:
    installed = distribution_version("flwr")
    return ConfigError(f"flwr {installed}: {name} {text}; no site can be started safely (allowed: flwr 1.41 or 1.42)")
