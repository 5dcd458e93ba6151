"""The procedural ward: hospitals full of drawn patients, so that a fresh checkout has data without anybody's licence.

Frames are drawn when asked for, from nothing but (hospital, seed, patient, frame), in a few milliseconds each.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.data.ward_domain import Domain, Patient, sample_patient
from wardpose.shared.data.ward_render import render
from wardpose.shared.data.ward_scene import Scene, annotate, build_scene
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14, Skeleton

VERSION = 1
"""Changes whenever the same arguments would draw other frames; part of every data set's identity."""

_CREAM, _MINT, _BLUE, _GREY, _ROSE = (236, 228, 208), (200, 222, 206), (196, 212, 228), (206, 206, 204), (226, 200, 194)

HOSPITALS: dict[str, Domain] = {
    "public": Domain(
        postures={"standing": 0.5, "walking": 0.3, "reaching": 0.15, "sitting": 0.05},
        outfits={"street": 0.6, "scrubs": 0.15, "shorts": 0.25},
        elevation=(-3, 8), roll=(-3, 3), facing=75, size=(240, 320), span=(130, 205), focal=(330, 460),
        ambient=(0.6, 0.8), key=(0.4, 0.65), warmth=(-0.2, 0.3), noise=(1, 5), blur=(0.5, 0.8), motion=0.05,
        monochrome=0, blanket=0, clutter=0.03, bystander=0.1, walls=(_CREAM, _GREY, _MINT),
    ),
    "north": Domain(
        postures={"standing": 0.1, "walking": 0.1, "sitting": 0.25, "half-sitting": 0.25, "lying": 0.3},
        outfits={"gown": 0.6, "pyjamas": 0.4},
        elevation=(28, 52), roll=(-8, 8), facing=180, size=(240, 320), span=(125, 200), focal=(260, 340),
        ambient=(0.45, 0.65), key=(0.3, 0.55), warmth=(-0.9, -0.3), noise=(2, 7), blur=(0.6, 1.0), motion=0.1,
        monochrome=0, blanket=0.35, clutter=0.15, bystander=0.2, walls=(_BLUE, _GREY),
    ),
    "south": Domain(
        postures={"sitting": 0.15, "half-sitting": 0.35, "lying": 0.5},
        outfits={"pyjamas": 0.6, "gown": 0.4},
        elevation=(8, 26), roll=(-6, 6), facing=120, size=(240, 320), span=(140, 215), focal=(280, 380),
        ambient=(0.32, 0.5), key=(0.2, 0.45), warmth=(0.5, 1.2), noise=(4, 10), blur=(0.6, 1.0), motion=0.1,
        monochrome=0, blanket=0.6, clutter=0.15, bystander=0.15, walls=(_CREAM, _ROSE),
    ),
    "east": Domain(
        postures={"bent": 0.45, "sitting": 0.3, "reaching": 0.1, "walking": 0.15},
        outfits={"robe": 0.35, "gown": 0.35, "pyjamas": 0.3},
        elevation=(10, 38), roll=(-28, 28), facing=150, size=(320, 240), span=(125, 205), focal=(280, 380),
        ambient=(0.35, 0.55), key=(0.4, 0.8), warmth=(-0.2, 0.6), noise=(2, 8), blur=(0.6, 1.1), motion=0.25,
        monochrome=0, blanket=0, clutter=0.25, bystander=0.25, walls=(_MINT, _ROSE, _CREAM),
    ),
    "west": Domain(
        postures={"lying": 0.5, "half-sitting": 0.2, "sitting": 0.15, "standing": 0.15},
        outfits={"gown": 0.5, "shorts": 0.2, "pyjamas": 0.3},
        elevation=(48, 82), roll=(-15, 15), facing=180, size=(240, 320), span=(125, 205), focal=(240, 320),
        ambient=(0.3, 0.5), key=(0.2, 0.5), warmth=(0, 0), noise=(6, 14), blur=(0.7, 1.2), motion=0.15,
        monochrome=1, blanket=0.35, clutter=0.1, bystander=0.1, walls=(_GREY, _BLUE),
    ),
}  # fmt: skip
"""What each hospital's frames look like: `public` shows upright people by day, the others film patients."""


class WardDataset:
    """Frames of one procedural hospital; a `PoseDataset`.

    Args:
        hospital: a key of `HOSPITALS`.
        patients: how many.
        frames_per_patient: of each.
        seed: separates sets of patients: no patient is shared between different pairs (hospital, seed).

    Raises:
        DataError: the hospital is unknown or a count is not positive.

    """

    def __init__(self, hospital: str, *, patients: int, frames_per_patient: int, seed: int) -> None:
        if hospital not in HOSPITALS:
            raise DataError(f'ward hospital "{hospital}" is unknown (allowed: {", ".join(HOSPITALS)})')
        for key, value in (("patients", patients), ("frames_per_patient", frames_per_patient)):
            if value < 1:
                raise DataError(f"ward {hospital}: {key} = {value} is not allowed (at least 1)")
        if seed < 0:
            raise DataError(f"ward {hospital}: seed = {seed} is not allowed (at least 0)")
        self.hospital = hospital
        self.patients = patients
        self.frames_per_patient = frames_per_patient
        self.seed = seed
        self.name = f"ward/{hospital}"
        self.skeleton: Skeleton = LSP14
        self.notes: list[str] = []
        self._records: dict[int, PoseRecord] = {}

    def __len__(self) -> int:
        return self.patients * self.frames_per_patient

    def record(self, index: int) -> PoseRecord:
        """Annotate without drawing; a few milliseconds the first time."""
        if index not in self._records:
            self._records[index] = self._annotate(index)
        return self._records[index]

    def _annotate(self, index: int) -> PoseRecord:
        patient, frame = self._place(index)
        scene, joints, visibility = _scene(self.hospital, self.seed, patient, frame)
        height, width = scene.camera.size
        labelled = joints[visibility > 0]
        low, high = labelled.min(axis=0), labelled.max(axis=0)
        margin = 0.1 * float((high - low).max())
        low, high = np.maximum(low - margin, 0), np.minimum(high + margin, [width, height])
        box = np.array([*low, *(high - low)], np.float32)
        neck = scene.camera.to_camera(scene.body.points["neck"])
        head = float(np.linalg.norm(scene.body.points["head_top"] - scene.body.points["neck"]))
        return PoseRecord(
            record_id=f"{self._patient_id(patient)}-{frame:03d}",
            patient_id=self._patient_id(patient),
            joints=joints,
            visibility=visibility,
            box=box,
            scale=float(box[2:].max()),
            head_size=head * scene.camera.focal / float(neck[2]),
            area=float(box[2] * box[3]) * 0.53,
            group=scene.body.posture,
        )

    def frame(self, index: int) -> Frame:
        """Draw the frame; about ten milliseconds."""
        return render(self.scene(index))

    def scene(self, index: int) -> Scene:
        """Return what the frame shows."""
        return _scene(self.hospital, self.seed, *self._place(index))[0]

    def identity(self) -> str:
        """Hexadecimal SHA-256 over the arguments and the drawing's version: they determine every pixel."""
        key = f"ward {VERSION} {self.hospital} {self.patients} {self.frames_per_patient} {self.seed}"
        return hashlib.sha256(key.encode()).hexdigest()

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has records 0 to {len(self) - 1}, not {index}")
        return divmod(index, self.frames_per_patient)

    def _patient_id(self, patient: int) -> str:
        return f"{self.hospital}-{self.seed}-{patient:04d}"


def _generator(hospital: str, seed: int, patient: int, stream: int) -> np.random.Generator:
    name = int.from_bytes(hashlib.sha256(hospital.encode()).digest()[:8], "big")
    return np.random.default_rng([VERSION, name, seed, patient, stream])


@lru_cache(maxsize=256)
def _patient(hospital: str, seed: int, patient: int) -> Patient:
    return sample_patient(HOSPITALS[hospital], _generator(hospital, seed, patient, 0))


@lru_cache(maxsize=4)
def _scene(hospital: str, seed: int, patient: int, frame: int) -> tuple[Scene, NDArray[np.float32], NDArray[np.uint8]]:
    """Draw scenes until one shows enough of the person: 9 joints in the frame, 4 of them not hidden."""
    rng = _generator(hospital, seed, patient, frame + 1)
    for _ in range(20):
        scene = build_scene(HOSPITALS[hospital], _patient(hospital, seed, patient), rng)
        joints, visibility = annotate(scene)
        if np.count_nonzero(visibility) >= 9 and np.count_nonzero(visibility == 2) >= 4:
            return scene, joints, visibility
    raise AssertionError(f"{hospital}: twenty scenes in a row with most joints hidden or outside the frame")
