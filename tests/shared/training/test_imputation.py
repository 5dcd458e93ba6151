"""h is a function of public people; whatever it makes of a view, a patient moves the noised sum by C at most."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.engine import (
    CLIP,
    make_cohort,
    make_mechanism,
    make_model,
    make_public,
    make_rows,
    make_step,
    private_sums,
    public_part,
    with_rows,
    without_unit,
)
from support.orders import make_order

from wardpose.shared.anonymize.public_view import Geometry, PublicView
from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.errors import ConfigError
from wardpose.shared.messages import RoundOrder
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism
from wardpose.shared.skeleton import LSP14
from wardpose.shared.training.cache import build_rows, cache_bytes, delete_cache
from wardpose.shared.training.cohort import CohortData, build_cohort, build_public
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.imputation import FeatureNetwork, Imputer, Recipe, make_imputer, split_people
from wardpose.shared.training.settings import LocalTraining
from wardpose.shared.training.turned import Turned

SMALL = Recipe(pairs=20, copies=2, epochs=6, batch=8, width=32)
NOBODY = np.zeros(0, np.int64)


class People:
    """Random smooth frames of people, one a person unless told otherwise; counts how often one is read."""

    skeleton = LSP14

    def __init__(self, count: int = 10, *, pixels: int = 0, people: int | None = None, shared_picture: bool = False):
        self.name, self.notes, self.reads = "people", list[str](), 0
        generator = np.random.default_rng(1)
        self._joints = generator.uniform(10, 70, (count, 14, 2)).astype(np.float32)
        coarse = np.random.default_rng(pixels).integers(0, 256, (count, 12, 10, 3), dtype=np.uint8)
        self._frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
        self._people, self._shared, self._identity = people or count, shared_picture, f"people-{count}-{pixels}"

    def __len__(self) -> int:
        return len(self._frames)

    def record(self, index: int) -> PoseRecord:
        return PoseRecord(
            record_id=f"r{index}",
            patient_id=f"p{index % self._people}",
            joints=self._joints[index],
            visibility=np.full(14, 2, np.uint8),
            box=np.array([8, 8, 64, 80], np.float32),
            scale=80.0,
            head_size=None,
            area=2000.0,
            picture="one" if self._shared else "",
        )

    def frame(self, index: int) -> Frame:
        self.reads += 1
        return self._frames[index]

    def identity(self) -> str:
        return self._identity


class Darken:
    name = "darken"
    keeps_scene = True

    def __call__(self, crop: Frame) -> Frame:
        return 255 - crop // 4

    def identity(self) -> str:
        return "darken"


class Blank(Darken):
    """Shows nothing of anybody."""

    def __call__(self, crop: Frame) -> Frame:
        return np.full_like(crop, 90)

    def identity(self) -> str:
        return "blank"


def view(change: Darken) -> PublicView:
    return PublicView(change, Geometry(height=64, width=32))


def model() -> PoseModel:
    return make_model(torch.float32)


def asked(name: str = "feature", **options: object) -> Mechanism:
    return make_mechanism(name, feature=FeatureOptions(impute=True, **options))


def trained(folder: Path | None = None, people: People | None = None) -> Imputer:
    return make_imputer(people or People(), model(), "maps", view(Darken()), folder=folder, recipe=SMALL)


@pytest.fixture(scope="module")
def imputer() -> Imputer:
    return trained()


def hostile(kind: str) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """A network whose weights somebody else wrote."""
    network = FeatureNetwork(model().backbone.num_features, 32).eval()
    value = {"tiny": 1e-30, "huge": 1e18, "infinite": float("inf"), "nan": float("nan")}[kind]
    with torch.no_grad():
        for parameter in [*network.leave.parameters(), network.share, network.deviation]:
            parameter.fill_(value)
    return Imputer(model(), "maps", network, NOBODY)


def imputed_cohort(engine: UnitGradients, chosen: Mechanism, kind: str) -> CohortData:
    data = make_cohort(chosen, (2, 1, 2), engine=engine)
    _, shown = make_rows(5, 0)
    return replace(data, public=replace(shown, inputs=hostile(kind)(shown.inputs)))


def test_features_of_people_it_has_not_seen_come_nearer_to_the_frames(imputer: Imputer) -> None:
    people = People()
    strangers = Turned(people, imputer.held_out, 1)
    frames, plain = build_rows(strangers, model(), "maps", folder=None, public_view=view(Darken()))
    same, imputed = build_rows(strangers, model(), "maps", folder=None, public_view=view(Darken()), impute=imputer)
    np.testing.assert_array_equal(same.inputs, frames.inputs)  # of the frames themselves nothing is imputed
    assert plain is not None
    assert imputed is not None
    before, after = (np.square(rows.inputs - frames.inputs).mean() for rows in (plain, imputed))
    assert after < 0.8 * before


def test_the_public_part_follows_from_the_view_alone(imputer: Imputer) -> None:
    """Other patients' pixels under the same view: the rows of the view and the public part stay, to the last bit."""
    chosen = asked(rate=1.0)
    cohorts = [
        build_cohort(
            People(6, pixels=pixels),
            model(),
            chosen,
            LocalTraining(strategy="maps"),
            public_view=view(Blank()),
            impute=imputer,
        )
        for pixels in (0, 7)
    ]
    engine = UnitGradients(model(), "maps", micro_batch=6)
    assert not np.array_equal(cohorts[0].private.inputs, cohorts[1].private.inputs)
    first, second = (public_part(make_step(engine, data, chosen), engine.parameters()) for data in cohorts)
    assert torch.equal(first, second)
    assert float(first.norm()) > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("feature", kind) for kind in ("tiny", "huge", "infinite", "nan")),
        *(("feature-projective", kind) for kind in ("huge", "nan")),
    ],
)
def test_a_patient_moves_the_sum_by_the_clip_norm_at_most_whatever_the_network_makes(name: str, kind: str) -> None:
    engine, chosen = UnitGradients(model(), "maps", micro_batch=6), asked(name)
    data, public = imputed_cohort(engine, chosen, kind), make_public(12, engine=engine)
    assert data.public is not None
    assert bool(np.isfinite(data.public.inputs).all())
    louder = with_rows(data, lambda rows: replace(rows, inputs=rows.inputs * 1e6), public=False)
    for cohort in (data, louder):
        whole = private_sums(make_step(engine, cohort, chosen, public=public), engine.parameters())[0].total
        assert bool(torch.isfinite(whole).all())
        for unit in (0, 1, 2):
            step = make_step(engine, without_unit(cohort, unit), chosen, public=public)
            without = private_sums(step, engine.parameters())[0].total
            assert float((whole - without).norm()) <= CLIP * (1 + 1e-6)
        shown = public_part(make_step(engine, cohort, chosen, public=public), engine.parameters())
        assert bool(torch.isfinite(shown).all())


def test_the_gate_asks_people_whom_the_network_has_not_seen() -> None:
    engine, chosen = UnitGradients(model(), "maps", micro_batch=6), asked(max_difference=0.9)
    data = make_cohort(chosen, (2, 1, 3), engine=engine)
    people = make_public(12, engine=engine)
    shown = people.rows.inputs.copy()
    shown[:8] *= -4  # a view that is bad on everybody whom the network knows
    public = replace(people, shown=replace(people.rows, inputs=shown), unseen=np.arange(8, 12))
    report = make_step(engine, data, chosen, public=public).view
    assert report is not None
    assert (report.ratio, report.used, report.people) == (pytest.approx(0, abs=1e-6), True, 4)
    assert "4 held-out public people, with imputed features" in str(report)
    plain = make_mechanism("feature", feature=FeatureOptions(max_difference=0.9))
    everybody = make_step(engine, data, plain, public=replace(public, unseen=None)).view
    assert everybody is not None
    assert everybody.ratio > 0.9
    assert "imputed" not in str(everybody)
    with pytest.raises(ConfigError, match="held out"):
        make_step(engine, data, chosen, public=replace(public, unseen=None))


def test_public_rows_are_judged_on_every_fifth_person(imputer: Imputer) -> None:
    people = People()
    public = build_public(
        people, model(), strategy="maps", public_view=view(Darken()), impute=imputer, unseen=imputer.held_out
    )
    train, held_out = split_people(people)
    assert public.unseen is not None
    assert public.unseen.tolist() == held_out.tolist()
    assert (len(train), len(held_out)) == (8, 2)
    assert public.shown is not None
    crops = build_rows(people, model(), "maps", folder=None, public_view=view(Darken()), features=False)[1]
    assert crops is not None
    torch.testing.assert_close(torch.from_numpy(public.shown.inputs), torch.from_numpy(imputer(crops.inputs)))


def test_nobody_held_out_is_in_a_picture_that_it_learns_from() -> None:
    train, held_out = split_people(People(20, people=7))
    owners = [People(20, people=7).record(index).patient_id for index in range(20)]
    assert {owners[row] for row in train}.isdisjoint(owners[row] for row in held_out)
    assert len(train) + len(held_out) == 20
    for few in (People(8, people=4), People(shared_picture=True)):
        with pytest.raises(ConfigError, match="at least 5 people"):
            split_people(few)


def test_it_is_kept_beside_the_cache_and_made_again_where_it_is_damaged(tmp_path: Path, imputer: Imputer) -> None:
    people = People()
    first = trained(tmp_path, people)
    assert first.identity == imputer.identity
    reads = people.reads
    assert trained(tmp_path, people).identity == first.identity
    assert people.reads == reads > 0
    weights = next(tmp_path.glob("imputed-*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8] + bytes(8))
    assert trained(tmp_path, people).identity == first.identity
    assert people.reads == 2 * reads
    assert cache_bytes(tmp_path) > weights.stat().st_size
    for change in (None, first):  # rows of one are not taken for those of the other
        build_rows(people, model(), "maps", folder=tmp_path, public_view=view(Darken()), impute=change)
    assert len(list(tmp_path.iterdir())) == 3
    delete_cache(tmp_path)
    assert not list(tmp_path.iterdir())


def test_turned_people_keep_their_joints_on_their_pixels() -> None:
    """A mark on a joint's pixel is where the turned record says the joint is, mirrored or not."""
    people = People(4)
    for index in range(4):
        joints = people.record(index).joints.round()
        people._joints[index] = joints
        people._frames[index] = 0
        x, y = (int(value) for value in joints[2])
        people._frames[index, y - 2 : y + 3, x - 2 : x + 3] = 255
    turned = Turned(people, np.arange(4), 4)
    mirrored = 0
    for index in range(16):
        record, frame = turned.record(index), turned.frame(index)
        marked = np.argwhere(frame[..., 0] > 128).mean(axis=0)[::-1]
        places = [2, int(np.argsort(LSP14.flip_order)[2])]
        near = [bool(np.linalg.norm(record.joints[place] - marked) < 2) for place in places]
        assert any(near)
        mirrored += not near[0]
        x, y, width, height = record.box
        assert x <= marked[0] <= x + width
        assert y <= marked[1] <= y + height
    assert 0 < mirrored < 16


def test_an_option_that_nobody_asks_for_changes_no_course() -> None:
    assert "impute" not in Mechanism().model_dump_json()
    assert Mechanism.model_validate_json(asked().model_dump_json()).imputes
    assert not make_mechanism("dp-sgd", feature=FeatureOptions(impute=True)).imputes
    with pytest.raises(ValueError, match="impute"):
        FeatureOptions.model_validate({"impute": "perhaps"})


def test_an_order_without_a_frozen_trunk_is_refused_and_others_need_public_people() -> None:
    order: RoundOrder = make_order(asked(), training=LocalTraining(strategy="maps"))
    assert order.reads_public_data
    with pytest.raises(ValueError, match=r"feature\.impute with training\.strategy"):
        make_order(asked(), training=LocalTraining(strategy="full"))
    with pytest.raises(ConfigError, match="frozen trunk"):
        make_imputer(People(), model(), "full", view(Darken()), recipe=SMALL)
    with pytest.raises(ConfigError, match="public data to learn from"):
        build_cohort(People(6), model(), asked(), LocalTraining(strategy="maps"), public_view=view(Blank()))
