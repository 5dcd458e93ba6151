"""`wardpose data`: a look at a data set before it trains anything."""

from pathlib import Path
from typing import Annotated, Any

import typer

from wardpose.client.commands.findings import say_findings
from wardpose.shared.terminal import Json, progress

_SOURCE = "Options of a source"


def register(app: typer.Typer) -> None:
    """Add the group to the root."""
    group = typer.Typer(help="Look at a data set before it trains anything.", no_args_is_help=True)
    group.callback()(lambda: None)  # a group of one command stays a group
    group.command("check")(check)
    app.add_typer(group, name="data")


def check(
    what: Annotated[
        Path | None,
        typer.Argument(
            help="A site.yaml (its cohort's data), or a data set that says by itself what it is: a file of labels, a "
            "video with labels, their folder. Else name a source.",
            metavar="[SITE.yaml or DATA]",
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="coco, cvat, label-studio, mpii, lsp or video.", rich_help_panel=_SOURCE)
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="coco, cvat, label-studio, mpii: the file.", rich_help_panel=_SOURCE)
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="coco, cvat, label-studio, mpii: folder.", rich_help_panel=_SOURCE)
    ] = None,
    path: Annotated[Path | None, typer.Option(help="lsp, video: folder or file.", rich_help_panel=_SOURCE)] = None,
    labels: Annotated[Path | None, typer.Option(help="video: JSON or CSV.", rich_help_panel=_SOURCE)] = None,
    layout: Annotated[str | None, typer.Option(help="video: joints of the labels.", rich_help_panel=_SOURCE)] = None,
    split: Annotated[str | None, typer.Option(help="lsp: which people.", rich_help_panel=_SOURCE)] = None,
    index_base: Annotated[int | None, typer.Option(help="mpii: 0 or 1.", rich_help_panel=_SOURCE)] = None,
    patients: Annotated[Path | None, typer.Option(help="File of patients.", rich_help_panel=_SOURCE)] = None,
    pattern: Annotated[str | None, typer.Option(help="Patient in file names.", rich_help_panel=_SOURCE)] = None,
    ids: Annotated[str | None, typer.Option(help="Patients' ids: exact or fold.", rich_help_panel=_SOURCE)] = None,
    skeleton: Annotated[str, typer.Option(help="Joints that will be trained.")] = "lsp14",
    sheet: Annotated[
        Path | None, typer.Option(help="Picture to write: doubtful records first, joints drawn. It shows patients.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Ask it which side is left: bundled, .safetensors, .onnx.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the sheet.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is wrong with a data set; exits 1 when something is. Nothing is written but the sheet."""
    from wardpose.client.data_check import check_data
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.pose.estimators import open_estimator
    from wardpose.shared.site_config import load_site
    from wardpose.shared.skeleton import get_skeleton

    rule = _given(file=patients, pattern=pattern, ids=ids)
    options = _given(
        kind=kind, annotations=annotations, images=images, path=path, labels=labels, layout=layout, split=split,
        index_base=index_base, patients=rule or None,
    )  # fmt: skip
    settings = what is not None and what.suffix.lower() in (".yaml", ".yml")
    allowed = set() if settings else {"patients"}
    if (what is None) != ("kind" in options) or (what is not None and set(options) - allowed):
        raise ConfigError(
            "data check takes a site.yaml, a data set (and its patients), or --kind and the options of that kind "
            "(allowed: one of them)"
        )
    if settings and what is not None:
        source = load_site(what).cohort.data
    else:
        source = _source(options) if what is None else _recognised(what, rule)
    layout_wanted = get_skeleton(skeleton)
    if sheet is not None and (sheet.suffix.lower() not in (".png", ".jpg", ".jpeg") or (sheet.exists() and not force)):
        raise ConfigError(f"{sheet}: exists already, or is no picture's name (allowed: .png, .jpg; --force overwrites)")
    estimator = None if model is None else open_estimator(model)
    if estimator is not None and estimator.skeleton is not layout_wanted:
        raise ConfigError(f"--model {model}: predicts {estimator.skeleton.name} (allowed: --skeleton's {skeleton})")
    with progress("reading") as update:
        report = check_data(
            source, skeleton=layout_wanted, estimator=estimator, sheet=sheet, progress=None if as_json else update
        )
    counts = {"name": report.name, "records": report.records, "pictures": report.pictures, "patients": report.patients}
    say_findings(report.findings, ok=report.ok, verdict=report.verdict, counts=counts, as_json=as_json)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _recognised(data: Path, rule: dict[str, Any]) -> Any:
    """Return what a data set says by itself, with the owners that are named, or that lie beside it."""
    from wardpose.client.found_data import find_data, find_owners
    from wardpose.shared.data.patients import PatientRule

    found = find_data(data)
    owners = PatientRule(**rule) if rule else find_owners(found, data.expanduser().absolute())
    return found.source.model_copy(update={"patients": owners})


def _source(options: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError

    from wardpose.shared.data.source import DataSource
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.yaml_config import describe

    try:
        return TypeAdapter(DataSource).validate_python(options)
    except ValidationError as error:
        raise ConfigError(f"data check: {describe(error)}") from error
