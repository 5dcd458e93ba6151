"""Scores on a cohort: whoever comes, goes or is renamed moves the sum by 1 at most, and the scores are true."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.pose import evaluation as plain
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model
from wardpose.shared.privacy.clipping import GRID
from wardpose.shared.privacy.evaluation import Evaluation, Layout, chosen_rows
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.skeleton import LSP14, Skeleton
from wardpose.shared.training.cohort import index_units
from wardpose.shared.training.evaluation import _sum, candidates, noised_scores, score_unit

CONFIG = ModelConfig(weights="random", input_size=(32, 32))
EVALUATION = Evaluation(noise_multiplier=2.0, frames=3, loss_clip=8.0)
HOSTILE = ("random", "huge", "zero", "overflowing", "constant")


@dataclass
class Cohort:
    """Records in memory; a frame follows from its record's id alone."""

    records: Sequence[PoseRecord]
    name: str = "memory"
    skeleton: Skeleton = LSP14
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> PoseRecord:
        return self.records[index]

    def frame(self, index: int) -> Frame:
        seed = sum(self.records[index].picture.encode())
        return np.random.default_rng(seed).integers(0, 256, (40, 36, 3)).astype(np.uint8)

    def identity(self) -> str:
        return "memory"


def person(number: int, patient: str, *others: str, picture: str = "", odd: bool = False) -> PoseRecord:
    draw = np.random.default_rng(number)
    joints = draw.uniform(-20 if odd else 4, 60 if odd else 30, (14, 2)).astype(np.float32)
    visibility = draw.choice(np.array([0, 1, 2], np.uint8), 14) if number % 3 else np.zeros(14, np.uint8)
    return PoseRecord(
        record_id=f"r{number}", patient_id=patient, joints=joints, visibility=visibility,
        box=np.array([3, 3, 28, 30], np.float32), scale=0.0 if number == 4 else 30.0,
        head_size=None if number % 2 else 9.0, area=500.0, also_patients=others, picture=picture or f"p{number}",
    )  # fmt: skip


PEOPLE = [
    person(1, "ada"), person(2, "ada"), person(3, "ben"), person(4, "cleo", odd=True), person(5, "ada", "ben"),
    person(7, "dan", odd=True), person(8, "dan"), person(10, "dan"), person(11, "dan"), person(13, "eve", picture="x"),
    person(14, "finn", picture="x"), person(16, "finn"), person(17, "gus"),
]  # fmt: skip
EVERYBODY = sorted({name for record in PEOPLE for name in (record.patient_id, *record.also_patients)})


@lru_cache(maxsize=8)
def network(kind: str) -> PoseModel:
    model = build_model(CONFIG, seed=1 if kind != "other" else 2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if kind == "huge":
                value.mul_(300)
            elif kind == "zero" or (kind == "constant" and "bias" not in name and name.startswith("head")):
                value.zero_()
            elif kind == "overflowing" and name.startswith("head"):
                value.fill_(3e38)
    return model


def total(
    kinds: Sequence[str], records: Sequence[PoseRecord], *, unit: str = "patient", rule: str = "drop"
) -> np.ndarray:
    cohort = Cohort(records)
    units = index_units(cohort, unit=unit, multi_owner=rule)  # type: ignore[arg-type]
    found, _ = _sum([network(kind) for kind in kinds], cohort, units, EVALUATION, discrete=True)
    (vector,) = found.values()
    return vector.numpy() / GRID


def without(patient: str) -> list[PoseRecord]:
    return [record for record in PEOPLE if patient not in (record.patient_id, *record.also_patients)]


@pytest.mark.parametrize("kinds", [("huge",), ("overflowing",)])
def test_whoever_leaves_moves_the_sum_by_one_at_most(kinds: tuple[str, ...]) -> None:
    leave(kinds, ("ada", "ben", "gus"))  # the first, one who is seen beside another, the last


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("kinds", [("random",), ("random", "huge"), ("zero", "constant"), ("overflowing", "random")])
@pytest.mark.parametrize("rule", ["drop", "one-owner-group"])
def test_whoever_leaves_moves_the_sum_by_one_at_most_whatever_the_weights(kinds: tuple[str, ...], rule: str) -> None:
    leave(kinds, EVERYBODY, rule=rule)


def leave(kinds: Sequence[str], patients: Sequence[str], *, rule: str = "drop") -> None:
    whole = total(kinds, PEOPLE, rule=rule)
    assert np.isfinite(whole).all()
    for patient in patients:
        if rule == "drop":
            rest = total(kinds, without(patient))
        else:  # which frame shows whom stays as it is; what shows the patient contributes nothing
            rest = total(kinds, PEOPLE, rule=rule) - unit_of(kinds, patient)
        assert np.linalg.norm(whole - rest) <= 1.0, patient


def unit_of(kinds: Sequence[str], patient: str) -> np.ndarray:
    """What the one kept unit that shows a patient contributes."""
    cohort = Cohort(PEOPLE)
    units = index_units(cohort, multi_owner="one-owner-group")
    mine = [number for number, name in enumerate(units.names) if patient in name.split("+")]
    assert len(mine) <= 1
    layout = Layout(joints=14, pair=len(kinds) > 1)
    zero = np.zeros(layout.size)
    networks = [network(kind) for kind in kinds]
    parts = [
        score_unit(networks, cohort, chosen_rows(units.rows(number), EVALUATION.frames), EVALUATION, layout)
        for number in mine
    ]
    return sum(parts, zero)


@given(st.permutations(range(len(PEOPLE))), st.sampled_from(HOSTILE), st.sampled_from(EVERYBODY), st.integers(20, 60))
@settings(max_examples=2, deadline=None)
def test_order_and_names_change_nothing_and_another_patient_two_at_most(
    order: list[int], kind: str, patient: str, number: int
) -> None:
    """In integers, so that a sum in another order is the same to the last bit."""
    whole = total([kind], PEOPLE)
    names = {name: f"{name}-renamed" for name in EVERYBODY}
    renamed = [
        replace(one, patient_id=names[one.patient_id], also_patients=tuple(names[name] for name in one.also_patients))
        for one in PEOPLE
    ]
    np.testing.assert_array_equal(total([kind], renamed), whole)
    several = [row for row in order if PEOPLE[row].patient_id != "dan"]  # four frames, of which three are looked at
    dan = [row for row in range(len(PEOPLE)) if PEOPLE[row].patient_id == "dan"]
    np.testing.assert_array_equal(total([kind], [PEOPLE[row] for row in (*several, *dan)]), whole)
    replaced = [*without(patient), *(person(number + extra, patient, odd=True) for extra in range(5))]
    assert np.linalg.norm(whole - total([kind], replaced)) <= 2.0


@pytest.mark.parametrize(("unit", "key"), [("frame", "picture"), ("record", "record_id")])
def test_smaller_units_are_bounded_too(unit: str, key: str) -> None:
    some = PEOPLE[2:6] + PEOPLE[9:11]
    whole = total(["huge"], some, unit=unit)
    for name in sorted({getattr(record, key) for record in some})[::2]:
        rest = [record for record in some if getattr(record, key) != name]
        assert np.linalg.norm(whole - total(["huge"], rest, unit=unit)) <= 1.0


def test_a_unit_of_others_does_not_see_who_leaves() -> None:
    """Bit by bit: what is left when somebody goes is what was there of the others."""
    parts = {
        patient: total(
            ["random"], [r for r in PEOPLE if r.patient_id == patient and not r.also_patients and r.picture != "x"]
        )
        for patient in ("ada", "ben", "cleo", "dan", "finn", "gus")
    }
    np.testing.assert_array_equal(sum(parts.values()), total(["random"], PEOPLE))


def test_the_sum_is_that_of_a_loop_in_float64() -> None:
    cohort, model = Cohort(PEOPLE), network("random")
    predicted, _ = plain.predict(model, cohort, batch_size=1)
    expected = np.zeros(30)
    for rows in (
        [0, 1],
        [2],
        [3],
        [5, 7, 8],
        [11],
        [12],
    ):  # no picture of two; three of dan's four
        expected += loop_of_unit(model, cohort, predicted, rows)
    found, _ = _sum([model], cohort, index_units(cohort), EVALUATION, discrete=False)
    np.testing.assert_allclose(found["scores"].numpy() * 4.0, expected, rtol=1e-6, atol=1e-6)


def loop_of_unit(model: PoseModel, cohort: Cohort, predicted: np.ndarray, rows: list[int]) -> np.ndarray:
    right, wrong, loss = np.zeros(14), np.zeros(14), 0.0
    for row in rows:
        record = cohort.record(row)
        for joint in range(14):
            if record.visibility[joint] > 0 and record.scale > 0:
                gap = math.dist(predicted[row][joint].astype(float), record.joints[joint].astype(float))
                right[joint] += (gap <= 0.2 * record.scale) / len(rows)
                wrong[joint] += (gap > 0.2 * record.scale) / len(rows)
        loss += min(loss_of(model, cohort, row), EVALUATION.loss_clip) / EVALUATION.loss_clip / len(rows)
    return np.concatenate([right, wrong, [loss, 1.0]])


def loss_of(model: PoseModel, cohort: Cohort, row: int) -> float:
    from wardpose.shared.data import crops

    crop = crops.crop_record(cohort, row, CONFIG.input_size)
    with torch.no_grad():
        x, y = model(crops.to_tensor(crop.image[None]))
        joints, visibility = torch.from_numpy(crop.joints)[None].double(), torch.from_numpy(crop.visibility)[None]
        return float(simcc_loss(x.double(), y.double(), joints, visibility, SimCC.of(CONFIG)))


def test_two_networks_are_marked_side_by_side() -> None:
    alone = [total([kind], PEOPLE) * Layout(joints=14, pair=False).scale for kind in ("random", "other")]
    both = total(["random", "other"], PEOPLE) * Layout(joints=14, pair=True).scale
    shares = both[:56].reshape(4, 14)
    np.testing.assert_allclose(shares[0] + shares[1], alone[0][:14], atol=1e-4)
    np.testing.assert_allclose(shares[0] + shares[2], alone[1][:14], atol=1e-4)
    np.testing.assert_allclose(shares.sum(axis=0), alone[0][:14] + alone[0][14:28], atol=1e-4)
    np.testing.assert_allclose(both[56:58], [alone[0][28], alone[1][28]], atol=1e-4)


def test_what_leaves_carries_the_noise_that_was_ordered() -> None:
    cohort, model = Cohort(PEOPLE[:1]), network("random")
    nobody = index_units(cohort, without={"ada"})  # a sum over no units: what is left is the noise
    for discrete in (False, True):
        stream = seeded_streams(3).noise
        drawn = [
            noised_scores([model], cohort, nobody, EVALUATION, discrete=discrete, stream=stream) for _ in range(200)
        ]
        noise = np.array(drawn) / EVALUATION.noise_multiplier
        assert noise.std() == pytest.approx(1.0, abs=0.04)  # 6,000 draws: four standard errors
        assert noise.mean() == pytest.approx(0.0, abs=0.05)


def test_two_candidates_are_two_networks() -> None:
    weights = [{n: v.numpy().copy() for n, v in network(kind).state_dict().items()} for kind in ("random", "other")]
    first, second = candidates(build_model(CONFIG, seed=9), weights)
    for model, arrays in ((first, weights[0]), (second, weights[1])):
        assert all(np.array_equal(value.numpy(), arrays[name]) for name, value in model.state_dict().items())
