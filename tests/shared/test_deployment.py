"""Addresses and ports are what they say, and homes are found where they are."""

from pathlib import Path

import pytest

from wardpose.client.home import VARIABLE as SITE_VARIABLE
from wardpose.client.home import open_site_home
from wardpose.server.home import VARIABLE as SERVER_VARIABLE
from wardpose.server.home import open_server_home
from wardpose.shared.deployment import DeploymentConfig, at
from wardpose.shared.errors import ConfigError
from wardpose.shared.yaml_config import load_yaml


def deployment(folder: Path, text: str) -> DeploymentConfig:
    path = folder / "deployment.yaml"
    path.write_text(text)
    return load_yaml(path, DeploymentConfig)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Fed.Example.org", "fed.example.org"),
        ("fed.example.org.", "fed.example.org"),
        ("10.0.0.1", "10.0.0.1"),
        ("'::1'", "::1"),
        ("host-1", "host-1"),
    ],
)
def test_hosts_are_names_or_addresses(tmp_path: Path, given: str, kept: str) -> None:
    assert deployment(tmp_path, f"address: {given}").address == kept


@pytest.mark.parametrize(
    "given",
    [
        "https://fed.example.org",
        "fed.example.org:443",
        "fed.example.org/",
        "'fed example'",
        "klinik-köln.de",
        "10.0.0.300",
        "0.0.0.0",
        "'::'",
        "224.0.0.1",
        "'fe80::1%eth0'",
        "-a.org",
        "''",
        "a..b",
        "'user@fed'",
        "'*.example.org'",
        '"fed.example.org\\n"',
    ],
)
def test_anything_else_is_no_host(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        deployment(tmp_path, f"address: {given}")


@pytest.mark.parametrize(
    ("ports", "named"),
    [
        ("ports: {fleet: 9443}", "budget = 9443: is taken by fleet"),
        ("ports: {metrics: 9090}", "prometheus = 9090: is taken by metrics"),
        ("site_ports: {node: 9465}", "metrics = 9465: is taken by node"),
        ("ports: {fleet: 0}", "ports.fleet = 0"),
        ("ports: {fleet: 65536}", "ports.fleet = 65536"),
        ("authority_days: 30", "authority_days = 30"),
    ],
)
def test_ports_are_taken_once_and_the_authority_outlives(tmp_path: Path, ports: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        deployment(tmp_path, f"address: fed.example.org\n{ports}")


def test_addresses_are_written_as_programs_read_them() -> None:
    assert at("fed.example.org", 443) == "fed.example.org:443"
    assert at("::1", 443) == "[::1]:443"


def test_a_servers_home_is_found_by_option_environment_or_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.yaml").write_text(f"name: {name}\naddress: fed.example.org\nports: {{fleet: 8443}}")
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path / "one")
    assert open_server_home().settings.name == "one"
    monkeypatch.setenv(SERVER_VARIABLE, str(tmp_path / "two"))
    assert open_server_home().settings.name == "two"
    home = open_server_home(tmp_path / "three")
    assert home.settings.name == "three"
    assert home.superlink == "127.0.0.1:8000"
    assert home.settings.ports.fleet == 8443
    assert home.ledger == tmp_path / "three" / "coordinator" / "ledger.sqlite"


def test_a_sites_home_says_where_its_server_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"site: north\nfederation: gait\naddress: fed.example.org\nfleet: 8443\nwheel: {'ab' * 32}\n"
    (tmp_path / "kit.yaml").write_text(text)
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path))
    home = open_site_home()
    assert (home.superlink, home.budget_service) == ("fed.example.org:8443", "fed.example.org:9443")
    assert home.node_key.with_suffix(".pub") == home.node_public_key


def test_another_folder_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=r"holds no server\.yaml"):
        open_server_home(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no kit\.yaml"):
        open_site_home(tmp_path)
