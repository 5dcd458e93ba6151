"""`wardpose site check --connect` in a real home, against a real SuperLink and a real Budget service."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.budget_service import charge
from support.site_homes import PLAN, Deployed, deployed
from support.tls_servers import closed_port
from support.untouched import untouched
from typer.testing import CliRunner

from wardpose.client.commands.site import app
from wardpose.client.connection.check import check_connection
from wardpose.client.connection.installed import check_installed
from wardpose.client.connection.why import why_not_taken_in
from wardpose.client.findings import Finding
from wardpose.client.home import open_site_home
from wardpose.client.plan_check import check_plan
from wardpose.client.site import open_site
from wardpose.shared.files import write_text
from wardpose.shared.signing import create_key_pair


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("federation")) as made:
        yield made


@pytest.fixture
def place(running: Deployed, tmp_path: Path) -> Deployed:
    """A copy of the home, which a test may spoil, beside the same server."""
    folder = tmp_path / "home"
    shutil.copytree(running.home.folder, folder)
    folder.chmod(0o700)
    return Deployed(open_site_home(folder), running.server, running.coordinator)


def worst(found: list[Finding]) -> dict[str, str]:
    """Name -> its worst status."""
    order = ("ok", "warning", "failure")
    names = {each.name for each in found}
    return {name: max((each.status for each in found if each.name == name), key=order.index) for name in names}


def failures(place: Deployed) -> list[Finding]:
    return [each for each in check_connection(open_site_home(place.home.folder)) if each.status == "failure"]


def test_a_site_that_is_right_is_green_and_nothing_is_touched(running: Deployed) -> None:
    with untouched(running.home.folder):
        found = worst(check_connection(running.home))
    assert {name for name, status in found.items() if status == "failure"} == set(), found
    expected = {
        *("server name", "server port", "certificate", "clock", "registered", "name", "account", "installed"),
        *("plan", "rights", "data", "ledger", "budget", "device", "disk", "policy", "public view"),
    }
    assert expected <= set(found)


def test_the_command_says_it_as_json_and_by_its_exit_status(place: Deployed) -> None:
    asked = ["check", "--connect", "--home", str(place.home.folder), "--json"]
    result = CliRunner().invoke(app, asked)
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (0, True)
    place.change("kit.yaml", fleet=closed_port())
    result = CliRunner().invoke(app, asked)
    content = json.loads(result.stdout)
    assert (result.exit_code, content["ok"]) == (1, False)
    red = [each for each in content["findings"] if each["status"] == "failure"]
    assert [each["name"] for each in red] == ["server port"]  # one red line a fault: nothing behind it was asked


def _another_key(place: Deployed) -> None:
    keys = place.home.keys
    for name in ("node.key", "node.pub"):
        (keys / name).unlink()
    create_key_pair(keys / "node.key", keys / "node.pub")


def _another_coordinator(place: Deployed) -> None:
    (place.home.keys / "coordinator.pub").unlink()
    create_key_pair(place.home.keys / "c.key", place.home.keys / "coordinator.pub")


def _open_key(place: Deployed) -> None:
    place.home.node_key.chmod(0o644)


def _open_secret(place: Deployed) -> None:
    place.home.secret.chmod(0o640)


def _others_certificate(place: Deployed) -> None:
    for ending in ("crt", "key"):
        source = place.coordinator.folder / f"south.{ending}"
        (place.home.keys / f"budget.{ending}").write_bytes(source.read_bytes())


def _others_public_key(place: Deployed) -> None:
    place.home.node_public_key.write_bytes((place.coordinator.folder / "keys" / "south.pub").read_bytes())


FAULTS: dict[str, tuple[Callable[[Deployed], Any], set[str], str]] = {
    "another node key": (_another_key, {"registered", "name"}, "accept-key"),
    "another coordinator": (_another_coordinator, {"account"}, "is not the key of the coordinator"),
    "a key that others read": (_open_key, {"keys", "rights"}, "chmod 600"),
    "a secret that others read": (_open_secret, {"kit", "rights"}, "chmod"),
    "another site's certificate": (_others_certificate, {"certificate", "account"}, "another kit"),
    "another public half": (_others_public_key, {"kit"}, "public half"),
    "another name": (lambda place: place.change("site.yaml", site="south"), {"kit", "certificate"}, "knows no 'south'"),
    "a wrong budget port": (
        lambda place: place.change("kit.yaml", budget=place.server.port), {"account"}, "budget port"
    ),
    "a closed budget port": (lambda place: place.change("kit.yaml", budget=closed_port()), {"server port"}, "refused"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_red_in_its_own_words(place: Deployed, fault: str) -> None:
    spoil, names, says = FAULTS[fault]
    spoil(place)
    found = failures(place)
    assert found
    assert {each.name for each in found} <= names
    assert says in " ".join(each.text for each in found)


def test_what_the_coordinators_ledger_says_is_shown(place: Deployed, running: Deployed) -> None:
    charge(running.coordinator.ledger, "north", 2)
    found = next(each for each in check_connection(place.home) if each.name == "account")
    assert (found.status, "of 3 is spent" in found.text) == ("ok", True)


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({}, "ok", "the budget bears it"),
        ({"sites": ["east", "south"]}, "failure", "not among its sites"),
        ({"mechanism": {"sample_rate": 0.9, "noise_multiplier": 6.0}}, "failure", "policy.maximum_sample_rate"),
        ({"mechanism": {"name": "none"}}, "failure", "policy.mechanisms"),
        ({"mechanism": {"sample_rate": 0.5, "noise_multiplier": 0.5}, "rounds": 90}, "failure", "epsilon"),
        ({"training": {"steps": 5000}}, "failure", "policy.maximum_steps_per_round"),
        ({"server": {"deadline_seconds": 1}}, "failure", "each would be late"),
        ({"mechanism": {"sample_rate": 0.1}}, "ok", "sigma"),  # calibrated here as the coordinator would
    ],
)
def test_a_plan_is_held_against_the_policy_and_the_budget(
    place: Deployed, change: dict[str, Any], status: str, says: str
) -> None:
    plan = place.home.folder / "federation.yaml"
    write_text(plan, yaml.safe_dump({**PLAN, **change}))
    found = list(check_plan(open_site(place.home.site), plan))
    assert [each.status for each in found] == [status]
    assert says in found[0].text


def test_a_site_without_the_plan_is_told_to_ask_for_it(place: Deployed) -> None:
    write_text(place.home.folder / "federation.yaml", "rounds: many")
    assert [(each.name, "rounds" in each.text) for each in failures(place)] == [("plan", True)]
    (place.home.folder / "federation.yaml").unlink()
    found = [each for each in check_connection(place.home) if each.name == "plan"]
    assert [(each.status, "--plan" in each.text) for each in found] == [("warning", True)]


def test_the_plan_counts_what_the_site_has_spent_and_charges_nothing(place: Deployed) -> None:
    from support.ledgers import BUDGET, spend

    from wardpose.shared.privacy.ledger import Ledger

    ledger = Ledger(place.home.ledger, signer=open_site(place.home.site).signer)
    spend(ledger, 3, cohort="ward-7", budget=BUDGET)
    head = ledger.head()
    place.change("site.yaml", policy={"epsilon": 0.4, "delta": 1e-3})
    found = list(check_plan(open_site(place.home.site), place.home.folder / "federation.yaml"))
    assert [each.status for each in found] == ["failure"]
    assert Ledger(place.home.ledger, readonly=True).head() == head


def test_a_wheel_or_an_installation_that_was_changed_is_found(
    place: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_installed(place.home).status == "ok"
    (wheel,) = place.home.wheels.glob("*.whl")
    changed = tmp_path / "installed"
    shutil.copytree(Path(__file__).parents[3] / "client", changed, ignore=shutil.ignore_patterns("__pycache__"))
    with (changed / "release.py").open("a") as file:
        file.write("\n# one line more\n")
    (changed / "tiers.py").unlink()
    monkeypatch.setattr("wardpose.client.__file__", str(changed / "__init__.py"))
    found = check_installed(place.home)
    assert found.status == "failure"
    assert found.examples == (
        "wardpose/client/release.py: is another one here", "wardpose/client/tiers.py: is missing here",
    )  # fmt: skip
    wheel.write_bytes(b"no wheel")
    assert "SHA-256" in check_installed(place.home).text
    place.change("kit.yaml", wheel=hashlib.sha256(b"no wheel").hexdigest())
    assert "cannot be read" in check_installed(open_site_home(place.home.folder)).text
    wheel.unlink()
    assert check_installed(place.home).status == "warning"


def test_a_supernode_that_was_not_taken_in_says_why(place: Deployed) -> None:
    home = place.home
    assert "is started again by itself" in why_not_taken_in(home.superlink, home.authority, home.node_key)
    assert "refused" in why_not_taken_in(f"127.0.0.1:{closed_port()}", home.authority, home.node_key)
    _another_key(place)
    assert "server register" in why_not_taken_in(home.superlink, home.authority, home.node_key)
    home.node_key.chmod(0o644)
    assert "chmod 600" in why_not_taken_in(home.superlink, home.authority, home.node_key)


def test_one_screen_says_where_the_site_stands(place: Deployed) -> None:
    asked = ["status", "--home", str(place.home.folder)]
    result = CliRunner().invoke(app, asked, env={"COLUMNS": "120"})
    assert result.exit_code == 0, (result.output, result.exception)
    assert "next step" in result.output
    assert json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["role"]
