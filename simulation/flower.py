"""Flower's programs as separate processes on this machine: how they are asked, and ports for them."""

import socket

from wardpose.server.operator import ask, environment, program, write_connection

__all__ = ["LOOPBACK", "ask", "environment", "free_ports", "program", "write_connection"]

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on now."""
    listeners = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
