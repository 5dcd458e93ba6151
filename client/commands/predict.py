"""`wardpose predict`: from a hospital's pictures and videos to joints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardpose.client.commands.anonymize import Force, checked_on_bad
from wardpose.client.commands.outcome import say_left_out
from wardpose.shared.terminal import Json, progress, say_step

if TYPE_CHECKING:
    from wardpose.shared.anonymize.frame_methods import FrameMethod
    from wardpose.shared.pose.estimators import Colours

_WHERE = "Where people are"
_DRAWN = "What is drawn"


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("predict")(predict)


def predict(
    sources: Annotated[list[Path], typer.Argument(metavar="SRC...", help="Pictures, videos, folders of them.")],
    out: Annotated[
        list[Path],
        typer.Option(
            "--out",
            help="File or folder to write; may be given several times. Its ending is its format: .json COCO results, "
            ".csv one row a joint, .trc OpenSim, .mp4 .mkv .webm .mov .avi a drawn video, .png .jpg a drawn picture, a "
            "folder OpenPose's JSON.",
        ),
    ],
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="coco, csv, openpose (BODY_25), openpose-coco, trc, video, pictures; one for each --out, where "
            "endings do not say it.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="bundled, a .safetensors, or a SimCC network's .onnx.")] = "bundled",
    boxes: Annotated[
        Path | None, typer.Option(help="COCO JSON, or CSV: file, frame, x, y, width, height.", rich_help_panel=_WHERE)
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="A person detector as ONNX; none is shipped.", rich_help_panel=_WHERE)
    ] = None,
    detector_style: Annotated[
        str, typer.Option(help="rtmdet or yolox, where its name does not say it.", rich_help_panel=_WHERE)
    ] = "",
    detector_threshold: Annotated[float, typer.Option(help="Least score of a person.", rich_help_panel=_WHERE)] = 0.5,
    min_confidence: Annotated[
        float, typer.Option(help="Mean score below which the one patient is not there.", rich_help_panel=_WHERE)
    ] = 0.05,
    over: Annotated[str, typer.Option(help="Draw on frame, or on its public-view.", rich_help_panel=_DRAWN)] = "frame",
    smooth: Annotated[float | None, typer.Option(help="Low pass over time: cutoff in Hz, as 6.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Frames a second of folders of pictures: they are films, then.")
    ] = None,
    metres_per_pixel: Annotated[float | None, typer.Option(help="For TRC in metres.")] = None,
    channels: Annotated[str | None, typer.Option(help="rgb or bgr: of an ONNX file that does not say it.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Crops at a time.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda; of a .safetensors.")] = "cpu",
    flip_test: Annotated[bool, typer.Option("--flip-test", help="Let the mirrored crop have its say.")] = False,
    force: Force = False,
    on_bad: Annotated[
        str, typer.Option(help="What cannot be read: error stops there, skip goes on without it and says so.")
    ] = "error",
    as_json: Json = False,
) -> None:
    """Find the joints of the people in pictures and videos; can be interrupted and run again.

    Without --boxes and --detector the one patient in view is searched for in the whole frame and then followed.
    """
    from dataclasses import replace

    from wardpose.client.joints.detector import Detector
    from wardpose.client.joints.predict import Request
    from wardpose.client.joints.predict import predict as run
    from wardpose.shared.allocator import tune_allocator
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.pose.estimators import open_estimator

    tune_allocator()
    if metres_per_pixel is not None and not 0 < metres_per_pixel < 1e6:
        raise ConfigError(f"--metres-per-pixel {metres_per_pixel} is not allowed (above 0)")
    if detector is None and detector_style:
        raise ConfigError("--detector-style needs --detector")
    request = Request(
        sources=tuple(sources),
        outputs=tuple(out),
        formats=tuple(format_ or ()),
        estimator=open_estimator(model, device=device, flip_test=flip_test, colours=checked_channels(channels)),
        boxes=boxes,
        detector=None if detector is None else Detector(detector, style=detector_style, threshold=detector_threshold),
        over=_over(over),
        smooth=smooth,
        rate=rate,
        metres_per_pixel=metres_per_pixel,
        batch_size=batch,
        least=min_confidence,
        on_bad=checked_on_bad(on_bad),
        force=force,
    )
    with progress("looking for joints") as update:
        outcome = run(replace(request, progress=update))
    for line in outcome.skipped:
        say_step(f"skipped: {line}")
    content = {
        "frames": outcome.frames,
        "people": outcome.people,
        "seconds": round(outcome.seconds, 3),
        "outputs": [str(path) for path in outcome.outputs],
        "resumed": outcome.resumed,
        "skipped": outcome.skipped,
    }
    say_left_out(content, outcome.left_out, as_json=as_json)


def checked_channels(value: str | None) -> "Colours | None":
    """Return the option's value.

    Raises:
        ConfigError: it is neither rgb nor bgr.

    """
    from wardpose.shared.errors import ConfigError

    if value is None:
        return None
    if value == "rgb":
        return "rgb"
    if value == "bgr":
        return "bgr"
    raise ConfigError(f'--channels "{value}" is not allowed (rgb, bgr)')


def _over(value: str) -> "FrameMethod | None":
    from wardpose.client.anonymize.request import choose_method
    from wardpose.shared.errors import ConfigError

    if value not in ("frame", "public-view"):
        raise ConfigError(f'--over "{value}" is not allowed (frame, public-view)')
    return None if value == "frame" else choose_method("public-view")
