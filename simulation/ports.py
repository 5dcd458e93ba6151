"""Ports on this machine that are free now, for processes that are about to be started."""

import socket

from wardpose.shared.home import LOOPBACK


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on now."""
    listeners = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
