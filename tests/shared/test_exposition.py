"""The exporters' address, as it is printed and as it is served."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.sites import write_site

from wardpose.shared.status_server import url

WARDPOSE = (sys.executable, "-c", "from wardpose.simulation.cli import main; main()")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:9465/"),
        ("::1", "http://[::1]:9465/"),
        ("::", "http://[::]:9465/"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:9465/"),
        ("ward.example", "http://ward.example:9465/"),
    ],
)
def test_an_ipv6_address_stands_in_brackets(host: str, expected: str) -> None:
    assert url(host, 9465) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
def test_the_address_that_is_printed_is_the_one_that_answers(host: str, tmp_path: Path) -> None:
    if ":" in host:
        try:
            socket.socket(socket.AF_INET6).bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    process = subprocess.Popen(
        [*WARDPOSE, "site", "metrics", str(write_site(tmp_path)), "--host", host, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    try:
        assert process.stderr is not None
        printed = re.fullmatch(r"metrics on (\S+), status page on \S+\n", process.stderr.readline())
        assert printed is not None
        with urllib.request.urlopen(printed[1], timeout=30) as answer:
            assert b"wardpose_exporter_up 1.0" in answer.read()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_an_address_that_cannot_be_had_is_refused_on_one_line(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [*WARDPOSE, "site", "metrics", str(write_site(tmp_path)), "--host", "x.invalid"],
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 2
    assert re.fullmatch(r"ConfigError: --host x\.invalid --port 9465: cannot listen there \(.+\)\n", outcome.stderr)
