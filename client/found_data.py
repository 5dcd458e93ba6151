"""What is this that a hospital has? COCO, MPII, LSP, CVAT, Label Studio, a video or a folder of frames with labels.

Files are told by what is in them, not by their names. Where several could be meant, all are named and none is taken; a
folder of pictures without joints is told what comes before training. Nothing is written.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from wardpose.shared.data.fields import read_json
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.pictures import PICTURE_ENDINGS
from wardpose.shared.data.source import (
    CocoSource,
    CvatSource,
    DataSource,
    LabelStudioSource,
    LspSource,
    MpiiSource,
    VideoSource,
)
from wardpose.shared.data.video_stream import VIDEO_ENDINGS
from wardpose.shared.errors import ConfigError, DataError, one_line

OWNER_FILES = ("patients.csv", "patients.json", "owners.csv", "owners.json")
"""Names of side files that say whose record is whose, where they lie beside the labels or at the top."""

_LABELS = frozenset({".json", ".xml", ".mat", ".csv", ".tsv"})
_DEPTH = 3
_MOST_FILES = 200_000  # that are looked at to tell what a folder is
_SHOWN = 5
_HEAD = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Found:
    """A data set that was recognised.

    Attributes:
        what: its kind, for people.
        labels: the file that made it known.
        source: as site.yaml names it; without patients.

    """

    what: str
    labels: Path
    source: DataSource


def find_data(path: Path) -> Found:
    """Tell what lies at a path.

    Args:
        path: a file of labels, a video, or a folder in which one of them is.

    Raises:
        ConfigError: nothing is there, nothing is recognised, or several things are.

    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise ConfigError(f"--data {path}: does not exist (allowed: a file of labels, a video, or their folder)")
    try:
        found = _lsp(path) if path.is_dir() else None
        candidates = list(_candidates(path)) if found is None else [found]
    except OSError as error:
        raise ConfigError(f"--data {path}: {error.filename or path} cannot be read ({error.strerror})") from error
    if not candidates:
        raise ConfigError(_nothing(path))
    if len(candidates) > 1:
        shown = ", ".join(f"{each.labels} ({each.what})" for each in candidates[:_SHOWN])
        raise ConfigError(f"--data {path}: holds {len(candidates)} data sets: {shown} (allowed: name one of them)")
    return candidates[0]


def find_owners(found: Found, top: Path) -> PatientRule | None:
    """Return the rule of a side file that says whose records they are, if one lies beside.

    Ids that differ only in how they are written (P017, "p 017") count as one patient: who is taken for one is protected
    as one. `ids: exact` in site.yaml says otherwise.

    Args:
        found: the data set.
        top: the path that was given.

    Raises:
        ConfigError: several side files lie there.

    """
    folders = dict.fromkeys((found.labels.parent, found.labels.parent.parent, top if top.is_dir() else top.parent))
    files = sorted(
        {(folder / name).absolute() for folder in folders for name in OWNER_FILES if (folder / name).is_file()}
    )
    if len(files) > 1:
        raise ConfigError(f"{', '.join(map(str, files))}: which says whose the records are? (allowed: --patients FILE)")
    return PatientRule(file=files[0], ids="fold") if files else None


def _candidates(path: Path) -> Iterator[Found]:
    if not path.is_dir():
        file = _labels_of(path) if path.suffix.lower() in VIDEO_ENDINGS else path
        if file is None:
            raise ConfigError(
                f"--data {path}: is a video without labels (allowed: labels of its frames beside it, "
                f"{path.stem}.json or {path.stem}.csv; wardpose label draft makes drafts)"
            )
        found = _recognised(file)
        if found is not None:
            yield found
        return
    for file in _files(path):
        if file.suffix.lower() in _LABELS and file.name not in OWNER_FILES:
            found = _recognised(file)
            if found is not None:
                yield found


def _files(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield files of a folder and of those in it, a few levels deep, those of one folder by name."""
    left = _MOST_FILES
    for path in sorted(folder.iterdir()):
        left -= 1
        if left < 0:
            raise ConfigError(f"--data {folder}: holds too many files to guess (allowed: name the file of labels)")
        if path.is_dir() and depth > 1 and not path.name.startswith("."):
            yield from _files(path, depth - 1)
        elif path.is_file():
            yield path


def _recognised(file: Path) -> Found | None:
    """Tell what a file of labels is; `None` for anything else."""
    ending = file.suffix.lower()
    if ending == ".json":
        return _json(file)
    if ending == ".xml":
        return _cvat(file)
    if ending == ".mat":
        images = _pictures_of(file, [])
        return (
            None
            if images is None
            else Found(what="MPII", labels=file, source=MpiiSource(kind="mpii", annotations=file, images=images))
        )
    if ending in (".csv", ".tsv"):
        return _csv(file)
    return None


def _json(file: Path) -> Found | None:
    try:
        content = read_json(file)
    except DataError:
        return None
    if isinstance(content, dict):
        if isinstance(content.get("records"), list):
            return _video(file)
        images, people = content.get("images"), content.get("annotations")
        if not isinstance(images, list) or not isinstance(people, list) or not _any(people, "keypoints"):
            return None
        folder = _images(file, [image.get("file_name") for image in images if isinstance(image, dict)])
        return Found(what="COCO", labels=file, source=CocoSource(kind="coco", annotations=file, images=folder))
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return None
    if "joints" in content[0] and "image" in content[0]:
        folder = _images(file, [entry.get("image") for entry in content if isinstance(entry, dict)])
        return Found(what="MPII", labels=file, source=MpiiSource(kind="mpii", annotations=file, images=folder))
    if isinstance(content[0].get("data"), dict) and ("annotations" in content[0] or "completions" in content[0]):
        stated = [value for entry in content for value in _data(entry).values() if isinstance(value, str)]
        folder = _images(file, [name.partition("?d=")[2] or name for name in stated])
        source = LabelStudioSource(kind="label-studio", annotations=file, images=folder)
        return Found(what="Label Studio", labels=file, source=source)
    return None


def _data(entry: Any) -> dict[str, Any]:
    data = entry.get("data") if isinstance(entry, dict) else None
    return data if isinstance(data, dict) else {}


def _any(entries: list[Any], key: str) -> bool:
    return any(isinstance(entry, dict) and key in entry for entry in entries)


def _cvat(file: Path) -> Found | None:
    try:
        head = file.read_bytes()
        if b"<!ENTITY" in head or b"<!DOCTYPE" in head:
            return None
        root = ElementTree.fromstring(head)  # noqa: S314 (no entities, see above)
    except (OSError, ElementTree.ParseError, ValueError):
        return None
    if root.tag != "annotations" or next(root.iter("skeleton"), None) is None:
        return None
    names = [image.get("name", "") for image in root.iter("image")]
    if names:
        images = _images(file, names)
    else:
        video = _video_of(file)
        if video is None:
            raise ConfigError(f"{file}: CVAT's tracks of a video that does not lie beside it (allowed: put it there)")
        images = video
    return Found(what="CVAT", labels=file, source=CvatSource(kind="cvat", annotations=file, images=images))


def _csv(file: Path) -> Found | None:
    """Tell a table of joints, whose columns are `frame` and `<joint>_x`; an owner file has other ones."""
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD).decode("utf-8-sig", "replace").splitlines()
    except OSError:
        return None
    columns = {
        column.strip(' "').lower()
        for column in (head[0] if head else "").replace(";", ",").replace("\t", ",").split(",")
    }
    if "frame" not in columns or not any(column.endswith("_x") for column in columns - {"box_x"}):
        return None
    return _video(file)


def _video(labels: Path) -> Found:
    """Find the frames that labels by frame belong to: a video of their name, the only one there, or a folder."""
    video = _video_of(labels)
    if video is not None:
        return Found(
            what="video with labels", labels=labels, source=VideoSource(kind="video", path=video, labels=labels)
        )
    folders = [labels.parent / name for name in ("frames", "images", labels.stem)]
    folder = next((each for each in folders if _holds_pictures(each)), None)
    if folder is None and _holds_pictures(labels.parent):
        folder = labels.parent
    if folder is None:
        raise ConfigError(
            f"{labels}: labels of frames, but neither their video ({labels.stem}.mp4, .mkv ...) nor a folder "
            "frames/ or images/ lies beside them (allowed: put it there)"
        )
    source = VideoSource(kind="video", path=folder, labels=labels)
    return Found(what="folder of frames with labels", labels=labels, source=source)


def _video_of(labels: Path) -> Path | None:
    videos = sorted(path for path in labels.parent.iterdir() if path.suffix.lower() in VIDEO_ENDINGS)
    same = [video for video in videos if video.stem == labels.stem]
    if same:
        return same[0]
    others = [
        path for path in labels.parent.iterdir() if path.suffix.lower() in _LABELS and path.name not in OWNER_FILES
    ]
    return videos[0] if len(videos) == 1 and len(others) == 1 else None


def _labels_of(video: Path) -> Path | None:
    beside = [video.with_suffix(ending) for ending in (".json", ".csv", ".tsv", ".xml")]
    beside += [
        video.with_name(f"{name}{ending}") for name in ("labels", "annotations") for ending in (".json", ".csv", ".xml")
    ]
    return next((path for path in beside if path.is_file()), None)


def _lsp(path: Path) -> Found | None:
    """Tell the folder of Leeds Sports Pose Extended, whose three files lie in `annotations/`."""
    files = [path / "annotations" / f"{part}_coco17.json" for part in ("train", "extra")]
    if not all(file.is_file() for file in files) or not (path / "images").is_dir():
        return None
    return Found(what="LSP", labels=files[0], source=LspSource(kind="lsp", path=path, split="private"))


def _images(file: Path, names: list[Any]) -> Path:
    """Return the folder in which pictures are that labels name.

    Raises:
        ConfigError: there is none.

    """
    folder = _pictures_of(file, [name for name in names if isinstance(name, str)])
    if folder is None:
        named = next((name for name in names if isinstance(name, str)), "")
        raise ConfigError(
            f"{file}: the pictures it names ({one_line(named, 80)!r} ...) are in none of images/, frames/, data/ or "
            "its own folder, nor beside its folder (allowed: put them into images/ beside it)"
        )
    return folder


def _pictures_of(file: Path, names: list[str]) -> Path | None:
    """Return the folder that holds the first pictures that are named, as whole names or as the last parts of them."""
    near = [file.parent, file.parent.parent]
    folders = [folder / name for folder in near for name in ("images", "frames", "data", "")]
    folders += [child for folder in near for child in sorted(folder.iterdir()) if child.is_dir()]
    wanted = [name.replace("\\", "/") for name in names[:_SHOWN]]
    for folder in dict.fromkeys(folders):
        if any(
            (folder / name.lstrip("/")).is_file() or (folder / name.rpartition("/")[2]).is_file() for name in wanted
        ):
            return folder
    return next((each for each in folders if each.name in ("images", "frames") and _holds_pictures(each)), None)


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in PICTURE_ENDINGS for path in folder.iterdir())


def _nothing(path: Path) -> str:
    text = f"--data {path}: is nothing that Wardpose reads"
    if path.is_dir() and any(file.suffix.lower() in PICTURE_ENDINGS | VIDEO_ENDINGS for file in _files(path)):
        text = f"--data {path}: holds pictures or videos, but no joints of the people in them"
        return f"{text} (wardpose label draft makes drafts, which people then correct)"
    return f"{text} (allowed: COCO, MPII, LSP, CVAT, Label Studio, or a video or frames with labels; docs/tutorials)"


def as_yaml(source: DataSource) -> dict[str, Any]:
    """Return a source as site.yaml writes it: what is said, and nothing that is a default."""
    return json.loads(source.model_dump_json(exclude_defaults=True)) | {"kind": source.kind}  # type: ignore[no-any-return]  # a model's JSON
