"""The network of the end-to-end tests itself: hosts and their names, a cable to pull, a disk to fill."""

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.network import Network, SmallDisk, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "-")

_SERVE = """
import socketserver

class Here(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"here")

socketserver.TCPServer(("0.0.0.0", 9000), Here).serve_forever()
"""
_ASK = """
import socket, sys

with socket.create_connection((sys.argv[1], 9000), 1) as connection:
    connection.settimeout(1)
    print(connection.recv(9).decode())
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(["fed", "north"], aliases={"fed": "fed.example.test"}) as made:
        yield made


def test_hosts_know_each_other_by_name_until_a_cable_is_pulled(network: Network, tmp_path: Path) -> None:
    server = network["fed"].start(sys.executable, "-c", _SERVE, log=tmp_path / "log")

    def ask(name: str) -> str:
        for _ in range(20):
            asked = network["north"].run(sys.executable, "-c", _ASK, name)
            if asked.returncode == 0:
                return asked.stdout.strip()
        return ""

    assert ask("fed.example.test") == "here"
    assert network["fed"].processes("serve_forever") == [server.pid]
    network["north"].cut()
    assert network["north"].run(sys.executable, "-c", _ASK, "10.77.0.1").returncode == 1
    network["north"].mend()
    assert ask("10.77.0.1") == "here"
    network["fed"].kill("serve_forever")
    assert server.wait(5) != 0
    assert ask("fed") == ""


def test_a_small_disk_is_full_and_has_room_again(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", 1 << 20)
    try:
        disk.fill()
        with pytest.raises(OSError, match="space") as full:
            (disk.folder / "more").write_bytes(b"x" * 5000)
        assert full.value.errno == errno.ENOSPC
        disk.free()
        (disk.folder / "more").write_bytes(b"x" * 5000)
    finally:
        disk.close()
