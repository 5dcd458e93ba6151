"""What every data set is to the rest of the project: frames with one annotated person each, owned by patients.

Units: pixels of the upright frame (see `pictures`), origin at its top-left corner, x to the right, y down.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.skeleton import Skeleton

Frame = NDArray[np.uint8]
"""An RGB image, (height, width, 3)."""


BoxSource = Literal["given", "joints", "frame"]
"""Where a person's box comes from: drawn around the person, computed from the labelled joints, or the whole frame."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PoseRecord:
    """One annotated person in one frame.

    Attributes:
        record_id: unique within its data set, stable across runs.
        patient_id: whose record it is; all records of a patient are one privacy unit.
        joints: (J, 2) float32, pixels; rows of joints that are not labelled are zero.
        visibility: (J,) uint8, COCO's values: 0 not labelled, 1 labelled but hidden, 2 labelled and visible.
        box: (4,) float32, x, y, width, height of the person in pixels.
        box_source: whether the box knows more than the joints do.
        scale: long side of the box in pixels; the length that PCK@a is relative to.
        head_size: length of the head segment in pixels for PCKh; `None` when unknown.
        area: person's area in square pixels for OKS; box area times 0.53 where there is no mask.
        also_patients: further patients who can be seen in the frame (multi-owner rule of the units).
        picture: name of the picture (or video frame) within its data set, the same for all records of it; a picture of
            its own where empty.
        view_key: what tells this person from others of the picture without a place in its list; seeds augmented views.
            The record id where empty.
        group: a named sub-population for reporting scores (`upright`, `leaning`, `inverted` ...); may be empty.

    """

    record_id: str
    patient_id: str
    joints: NDArray[np.float32]
    visibility: NDArray[np.uint8]
    box: NDArray[np.float32]
    box_source: BoxSource = "given"
    scale: float
    head_size: float | None
    area: float
    also_patients: tuple[str, ...] = ()
    group: str = ""
    picture: str = ""
    view_key: str = ""


@runtime_checkable
class PoseDataset(Protocol):
    """A fixed, ordered set of records with their frames.

    Attributes:
        name: short human name, for example `lspet/public`.
        skeleton: joint layout of every record.
        notes: sentences the reader must say to its user (skipped records, patients that are not known ...).

    """

    name: str
    skeleton: Skeleton
    notes: list[str]

    def __len__(self) -> int:
        """Count the records."""
        ...

    def record(self, index: int) -> PoseRecord:
        """Return the annotation alone; cheap, reads no pixels."""
        ...

    def frame(self, index: int) -> Frame:
        """Return the record's RGB frame.

        Raises:
            DataError: the image is missing or broken; names the file.

        """
        ...

    def identity(self) -> str:
        """Hexadecimal SHA-256 over names, annotations and sources: the same data set gives the same string."""
        ...


def patients_named(dataset: PoseDataset) -> bool:
    """Tell whether patients were named (by a side file, a rule or the labels), and not invented, one for each record.

    A data set that does not say so made its people itself, and knows them.
    """
    return bool(getattr(dataset, "patients_named", True))
