"""`wardpose export`: a pose model as a file that other programs run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardpose.shared.terminal import Json, say, say_step

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_GOOD_ENOUGH = 1.0  # pixels of the crop, at the 95th percentile
_MOST_FRAMES = 24


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("export")(export)


def export(
    model: Annotated[str, typer.Argument(help="bundled, or a .safetensors.")],
    out: Annotated[Path, typer.Option(help="The .onnx file to write.")],
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    with_decoding: Annotated[
        bool, typer.Option("--with-decoding", help="Give joints and scores instead of SimCC's distributions.")
    ] = False,
    channels: Annotated[
        str, typer.Option(help="Of the input: bgr, as rtmlib, Pose2Sim and Sports2D feed it, or rgb.")
    ] = "bgr",
    frames: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures on which it is compared with torch; lab_frames, or rendered ones, else."),
    ] = None,
    at_most: Annotated[
        float | None, typer.Option(help="Largest difference in pixels; 0.1 for fp32, none else, unless said.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the metadata.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as ONNX for public SimCC runners; compared with torch on real frames before it is written."""
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.pose.estimators import model_path
    from wardpose.shared.pose.onnx_export import export_onnx
    from wardpose.shared.pose.weights import load_model, read_metadata

    if out.suffix.lower() != ".onnx":
        raise ConfigError(f"{out}: --out is no ONNX file's name (allowed: the ending .onnx)")
    if out.exists() and not force:
        raise ConfigError(f"{out}: exists already (--force overwrites)")
    if model.lower().endswith(".onnx"):
        raise ConfigError(f"{model}: is ONNX already (allowed: bundled, or a .safetensors)")
    path = model_path(model)
    network, known = load_model(path), read_metadata(path)
    bundled = model == "bundled"
    statement = known.get("epsilon", "Trained on public data alone: no patient, and no epsilon." if bundled else "")
    crops, where = _crops(frames, network.config.input_size)
    say_step(f"comparing with torch on {len(crops)} crops of {where}")
    made = export_onnx(
        network,
        out,
        crops=crops,
        colours=_among("--channels", channels, ("bgr", "rgb")),
        decoding=with_decoding,
        precision=_among("--precision", precision, ("fp32", "fp16", "int8")),
        statement=statement or "Not known: the weights file does not say what it was trained on.",
        licence=licence or known.get("licence", "Apache-2.0" if bundled else "not stated"),
        most_pixels=at_most,
    )
    if made.usual > _GOOD_ENOUGH:
        say_step(
            f"{precision} is not good enough for this model on these crops: one joint in twenty is moved by more than "
            f"{made.usual:.1f} pixels of the crop, one by {made.largest:.1f} (allowed: fp16 or fp32)"
        )
    content = {
        "path": str(made.path),
        "bytes": made.bytes,
        "precision": precision,
        "crops": made.crops,
        "largest_difference_px": round(made.largest, 5),
        "usual_difference_px": round(made.usual, 5),
        "largest_difference_score": round(made.largest_score, 5),
    }
    say(content, as_json=as_json)


def _crops(folder: Path | None, size: tuple[int, int]) -> "tuple[NDArray[np.uint8], str]":
    """Cut real frames, whole: of a folder, of the laboratory's, or rendered ones where there are none."""
    import numpy as np

    from wardpose.shared.data.crops import box_to_affine, warp
    from wardpose.shared.data.pictures import PICTURE_ENDINGS, read_picture
    from wardpose.shared.data.source import find_data_root
    from wardpose.shared.data.ward import WardDataset
    from wardpose.shared.errors import ConfigError, DataError

    if folder is None:
        try:
            folder = find_data_root() / "lab_frames"
        except ConfigError:
            folder = None
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS)
        if not paths:
            raise DataError(f"{folder}: holds no picture (allowed: a folder of pictures)")
        chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, _MOST_FRAMES).astype(int))]
        pictures, where = [read_picture(path) for path in chosen], str(folder)
    else:
        ward = WardDataset("public", patients=_MOST_FRAMES, frames_per_patient=1, seed=0)
        pictures, where = [ward.frame(i) for i in range(len(ward))], "rendered ward scenes"
    boxes = [np.array([0, 0, frame.shape[1], frame.shape[0]], np.float32) for frame in pictures]
    affines = [box_to_affine(box, size) for box in boxes]
    return np.stack([warp(frame, affine, size) for frame, affine in zip(pictures, affines, strict=True)]), where


def _among(option: str, name: str, known: tuple[str, ...]) -> Any:
    from wardpose.shared.errors import ConfigError

    if name not in known:
        raise ConfigError(f'{option} "{name}" is not allowed ({", ".join(known)})')
    return name
