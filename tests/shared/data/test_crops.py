import numpy as np
import pytest
import torch

from wardpose.shared.data import crops
from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.skeleton import LSP14, Skeleton

SIZE = (256, 192)
BOX = np.array([40.0, 30.0, 60.0, 110.0], np.float32)


class OnePerson:
    """A dark frame with one bright dot at each joint."""

    def __init__(self, joints: np.ndarray, skeleton: Skeleton = LSP14, box: np.ndarray = BOX) -> None:
        self.name, self.skeleton, self.notes = "one", skeleton, []
        self.joints = joints.astype(np.float32)
        self.box = box

    def __len__(self) -> int:
        return 1

    def record(self, index: int) -> PoseRecord:
        return PoseRecord(
            record_id="0",
            patient_id="0",
            joints=self.joints,
            visibility=np.full(len(self.joints), 2, np.uint8),
            box=self.box,
            scale=110.0,
            head_size=None,
            area=1.0,
        )

    def frame(self, index: int) -> Frame:
        frame = np.zeros((200, 160, 3), np.uint8)
        for x, y in self.joints.astype(int):
            frame[y - 1 : y + 2, x - 1 : x + 2] = 255
        return frame

    def identity(self) -> str:
        return "one"


def person(generator: np.random.Generator) -> OnePerson:
    low, size = BOX[:2] + 5, BOX[2:] - 10
    grid = np.stack(np.meshgrid([0.1, 0.9], np.linspace(0, 1, 7)), axis=-1).reshape(-1, 2)
    return OnePerson(np.round(low + size * grid + generator.uniform(-2, 2, (14, 2))))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("rotation", [0.0, 33.0, -120.0])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_there_and_back_is_the_same_point(flip: bool, rotation: float, scale: float) -> None:
    affine = crops.box_to_affine(BOX, SIZE, rotation=rotation, scale=scale, flip=flip, shift=(0.1, -0.2))
    points = np.random.default_rng(0).uniform(0, 200, (50, 2))
    back = crops.transform(crops.transform(points, affine), crops.invert(affine))
    assert np.abs(back - points).max() < 0.01


def test_the_box_is_centred_and_padded() -> None:
    affine = crops.box_to_affine(BOX, SIZE)
    centre = crops.transform(np.array([70.0, 85.0]), affine)
    np.testing.assert_allclose(centre, [95.5, 127.5])
    corners = crops.transform(np.array([[70.0, 30.0], [70.0, 140.0]]), affine)
    assert corners[1, 1] - corners[0, 1] == pytest.approx(256 / 1.25)


def test_a_wide_box_fits_by_its_width() -> None:
    affine = crops.box_to_affine(np.array([0.0, 0, 300, 50]), SIZE, padding=1.0)
    ends = crops.transform(np.array([[0.0, 25.0], [300.0, 25.0]]), affine)
    assert ends[1, 0] - ends[0, 0] == pytest.approx(192)
    up = crops.transform(np.array([[0.0, 0.0], [0.0, 50.0]]), affine)
    assert up[1, 1] - up[0, 1] == pytest.approx(32)  # the aspect is kept


def test_scale_shift_rotation_and_flip_do_what_they_say() -> None:
    centre = np.array([70.0, 85.0])
    right = centre + np.array([10.0, 0.0])

    def moved(**options: object) -> np.ndarray:
        affine = crops.box_to_affine(BOX, SIZE, **options)  # type: ignore[arg-type]
        return crops.transform(right, affine) - crops.transform(centre, affine)

    plain = moved()
    np.testing.assert_allclose(moved(scale=2.0), plain / 2)
    np.testing.assert_allclose(moved(rotation=90.0), [0, plain[0]], atol=1e-9)  # clockwise: right becomes down
    np.testing.assert_allclose(moved(flip=True), [-plain[0], 0], atol=1e-9)
    shifted = crops.transform(centre, crops.box_to_affine(BOX, SIZE, shift=(0.25, 0.0)))
    np.testing.assert_allclose(shifted, [95.5 - 0.25 * 192, 127.5])


@pytest.mark.parametrize("seed", range(12))
def test_painted_dots_land_on_transformed_joints(seed: int) -> None:
    generator = np.random.default_rng(seed)
    dataset = person(generator)
    augmentation = crops.Augmentation(half_body=0.0, rotation_probability=1.0)
    crop = crops.crop_record(dataset, 0, SIZE, augmentation=augmentation, generator=generator)
    assert crop.image.shape == (256, 192, 3)
    assert (crop.visibility > 0).sum() >= 5
    grid = np.stack(np.meshgrid(np.arange(192), np.arange(256)), axis=-1)
    for joint in np.flatnonzero(crop.visibility):
        distance = np.linalg.norm(grid - crop.joints[joint], axis=-1)
        if not (8 < crop.joints[joint, 0] < 184 and 8 < crop.joints[joint, 1] < 248):
            continue
        weight = crop.image[..., 0] * (distance < 8)
        found = (grid * weight[..., None]).sum((0, 1)) / weight.sum()
        assert np.linalg.norm(found - crop.joints[joint]) < 0.3


def test_a_flip_exchanges_left_and_right() -> None:
    dataset = person(np.random.default_rng(3))
    mirror = crops.Augmentation(scale=0.0, rotation=0.0, flip=1.0, half_body=0.0)
    plain = crops.crop_record(dataset, 0, SIZE)
    flipped = crops.crop_record(dataset, 0, SIZE, augmentation=mirror, generator=np.random.default_rng(0))
    right, left = LSP14.index("right_wrist"), LSP14.index("left_wrist")
    np.testing.assert_allclose(flipped.joints[left], [191 - plain.joints[right, 0], plain.joints[right, 1]], atol=1e-3)
    expected = plain.joints[LSP14.flip_order] * [-1, 1] + [191, 0]
    np.testing.assert_allclose(flipped.joints, expected, atol=1e-3)
    assert np.abs(flipped.image.astype(int) - plain.image[:, ::-1]).max() <= 1


def test_joints_outside_the_crop_are_not_labelled() -> None:
    dataset = person(np.random.default_rng(0))
    dataset.joints[0] = [158, 190]
    crop = crops.crop_record(dataset, 0, SIZE)
    assert crop.visibility[0] == 0
    assert (crop.visibility[1:] == 2).all()


def test_half_body_crops_one_half() -> None:
    dataset = OnePerson(person(np.random.default_rng(0)).joints)
    lower = [i for i, joint in enumerate(LSP14.joints) if joint.endswith(("hip", "knee", "ankle"))]
    dataset.joints[:, 1] = 45
    dataset.joints[lower, 1] = 130
    half = crops.Augmentation(scale=0.0, rotation=0.0, flip=0.0, half_body=1.0)
    seen = set()
    for seed in range(20):
        crop = crops.crop_record(dataset, 0, SIZE, augmentation=half, generator=np.random.default_rng(seed))
        inside = frozenset(np.flatnonzero(crop.visibility))
        assert inside in (frozenset(lower), frozenset(range(14)) - frozenset(lower))
        seen.add(inside)
    assert len(seen) == 2


def test_draws_come_only_from_the_generator() -> None:
    dataset = person(np.random.default_rng(0))
    augmentation = crops.Augmentation.preset("coco")

    def crop(seed: int) -> crops.Crop:
        np.random.seed(seed + 7)  # noqa: NPY002 the global state must not matter
        return crops.crop_record(dataset, 0, SIZE, augmentation=augmentation, generator=np.random.default_rng(5))

    first, second = crop(0), crop(1)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.affine, second.affine)
    with pytest.raises(ValueError, match="generator"):
        crops.crop_record(dataset, 0, SIZE, augmentation=augmentation)


def test_every_record_takes_the_same_draws() -> None:
    few = person(np.random.default_rng(0))
    record = few.record(0)
    few.record = lambda index: PoseRecord(  # type: ignore[method-assign]
        **{**vars(record), "visibility": np.array([2] * 3 + [0] * 11, np.uint8)}
    )
    left, right = np.random.default_rng(1), np.random.default_rng(1)
    for dataset, generator in ((few, left), (person(np.random.default_rng(0)), right)):
        crops.crop_record(dataset, 0, SIZE, augmentation=crops.Augmentation(), generator=generator)
    assert left.random() == right.random()


def test_augmentations_stay_in_their_bounds() -> None:
    dataset = person(np.random.default_rng(0))
    augmentation = crops.Augmentation(half_body=0.0)
    generator = np.random.default_rng(0)
    drawn = [
        crops.crop_record(dataset, 0, (32, 32), augmentation=augmentation, generator=generator).affine
        for _ in range(400)
    ]
    plain = crops.box_to_affine(BOX, (32, 32))[0, 0]
    zoom = np.array([np.sqrt(abs(np.linalg.det(affine[:, :2]))) for affine in drawn]) / plain
    assert zoom.min() == pytest.approx(1 / 1.35)
    assert zoom.max() == pytest.approx(1 / 0.65)
    flipped = np.mean([np.linalg.det(affine[:, :2]) < 0 for affine in drawn])
    assert 0.4 < flipped < 0.6
    unturned = np.mean([abs(affine[1, 0]) < 1e-9 for affine in drawn])
    assert 0.3 < unturned < 0.5


def test_to_tensor_normalises() -> None:
    image = np.zeros((2, 4, 3, 3), np.uint8)
    image[1, 2, 1] = [255, 128, 0]
    tensor = crops.to_tensor(image)
    assert tensor.shape == (2, 3, 4, 3)
    assert tensor.dtype == torch.float32
    expected = (np.array([255, 128, 0]) / 255 - crops.IMAGENET_MEAN) / crops.IMAGENET_STD
    np.testing.assert_allclose(tensor[1, :, 2, 1].numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(crops.to_tensor(torch.from_numpy(image)), tensor)
