"""Outputs are made complete beside their place, and then given their names, one after the other."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from wardpose.client.joints.drawn import Canvas
from wardpose.client.joints.formats.coco import coco_results
from wardpose.client.joints.formats.layouts import BODY_25, COCO
from wardpose.client.joints.formats.openpose import openpose_frame
from wardpose.client.joints.formats.table import long_table
from wardpose.client.joints.formats.trc import trc
from wardpose.client.joints.outputs import Output
from wardpose.client.joints.people import Found
from wardpose.client.joints.reels import Reel
from wardpose.shared import files
from wardpose.shared.skeleton import Skeleton

READY = "ready"
"""Name of the file in a work folder that says that outputs are being given their names."""


def write_outputs(
    outputs: Sequence[Output],
    reels: Sequence[Reel],
    found: Sequence[Sequence[Found]],
    canvases: Sequence[Sequence[Canvas]],
    *,
    skeleton: Skeleton,
    metres_per_pixel: float | None,
    work: Path,
) -> list[Path]:
    """Write all outputs and return their paths.

    Args:
        outputs: what to write.
        reels: that were looked at.
        found: what was found in the frames of each reel.
        canvases: of each reel, one for each drawn output.
        skeleton: of the joints.
        metres_per_pixel: for TRC.
        work: folder on the disk of the first output.

    Raises:
        OSError: something cannot be written.

    """
    made = []
    drawn = 0
    for number, output in enumerate(outputs):
        at = work / f"output-{number}{output.path.suffix}"
        _remove(at)
        if output.format in ("coco", "csv"):
            write = coco_results if output.format == "coco" else long_table
            files.write_text(at, write([frame for frames in found for frame in frames], skeleton))
        for reel, frames, ours in zip(reels, found, canvases, strict=True):
            if output.drawn:
                ours[drawn].finish(output.target(reel, ".mp4", reels, at) if output.format == "video" else at)
            elif output.format == "trc":
                target = output.target(reel, ".trc", reels, at)
                name = output.path.name if target == at else target.name
                text = trc(frames, skeleton, name=name, rate=reel.rate or 1.0, metres_per_pixel=metres_per_pixel)
                files.write_text(target, text)
            elif output.format in ("openpose", "openpose-coco"):
                folder = at if len(reels) == 1 else at / f"{reel.name}_json"
                _openpose(folder, reel, frames, skeleton, BODY_25 if output.format == "openpose" else COCO)
        drawn += output.drawn
        made.append((at, output.path))
    files.write_bytes(work / READY, b"")
    for at, path in made:
        _name(at, path)
    return [path for _, path in made]


def _openpose(folder: Path, reel: Reel, frames: Sequence[Found], skeleton: Skeleton, order: list[str]) -> None:
    stem = Path(reel.name).name
    for place, frame in enumerate(frames):
        number = frame.number if reel.video is not None and frame.number is not None else place
        text = openpose_frame(frame, skeleton, order)
        (folder / f"{stem}_{number:012d}_keypoints.json").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}_{number:012d}_keypoints.json").write_text(text)


def _name(at: Path, path: Path) -> None:
    """Move what is complete to its place; in a folder that is there, file by file."""
    if at.is_file():
        _move(at, path)
        return
    if not at.exists():
        return  # named by the run before
    for source in sorted(at.rglob("*")):
        if source.is_file():
            target = path / source.relative_to(at)
            _move(source, target)


def _move(source: Path, target: Path) -> None:
    files.hand_over(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
