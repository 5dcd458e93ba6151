"""Every way in which the way to a server can be barred is told from the others, against real sockets and real TLS."""

import socket
import struct
import time
from datetime import timedelta
from pathlib import Path

import pytest
from support.tls_servers import (
    DAY,
    LOOPBACK,
    Certified,
    certified,
    closed_port,
    full_backlog,
    https_server,
    raw_server,
)

from wardpose.client.connection import door as doors
from wardpose.client.connection.door import (
    Door,
    check_clock,
    check_door,
    check_own_certificate,
    check_proxies,
    within,
)
from wardpose.client.findings import Finding
from wardpose.shared.errors import ConfigError


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "SECONDS", 0.5)


@pytest.fixture
def authority(tmp_path: Path) -> Certified:
    return certified(tmp_path, "federation", hosts=())


def door(port: int, authority: Certified, host: str = LOOPBACK) -> Door:
    return Door(name="SuperLink", host=host, port=port, authority=authority.certificate)


def last(port: int, authority: Certified, host: str = LOOPBACK) -> Finding:
    return list(check_door(door(port, authority, host)))[-1]


def test_a_door_that_is_open_is_green_at_every_step(tmp_path: Path, authority: Certified) -> None:
    with https_server(certified(tmp_path, "server", by=authority)) as port:
        found = list(check_door(door(port, authority)))
    assert [(each.name, each.status) for each in found] == [
        ("server name", "ok"), ("server port", "ok"), ("certificate", "ok"),
    ]  # fmt: skip


def test_a_certificate_that_ends_soon_is_yellow(tmp_path: Path, authority: Certified) -> None:
    with https_server(certified(tmp_path, "server", by=authority, ends=10 * DAY)) as port:
        found = last(port, authority)
    assert found.status == "warning"
    assert "soon" in found.text


def test_a_name_that_nobody_knows(authority: Certified) -> None:
    found = list(check_door(door(443, authority, "no-such-hospital.invalid")))
    assert [(each.name, each.status) for each in found] == [("server name", "failure")]
    assert "kit.yaml" in found[0].text


def test_a_name_server_that_never_answers_ends_in_time(authority: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    assert "no answer within 1 s" in last(443, authority, "fed.example.org").text


def test_a_closed_port(authority: Certified) -> None:
    found = last(closed_port(), authority)
    assert (found.name, found.status) == ("server port", "failure")
    assert "refused" in found.text


def test_a_port_that_drops_whatever_comes(authority: Certified) -> None:
    with full_backlog() as port:
        found = last(port, authority)
    assert (found.name, found.status) == ("server port", "failure")
    assert "no answer" in found.text
    assert "firewall" in found.text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("expired", r"ended .*--renew"),
        ("not yet", r"begins at .*set this machine's clock"),
        ("wrong host", r"is for fed\.example\.org, 10\.0\.0\.9, not for 127\.0\.0\.1"),
        ("no host", r"is for no host at all"),
        ("wrong authority", r"signed by CN=another, not by the federation's authority \(CN=federation\).*proxy"),
        ("self-signed", r"signed by CN=proxy, not by .*Never replace ca\.crt"),
    ],
)
def test_a_certificate_that_is_not_to_be_believed(tmp_path: Path, authority: Certified, kind: str, says: str) -> None:
    made = {
        "expired": lambda: certified(tmp_path, "server", by=authority, begins=-9 * DAY, ends=-DAY),
        "not yet": lambda: certified(tmp_path, "server", by=authority, begins=DAY),
        "wrong host": lambda: certified(tmp_path, "server", by=authority, hosts=("fed.example.org", "10.0.0.9")),
        "no host": lambda: certified(tmp_path, "server", by=authority, hosts=()),
        "wrong authority": lambda: certified(tmp_path, "server", by=certified(tmp_path, "another", hosts=())),
        "self-signed": lambda: certified(tmp_path, "proxy"),
    }[kind]()
    with https_server(made) as port:
        found = last(port, authority)
    assert (found.name, found.status) == ("certificate", "failure")
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(found.text)


def test_an_authority_that_ended_is_not_taken_for_another_one(tmp_path: Path) -> None:
    old = certified(tmp_path, "old", hosts=(), begins=-9 * DAY, ends=-DAY)
    with https_server(certified(tmp_path, "server", by=old)) as port:
        assert "that of its authority, ended" in last(port, old).text


def test_something_that_speaks_no_tls(authority: Certified) -> None:
    with raw_server(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as port:
        found = last(port, authority)
    assert (found.name, found.status) == ("certificate", "failure")
    assert "does not speak TLS" in found.text


def test_something_that_accepts_and_says_nothing(authority: Certified) -> None:
    with raw_server(lambda connection: time.sleep(1.5)) as port:
        found = last(port, authority)
    assert (found.name, found.status) == ("certificate", "failure")
    assert "begins no TLS" in found.text


def test_something_that_hangs_up(authority: Certified) -> None:
    def hang_up(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with raw_server(hang_up) as port:
        found = last(port, authority)
    assert found.status == "failure"
    assert found.name in ("server port", "certificate")


def test_something_that_sends_a_byte_now_and_then_does_not_keep_anybody(authority: Certified) -> None:
    def drip(connection: socket.socket) -> None:
        try:
            for byte in b"\x16\x03\x03\x40\x00\x02":
                connection.sendall(bytes([byte]))
                time.sleep(0.3)
        except OSError:
            pass

    with raw_server(drip) as port:
        assert last(port, authority).status == "failure"


def test_an_authority_file_that_is_none(tmp_path: Path, authority: Certified) -> None:
    wrong = tmp_path / "ca.crt"
    wrong.write_text("dear sir or madam")
    with https_server(certified(tmp_path, "server", by=authority)) as port:
        found = list(check_door(Door(name="SuperLink", host=LOOPBACK, port=port, authority=wrong)))[-1]
    assert (found.name, found.status) == ("certificate", "failure")
    assert "cannot be used" in found.text


@pytest.mark.parametrize(
    ("ahead", "status", "says"),
    [
        (0, "ok", "within"),
        (600, "failure", "behind"),
        (-600, "failure", "ahead of"),
        (-10, "failure", "ahead of"),  # Flower lets a node be 5 s ahead and 300 s behind
        (100, "warning", "behind"),
    ],
)
def test_the_clock_is_held_against_the_servers(
    tmp_path: Path, authority: Certified, ahead: float, status: str, says: str
) -> None:
    with https_server(certified(tmp_path, "server", by=authority), ahead=ahead, status=403) as port:
        found = check_clock(door(port, authority))
    assert (found.name, found.status) == ("clock", status)
    assert says in found.text
    assert "HTTP's Date" in found.text


def test_a_server_that_does_not_date_its_answers_is_said(tmp_path: Path, authority: Certified) -> None:
    with https_server(certified(tmp_path, "server", by=authority), dated=False) as port:
        found = check_clock(door(port, authority))
    assert (found.status, "no Date" in found.text) == ("warning", True)


def test_a_proxy_of_the_environment_is_named_without_its_password() -> None:
    found = list(check_proxies({"HTTPS_PROXY": "http://ada:secret@proxy:3128"}, "fed.example.org"))
    assert [each.status for each in found] == ["warning"]
    assert "proxy:3128" in found[0].text
    assert "secret" not in found[0].text
    assert not list(check_proxies({"HTTPS_PROXY": "http://proxy", "no_proxy": "a, fed.example.org"}, "fed.example.org"))
    assert not list(check_proxies({"HTTPS_PROXY": ""}, "fed.example.org"))


@pytest.mark.parametrize(
    ("begins", "ends", "name", "status"),
    [
        (-DAY, 300 * DAY, "north", "ok"),
        (-DAY, 5 * DAY, "north", "warning"),
        (-9 * DAY, -timedelta(minutes=1), "north", "failure"),
        (timedelta(minutes=9), DAY, "north", "failure"),
        (-DAY, 300 * DAY, "south", "failure"),
    ],
)
def test_the_sites_own_certificate(
    tmp_path: Path, authority: Certified, begins: timedelta, ends: timedelta, name: str, status: str
) -> None:
    made = certified(tmp_path, name, by=authority, begins=begins, ends=ends)
    found = check_own_certificate(made.certificate, name="this site's certificate", allowed_name="north")
    assert found.status == status
    (tmp_path / "none.crt").write_text("none")
    with pytest.raises(ConfigError, match=r"none\.crt: is no certificate"):
        check_own_certificate(tmp_path / "none.crt", name="x")


def test_what_does_not_return_is_left_alone_and_what_fails_fails_here() -> None:
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(1))
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    assert within(5, lambda: 7) == 7
