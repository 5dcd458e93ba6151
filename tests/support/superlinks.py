"""Flower's own SuperLink application over TLS, in this process: its routes, its middleware, its node table."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.main import create_app
from support.tls_servers import LOOPBACK, Certified

from wardpose.simulation.ports import free_ports


class Superlink:
    """One that listens.

    Attributes:
        port: of TLS.
        state: Flower's LinkState.

    """

    def __init__(self, port: int, state: Any) -> None:
        self.port = port
        self.state = state

    def register(self, name: str, public: Path) -> int:
        """Register a node's public key under a name, as `flwr supernode register` does; returns its number."""
        key = load_ssh_public_key(public.read_bytes())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return int(self.state.create_node("owner", "owner", public_key_to_bytes(key), 30.0, name=name))

    def revoke(self, number: int) -> None:
        """Unregister a node."""
        self.state.delete_node("owner", number)


@contextmanager
def superlink(shown: Certified) -> Iterator[Superlink]:
    """Serve until the block ends."""
    app = create_app()
    (port,) = free_ports(1)
    config = uvicorn.Config(
        app,
        host=LOOPBACK,
        port=port,
        ssl_certfile=str(shown.certificate),
        ssl_keyfile=str(shown.key),
        log_level="error",
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "Flower's app did not start"
        time.sleep(0.05)
    try:
        yield Superlink(port, app.state.linkstate_factory.state())
    finally:
        server.should_exit = True
        thread.join()
