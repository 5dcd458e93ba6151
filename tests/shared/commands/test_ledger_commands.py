"""`wardpose ledger`: what an auditor reads is what was charged, and what was changed is found."""

import itertools
import json
import math
import re
import sqlite3
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ledgers import BUDGET, COURSE, DELTA, EVENT, cost, spend
from typer.testing import CliRunner, Result

from wardpose.server.ledger import ServerLedger
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.ledger_statement import detection
from wardpose.shared.privacy.accounting import as_seeded, epsilon
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.signing import create_key_pair
from wardpose.simulation.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["ledger", *map(str, arguments)], env={"COLUMNS": "250"})


def answer(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Three rounds of one run, with patients."""
    path = tmp_path / "site.sqlite"
    ledger = Ledger(path, clock=lambda: 1_700_000_000)
    for number in range(1, 4):
        reservation = ledger.reserve("ward", [EVENT], run_id="run", round=number, budget=BUDGET, course=COURSE)
        ledger.declare(
            "ward", identity="i", units=2, reservation=reservation, patients={"Ann Smith": "", "b": ""}, budget=BUDGET
        )
        ledger.commit(reservation)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "server.sqlite"
    for number in range(1, 4):
        for name in ("north", "south"):
            Ledger(path).reserve(name, [EVENT], run_id="run", round=number, budget=BUDGET, course=COURSE)
    return path


def test_what_is_shown_is_what_was_charged(site: Path, server: Path) -> None:
    (ward,) = answer("show", site)["cohorts"]
    assert ward["spent"] == Ledger(site).account("ward", DELTA).epsilon
    assert (ward["budget"], ward["delta"], ward["rule"], ward["units"]) == (3.0, DELTA, "course", ["patient"])
    (study,) = ward["studies"]
    assert study["epsilon"] == epsilon([EVENT] * 3, delta=DELTA)
    assert (study["federation"], study["rounds"], study["mechanisms"]) == ("study", 3, ["dp-sgd"])
    assert [row["cohort"] for row in answer("show", server)["cohorts"]] == ["north", "south"]
    assert [row["cohort"] for row in answer("show", server, "--cohort", "south")["cohorts"]] == ["south"]
    shown = run("show", site).stdout
    assert f"ward: epsilon {ward['spent']:.4f} of 3 at delta 1e-05" in shown
    assert isinstance(run("show", server, "--cohort", "west").exception, LedgerError)


@pytest.mark.parametrize("patients", [{"Ann Smith": "", "b": ""}, None])
def test_what_patients_paid_in_another_cohort_is_not_left_out(site: Path, patients: dict[str, str] | None) -> None:
    """A page that said less of a renamed cohort than its patients have lost would mislead whoever signs it."""
    ledger = Ledger(site)
    reservation = ledger.reserve("renamed", [EVENT], run_id="other", round=1, budget=BUDGET)
    ledger.declare("renamed", identity="j", units=2, reservation=reservation, patients=patients, budget=BUDGET)
    shown = {row["cohort"]: row["spent"] for row in answer("show", site)["cohorts"]}
    assert shown["renamed"] > ledger.account("renamed", DELTA).epsilon
    assert shown["renamed"] >= ledger.account("renamed", DELTA, whole_ledger=True).epsilon
    assert shown["ward"] == max(spent for _, spent in ledger.patients(delta=DELTA))


def test_a_seed_is_said_wherever_the_ledger_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "seeded.sqlite"
    Ledger(path).reserve("ward", as_seeded([EVENT]), run_id="run", round=1, budget=BUDGET)
    assert "NOT PRIVATE" in run("show", path).stdout
    run("statement", path, tmp_path / "page.html", "--holder", "North")
    assert "NOT PRIVATE" in (tmp_path / "page.html").read_text()
    (cohort,) = answer("statement", path, tmp_path / "page.html", "--holder", "North")["cohorts"]
    assert {row["found"] for row in cohort["detection"]} == {1.0}


def test_a_head_that_was_seen_must_still_be_there(site: Path) -> None:
    found = answer("verify", site)
    assert run("verify", site, "--head", found["head"]).exit_code == 0
    spend(Ledger(site), 1)
    assert run("verify", site, "--head", found["head"]).exit_code == 0
    other = f"{found['head'][:-1]}{'0' if found['head'][-1] != '0' else '1'}"
    assert isinstance(run("verify", site, "--head", other).exception, LedgerError)
    for wrong in ("7", "x:" + "0" * 64, "9" * 19 + ":" + "0" * 64, "\u0663:" + "0" * 64, "3:" + "0" * 63):
        assert isinstance(run("verify", site, "--head", wrong).exception, ConfigError)


@pytest.mark.parametrize("members", [False, True])
def test_an_export_can_be_checked_by_itself_and_every_change_of_it_is_found(
    site: Path, tmp_path: Path, members: bool
) -> None:
    path = tmp_path / "export.jsonl"
    exported = run("export", site, path, *(["--members"] if members else []))
    assert exported.exit_code == 0, exported.output
    entries = Ledger(site).entries()
    keys = {key for entry in entries for key in entry.body.get("members", {})}
    secret = str(entries[0].body["ledger"])
    text = path.read_text()
    assert all((hidden in text) == members for hidden in {*keys, secret})
    assert "Ann" not in text
    found = answer("verify", path)
    assert (found["entries"], found["head"]) == (len(entries), entries[-1].hash)
    assert found["redacted"] == (0 if members else 2)  # the first entry, and the first note
    lines = text.splitlines()
    changes = [
        [line for line in lines if line != lines[3]],
        [*lines[:2], lines[3], lines[2], *lines[4:]],
        [line.replace('"steps": 5', '"steps": 4') for line in lines],
        [*lines, lines[-1]],
        [*lines[:-1], lines[-1][:20]],
        [*lines[:4], "", *lines[4:]],
    ]
    for changed in changes:
        path.write_text("\n".join(changed) + "\n")
        assert isinstance(run("verify", path).exception, LedgerError)
    assert isinstance(run("export", site, path).exception, ConfigError)
    assert path.read_text().splitlines() == changes[-1]


def test_two_ledgers_of_the_same_rounds_agree(site: Path, server: Path) -> None:
    assert answer("compare", site, server, "--name", "north") == {"agree": True, "differences": []}
    Ledger(server).reserve("north", [EVENT], run_id="run", round=4, budget=BUDGET, course=COURSE)
    assert answer("compare", site, server, "--name", "north")["differences"] == [
        {"run": "run", "round": 4, "what": "only at the server", "alarming": False}
    ]
    assert isinstance(run("compare", site, server, "--name", "west").exception, LedgerError)


def test_a_server_that_believes_less_was_spent_is_an_alarm(site: Path, server: Path) -> None:
    ledger = Ledger(site)
    ledger.reserve("other ward", [EVENT], run_id="run", round=3, budget=BUDGET)
    ledger.reserve("ward", [EVENT], run_id="elsewhere", round=1, budget=BUDGET)
    result = run("compare", site, server, "--name", "north", "--json")
    assert result.exit_code == 1
    differences = json.loads(result.stdout)["differences"]
    found = {(row["run"], row["round"]): (row["what"], row["alarming"]) for row in differences}
    assert found == {("run", 3): ("less at the server", True), ("elsewhere", 1): ("only at the site", True)}
    assert "ALARM" in run("compare", site, server, "--name", "north").stdout


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_statement_says_what_was_spent_and_needs_nothing_else(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "statement.html"
    content = answer("statement", site, path, "--holder", "North <b>Hospital</b>")
    page = Page()
    page.feed(path.read_text())
    spent = Ledger(site).account("ward", DELTA).epsilon
    for words in (f"{spent:.4g}", "North <b>Hospital</b>", content["head"], "study", "everything that is recorded of"):
        assert words in page.text
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "Ann" not in path.read_text()
    (entry,) = content["registry"]
    assert yaml.safe_load(yaml.safe_dump(entry)) == entry
    assert entry["tier"] == 3
    assert entry["deployment"]["privacy_loss"]["privacy_parameters"] == {"epsilon": spent, "delta": DELTA}
    assert {"product", "dp_flavor", "privacy_loss", "model", "accounting", "implementation", "resources"} == set(
        entry["deployment"]
    )


def test_nothing_is_written_and_no_traceback_is_shown_for_a_ledger_that_was_changed(site: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(site)
    connection.executescript(
        "DROP TRIGGER entries_stay; UPDATE entries SET body = replace(body, '\"steps\":5', '\"steps\":1')"
    )
    connection.close()
    for arguments in (
        ("show", site),
        ("verify", site),
        ("export", site, tmp_path / "e.jsonl"),
        ("compare", site, site, "--name", "ward"),
        ("statement", site, tmp_path / "s.html", "--holder", "North"),
        ("show", tmp_path / "none.sqlite"),
    ):
        assert isinstance(run(*arguments).exception, LedgerError)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".html", ".jsonl")]


@pytest.mark.parametrize(("spent", "delta"), [(0.1, 1e-6), (1.0, 1e-5), (4.0, 1e-3)])
def test_no_rule_finds_more_than_is_stated(spent: float, delta: float) -> None:
    """Against the best test of the mechanism with exactly these outcomes: it is reached, and never passed."""
    high = (1 - delta) * math.exp(spent) / (1 + math.exp(spent))
    taken, absent = [delta, high, 1 - delta - high, 0.0], [0.0, 1 - delta - high, high, delta]
    for count in range(1, 5):
        for chosen in itertools.combinations(range(4), count):
            found, wrong = sum(taken[i] for i in chosen), sum(absent[i] for i in chosen)
            assert found <= detection(spent, delta, wrong) + 1e-12
    assert detection(spent, delta, 1 - delta - high) == pytest.approx(delta + high)
    assert detection(math.inf, delta, 0.0) == 1.0


def test_a_month_and_a_study_are_shown_beside_the_whole(tmp_path: Path) -> None:
    path, page = tmp_path / "ledger.sqlite", tmp_path / "statement.html"
    budget = replace(BUDGET, per_month=1.25, studies={"study": 1.5, "later": 0.75})
    clock = iter([1_750_000_000.0, 1_780_000_000.0] * 2)
    for number in (1, 2):
        now = next(clock)
        ledger = Ledger(path, clock=lambda now=now: now)  # type: ignore[misc]
        ledger.reserve("ward", [EVENT], run_id="run", round=number, budget=budget, course=COURSE)
    (ward,) = answer("show", path)["cohorts"]
    spent = {found["window"]: (found["budget"], found["spent"]) for found in (ward["month"], *ward["federations"])}
    assert spent == {
        "2026-05": (1.25, pytest.approx(cost(EVENT))),
        "study": (1.5, pytest.approx(cost(EVENT, EVENT))),
        "later": (0.75, 0.0),
    }
    assert "in 2026-05: epsilon" in run("show", path).output
    answer("statement", path, page, "--holder", "North")
    row = r'<td>2026-05</td>\s*<td class="number">[0-9.]+</td>\s*<td class="number">1.25</td>'
    assert re.search(row, page.read_text())


def test_a_charge_that_a_site_took_back_is_checked_with_its_key(tmp_path: Path) -> None:
    ledger = ServerLedger(tmp_path / "ledger.sqlite")
    keys = {name: create_key_pair(tmp_path / f"{name}.key", tmp_path / f"{name}.pub") for name in ("north", "other")}
    ledger.reserve("north", [EVENT], run_id="run", round=1, budget=BUDGET, course=COURSE)
    (said,) = ledger.open_reservations("north")
    signature = said.sign(keys["north"])
    ledger.expire(said.text(), signature, keys["north"].public, site="north", run="run", round_number=1)
    assert answer("verify", ledger.path, "--site-key", tmp_path / "north.pub")["taken_back"] == 1
    refused = run("verify", ledger.path, "--site-key", tmp_path / "other.pub")
    assert isinstance(refused.exception, LedgerError)
    assert "not by the site's" in str(refused.exception)
    answer("verify", ledger.path, "--site-key", tmp_path / "other.pub", "--site", "south")
