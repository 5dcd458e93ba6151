"""The server is asked whether it knows a node, by Flower's own SuperLink, and nothing is changed by asking."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.superlinks import Superlink, superlink
from support.tls_servers import LOOPBACK, Certified, certified, https_server, raw_server

from wardpose.client.connection import node as nodes
from wardpose.client.connection.door import Door
from wardpose.client.connection.node import check_registered
from wardpose.shared import flower_codes
from wardpose.shared.errors import ConfigError
from wardpose.shared.signing import create_key_pair


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return certified(tmp_path_factory.mktemp("authority"), "federation", hosts=())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, federation: Certified) -> Iterator[Superlink]:
    folder = tmp_path_factory.mktemp("superlink")
    with superlink(certified(folder, "server", by=federation)) as running:
        yield running


def door(port: int, federation: Certified) -> Door:
    return Door(name="SuperLink", host=LOOPBACK, port=port, authority=federation.certificate)


def test_a_registered_a_revoked_and_an_unknown_node(tmp_path: Path, real: Superlink, federation: Certified) -> None:
    key, public = tmp_path / "node.key", tmp_path / "node.pub"
    create_key_pair(key, public)
    ask = door(real.port, federation)
    assert (check_registered(ask, key).status, "2004" in check_registered(ask, key).text) == ("failure", True)
    number = real.register("north", public)
    assert check_registered(ask, key).status == "ok"
    real.revoke(number)
    found = check_registered(ask, key)
    assert found.status == "failure"
    assert "revoked" in found.text


def test_asking_brings_nobody_online_and_nobody_offline(tmp_path: Path, real: Superlink, federation: Certified) -> None:
    key, public = tmp_path / "node.key", tmp_path / "node.pub"
    create_key_pair(key, public)
    number, ask = real.register("south", public), door(real.port, federation)

    def status() -> tuple[str, float]:
        (found,) = real.state.get_node_info(node_ids=[number])
        return found.status, found.online_until

    before = status()
    assert check_registered(ask, key).status == "ok"
    assert status() == before
    assert real.state.activate_node(number, 30.0)
    online = status()
    assert online[0] == "online"
    assert check_registered(ask, key).status == "ok"  # a SuperNode that is at work is not disturbed
    assert status() == online


def test_a_clock_that_is_ten_minutes_off_is_refused_by_the_real_server(
    tmp_path: Path, real: Superlink, federation: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    import flwr.supernode.node_auth_http_interceptor as interceptor

    key, public = tmp_path / "node.key", tmp_path / "node.pub"
    create_key_pair(key, public)
    real.register("east", public)
    late = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=10)
    monkeypatch.setattr(interceptor, "now", lambda: late)
    found = check_registered(door(real.port, federation), key)
    assert found.status == "failure"
    assert "clock" in found.text


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (401, {"detail": "Invalid SuperNode authentication"}, "clock"),
        (403, {}, "/v1/fleet/"),
        (404, {"detail": "Not Found"}, "no SuperLink"),
        (502, {}, "SuperLink behind it is down"),
        (503, {}, "SuperLink behind it is down"),
        (500, {"detail": "Internal server error."}, "failed"),
        (412, {"code": 1001, "detail": "x"}, "another Flower"),
        (400, {"code": 1003, "detail": "x"}, "different releases"),
        (418, {"code": 77, "detail": "a\nteapot"}, "not expected"),
        (200, {}, "not expected"),
    ],
)
def test_every_other_answer_is_said_in_words(
    tmp_path: Path, federation: Certified, status: int, content: dict[str, Any], says: str
) -> None:
    create_key_pair(tmp_path / "node.key", tmp_path / "node.pub")
    body = json.dumps(content).encode() if status != 200 else b""
    with https_server(certified(tmp_path, "server", by=federation), status=status, content=body) as port:
        found = check_registered(door(port, federation), tmp_path / "node.key")
    assert found.status == "failure"
    assert says in found.text
    assert "\n" not in found.text


def test_an_answer_that_is_no_json_and_a_server_that_says_nothing(
    tmp_path: Path, federation: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SECONDS", 0.4)
    key = tmp_path / "node.key"
    create_key_pair(key, tmp_path / "node.pub")
    with https_server(certified(tmp_path, "server", by=federation), status=502, content=b"<html>") as port:
        assert "502" in check_registered(door(port, federation), key).text
    with raw_server(lambda connection: connection.recv(1 << 20) and None) as port:
        assert check_registered(door(port, federation), key).status == "failure"


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, federation: Certified) -> None:
    key = tmp_path / "node.key"
    create_key_pair(key, tmp_path / "node.pub")
    key.chmod(0o640)
    with pytest.raises(ConfigError, match=r"chmod 600"):
        check_registered(door(1, federation), key)


def test_numbers_and_names_are_those_of_the_installed_flower() -> None:
    from flwr.common.constant import ErrorCode
    from flwr.supercore.error import ApiErrorCode
    from flwr.supercore.exit import ExitCode

    replies = {name: value for name, value in vars(ErrorCode).items() if isinstance(value, int)}
    assert {meaning.name: code for code, meaning in flower_codes.REPLIES.items()} == replies
    for code, meaning in flower_codes.SERVER.items():
        assert ApiErrorCode[meaning.name] == code
    for code, meaning in flower_codes.EXITS.items():
        assert vars(ExitCode)[meaning.name] == code
    assert "deadline" in flower_codes.reply_in_words(4)
    assert "error 77" in flower_codes.reply_in_words(77)
    assert "code 77" in flower_codes.server_in_words(77)


def test_every_number_stands_on_the_page_of_errors() -> None:
    page = (Path(__file__).parents[3] / "docs" / "errors.md").read_text()
    for codes in (flower_codes.REPLIES, flower_codes.SERVER, flower_codes.EXITS):
        for code, meaning in codes.items():
            assert f"| {code} | `{meaning.name}` | {meaning.what} | {meaning.remedy} |" in page
