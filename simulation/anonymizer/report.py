"""The anonymiser's table as HTML, and whether the project's targets are reached."""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from wardpose.shared.anonymize.certificate import Certificate, Thresholds
from wardpose.shared.anonymize.figures import Figure, parse
from wardpose.shared.data.records import Frame
from wardpose.simulation.anonymizer import relink_report
from wardpose.simulation.anonymizer.certify import Table
from wardpose.simulation.anonymizer.certify_config import OWN
from wardpose.simulation.anonymizer.figure_table import GROWTH, HEADINGS, figure_lines, growth_lines
from wardpose.simulation.anonymizer.measuring import COLUMNS, Row
from wardpose.simulation.anonymizer.rounding import rounded

_BRIEF = {
    "relink_rank1": "relinked",
    "linkage_rank1": "linkage",
    "linkage_rank1_after_attack": "rebuilt",
    "linkage_rank1_trained": "trained",
    "face_match": "faces",
    "video_faces_exposed": "video",
    "pose_kept": "P keeps",
    "psnr": "PSNR",
}
_ATTACKS = [key for key in COLUMNS if any(word in key for word in ("linkage", "relink", "identity", "face"))]
_GROUPS = (
    ("What an attacker gets", _ATTACKS),
    ("What a pose model reads, and how like the original it looks", [key for key in COLUMNS if key not in _ATTACKS]),
)
_SECTIONS = (
    (
        "Each figure beside its floor",
        "The floor is what the same attacker gets, by the same code, from the true skeleton and the box alone: "
        "what the view stands above it is more than a pose. Intervals are 95 %. Whoever holds the very frame and the "
        "map needs no attacker: they apply the map and compare.",
    ),
    (
        "What more pairs bring the relinking attacker",
        "The last line of a row is the whole ensemble on all pairs, the others are one network on fewer people. One "
        "that still rises says that somebody with more pairs, or more time, gets more.",
    ),
)
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One target.

    Attributes:
        name: what.
        wanted: the target in words.
        got: the number, or `not measured`.
        reached: whether it is met.

    """

    name: str
    wanted: str
    got: str
    reached: bool


def targets(rows: list[Row]) -> list[Verdict]:
    """Hold the rows `public-view` and `recoverable` against the project's targets."""
    by_name = {row["name"]: row for row in rows}
    view, recoverable = by_name["public-view"], by_name["recoverable"]
    wrong, shown = recoverable["linkage_rank1_wrong_key"], recoverable["linkage_rank1"]
    return [
        _at_most("public view: linkage rank-1", view["linkage_rank1"], 0.02),
        _at_most("public view: linkage rank-1 after reconstruction", view["linkage_rank1_after_attack"], 0.10),
        _at_least("public view: P keeps of its raw PCK@0.2", view["pose_kept"], 0.90),
        _at_least("recoverable, right key: PSNR in dB", recoverable["psnr_right_key"], 28.0),
        _at_least("recoverable, right key: SSIM", recoverable["ssim_right_key"], 0.90),
        Verdict(
            name="recoverable, wrong key: linkage rank-1",
            wanted="at most that of the frame itself",
            got=f"{_shown(wrong)} (frame itself: {_shown(shown)})",
            reached=wrong is not None and shown is not None and wrong <= max(shown, 0.02),
        ),
        _at_most("public view: video frames with an exposed face", view["video_faces_exposed"], 0),
    ]


def demands(measures: dict[str, float | None], thresholds: Thresholds) -> list[Verdict]:
    """Hold a certificate's measures against a site's thresholds."""
    wanted = {name: most for name, most in thresholds.model_dump().items() if most is not None}
    return [_at_most(COLUMNS.get(name, name), measures.get(name), most) for name, most in wanted.items()]


def results(table: Table, *, command: str) -> dict[str, Any]:
    """Return what is stored of a measurement; numbers are rounded to four places."""
    rows = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        for row in table.rows
    ]
    setting = table.certificate.setting
    raw = next(row["p_pck"] for row in rows if row["name"] == "untouched")
    pose = "P was not trained"
    if raw is not None:
        pose = (
            f"P had {setting['pose_steps']} steps on the same people and reaches {raw:.2f} on untouched crops: one "
            "that is trained to the end reads more from them and may keep a smaller share of it"
        )
    return {
        "about": (
            f"{setting['people']} people whom nobody learned from, {setting['portraits']} portraits, "
            f"{setting['video_frames']} video frames. Each trained attacker had {setting['attack_steps']} steps on "
            f"{setting['train_people']} public people (the built-in identity attacker half as many, on rendered "
            f"patients): more steps, more people or larger networks may get more. {pose}."
        ),
        "command": command,
        "created": table.certificate.created,
        "figures": {name: rounded(asdict(figure)) for name, figure in (table.certificate.figures or {}).items()},
        "rows": rows,
        "setting": setting,
        "targets": [asdict(verdict) for verdict in targets(rows)],
    }


def brief(rows: list[Row]) -> list[list[str]]:
    """Return headings and lines of the measures that matter most, for a terminal."""
    shown = [key for key in _BRIEF if any(row.get(key) is not None for row in rows)]
    lines = [[row["name"], *("-" if row.get(key) is None else _shown(row[key]) for key in shown)] for row in rows]
    return [["method", *(_BRIEF[key] for key in shown)], *lines]


def figure_tables(found: dict[str, Any]) -> list[list[list[str]]]:
    """Return the figures of stored results, and the attackers' curves, as tables with their headings first."""
    stated, curves = figure_lines(parse(found.get("figures", {}))), growth_lines(found["rows"])
    return [[headings, *lines] for headings, lines in ((HEADINGS, stated), (GROWTH, curves)) if lines]


def certificate_html(certificate: Certificate, pictures: dict[str, Frame], thresholds: Thresholds) -> str:
    """Show a certificate as a page that needs no other file."""
    setting = certificate.setting | {"view identity": certificate.view_identity, "signer": certificate.signer}
    return page(
        title=f"Certificate of public view {certificate.view_name}",
        lead=f"Measured {certificate.created}. Pictures show public people.",
        verdict_title="Against the default thresholds",
        verdicts=demands(certificate.measures, thresholds),
        figures=certificate.figures or {},
        rows=certificate.rows,
        pictures=pictures,
        setting=setting,
    )


def page(
    *,
    title: str,
    lead: str,
    verdict_title: str,
    verdicts: list[Verdict],
    rows: list[Row],
    pictures: dict[str, Frame],
    setting: dict[str, Any],
    figures: dict[str, Figure],
    relinking: dict[str, Any] | None = None,
) -> str:
    """Render the figures beside their floors, the table, the verdicts and the pictures.

    Args:
        title: of the page.
        lead: its first sentence.
        verdict_title: of the verdicts.
        verdicts: what was wanted and reached.
        rows: a method each.
        pictures: of the rows.
        setting: what the numbers depend on.
        figures: of the view that the rows certify.
        relinking: what `relink_report.measure` found of other views, shown in sections of its own.

    """
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True)
    used = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    unused = [COLUMNS[key] for key in COLUMNS if key not in used]
    if unused:
        setting = setting | {"not measured at all": ", ".join(unused)}
    return environment.get_template("anonymizer.html").render(
        title=title,
        lead=lead,
        verdict_title=verdict_title,
        verdicts=verdicts,
        sections=_sections([[HEADINGS, *figure_lines(figures)], [GROWTH, *growth_lines(rows)]])
        + (_sections(relink_report.tables(relinking)) if relinking else []),
        tables=[_table(title, [key for key in keys if key in used], rows) for title, keys in _GROUPS],
        pictures=[{"name": name, "data": _jpeg(picture)} for name, picture in pictures.items()],
        setting=_lines(setting),
    )


def _sections(tables: list[list[list[str]]]) -> list[dict[str, Any]]:
    """Name the tables of figures and of curves; an empty one is left out."""
    return [
        {"heading": heading, "lead": lead, "headings": lines[0], "rows": lines[1:]}
        for (heading, lead), lines in zip(_SECTIONS, tables, strict=False)
        if lines[1:]
    ]


def _table(title: str, keys: list[str], rows: list[Row]) -> dict[str, Any]:
    return {
        "title": title,
        "headings": [COLUMNS[key] for key in keys],
        "rows": [
            {"name": row["name"], "own": row["name"] == OWN, "cells": [_shown(row.get(key)) for key in keys]}
            for row in rows
        ],
    }


def _lines(setting: dict[str, Any]) -> list[tuple[str, str]]:
    """Take nested settings apart: a line a value."""
    lines: list[tuple[str, str]] = []
    for key, value in setting.items():
        if isinstance(value, dict):
            lines += [(f"{key}: {name}", text) for name, text in _lines(value)]
        else:
            lines.append((key, value if isinstance(value, str) else json.dumps(value)))
    return lines


def _at_most(name: str, value: float | None, most: float) -> Verdict:
    return Verdict(
        name=name, wanted=f"at most {most:g}", got=_shown(value), reached=value is not None and value <= most
    )


def _at_least(name: str, value: float | None, least: float) -> Verdict:
    return Verdict(
        name=name, wanted=f"at least {least:g}", got=_shown(value), reached=value is not None and value >= least
    )


def _shown(value: float | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _jpeg(frame: Frame) -> str:
    small = cv2.resize(frame, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    content = cv2.imencode(".jpg", np.ascontiguousarray(np.asarray(small)[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])[
        1
    ]
    return base64.b64encode(bytes(content)).decode()
