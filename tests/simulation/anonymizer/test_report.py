import json
from dataclasses import asdict

import typer
from typer.testing import CliRunner

from wardpose.shared.anonymize.certificate import Thresholds
from wardpose.shared.anonymize.figures import Figure
from wardpose.simulation.anonymizer import report
from wardpose.simulation.anonymizer.measuring import COLUMNS
from wardpose.simulation.commands import anonymizer as commands


def rows(**own):
    view = dict.fromkeys(COLUMNS) | {
        "name": "public-view", "linkage_rank1": 0.01, "linkage_rank1_after_attack": 0.05, "pose_kept": 0.95,
        "video_faces_exposed": 0,
    }  # fmt: skip
    recoverable = dict.fromkeys(COLUMNS) | {
        "name": "recoverable", "linkage_rank1": 0.3, "linkage_rank1_wrong_key": 0.01, "psnr_right_key": 36.0,
        "ssim_right_key": 0.96,
    }  # fmt: skip
    return [recoverable, view | own]


def test_reached_and_missed_targets_are_told_apart():
    assert all(verdict.reached for verdict in report.targets(rows()))
    missed = [verdict for verdict in report.targets(rows(pose_kept=0.89)) if not verdict.reached]
    assert [verdict.got for verdict in missed] == ["0.890"]


def test_what_was_not_measured_is_not_reached_and_says_so():
    verdict = report.targets(rows(linkage_rank1_after_attack=None))[1]
    assert not verdict.reached
    assert verdict.got == "not measured"
    unmeasured = report.demands({"linkage_rank1": 0.01}, Thresholds())
    assert [verdict.reached for verdict in unmeasured] == [True, False, False, False, False]


def test_the_page_escapes_names_and_lists_what_is_missing():
    page = report.page(
        title="A <b>title</b>", lead="", verdict_title="Targets", verdicts=report.targets(rows()), rows=rows(),
        pictures={}, setting={"people": 200}, figures={},
    )  # fmt: skip
    assert "<b>title" not in page
    assert "0.950" in page
    assert "MoveNet PCK@0.2" in page.split("not measured at all")[1]


def test_the_page_shows_each_figure_beside_its_floor_and_the_curve():
    figure = Figure(
        value=0.62, low=0.55, high=0.68, floor=0.6, floor_low=0.53, floor_high=0.67, chance=0.005, trials=200,
        pairs=5000, networks=("convolution, 300 steps",),
    )  # fmt: skip
    step = {"pairs": 500, "rank1": 0.1, "low1": 0.07, "high1": 0.15, "rank5": 0.2, "low5": 0.15, "high5": 0.26}
    curve = [step | {"training_rank1": 0.4}]
    page = report.page(
        title="", lead="", verdict_title="", verdicts=[], rows=rows(relink_rank1=0.62, growth=curve), pictures={},
        setting={}, figures={"relink_rank1": figure},
    )  # fmt: skip
    for text in ("0.620 [0.550, 0.680]", "0.600 [0.530, 0.670]", "+0.020", "5000", "convolution, 300 steps"):
        assert text in page
    assert "0.100 [0.070, 0.150]" in page
    found = {"figures": {"relink_rank1": asdict(figure)}, "rows": rows(growth=curve)}
    stated, growth = report.figure_tables(found)
    assert stated[1][1:4] == ["0.620 [0.550, 0.680]", "0.600 [0.530, 0.670]", "+0.020"]
    assert growth[1][:3] == ["public-view", "500", "0.100 [0.070, 0.150]"]
    assert report.figure_tables({"rows": rows()}) == []


def test_the_results_that_come_with_the_project_show_the_relinking_attacker(tmp_path):
    app = typer.Typer()
    commands.register(app)
    out = tmp_path / "page.html"
    shown = CliRunner().invoke(app, ["anonymizer", "report", "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "skeleton and box" in shown.stdout
    said = CliRunner().invoke(app, ["anonymizer", "report", "--out", str(out), "--json"])
    relinked = json.loads(said.stdout)["relinking"]["figures"]["public-view"]["relink_rank1"]
    page = out.read_text()
    assert f"{relinked['floor']:.3f} [{relinked['floor_low']:.3f}, {relinked['floor_high']:.3f}]" in page
    assert "What more pairs bring" in page
