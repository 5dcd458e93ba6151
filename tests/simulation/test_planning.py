import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import Event, epsilon
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.simulation.cli import app
from wardpose.simulation.commands.plan import draw
from wardpose.simulation.planning import make_plan, tier_rows

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def values() -> dict[str, object]:
    arguments = [
        "plan",
        "--patients",
        "300",
        "--epsilon",
        "2",
        "--rounds",
        "4",
        "--steps",
        "5",
        "--batch",
        "15",
        "--json",
    ]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_json_is_one_object_that_agrees_with_the_accountant(values: dict[str, object]) -> None:
    event = Event(
        mechanism="dp-sgd",
        unit="patient",
        sample_rate=15 / 300,
        noise_multiplier=values["noise_multiplier"],  # type: ignore[arg-type]
        steps=20,
        max_grad_norm=1,
    )
    assert values["epsilon_spent"] == epsilon([event], delta=COURSE_SHARE * 1e-5) <= 2
    assert values["epsilon_spent"] == pytest.approx(2, rel=2e-3)
    assert values["epsilon_spent"] < values["epsilon_rdp"]  # type: ignore[operator]
    assert values["epsilon_replace_one"] == epsilon([event], delta=COURSE_SHARE * 1e-5, adjacency="replace-one")


def test_tables_run_the_right_way(values: dict[str, list[dict[str, float]]]) -> None:
    rounds = values["epsilon_by_round"]
    assert [row["round"] for row in rounds] == [1, 2, 3, 4]
    assert rounds[-1]["pld"] == values["epsilon_spent"]
    for table, key in (("epsilon_by_round", "pld"),):
        assert all(a[key] < b[key] for a, b in zip(values[table], values[table][1:], strict=False))
    for table in ("by_patients", "by_epsilon"):  # more of either needs less noise
        noise = [row["noise_multiplier"] for row in values[table]]
        assert noise == sorted(noise, reverse=True)
    assert [row["patients"] for row in values["by_patients"]] == [150, 300, 600, 1200, 2400]


@pytest.mark.parametrize(
    ("epsilon", "noise"),
    [("0.0001", "gaussian"), ("0.001", "discrete-gaussian"), ("1000", "gaussian"), ("10000", "gaussian")],
)
def test_small_and_large_budgets_are_spent(epsilon: str, noise: str) -> None:
    result = RUNNER.invoke(app, ["plan", "--epsilon", epsilon, "--noise", noise, "--rounds", "3", "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert 0.98 * float(epsilon) < values["epsilon_spent"] <= float(epsilon)
    assert all(row["noise_multiplier"] for row in values["by_epsilon"])


def test_a_side_table_without_an_answer_does_not_refuse_the_plan(tmp_path: Path) -> None:
    arguments = ["plan", "--patients", "20", "--batch", "20", "--epsilon", "1e-5", "--delta", "2e-12"]
    arguments += ["--rounds", "1000000", "--steps", "1000000"]
    result = RUNNER.invoke(app, [*arguments, "--png", str(tmp_path / "plan.png"), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["by_epsilon"]
    assert rows[0]["noise_multiplier"] is None
    assert rows[-1]["noise_multiplier"] > 0
    assert "-" in RUNNER.invoke(app, arguments).stdout.split("What a larger budget buys")[1]


def test_picture_is_drawn(values: dict[str, object], tmp_path: Path) -> None:
    draw(values, tmp_path / "new" / "plan.png")
    assert (tmp_path / "new" / "plan.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        draw(values, tmp_path / "new" / "plan.nonsense")


def test_a_whole_cohort_in_every_step() -> None:
    chosen = make_plan(patients=10, epsilon=3, delta=1e-5, rounds=1, steps_per_round=2, expected_batch=10)
    assert chosen.sample_rate == 1
    assert chosen.noise_per_step == chosen.noise_multiplier / 10
    assert math.isfinite(chosen.noise_multiplier)


def test_each_tier_is_drawn_so_that_its_own_budget_lasts() -> None:
    chosen = make_plan(patients=200, epsilon=4, delta=1e-5, rounds=4, steps_per_round=5, expected_batch=20)
    rows = tier_rows(chosen, {"strict": 1.0, "as planned": 4.0})
    assert [row["tier"] for row in rows] == ["strict", "as planned"]
    assert rows[1]["sample_rate"] == pytest.approx(chosen.sample_rate, rel=1e-2)
    for row in rows:
        event = Event(
            mechanism="dp-sgd", unit="patient", sample_rate=row["sample_rate"],
            noise_multiplier=chosen.noise_multiplier, steps=20, max_grad_norm=1,
        )  # fmt: skip
        assert 0.98 * row["epsilon"] < epsilon([event], delta=COURSE_SHARE * 1e-5) <= row["epsilon"]


def test_the_table_names_every_tier() -> None:
    arguments = ["plan", "--patients", "100", "--rounds", "1", "--steps", "1", "--noise", "discrete-gaussian"]
    outcome = RUNNER.invoke(app, [*arguments, "--tier", "strict=0.5"])
    assert outcome.exit_code == 0, outcome.output
    assert "strict" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "-1"], "epsilon is -1.0"),
        (["--delta", "2"], "delta is 2.0"),
        (["--batch", "900"], "900 of 200 patients"),
        (["--batch", "9", "--rate", "0.1"], "say the same thing"),
        (["--adjacency", "foo"], "adjacency is 'foo'"),
        (["--noise", "foo"], "noise is 'foo'"),
        (["--tier", "strict"], "--tier is 'strict'"),
        (["--tier", "strict=0"], "NAME=EPSILON"),
    ],
)
def test_nonsense_is_refused(arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["plan", *arguments])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
