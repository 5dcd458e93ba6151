from wardpose.shared.anonymize.certificate import Thresholds
from wardpose.simulation.anonymizer import report
from wardpose.simulation.anonymizer.measuring import COLUMNS


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
    assert [verdict.reached for verdict in unmeasured] == [True, False, False, False]


def test_the_page_escapes_names_and_lists_what_is_missing():
    page = report.page(
        title="A <b>title</b>", lead="", verdict_title="Targets", verdicts=report.targets(rows()), rows=rows(),
        pictures={}, setting={"people": 200},
    )  # fmt: skip
    assert "<b>title" not in page
    assert "0.950" in page
    assert "MoveNet PCK@0.2" in page.split("not measured at all")[1]
