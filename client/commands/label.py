"""`wardpose label`: from frames without labels to labels."""

from pathlib import Path
from typing import Annotated

import typer

from wardpose.client.commands.anonymize import Force, checked_on_bad
from wardpose.client.commands.outcome import say_left_out
from wardpose.shared.terminal import Json, progress, say_step


def register(app: typer.Typer) -> None:
    """Add the group to the root."""
    group = typer.Typer(help="From frames without labels to labels.", no_args_is_help=True)
    group.callback()(lambda: None)  # a group of one command stays a group
    group.command("draft")(draft)
    app.add_typer(group, name="label")


def draft(
    frames: Annotated[list[Path], typer.Argument(metavar="FRAMES...", help="Folders of pictures, pictures, videos.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    model: Annotated[
        str, typer.Option(help="Teacher: bundled, a .safetensors, or a SimCC network's .onnx.")
    ] = "bundled",
    format_: Annotated[str, typer.Option("--format", help="coco or cvat (for CVAT), label-studio.")] = "coco",
    hard: Annotated[
        int | None, typer.Option(help="Only so many frames, those worth labelling first, one a patient.")
    ] = None,
    patients: Annotated[Path | None, typer.Option(help="File of patients.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Patient in file names.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="COCO JSON, or CSV: file, frame, x, y, width, height.")] = None,
    detector: Annotated[Path | None, typer.Option(help="A person detector as ONNX.")] = None,
    detector_style: Annotated[str, typer.Option(help="rtmdet or yolox, where its name does not say it.")] = "",
    frames_to: Annotated[Path | None, typer.Option(help="Folder for the frames of videos.")] = None,
    every: Annotated[int, typer.Option(help="Take one of so many frames of a video.")] = 1,
    hidden_below: Annotated[float, typer.Option(help="Joints less sure are drafted as hidden.")] = 0.3,
    prefix: Annotated[
        str, typer.Option(help="Before a picture's name in Label Studio's address.")
    ] = "/data/local-files/?d=",
    channels: Annotated[str | None, typer.Option(help="rgb or bgr: of an ONNX file that does not say it.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    force: Force = False,
    on_bad: Annotated[str, typer.Option(help="What cannot be read: error, or skip.")] = "error",
    as_json: Json = False,
) -> None:
    """Write drafts of labels that CVAT and Label Studio import, for people to correct; can be interrupted.

    What is chosen by --hard follows from patients' frames, so it stays at the site, as they do.
    """
    from dataclasses import replace

    from wardpose.client.commands.predict import checked_channels
    from wardpose.client.joints.detector import Detector
    from wardpose.client.labels.draft import DraftRequest
    from wardpose.client.labels.draft import draft as run
    from wardpose.shared.data.patients import PatientRule
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.pose.estimators import open_estimator

    if patients is not None and pattern is not None:
        raise ConfigError("--patients and --pattern both say whose frames they are (allowed: one of them)")
    named = patients is not None or pattern is not None
    request = DraftRequest(
        sources=tuple(frames),
        out=out,
        format=format_,
        estimator=open_estimator(model, device=device, colours=checked_channels(channels)),
        frames_to=frames_to,
        every=every,
        hard=hard,
        patients=PatientRule(file=patients, pattern=pattern) if named else None,
        boxes=boxes,
        detector=None if detector is None else Detector(detector, style=detector_style),
        least=hidden_below,
        prefix=prefix,
        on_bad=checked_on_bad(on_bad),
        force=force,
    )
    with progress("drafting labels") as update:
        outcome = run(replace(request, progress=update))
    for line in outcome.skipped:
        say_step(f"skipped: {line}")
    if outcome.lost:
        say_step(f"COCO has no place for {', '.join(outcome.lost)}: left out (cvat and label-studio keep them)")
    if outcome.chosen:
        say_step("which frames were chosen follows from patients' frames: the list stays at the site")
    content = {
        "out": str(out),
        "format": format_,
        "frames": outcome.frames,
        "people": outcome.people,
        "looked_at": outcome.looked_at,
        "resumed": outcome.resumed,
        "chosen": [name for name, _ in outcome.chosen],
        "lost": outcome.lost,
        "skipped": outcome.skipped,
    }
    say_left_out(content, outcome.left_out, as_json=as_json)
