"""The run report: one self-contained HTML file with curves, budgets, example frames and the plan."""

import base64
import io
from pathlib import Path
from typing import Any

import cv2
import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from wardpose.server.evaluation import shown_values
from wardpose.server.scoring import open_all
from wardpose.shared.config import FederationConfig
from wardpose.shared.data.dataset import listed
from wardpose.shared.data.records import Frame, PoseDataset
from wardpose.shared.files import write_text
from wardpose.shared.pose.drawing import draw_skeleton
from wardpose.shared.pose.evaluation import predict
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.yaml_config import to_yaml

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    html = environment.get_template("report.html").render(
        summary=summary,
        config=to_yaml(config),
        curve=_picture(_curve(summary)),
        budgets=_picture(_budgets(summary)),
        groups=_group_rows(summary),
        score_label=_score_label(summary),
        shown=shown_values,
        examples=[] if dataset is None else _examples(dataset, before, after),
    )
    write_text(path, html)


def _curve(summary: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(figsize=(6.2, 3.2), layout="constrained")
    history = [row for row in summary["history"] if row["score"] is not None]
    axes.plot(
        [row["round"] for row in history],
        [row["score"] for row in history],
        marker="o",
        color="#1f6f8b",
        label="validation",
    )
    if summary["score_initial"] is not None:
        axes.axhline(summary["score_initial"], color="#999999", linestyle="--", linewidth=1, label="test, before")
        if summary["score_final"] is not None:
            axes.axhline(summary["score_final"], color="#2a9d5c", linestyle="--", linewidth=1, label="test, after")
    axes.set_xlabel("round")
    axes.set_ylabel(_score_label(summary), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _budgets(summary: dict[str, Any]) -> Figure:
    sites = summary["sites"]
    figure, axes = plt.subplots(figsize=(6.2, 0.55 * len(sites) + 1.1), layout="constrained")
    places = np.arange(len(sites))
    budgets = [site["epsilon_budget"] or 0.0 for site in sites]
    spent = [site["epsilon_spent"] for site in sites]
    top = max([*budgets, *(value or 0.0 for value in spent), 1e-9])
    axes.barh(places, budgets, color="#e4e8eb", label="budget")
    axes.barh(
        places,
        [top if value is None else value for value in spent],
        height=0.5,
        color="#1f6f8b",
        label="spent",
    )
    for place, value in zip(places, spent, strict=True):
        axes.text(
            0.01 * top,
            float(place),
            "infinite" if value is None else f"{value:.3f}",
            va="center",
            color="white",
            fontsize=8,
        )
    axes.set_yticks(places, [site["name"] for site in sites], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"epsilon at delta = {summary['delta']:g} ({summary['unit']} level)", parse_math=False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8)
    return figure


def _score_label(summary: dict[str, Any]) -> str:
    return str(summary["score_name"]).replace("pck", "PCK")


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


def _picture(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
