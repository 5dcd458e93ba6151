"""The run report: one self-contained HTML file with curves, budgets, example frames and the plan."""

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wardpose.server.evaluation import shown_values
from wardpose.server.scoring import open_all
from wardpose.shared.config import FederationConfig
from wardpose.shared.data.dataset import listed
from wardpose.shared.data.records import Frame, PoseDataset
from wardpose.shared.files import ASKED_FOR, write_text
from wardpose.shared.pose.drawing import draw_skeleton
from wardpose.shared.pose.evaluation import predict
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.status_html import draw, environment, style
from wardpose.shared.status_view import Curve, budget_tone, of_budget, score_label
from wardpose.shared.yaml_config import to_yaml

_EXAMPLES = 8


def write_report(
    path: Path, summary: dict[str, Any], config: FederationConfig, *, before: PoseModel, after: PoseModel
) -> None:
    """Write the report of a run.

    Args:
        path: the HTML file, replaced atomically.
        summary: what `wardpose.server.summary.summarise` returned.
        config: the federation's plan.
        before: the network before the first round.
        after: the network after the last round.

    """
    dataset = open_all(config.data.test or config.data.validation, config.model.skeleton)
    curve = _curve(summary)
    html = (
        environment(Path(__file__).parent / "templates")
        .get_template("report.html")
        .render(
            summary=summary,
            style=style(),
            config=to_yaml(config),
            curve=curve,
            drawing=draw(curve),
            budgets=[_budget(site) for site in summary["sites"]],
            groups=_group_rows(summary),
            score_label=score_label(str(summary["score_name"])),
            shown=shown_values,
            examples=[] if dataset is None else _examples(dataset, before, after),
        )
    )
    write_text(path, html, mode=ASKED_FOR)


def _curve(summary: dict[str, Any]) -> Curve:
    """Return the plan's score over rounds, beside that of the models before the first and after the last."""
    on = "patients" if summary["score_on"] == "patients" else "test data"
    levels = [
        (f"{words}, {on}", summary[key])
        for words, key in (("before the first round (free)", "score_initial"), ("after the last", "score_final"))
        if summary[key] is not None
    ]
    return Curve(
        title=f"{score_label(str(summary['score_name']))} by round",
        points=tuple((row["round"], row["score"]) for row in summary["history"] if row["score"] is not None),
        levels=tuple(levels),
    )


def _budget(site: dict[str, Any]) -> tuple[float | None, str]:
    """Return which share of a site's budget is spent, for a bar, and how that is."""
    spent, budget = site["epsilon_spent"], site["epsilon_budget"]
    if spent is None or budget is None:
        return None, "bad" if spent is None else "plain"
    return of_budget(spent, budget), budget_tone(spent, budget)


def _group_rows(summary: dict[str, Any]) -> list[tuple[str, float | None, float | None]]:
    before, after = summary["score_initial_by_group"], summary["score_final_by_group"]
    return [(group, before.get(group), after.get(group)) for group in sorted(before | after)]


def _examples(dataset: PoseDataset, before: PoseModel, after: PoseModel) -> list[dict[str, str]]:
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(_EXAMPLES, len(dataset))).astype(int))
    subset = listed(dataset).select(chosen.tolist())
    first, _ = predict(before, subset)
    last, _ = predict(after, subset)
    examples = []
    for row, index in enumerate(chosen):
        record = dataset.record(int(index))
        panels = [_panel(dataset, int(index), joints) for joints in (record.joints, first[row], last[row])]
        examples.append({"name": record.record_id, "image": _encode(np.concatenate(panels, axis=1))})
    return examples


def _panel(dataset: PoseDataset, index: int, joints: NDArray[np.float32], size: int = 220) -> Frame:
    record = dataset.record(index)
    visible = record.visibility if joints is record.joints else np.full(len(joints), 2, np.uint8)
    drawn = draw_skeleton(dataset.frame(index), joints, visible, dataset.skeleton)
    x, y, width, height = record.box
    half = 0.62 * max(width, height)
    corner = np.array([x + width / 2 - half, y + height / 2 - half])
    affine = np.array([[size / (2 * half), 0, 0], [0, size / (2 * half), 0]])
    affine[:, 2] = -corner * size / (2 * half)
    return np.asarray(cv2.warpAffine(drawn, affine, (size, size), flags=cv2.INTER_AREA), np.uint8)


def _encode(image: Frame) -> str:
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
