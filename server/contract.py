"""The parts of Flower, beyond its public API, that a server's processes are made of, and what they rely on in each."""

from wardpose.shared.flower_contract import FlowerParts, check_parts

PARTS = FlowerParts(
    who="no server",
    calls={
        "flwr.superlink.cli:flower_superlink": (),
        "flwr.superlink.runtime:run_serverapp": (
            *("runtime_api_address", "log_queue", "token", "insecure", "certificates", "parent_pid"),
            "runtime_dependency_install",
        ),
        "flwr.supercore.inflatable.inflatable_utils:pull_objects": (
            *("object_ids", "pull_object_fn", "max_concurrent_pulls", "max_time", "max_tries_per_object"),
            *("initial_backoff", "backoff_cap"),
        ),
        "flwr.supercore.inflatable.inflatable_utils:pull_and_inflate_object_from_tree": (
            *("object_tree", "pull_object_fn", "confirm_object_received_fn", "return_type", "max_concurrent_pulls"),
            *("max_time", "max_tries_per_object", "initial_backoff", "backoff_cap"),
        ),
        "flwr.supercore.logger:mirror_output_to_queue": ("log_queue",),
        "flwr.supercore.logger:restore_output": (),
        "flwr.supercore.app_utils:start_parent_process_monitor": ("parent_pid",),
        "flwr.supercore.auth:load_superexec_auth_secret": ("secret_file",),
        "flwr.supercore.interceptors:RuntimeVersionHttpInterceptor": ("component_name",),
        "flwr.supercore.interceptors:SuperExecAuthHttpInterceptor": ("master_secret", "protected_methods"),
        "flwr.supercore.runtime:RuntimeHttpClient.from_server_address": (
            *("server_address", "insecure", "root_certificates", "interceptors", "retry_invoker"),
        ),
        "flwr.supercore.runtime:RuntimeHttpClient.AcquireTask": ("self", "request"),
    },
    values={"flwr.supercore.constant:TaskType.SERVER_APP": "flwr-serverapp"},
    sources={
        # The database's settings are read from the module's global each time a connection is opened.
        "flwr.supercore.sql_mixin:_set_sqlite_pragmas": (
            "for pragma, value in SQLITE_PRAGMAS:",
            'cursor.execute(f"PRAGMA {pragma} = {value};")',
        ),
        "flwr.supercore.sql_mixin:SqlMixin.initialize": ('event.listen(self._engine, "connect", _set_sqlite_pragmas)',),
        # A ServerApp ends with the process that it is told to, which need not be the one that started it.
        "flwr.superlink.runtime:run_serverapp": ("start_parent_process_monitor(parent_pid)",),
        "flwr.supercore.routers.health.router:health": ("status_code=status.HTTP_200_OK",),
    },
    options={
        "flwr.superlink.cli.flower_superlink:_parse_args_run_superlink": (
            "flower-superlink",
            (
                *("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile", "--enable-supernode-auth", "--database"),
                *("--isolation", "--superexec-auth-secret-file", "--disable-runtime-dependency-installation"),
                *("--host", "--port"),
            ),
        )
    },
)


def check_flower() -> None:
    """Hold the installed Flower against what a server relies on.

    Raises:
        ConfigError: a part is missing or has changed; names Flower's version and the part.

    """
    check_parts(PARTS)
