"""Leeds Sports Pose Extended, and the roles its people play in every experiment.

The public world stands; hospitals see people lying, bent and upside down:

| split | people | what |
|---|---|---|
| `public` | 783 | those of `train` whose torso is within 45 degrees of upright |
| `private` | 4,691 | all of `extra` and the rest of `train` |
| `val` | 200 | public validation |
| `test` | 400 | the score; every torso is known |

Groups come from `torso_angle_deg`: `upright` (at most 45 degrees), `inverted` (at least 135), `leaning` (between), and
`unknown` where a torso joint is missing and the angle is null. People of `train` with a null angle are private.
Nobody's identity is known, so every record is its own patient unless a rule says otherwise.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from wardpose.shared.data.dataset import ImageFile, ListDataset
from wardpose.shared.data.fields import field, identifier, numbers, read_json, size, visibility
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14, Skeleton

LspSplit = Literal["public", "private", "val", "test"]

UPRIGHT_DEGREES = 45.0
INVERTED_DEGREES = 135.0

_FILES = {"public": ("train",), "private": ("train", "extra"), "val": ("val",), "test": ("test",)}


def read_lsp(
    path: Path,
    *,
    split: LspSplit,
    skeleton: Skeleton | None = None,
    patients: PatientRule | None = None,
    on_bad_record: OnBadRecord = "error",
    check_images: CheckImages = "header",
) -> ListDataset:
    """Read a named split of the folder `path` (`annotations/`, `images/`).

    Record ids are the images' names without ending, for example `lspet_00042`. A head size of 0 (neck and
    head top marked at one point) is unknown. Labelled joints are visible (2): the
    crowd did not mark hidden ones.

    Raises:
        DataError: a file is missing or malformed, or a record is bad and `on_bad_record` is `error`.

    """
    if split not in _FILES:
        raise DataError(f'{path}: split "{split}" is unknown (allowed: {", ".join(_FILES)})')
    reading = Reading(
        name=f"{path.name}/{split}",
        file=path / "annotations",
        source=LSP14,
        target=skeleton,
        patients=patients,
        on_bad_record=on_bad_record,
        check_images=check_images,
    )
    for part in _FILES[split]:
        reading.file = path / "annotations" / f"{part}_coco17.json"
        _read_part(reading, path, part, split)
    return reading.finish()


def torso_group(angle: float | None) -> str:
    """Name the group of a torso's direction in degrees (0 upright, +-180 upside down)."""
    if angle is None:
        return "unknown"
    if abs(angle) <= UPRIGHT_DEGREES:
        return "upright"
    return "inverted" if abs(angle) >= INVERTED_DEGREES else "leaning"


def _read_part(reading: Reading, path: Path, part: str, split: LspSplit) -> None:
    content = read_json(reading.file)
    try:
        images = {identifier(image, "id"): image for image in field(content, "images", list)}
        annotations = field(content, "annotations", list)
    except DataError as error:
        raise DataError(f"{reading.file}: {error}") from error
    for position, annotation in enumerate(annotations):
        label = annotation.get("id", f"#{position}") if isinstance(annotation, dict) else f"#{position}"
        with reading.record(str(label)):
            group = torso_group(_optional(annotation, "torso_angle_deg"))
            if part == "train" and (group == "upright") != (split == "public"):
                continue
            number = identifier(annotation, "image_id")
            if number not in images:
                raise DataError(f"image_id {number} is not among the images (allowed: {len(images)} ids)")
            image = images[number]
            points = numbers(field(annotation, "lsp14", list), "lsp14", 42).reshape(14, 3)
            name = field(image, "file_name", str).replace("\\", "/").rsplit("/", 1)[-1]
            reading.add(
                Path(name).stem,
                joints=points[:, :2].astype(np.float32),
                visibility=visibility(points[:, 2], "lsp14"),
                box=numbers(field(annotation, "bbox", list), "bbox", 4).astype(np.float32),
                frame=ImageFile(root=path, name=f"images/{part}/{name}"),
                frame_name=name,
                stated_size=size(image),
                head_size=_optional(annotation, "head_size") or None,  # 0: neck and head top coincide
                area=float(field(annotation, "area", (int, float))),
                group=group,
            )


def _optional(annotation: Any, key: str) -> float | None:
    value = field(annotation, key, (int, float, type(None)))
    return None if value is None else float(value)
