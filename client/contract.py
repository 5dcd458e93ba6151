"""The parts of Flower, beyond its public API, that a site's processes are made of, and what they rely on in each.

`client.supernode`, `client.executor` and `client.clientapp` are put together from these parts; `check_flower` finds one
that has changed before a site goes online.
"""

from wardpose.shared.flower_contract import FlowerParts, check_parts

# What is called or wrapped -> its parameters.
CALLS = {
    "flwr.supernode.start_client_internal:http_request_response": (
        *("server_address", "insecure", "root_certificates", "authentication_keys", "max_retries", "max_wait_time"),
    ),
    "flwr.supernode.cli:flower_supernode": (),
    "flwr.supernode.fleet_http_connection:HeartbeatSender": ("heartbeat_fn",),
    "flwr.supernode.runtime.run_clientapp:pull_task_input": ("client",),
    "flwr.supernode.runtime.run_clientapp:push_message": ("client", "message", "context"),
    "flwr.supernode.runtime.run_clientapp:push_task_output": ("client", "context", "sub_status", "details"),
    "flwr.supercore.inflatable.inflatable_utils:pull_objects": (
        *("object_ids", "pull_object_fn", "max_concurrent_pulls", "max_time", "max_tries_per_object"),
        *("initial_backoff", "backoff_cap"),
    ),
    "flwr.supercore.inflatable.inflatable_utils:pull_and_inflate_object_from_tree": (
        *("object_tree", "pull_object_fn", "confirm_object_received_fn", "return_type", "max_concurrent_pulls"),
        *("max_time", "max_tries_per_object", "initial_backoff", "backoff_cap"),
    ),
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
        "if (recv := receive()) is None:",
    ),
    "flwr.supernode.start_client_internal:_push_messages": (
        "while not (reply_messages := state.get_messages_legacy(is_reply=True)):",
        "time.sleep(0.5)",
    ),
    "flwr.supernode.fleet_http_connection:http_request_response": (
        "heartbeat_sender = HeartbeatSender(send_node_heartbeat)",
        "node.node_id,",
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
    parser = "flwr.supernode.cli.flower_supernode:_parse_args_run_supernode"
    check_parts(
        FlowerParts(
            who="no site",
            calls=CALLS,
            fields=FIELDS,
            some_fields={"flwr.supercore.run:Run": RUN_FIELDS},
            values=VALUES,
            sources=SOURCES,
            options={parser: ("flower-supernode", SUPERNODE_OPTIONS)},
        )
    )
