"""Cached rows are those computed on the spot, keyed by what decides them, whole or absent, within their limit."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from wardpose.shared.anonymize.public_view import Geometry, PublicView
from wardpose.shared.data.crops import Augmentation, compose, crop_frame, crop_record, invert, warp
from wardpose.shared.data.mpii import read_mpii
from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.skeleton import LSP14
from wardpose.shared.training.cache import _generator, build_rows, cache_bytes, delete_cache, trunk_hash
from wardpose.shared.training.cohort import build_cohort, build_public
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig

ModelFactory = Callable[..., PoseModel]


class Frames:
    """Three patients' random frames; counts how often one is read."""

    name = "frames"
    skeleton = LSP14

    def __init__(self, seed: int = 0, broken: int | None = None) -> None:
        self.seed, self.broken, self.reads = seed, broken, 0
        self.notes: list[str] = []
        generator = np.random.default_rng(seed)
        self._frames = generator.integers(0, 256, (6, 90, 70, 3), dtype=np.uint8)
        self._joints = generator.uniform(5, 65, (6, 14, 2)).astype(np.float32)

    def __len__(self) -> int:
        return 6

    def record(self, index: int) -> PoseRecord:
        return PoseRecord(
            record_id=str(index),
            patient_id=f"p{index // 2}",
            joints=self._joints[index],
            visibility=np.full(14, 2, np.uint8),
            box=np.array([5, 5, 60, 80], np.float32),
            scale=80.0,
            head_size=None,
            area=2000.0,
        )

    def frame(self, index: int) -> Frame:
        self.reads += 1
        if index == self.broken:
            raise DataError("frame 3 is broken")
        return self._frames[index]

    def identity(self) -> str:
        return f"frames-{self.seed}"


class Darken:
    name = "darken"
    keeps_scene = True

    def __call__(self, crop: Frame) -> Frame:
        return crop // 2

    def identity(self) -> str:
        return "darken"


VIEW = PublicView(Darken(), Geometry(height=64, width=32))


def build(model: PoseModel, folder: Path | None, frames: Frames, **options: object):  # type: ignore[no-untyped-def]
    return build_rows(frames, model, options.pop("strategy", "last-stage"), folder=folder, **options)


def test_features_equal_those_computed_now(tmp_path: Path, small_model: ModelFactory) -> None:
    model, frames = small_model(torch.float32), Frames()
    for strategy in ("head", "last-stage"):
        options = {"views": 3, "augmentation": Augmentation(), "public_view": VIEW, "strategy": strategy}
        stored = build(model, tmp_path, frames, **options)
        fresh = build(model, None, frames, **options)
        crops = build(model, None, frames, features=False, **options)
        for rows, expected, pixels in zip(stored, fresh, crops, strict=True):
            assert isinstance(rows.inputs, np.memmap)
            np.testing.assert_array_equal(rows.inputs, expected.inputs)
            np.testing.assert_array_equal(rows.joints, expected.joints)
            assert (rows.are_crops, pixels.are_crops, len(rows)) == (False, True, 18)
        np.testing.assert_array_equal(crops[1].inputs[::3], crops[0].inputs[::3] // 2)
        plain = crop_record(frames, 4, (64, 32))
        np.testing.assert_array_equal(crops[0].inputs[12], plain.image)
        np.testing.assert_array_equal(crops[0].joints[12], plain.joints)
        assert not np.array_equal(crops[0].inputs[13], plain.image)


class Some(Frames):
    """The same records: some of them, in another order, under other names."""

    def __init__(self, order: list[int], names: dict[int, str] | None = None) -> None:
        super().__init__()
        self.order, self.names = order, names or {}

    def __len__(self) -> int:
        return len(self.order)

    def record(self, index: int) -> PoseRecord:
        number = self.order[index]
        return replace(super().record(number), record_id=self.names.get(number, str(number)))

    def frame(self, index: int) -> Frame:
        return super().frame(self.order[index])

    def identity(self) -> str:
        return f"some-{self.order}-{self.names}"


@pytest.mark.parametrize("features", [False, True])
def test_whoever_leaves_comes_or_is_renamed_the_others_rows_stay(
    tmp_path: Path, features: bool, small_model: ModelFactory
) -> None:
    """Bit by bit, augmented views and trunk features too; across the cache and memory."""
    options = {"views": 3, "augmentation": Augmentation(), "public_view": VIEW, "features": features}
    model = small_model(torch.float32)
    whole = build(model, tmp_path, Frames(), **options)
    for order, names in (
        ([1, 2, 3, 4, 5], {}),  # the first leaves
        ([0, 1, 3, 4, 5], {}),
        ([0, 1, 2, 3, 4], {}),
        ([5, 3, 1, 0, 2, 4], {}),
        ([0, 1, 2, 3, 4, 5], {2: "another name"}),
    ):
        part = build(model, None, Some(order, names), **options)
        for rows, expected in zip(part, whole, strict=True):
            for place, number in enumerate(order):
                views = slice(1 if number not in names else 3, 3)  # a new name is another draw of augmented views
                for view in (0, *range(views.start, views.stop)):
                    np.testing.assert_array_equal(rows.inputs[3 * place + view], expected.inputs[3 * number + view])
                    np.testing.assert_array_equal(rows.joints[3 * place + view], expected.joints[3 * number + view])


def test_whoever_leaves_a_picture_of_mpii_leaves_the_others_views(tmp_path: Path, small_model: ModelFactory) -> None:
    """MPII's ids are places among the people of a picture: with the first one gone, the second one has its id."""
    frame = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    people = [
        {
            "image": "a.png",
            "center": [60.0, 50.0 + 3 * number],
            "scale": 0.3,
            "joints": [[11.0 + 5 * joint, 21.0 + 3 * joint + number] for joint in range(16)],
            "joints_vis": [1] * 16,
        }
        for number in range(3)
    ]
    model, options = small_model(torch.float32), {"views": 3, "augmentation": Augmentation(), "features": False}

    def views(kept: list[int]) -> np.ndarray:
        (tmp_path / "mpii.json").write_text(json.dumps([people[number] for number in kept]))
        dataset = read_mpii(tmp_path / "mpii.json", images=tmp_path, skeleton=LSP14)
        rows, _ = build_rows(dataset, model, "full", folder=None, **options)  # type: ignore[arg-type]
        return np.asarray(rows.inputs).reshape(len(kept), 3, -1)

    whole = views([0, 1, 2])
    assert len({row.tobytes() for row in whole.reshape(9, -1)}) == 9
    for kept in ([1, 2], [0, 2], [0, 1], [2, 1, 0]):
        np.testing.assert_array_equal(views(kept), whole[kept])


@pytest.mark.parametrize("size", [(64, 32), (256, 192)])
def test_no_order_shows_more_of_a_person_than_the_view_of_its_own_geometry(
    size: tuple[int, int], small_model: ModelFactory
) -> None:
    """Larger crops, zooms, turns and copies: each public row is the one picture of its record, moved."""
    frames, model = Frames(), small_model(torch.float32, size)
    zoom = Augmentation(scale=0.9, rotation=180.0, rotation_probability=1.0, half_body=0.5)
    options = {"views": 4, "augmentation": zoom, "features": False}
    private, public = build(model, None, frames, public_view=VIEW, **options)
    for number in range(6):
        shown, affine = VIEW.of_person(frames.frame(number), frames.record(number).box)
        for view in range(4):
            crop = crop_frame(
                frames.frame(number), frames.record(number), LSP14, size,
                augmentation=zoom if view else None, generator=_generator(str(number), view),
            )  # fmt: skip
            expected = warp(shown, compose(crop.affine, invert(affine)), size)
            np.testing.assert_array_equal(public.inputs[4 * number + view], expected)
            np.testing.assert_array_equal(private.inputs[4 * number + view], crop.image)


def test_the_second_time_no_frame_is_read(tmp_path: Path, small_model: ModelFactory) -> None:
    model, frames = small_model(torch.float32), Frames()
    build(model, tmp_path, frames)
    reads = frames.reads
    build(model, tmp_path, frames)
    assert (frames.reads, reads) == (reads, 6)


def test_the_key_holds_everything_that_decides_the_content(tmp_path: Path, small_model: ModelFactory) -> None:
    model = small_model(torch.float32)
    variants: list[tuple[Frames, dict[str, object]]] = [
        (Frames(), {}),
        (Frames(1), {}),
        (Frames(), {"strategy": "head"}),
        (Frames(), {"public_view": VIEW}),
        (Frames(), {"views": 2, "augmentation": Augmentation()}),
        (Frames(), {"views": 2, "augmentation": Augmentation(rotation=10.0)}),
        (Frames(), {"precision": "float16"}),
        (Frames(), {"strategy": "full"}),
    ]
    for frames, options in variants:
        build(model, tmp_path, frames, **options)
        assert frames.reads > 0
    assert len(list(tmp_path.iterdir())) == len(variants)
    # The head trains, the trunk does not: another head is the same entry, another trunk is not.
    before = trunk_hash(model, "last-stage")
    with torch.no_grad():
        model.head.x.bias.add_(1.0)
        assert trunk_hash(model, "last-stage") == before
        model.backbone.stages[0].blocks[0].conv1.conv.weight.add_(1e-3)
        assert trunk_hash(model, "last-stage") != before
        model.backbone.stages[0].blocks[0].conv1.conv.weight.sub_(1e-3)
        model.head.x.bias.sub_(1.0)


def test_an_entry_is_whole_or_absent(tmp_path: Path, small_model: ModelFactory) -> None:
    model = small_model(torch.float32)
    with pytest.raises(DataError, match="frame 3 is broken"):
        build(model, tmp_path, Frames(broken=3))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f".building-{2**22 + 1}-rest").mkdir()  # left by a process that was killed
    build(model, tmp_path, Frames())
    (entry,) = tmp_path.iterdir()
    with (entry / "inputs.npy").open("r+b") as file:  # a torn write
        file.truncate(1000)
    frames = Frames()
    build(model, tmp_path, frames)
    assert frames.reads == 6


@pytest.mark.parametrize("name", ["entry.json", "inputs.npy", "joints.npy", "visibility.npy"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, name: str, small_model: ModelFactory) -> None:
    """Were it an error, every round would be charged for nothing from then on."""
    model, frames = small_model(torch.float32), Frames()
    expected = build(model, None, frames, strategy="head")[0]
    build(model, tmp_path, frames, strategy="head")
    (entry,) = tmp_path.iterdir()
    whole = (entry / name).read_bytes()
    for place in (*range(0, min(128, len(whole)), 11), None):
        damaged = whole[: len(whole) // 2] if place is None else bytearray(whole)
        if place is not None:
            damaged[place] ^= 4
        (entry / name).write_bytes(damaged)
        rows = build(model, tmp_path, frames, strategy="head")[0]
        for mine, its in ((rows.inputs, expected.inputs), (rows.joints, expected.joints)):
            np.testing.assert_array_equal(mine, its)
        np.testing.assert_array_equal(rows.visibility, expected.visibility)
        (entry / name).write_bytes(whole)


def test_the_limit_holds_and_old_entries_go_first(tmp_path: Path, small_model: ModelFactory) -> None:
    model = small_model(torch.float32)
    build(model, tmp_path, Frames(0))
    one = cache_bytes(tmp_path)
    (first,) = tmp_path.iterdir()
    os.utime(first, (1, 1))
    build(model, tmp_path, Frames(1), limit_bytes=int(2.5 * one))
    build(model, tmp_path, Frames(2), limit_bytes=int(2.5 * one))
    assert not first.exists()
    assert cache_bytes(tmp_path) <= 2.5 * one
    with pytest.raises(DataError, match="may take"):
        build(model, tmp_path, Frames(3), limit_bytes=one // 2)


def test_deleting_leaves_nothing_of_the_patients_and_all_else(tmp_path: Path, small_model: ModelFactory) -> None:
    build(small_model(torch.float32), tmp_path, Frames())
    (tmp_path / ".building-1-x").mkdir()
    (tmp_path / "ledger.sqlite").write_text("keep")
    delete_cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]


@pytest.mark.parametrize("strategy", ["head", "last-stage"])
def test_the_cache_does_not_change_an_update(tmp_path: Path, strategy: str, small_model: ModelFactory) -> None:
    model, frames = small_model(torch.float32), Frames()
    chosen = Mechanism(name="feature", frames_per_unit=2, sample_rate=0.7, noise_multiplier=0.5)
    updates = []
    for folder, features in ((tmp_path, True), (None, False)):
        cohort = build_cohort(
            frames,
            model,
            chosen,
            LocalTraining(strategy=strategy, augmented_views=2),
            cache_folder=folder,
            public_view=VIEW,
            features=features,
        )
        training = LocalTraining(strategy=strategy, steps=2, optimizer=OptimizerConfig(name="sgd", learning_rate=0.1))
        update = local_update(model, cohort, chosen, training, streams=seeded_streams(3), declared_units=3)
        updates.append(update.update)
    for name, value in updates[0].items():
        torch.testing.assert_close(value, updates[1][name], rtol=1e-4, atol=1e-5)


class BoxesOfJoints(Frames):
    """Boxes that were computed from the joints."""

    def record(self, index: int) -> PoseRecord:
        record = super().record(index)
        low, high = record.joints.min(axis=0), record.joints.max(axis=0)
        return replace(record, box=np.concatenate([low, high - low]).astype(np.float32), box_source="joints")


class OtherPoses(Frames):
    """The same frames and boxes, with other joints."""

    def record(self, index: int) -> PoseRecord:
        record = super().record(index)
        return replace(record, joints=record.joints[::-1] * np.float32(0.5))


def test_public_views_with_pseudo_labels_do_not_follow_the_keypoints(small_model: ModelFactory) -> None:
    """A crop to half the body is laid around its joints; its public view would betray where they are."""
    for labels, same in (("pseudo", True), ("ground-truth", False)):
        chosen = Mechanism(name="feature", feature=FeatureOptions(labels=labels))
        training = LocalTraining(augmented_views=3, augmentation=Augmentation(half_body=1.0))
        shown = [
            build_cohort(frames, small_model(torch.float32), chosen, training, public_view=VIEW, features=False).public
            for frames in (Frames(), OtherPoses())
        ]
        first, second = (rows.inputs for rows in shown if rows is not None)
        assert np.array_equal(first, second) is same
        assert not np.array_equal(first[1], first[0])  # views are augmented all the same


def test_a_box_that_was_computed_from_keypoints_is_not_public(small_model: ModelFactory) -> None:
    """Videos without boxes: the crop around the joints would say where they are, to whoever sees its public view."""

    class Moved(BoxesOfJoints):
        def __init__(self) -> None:
            super().__init__()
            self._joints = self._joints * np.float32(0.5)

    for labels, same in (("pseudo", True), ("ground-truth", False)):
        chosen = Mechanism(name="feature", feature=FeatureOptions(labels=labels))
        shown = [
            build_cohort(
                frames, small_model(torch.float32), chosen, LocalTraining(augmented_views=2), public_view=VIEW,
                features=False,
            ).public
            for frames in (BoxesOfJoints(), Moved())
        ]  # fmt: skip
        first, second = (rows.inputs for rows in shown if rows is not None)
        assert np.array_equal(first, second) is same


def test_half_precision_moves_features_by_a_thousandth(tmp_path: Path, small_model: ModelFactory) -> None:
    model = small_model(torch.float32)
    whole, half = (build(model, tmp_path, Frames(), precision=kind)[0].inputs for kind in ("float32", "float16"))
    assert half.nbytes * 2 == whole.nbytes
    assert np.abs(half - whole).max() < 1e-3 * np.abs(whole).max()
    assert not np.array_equal(half, whole)


def test_every_view_of_a_frame_belongs_to_its_unit(small_model: ModelFactory) -> None:
    chosen = Mechanism(frames_per_unit=6)
    cohort = build_cohort(
        Frames(), small_model(torch.float32), chosen, LocalTraining(strategy="head", augmented_views=3)
    )
    for unit in range(3):
        rows = cohort.draw_rows(np.array([unit]), seeded_streams(0).sampling)
        assert sorted(rows[0].tolist()) == list(range(6 * unit, 6 * unit + 6))


def test_a_public_view_is_asked_for(small_model: ModelFactory) -> None:
    with pytest.raises(ConfigError, match="needs a public view"):
        build_cohort(Frames(), small_model(torch.float32), Mechanism(name="feature"), LocalTraining(strategy="head"))
    public = build_public(Frames(), small_model(torch.float32), strategy="head")
    assert (len(public.rows), public.identity) == (6, "frames-0")
