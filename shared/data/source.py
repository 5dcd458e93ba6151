"""A data set as YAML names it, and the one function that opens it.

kind: lsp
path: ${WARDPOSE_DATA}/lspet
split: private
records: records.json      # optional: only these record ids, a JSON list
"""

import os
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from wardpose.shared.data.dataset import listed
from wardpose.shared.data.fields import read_json
from wardpose.shared.data.lsp import LspSplit
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.reading import CheckImages, OnBadRecord
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.skeleton import Skeleton

_REPOSITORY = Path(__file__).resolve().parents[2]


class _Source(BaseModel):
    """What every kind has.

    Attributes:
        records: JSON list of record ids: only these, in that order.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    records: Path | None = None


class _Files(_Source):
    """What every kind that reads annotation files has.

    Attributes:
        patients: where patient ids come from; without it every record is its own patient.
        on_bad_record: stop at a bad record, or leave it out, count it and list it.
        check_images: read image headers when opening, or decode every frame once.

    """

    patients: PatientRule | None = None
    on_bad_record: OnBadRecord = "error"
    check_images: CheckImages = "header"


class CocoSource(_Files):
    """COCO person keypoints.

    Attributes:
        annotations: the keypoints JSON.
        images: folder of the images.

    """

    kind: Literal["coco"]
    annotations: Path
    images: Path


class MpiiSource(_Files):
    """MPII Human Pose.

    Attributes:
        annotations: the usual JSON list, or the official `.mat`.
        images: folder of the images.
        index_base: pixel number of the first column and row in the file: 1 as MPII's own, 0 for converted files.

    """

    kind: Literal["mpii"]
    annotations: Path
    images: Path
    index_base: Literal[0, 1] = 1


class LspSource(_Files):
    """Leeds Sports Pose Extended.

    Attributes:
        path: folder with `annotations/` and `images/`.
        split: which people.

    """

    kind: Literal["lsp"]
    path: Path
    split: LspSplit


class VideoSource(_Files):
    """A video or a folder of frames, with labels.

    Attributes:
        path: the video file or the frame folder.
        labels: JSON or CSV file of the labels.
        layout: joint layout of the labels; may be left out when a JSON file names its own.

    """

    kind: Literal["video"]
    path: Path
    labels: Path
    layout: str | None = None


class CvatSource(_Files):
    """CVAT's own XML with skeletons.

    Attributes:
        annotations: the XML, for images or for video 1.1.
        images: folder of the images, or the video.

    """

    kind: Literal["cvat"]
    annotations: Path
    images: Path


class LabelStudioSource(_Files):
    """Label Studio's JSON with keypoints.

    Attributes:
        annotations: the JSON export.
        images: folder of the images.

    """

    kind: Literal["label-studio"]
    annotations: Path
    images: Path


class WardSource(_Source):
    """Rendered ward scenes.

    Attributes:
        hospital: which domain.
        patients: how many patients.
        frames_per_patient: how many frames of each.
        seed: other seeds are other patients.

    """

    kind: Literal["ward"]
    hospital: str
    patients: int = Field(ge=1)
    frames_per_patient: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


DataSource = Annotated[
    CocoSource | MpiiSource | LspSource | VideoSource | CvatSource | LabelStudioSource | WardSource,
    Field(discriminator="kind"),
]
"""Any data set that YAML can name; `kind` says which."""


def names_patients(source: DataSource) -> bool:
    """Tell, without opening anything, whether a source says who is on which frame."""
    return isinstance(source, WardSource) or source.patients is not None


def open_source(source: DataSource, *, skeleton: Skeleton, index_folder: Path | None = None) -> PoseDataset:
    """Open a source with its joints expressed in `skeleton`.

    Args:
        source: what to open.
        skeleton: joint layout of the data set.
        index_folder: where the indexes of videos are kept between processes.

    Raises:
        DataError: it cannot be read, holds a bad record (unless they are skipped), or nothing is left.
        ConfigError: a name in it is unknown.

    """
    dataset = _open(source, skeleton, index_folder)
    if source.records is None:
        return dataset
    records = read_json(source.records)
    if not isinstance(records, list) or not all(isinstance(record, str) for record in records) or not records:
        raise DataError(f"{source.records}: is no list of record ids (allowed: a non-empty JSON list of texts)")
    return listed(dataset).only_records(records, listed_in=source.records)


def check_paths(config: BaseModel, key: str = "") -> None:
    """See that every file and folder a configuration names is there; none is opened, so no patient is looked at.

    Args:
        config: a data source, or what holds some.
        key: of `config` in its file.

    Raises:
        DataError: names the first key and path that is missing.

    """
    for name, value in config:
        at = f"{key}.{name}" if key else name
        for number, item in enumerate(value if isinstance(value, tuple) else (value,)):
            here = f"{at}.{number}" if isinstance(value, tuple) else at
            if isinstance(item, BaseModel):
                check_paths(item, here)
            elif isinstance(item, Path) and not item.exists():
                raise DataError(f"{here} = {item}: does not exist (allowed: an existing file or folder)")


def find_data_root() -> Path:
    """Folder of the real data: `$WARDPOSE_DATA`, or else `../shared/data` beside the repository.

    Raises:
        ConfigError: neither exists.

    """
    beside = _REPOSITORY.parent / "shared" / "data"
    stated = os.environ.get("WARDPOSE_DATA")
    if stated:
        if Path(stated).is_dir():
            return Path(stated)
        raise ConfigError(f"WARDPOSE_DATA={stated}: no such folder (allowed: the folder of the real data)")
    if beside.is_dir():
        return beside
    raise ConfigError(f"real data is not here: set WARDPOSE_DATA to its folder, or put it at {beside}")


def _open(source: DataSource, skeleton: Skeleton, index_folder: Path | None) -> PoseDataset:
    # A reader is imported when it is used: configuration files are read without FFmpeg or a renderer.
    if isinstance(source, WardSource):
        from wardpose.shared.data.ward import WardDataset

        ward: PoseDataset = WardDataset(
            source.hospital,
            patients=source.patients,
            frames_per_patient=source.frames_per_patient,
            seed=source.seed,
        )
        return _in_skeleton(ward, skeleton)
    if isinstance(source, CocoSource):
        from wardpose.shared.data.coco import read_coco

        return read_coco(source.annotations, images=source.images, skeleton=skeleton, **_options(source))
    if isinstance(source, MpiiSource):
        from wardpose.shared.data.mpii import read_mpii

        return read_mpii(
            source.annotations,
            images=source.images,
            index_base=source.index_base,
            skeleton=skeleton,
            **_options(source),
        )
    if isinstance(source, CvatSource):
        from wardpose.shared.data.cvat import read_cvat

        return read_cvat(
            source.annotations, images=source.images, skeleton=skeleton, index_folder=index_folder, **_options(source)
        )
    if isinstance(source, LabelStudioSource):
        from wardpose.shared.data.label_studio import read_label_studio

        return read_label_studio(source.annotations, images=source.images, skeleton=skeleton, **_options(source))
    if isinstance(source, LspSource):
        from wardpose.shared.data.lsp import read_lsp

        return read_lsp(source.path, split=source.split, skeleton=skeleton, **_options(source))
    from wardpose.shared.data.video import read_video

    return read_video(
        source.path,
        source.labels,
        layout=source.layout,
        skeleton=skeleton,
        index_folder=index_folder,
        **_options(source),
    )


class _Options(TypedDict):
    patients: PatientRule | None
    on_bad_record: OnBadRecord
    check_images: CheckImages


def _options(source: _Files) -> _Options:
    return {
        "patients": source.patients,
        "on_bad_record": source.on_bad_record,
        "check_images": source.check_images,
    }


def _in_skeleton(dataset: PoseDataset, skeleton: Skeleton) -> PoseDataset:
    return dataset if dataset.skeleton is skeleton else listed(dataset).in_skeleton(skeleton)
