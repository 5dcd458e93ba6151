"""`wardpose evaluate`: how good a model is on a site's own patients."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardpose.shared.terminal import Json, console, line, say_step, say_table

if TYPE_CHECKING:
    from wardpose.shared.pose.intervals import Interval


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="bundled, a .safetensors, or a SimCC network's .onnx.")],
    data: Annotated[Path, typer.Argument(help="A site.yaml, a YAML file that names a source, or COCO JSON.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images of COCO JSON.")] = None,
    groups: Annotated[
        Path | None, typer.Option(help="CSV: record, picture or patient, and any columns of groups.")
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="Columns of groups; all when absent.")] = None,
    against: Annotated[str | None, typer.Option(help="A second model, compared on the same patients.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page with the worst and the median frames.")] = None,
    public: Annotated[bool, typer.Option("--public", help="The data is public: its figures may leave.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing of patients.")] = 0,
    flip_test: Annotated[bool, typer.Option("--flip-test", help="Let the mirrored crop have its say.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Score a model: PCK, PCKh, AUC and OKS-AP with intervals over patients, by joint and group, and calibration."""
    from wardpose.client.scoring import evaluate as engine
    from wardpose.client.scoring.data import is_public, source_of
    from wardpose.client.scoring.groups import groups_of
    from wardpose.client.scoring.page import write_page
    from wardpose.shared.data.source import open_source
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.pose.estimators import open_estimator

    source = source_of(data, images=images)
    first = open_estimator(model, device=device, flip_test=flip_test and not model.endswith(".onnx"))
    other = None if against is None else open_estimator(against, device=device)
    if other is not None and other.skeleton is not first.skeleton:
        raise ConfigError(
            f"--against {against}: predicts {other.skeleton.name}, {model} predicts {first.skeleton.name} (allowed: "
            "the same)"
        )
    dataset = open_source(source, skeleton=first.skeleton)
    records = [dataset.record(i) for i in range(len(dataset))]
    measured = engine.evaluate(
        first,
        dataset,
        public=public or is_public(source),
        groups=groups_of(records, groups, by or ()),
        against=other,
        seed=seed,
    )
    report = measured.report
    if html is not None:
        write_page(html, measured, dataset)
    if as_json:
        typer.echo(json.dumps({**report.to_json(), "html": None if html is None else str(html)}))
        return
    headings = ["score", "value", "95 % range", *(["less the other", "95 % range"] if other is not None else [])]
    rows = [
        [name, *_cells(score), *(_cells(report.difference[name]) if other is not None else [])]
        for name, score in report.scores.items()
    ]
    for column, parts in report.groups.items():
        rows += [[f"pck@0.2, {column} {name}", *_cells(part["scores"]["pck@0.2"])] for name, part in parts.items()]
    say_table([headings, *(row + [""] * (len(headings) - len(row)) for row in rows)])
    joints = [[name.replace("_", " "), *_cells(score)] for name, score in report.per_joint.items()]
    say_table([["joint", "pck@0.2", "95 % range"], *joints])
    screen = console()
    screen.print(line(f"{report.records} records of {report.patients} patients; calibration error "
                      f"{report.calibration_error:.3f}"), soft_wrap=True)  # fmt: skip
    for note in report.notes:
        say_step(note)
    if html is not None:
        screen.print(line(f"page: {html}"), soft_wrap=True)
    screen.print(line((report.why, "green" if report.may_leave else "bold red")), soft_wrap=True)


def _cells(score: "Interval") -> list[str]:
    if score.value != score.value:  # NaN
        return ["-", ""]
    return [f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}"]
