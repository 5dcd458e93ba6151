from dataclasses import replace

import cv2
import numpy as np
import pytest

from wardpose.shared.data import ward
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.ward import HOSPITALS, WardDataset
from wardpose.shared.data.ward_render import person_mask, rasterise
from wardpose.shared.data.ward_scene import annotate
from wardpose.shared.data.ward_surfaces import Camera, Cloth, box, capsule, ellipsoid
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14

PLAIN = Cloth(colour=(200.0, 10.0, 10.0))
CAMERA = Camera(
    position=np.array([0.0, -3.0, 1.0]),
    rotation=np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),
    focal=300.0,
    size=(240, 320),
)


def small(hospital: str, seed: int = 5) -> WardDataset:
    return WardDataset(hospital, patients=5, frames_per_patient=2, seed=seed)


def forget() -> None:
    ward._scene.cache_clear()
    ward._patient.cache_clear()


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_a_frame_depends_on_nothing_but_its_place(hospital: str) -> None:
    first, frames = small(hospital), {}
    for i in (0, 7, 3):
        frames[i] = first.frame(i)
    forget()
    longer = WardDataset(hospital, patients=9, frames_per_patient=2, seed=5)
    for i in (3, 0, 7):
        assert np.array_equal(longer.frame(i), frames[i])
        a, b = first.record(i), longer.record(i)
        assert a.record_id == b.record_id
        assert np.array_equal(a.joints, b.joints)
        assert np.array_equal(a.visibility, b.visibility)
    assert not np.array_equal(frames[0], frames[7])


def test_no_patient_belongs_to_two_hospitals_or_seeds() -> None:
    sets = [small(hospital, seed) for hospital in HOSPITALS for seed in (0, 1, 10)]
    owners = [{dataset.record(i).patient_id for i in range(len(dataset))} for dataset in sets]
    assert all(len(patients) == 5 for patients in owners)
    assert len(set().union(*owners)) == 5 * len(sets)
    looks = {repr(dataset.scene(i).patient.identity) for dataset in sets for i in (0, 2, 4)}
    assert len(looks) == 3 * len(sets)
    assert len({dataset.identity() for dataset in sets}) == len(sets)


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_records_are_well_formed(hospital: str) -> None:
    dataset = small(hospital)
    assert isinstance(dataset, PoseDataset)
    for i in range(len(dataset)):
        record, frame = dataset.record(i), dataset.frame(i)
        assert frame.dtype == np.uint8
        assert frame.shape == (*HOSPITALS[hospital].size, 3)
        labelled = record.visibility > 0
        x, y, width, height = record.box
        assert labelled.sum() >= 9
        assert (record.joints[~labelled] == 0).all()
        assert (record.joints[labelled] >= [x - 1e-3, y - 1e-3]).all()
        assert (record.joints[labelled] <= [x + width + 1e-3, y + height + 1e-3]).all()
        assert x >= 0
        assert x + width <= frame.shape[1]
        assert record.scale == max(width, height)
        assert record.head_size is not None
        assert 5 < record.head_size < 100
        assert record.group in HOSPITALS[hospital].postures


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_seen_joints_lie_on_the_person(hospital: str) -> None:
    on_person = []
    dataset = WardDataset(hospital, patients=20, frames_per_patient=1, seed=6)
    for i in range(len(dataset)):
        record = dataset.record(i)
        near = cv2.dilate(person_mask(dataset.scene(i)).astype(np.uint8), np.ones((5, 5), np.uint8))
        x, y = np.round(record.joints[record.visibility == 2]).astype(int).T
        on_person.extend(near[y.clip(0, near.shape[0] - 1), x.clip(0, near.shape[1] - 1)])
    assert np.mean(on_person) > 0.985


@pytest.mark.parametrize("hospital", ["south", "east"])
def test_what_is_drawn_before_a_joint_hides_it(hospital: str) -> None:
    dataset = WardDataset(hospital, patients=30, frames_per_patient=1, seed=7)
    covered = 0
    for i in range(len(dataset)):
        scene, record = dataset.scene(i), dataset.record(i)
        buffers = rasterise(scene)
        depths = scene.camera.to_camera(np.stack([scene.body.points[name] for name in LSP14.joints]))[:, 2]
        for (x, y), depth, visibility in zip(record.joints, depths, record.visibility, strict=True):
            if visibility == 0 or not (1 < x < scene.camera.size[1] - 2 and 1 < y < scene.camera.size[0] - 2):
                continue
            window = (slice(int(y), int(y) + 2), slice(int(x), int(x) + 2))
            things = {scene.surfaces[n - 1].part for n in buffers.index[window].ravel() if n}
            if (
                things
                and things <= {"blanket", "pole", "table", "cabinet", "bed"}
                and buffers.depth[window].max() < depth - 0.08
            ):
                covered += 1
                assert visibility == 1
    assert covered > 10


def test_a_wall_before_the_person_hides_everything_and_one_behind_nothing() -> None:
    scene = small("public").scene(0)
    before = annotate(scene)[1]
    forward = scene.camera.rotation[2]
    axes = np.column_stack([scene.camera.rotation[0] * 5, scene.camera.rotation[1] * 5, forward * 0.01])

    def with_wall(distance: float) -> np.ndarray:
        wall = box(scene.camera, scene.camera.position + forward * distance, axes, part="wall", cloth=PLAIN)
        return annotate(replace(scene, surfaces=scene.surfaces + wall))[1]

    assert (before == 2).sum() > 6
    assert set(with_wall(0.8)) <= {0, 1}
    assert np.array_equal(with_wall(20.0), before)


def test_blankets_hide_legs_and_nothing_lies_in_the_public_ward() -> None:
    south = [small("south", seed).record(i) for seed in range(4) for i in range(10)]
    public = [small("public", seed).record(i) for seed in range(4) for i in range(10)]
    ankles = [LSP14.index("right_ankle"), LSP14.index("left_ankle")]
    hidden = np.mean([(record.visibility[ankles] == 1).mean() for record in south])
    assert hidden > 0.25
    assert np.mean([(record.visibility[ankles] == 1).mean() for record in public]) < hidden / 2
    assert {record.group for record in south} >= {"lying", "half-sitting"}
    assert not {record.group for record in public} & {"lying", "half-sitting", "bent"}


def test_a_face_stays_with_its_patient() -> None:
    dataset = WardDataset("public", patients=12, frames_per_patient=4, seed=8)
    heads = np.array([[_head(dataset, 4 * patient + frame) for frame in range(4)] for patient in range(12)])
    same = np.mean([np.linalg.norm(heads[p, a] - heads[p, b]) for p in range(12) for a in range(4) for b in range(a)])
    other = np.mean([np.linalg.norm(heads[p, a] - heads[q, a]) for p in range(12) for q in range(p) for a in range(4)])
    assert same < 0.6 * other


def _head(dataset: WardDataset, index: int) -> np.ndarray:
    """Mean colours of the upper, middle and lower third of the head, relative to their brightness."""
    scene, frame = dataset.scene(index), dataset.frame(index).astype(float)
    wanted = np.array([False, *(surface.part in ("face", "head") for surface in scene.surfaces)])
    rows, columns = np.nonzero(wanted[rasterise(scene).index])
    thirds = np.array_split(np.argsort(rows), 3)
    colours = np.array([frame[rows[third], columns[third]].mean(axis=0) for third in thirds])
    return (colours / colours.mean()).ravel()


def test_solids_are_where_geometry_says() -> None:
    u, v = np.float32([160.0, 160.0, 205.0]), np.float32([120.0, 85.0, 120.0])
    ball = ellipsoid(CAMERA, np.array([0.0, 0.0, 1.0]), np.eye(3) * 0.3, part="ball", cloth=PLAIN)[0]
    depth, nx, ny, _ = ball.hit(u, v)
    assert depth[0] == pytest.approx(2.7, abs=1e-4)
    assert (nx[0], ny[0]) == pytest.approx((0, 0), abs=1e-4)
    assert depth[1] > 100
    assert depth[2] > 100
    rod = capsule(CAMERA, np.array([-0.5, 0.0, 1.0]), np.array([0.5, 0.0, 1.0]), 0.1, 0.1, part="rod", cloth=PLAIN)[0]
    assert rod.hit(u, v)[0] == pytest.approx([2.9, 1e6, 2.9], rel=1e-4)
    crate = box(CAMERA, np.array([0.0, 0.0, 1.0]), np.eye(3) * 0.5, part="crate", cloth=PLAIN)
    assert len(crate) == 1
    assert crate[0].hit(u, v)[0] == pytest.approx([2.5, 2.5, 2.5], rel=1e-4)
    assert not capsule(CAMERA, np.array([0.0, -4.0, 1.0]), np.zeros(3), 0.1, 0.1, part="behind", cloth=PLAIN)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match=r'"nowhere" is unknown \(allowed: public'):
        WardDataset("nowhere", patients=1, frames_per_patient=1, seed=0)
    with pytest.raises(DataError, match="frames_per_patient = 0"):
        WardDataset("north", patients=1, frames_per_patient=0, seed=0)
    with pytest.raises(DataError, match="seed = -1"):
        WardDataset("north", patients=1, frames_per_patient=1, seed=-1)
    with pytest.raises(IndexError):
        small("north").frame(10)
