"""The engineer's preflight finds what would keep a site from taking part, and writes nothing."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.coco_files import content
from support.sealing import write_keys
from support.untouched import untouched
from typer.testing import CliRunner

from wardpose.client.check import check_site
from wardpose.client.commands.site import app
from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.site_config import load_site

EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=0.5, steps=50, max_grad_norm=1.0)


def write_site(folder: Path, **changes: Any) -> Path:
    content = {
        "site": "north",
        "cohort": {
            "name": "ward-7",
            "declared_patients": 24,
            "data": {"kind": "ward", "hospital": "north", "patients": 24, "frames_per_patient": 2, "seed": 1},
        },
        "policy": {"epsilon": 4.0, "delta": 1e-3},
        **changes,
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    write_keys(folder)
    return path


def cohort(data: dict[str, Any]) -> dict[str, Any]:
    return {"cohort": {"name": "ward-7", "declared_patients": 24, "data": data}}


def statuses(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in check_site(path):
        found.setdefault(finding.name, set()).add(finding.status)
    return found


def test_a_good_site_has_no_failure_and_nothing_is_written(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    before = {file.name for file in tmp_path.iterdir()}
    found = statuses(path)
    assert "failure" not in set().union(*found.values())
    assert set(found) >= {
        "configuration",
        "keys",
        "policy",
        "ledger",
        "budget",
        "device",
        "noise",
        "public view",
        "clock",
        "data",
        "disk",
    }
    assert {file.name for file in tmp_path.iterdir()} == before


def ledger_states(folder: Path) -> dict[str, Callable[[], None]]:
    """Make a ledger beside site.yaml in each state that a check may meet; two orders are charged where any is."""
    path = folder / "ledger.sqlite"

    def charge(times: int) -> None:
        for number in range(times):
            Ledger(path, signer=write_keys(path.parent)[0]).reserve(
                "ward-7", [EVENT], run_id="r", round=number, budget=Budget(epsilon=100.0, delta=1e-3)
            )

    def killed() -> None:
        """Leave what a killed process leaves: the second order is in the log alone."""
        charge(1)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM entries").fetchone()
            charge(1)
            for ending in ("", "-wal", "-shm"):
                shutil.copy(folder / f"ledger.sqlite{ending}", folder / f"kept{ending}")
        for ending in ("", "-wal", "-shm"):
            (folder / f"kept{ending}").rename(folder / f"ledger.sqlite{ending}")

    return {"none": lambda: None, "empty": path.touch, "settled": lambda: charge(2), "killed": killed}


@pytest.mark.parametrize("state", ["none", "empty", "settled", "killed"])
def test_a_check_touches_nothing(tmp_path: Path, state: str) -> None:
    path = write_site(tmp_path)
    ledger_states(tmp_path)[state]()
    cache = tmp_path / "state" / "cache" / "abc"
    cache.mkdir(parents=True)
    (cache / "entry.json").write_text("{}")
    with untouched(tmp_path):
        found = check_site(path)
    if state == "empty":  # what was charged does not go away with the file's content
        assert [(item.name, item.status) for item in found if item.status == "failure"] == [("ledger", "failure")]
        assert any("empty; a ledger never is" in item.text for item in found)
        return
    assert not [item for item in found if item.status == "failure" and item.name != "budget"]
    (budget,) = [item.text for item in found if item.name == "budget"]
    spent = 0.0
    if state in ("settled", "killed"):
        spent = Ledger.open_readonly(tmp_path / "ledger.sqlite").epsilon("ward-7", 1e-3)
        assert any("3 entries" in item.text for item in found if item.name == "ledger")
    assert f"epsilon {spent:.4f} of" in budget


def test_a_ledger_in_use_is_read_and_not_touched(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    ledger_states(tmp_path)["settled"]()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with untouched(tmp_path):
            assert any("3 entries" in item.text for item in check_site(path) if item.name == "ledger")


def test_an_error_of_the_ledger_names_the_ledger(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(b"not a ledger" * 100)
    with untouched(tmp_path):
        (found,) = [item for item in check_site(path) if item.status == "failure"]
    assert str(tmp_path / "ledger.sqlite") in found.text


COCO = {"kind": "coco", "annotations": "people.json", "images": "."}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("people.json", "{", "people.json: malformed JSON"),
        ("people.json", "\ud800", "people.json: "),
        ("people.json", json.dumps(content()).replace('"bbox": [5', '"bbox": [900', 1), "people.json: record 1: box"),
        ("people.json", json.dumps(content()).replace("8.png", "\ud800.png"), "record 3: "),
        ("8.png", "not a picture", "record 3: "),
        ("patients.csv", "record,patient\n1,P1\n2,p1\n3,x\n", "patients.csv: row 2 and row 3"),
        ("patients.csv", "record,patient\n1,P1\n2,P2\n", "record 3: "),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, file: str, text: str, message: str) -> None:
    for name in ("7.png", "8.png"):
        Image.new("RGB", (80, 70)).save(tmp_path / name)
    (tmp_path / "people.json").write_text(json.dumps(content()))
    (tmp_path / "patients.csv").write_text("record,patient\n1,a\n2,b\n3,c\n")
    (tmp_path / file).write_text(text, errors="surrogatepass")
    path = write_site(tmp_path, **cohort({**COCO, "patients": {"file": "patients.csv"}}))
    with untouched(tmp_path):
        (found,) = [item for item in check_site(path) if item.status == "failure"]
    assert found.name == "data"
    assert message in found.text
    assert "\n" not in found.text
    assert CliRunner().invoke(app, ["check", str(path)]).exit_code == 1


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"policy": {"minimum_declared_patients": 30}}, "policy", "every order will be refused"),
        ({"policy": {"mechanisms": ["feature"]}}, "public view", "none is declared"),
        (
            cohort({"kind": "ward", "hospital": "nowhere", "patients": 2, "frames_per_patient": 1}),
            "data",
            "nowhere",
        ),
        (
            cohort({"kind": "ward", "hospital": "north", "patients": 30, "frames_per_patient": 1, "seed": 0}),
            "ledger",
            "is gone, but 2 entries were seen before",
        ),
        (
            cohort({"kind": "coco", "annotations": "no.json", "images": ".", "patients": {"ids": "exact"}}),
            "data",
            "no.json",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], name: str, text: str) -> None:
    path = write_site(tmp_path, **changes)
    if name == "ledger":
        journal = SiteJournal(tmp_path / "state" / "journal.sqlite")
        Ledger(tmp_path / "ledger.sqlite", witness=journal, signer=write_keys(tmp_path)[0]).reserve(
            "ward-7", [EVENT], run_id="r", round=1, budget=Budget(epsilon=100.0, delta=1e-3)
        )
        (tmp_path / "ledger.sqlite").unlink()
    failures = [finding for finding in check_site(path) if finding.status == "failure"]
    assert [failure.name for failure in failures] == [name]
    assert text in failures[0].text


def test_a_spent_budget_is_a_failure(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    Ledger(tmp_path / "ledger.sqlite", signer=write_keys(tmp_path)[0]).reserve(
        "ward-7", [EVENT], run_id="r", round=1, budget=Budget(epsilon=100.0, delta=1e-3)
    )
    assert statuses(path)["budget"] == {"failure"}


def test_a_broken_ledger_is_a_failure_and_the_rest_is_still_checked(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    (tmp_path / "ledger.sqlite").write_text("not a ledger")
    found = statuses(path)
    assert found["ledger"] == {"failure"}
    assert found["data"] == {"ok"}


def test_a_missing_site_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.yaml: cannot be read"):
        check_site(tmp_path / "site.yaml")


def test_the_command_prints_one_json_object_and_exits_1_on_failure(tmp_path: Path) -> None:
    good = CliRunner().invoke(app, ["check", str(write_site(tmp_path)), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True
    bad = CliRunner().invoke(app, ["check", str(write_site(tmp_path, policy={"mechanisms": ["feature"]})), "--json"])
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["ok"] is False


def test_the_ledger_is_shown_entry_by_entry(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    ledger = Ledger(tmp_path / "ledger.sqlite", signer=write_keys(tmp_path)[0])
    ledger.commit(ledger.reserve("ward-7", [EVENT], run_id="r", round=3, budget=Budget(epsilon=100.0, delta=1e-3)))
    shown = json.loads(CliRunner().invoke(app, ["ledger", str(path), "--json"]).stdout)
    assert [entry["kind"] for entry in shown["entries"]] == ["genesis", "reserve", "commit"]
    assert shown["entries"][1]["round"] == 3
    assert shown["entries"][1]["charged"] == ["dp-sgd: 50 steps, q 0.1, sigma 0.5, unit patient"]
    (cohort,) = shown["cohorts"]
    spent = {name: ledger.epsilon("ward-7", 1e-3, adjacency=name) for name in ("add-remove", "replace-one")}
    assert (cohort["name"], cohort["epsilon_spent"], cohort["epsilon_budget"]) == ("ward-7", spent["add-remove"], 4.0)
    assert cohort["epsilon_by_adjacency"] == spent
    assert cohort["tiers"] == []
    assert CliRunner().invoke(app, ["ledger", str(path)]).exit_code == 0


def test_every_consent_tier_is_shown_with_its_own_budget(tmp_path: Path) -> None:
    path = write_site(tmp_path, policy={"epsilon": 4.0, "delta": 1e-3, "tiers": {"strict": 2.0, "open": 9.0}})
    strict = replace(EVENT, tier="strict", sample_rate=0.01)
    ledger = Ledger(tmp_path / "ledger.sqlite", signer=write_keys(tmp_path)[0])
    ledger.reserve(
        "ward-7",
        [strict, replace(EVENT, tier="untiered")],
        run_id="r",
        round=1,
        budget=Budget(epsilon=100.0, delta=1e-3),
    )
    (cohort,) = json.loads(CliRunner().invoke(app, ["ledger", str(path), "--json"]).stdout)["cohorts"]
    tiers = {row["tier"]: (row["epsilon_spent"], row["epsilon_budget"]) for row in cohort["tiers"]}
    spent = ledger.epsilon_by_tier("ward-7", 1e-3)
    assert tiers == {"strict": (spent["strict"], 2.0), "untiered": (spent["untiered"], 4.0), "open": (0.0, 9.0)}
    assert 0 < spent["strict"] < spent["untiered"] == cohort["epsilon_spent"]
    assert "tier strict: epsilon" in CliRunner().invoke(app, ["ledger", str(path)]).stdout


def test_init_writes_a_site_that_reads_and_never_replaces_one(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--name", "st-marys"])
    assert made.exit_code == 0
    site = load_site(tmp_path / "new" / "site.yaml")
    assert site.site == "st-marys"
    assert site.policy.mechanisms == ("dp-sgd",)
    again = CliRunner().invoke(app, ["init", str(tmp_path / "new")])
    assert isinstance(again.exception, ConfigError)
    assert load_site(tmp_path / "new" / "site.yaml").site == "st-marys"


def test_clearing_the_cache_leaves_ledger_and_journal(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    entry = tmp_path / "state" / "cache" / "abc"
    entry.mkdir(parents=True)
    (entry / "entry.json").write_text("{}")
    (tmp_path / "ledger.sqlite").write_bytes(b"")
    (tmp_path / "state" / "journal.sqlite").write_bytes(b"")
    assert CliRunner().invoke(app, ["clear-cache", str(path)]).exit_code == 0
    assert not entry.exists()
    assert (tmp_path / "ledger.sqlite").exists()
    assert (tmp_path / "state" / "journal.sqlite").exists()


def test_a_ledger_of_another_hand_and_keys_that_are_wrong_are_failures(tmp_path: Path) -> None:
    path = write_site(tmp_path)
    Ledger(tmp_path / "ledger.sqlite").declare("ward-7", identity="x")
    found = {finding.name: finding for finding in check_site(path)}
    assert (found["ledger"].status, "is not signed" in found["ledger"].text) == ("failure", True)
    (tmp_path / "node.key").chmod(0o644)
    path.touch()
    found = {finding.name: finding for finding in check_site(path)}
    assert (found["keys"].status, "may be read by others" in found["keys"].text) == ("failure", True)
    (tmp_path / "node.key").chmod(0o600)
    (tmp_path / "coordinator.pub").unlink()
    os.utime(path, (1, 1))
    texts = [finding.text for finding in check_site(path) if finding.status == "failure"]
    assert any("coordinator.pub: cannot be read" in text for text in texts)
