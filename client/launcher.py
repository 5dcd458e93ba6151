"""A whole site as one command: the SuperNode, which has the key, and the executor, which has the data.

Both are children of this process (`shared.supervision`). It passes signals on, starts an executor that died again,
starts a SuperNode that signed off or does not answer again, and ends with the status of a SuperNode that ended
otherwise. Nothing that it started outlives it; there is one for a site.
Where key and data are to be apart (two containers, two units), the two are started without it.
"""

import logging
import secrets
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from wardpose.client.contract import check_flower
from wardpose.client.home import SiteHome
from wardpose.shared.children import start_child
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_process, refuse_readable, write_bytes
from wardpose.shared.health import healthy
from wardpose.shared.home import LOOPBACK
from wardpose.shared.supervision import Service, Start, only_launcher
from wardpose.shared.supervision import supervise as keep

logger = logging.getLogger("wardpose.client")


def run_home(home: SiteHome, *, port: int | None = None) -> int:
    """Serve the site of a home until signalled, at its own port if none is given; returns and raises as `run_site`."""
    return run_site(
        home.site,
        superlink=home.superlink,
        root_certificates=home.authority,
        private_key=home.node_key,
        port=port or home.settings.ports.node,
        folder=home.folder,
    )


def run_site(
    site: Path, *, superlink: str, root_certificates: Path, private_key: Path, port: int, folder: Path | None = None
) -> int:
    """Serve a site until signalled.

    Args:
        site: the site.yaml.
        superlink: the server's address, host:port.
        root_certificates: PEM file of the authority that signed the server's certificate.
        private_key: the node's key, OpenSSH format.
        port: on loopback, at which executor and SuperNode meet.
        folder: of the site, in which there is one launcher; that of the site.yaml when absent.

    Returns:
        The SuperNode's exit status; 128 and its number for a signal.

    Raises:
        ConfigError: a file is missing or wrong, the site is run already, somebody else listens at the port, or the
            installed Flower is not one that was checked.

    """
    from wardpose.shared.site_config import load_site

    name = load_site(site).site
    refuse_readable(private_key)
    private_process()
    check_flower()
    _refuse_taken(port)
    with (
        only_launcher((folder or site.parent).resolve()),
        tempfile.TemporaryDirectory(prefix="wardpose-site-") as place,
    ):
        secret = Path(place) / "superexec.secret"
        write_bytes(secret, secrets.token_bytes(48), mode=0o600)
        home = {"FLWR_HOME": place}
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
            lambda: healthy(f"{LOOPBACK}:{port}"),
        )


def _refuse_taken(port: int) -> None:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot be listened on ({error.strerror}; allowed: a free port, and one of its own for "
                "each site of a machine)"
            ) from error


def supervise(start_node: Start, start_executor: Start, node_answers: Callable[[], bool] | None = None) -> int:
    """Keep both processes going until the SuperNode ends, and return its status.

    Args:
        start_node: starts the SuperNode.
        start_executor: starts the executor.
        node_answers: asks the SuperNode whether it is alive.

    """
    node = Service(name="SuperNode", start=start_node, answers=node_answers, leads=True)
    return keep([node, Service(name="executor", start=start_executor)], logger)
