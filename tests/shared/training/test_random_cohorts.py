"""Neighbouring data sets of every shape: whoever is taken away, a whole step moves by the clip norm at most.

From records and pictures to the sums that are noised, nothing left out: who owns a picture, augmented views, rows,
public views, sampling, gradients, queries. Each unit draws the same of its rows in both data sets, as independent
draws may be coupled.
"""

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engine import make_mechanism, make_model, make_public, make_step, private_sums

from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.anonymize.public_view import DesensitisedCrop, Geometry, PublicView
from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.errors import DataError
from wardpose.shared.privacy.clipping import MARGIN
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.skeleton import LSP14
from wardpose.shared.training import cohort as cohort_module
from wardpose.shared.training.cohort import CohortData, build_cohort
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.settings import LocalTraining
from wardpose.shared.vectors import Vector

CLIP = 0.05  # far below what gradients are, so that everybody is clipped
VIEW = PublicView(DesensitisedCrop(Desensitise(kind="mosaic", strength=8)), Geometry(height=64, width=32))
Picture = tuple[tuple[str, ...], int]  # who is annotated in it, and a seed of its pixels


class Ward:
    """Pictures, each with one record for everybody who is annotated in it."""

    name = "ward"
    skeleton = LSP14

    def __init__(self, pictures: dict[str, Picture]) -> None:
        self.notes: list[str] = []
        self.pictures = pictures
        self.people = [(name, person) for name, (people, _) in pictures.items() for person in people]

    def __len__(self) -> int:
        return len(self.people)

    def record(self, index: int) -> PoseRecord:
        picture, person = self.people[index]
        generator = np.random.default_rng([*f"{picture}/{person}".encode()])
        corner = generator.uniform(0, 20, 2)
        return PoseRecord(
            record_id=f"{picture}:{person}",
            patient_id=person,
            joints=generator.uniform(5, 55, (14, 2)).astype(np.float32),
            visibility=np.full(14, 2, np.uint8),
            box=np.array([*corner, 30, 40], np.float32),
            scale=40.0,
            head_size=None,
            area=600.0,
            picture=picture,
        )

    def frame(self, index: int) -> Frame:
        seed = self.pictures[self.people[index][0]][1]
        return np.random.default_rng(seed).integers(0, 256, (70, 60, 3), dtype=np.uint8)

    def identity(self) -> str:
        return repr(sorted(self.pictures.items()))


def without(ward: Ward, gone: str, unit: str) -> Ward:
    """The neighbour: without a patient's pictures, without a picture, or without a record."""
    if unit == "patient":
        return Ward({name: picture for name, picture in ward.pictures.items() if gone not in picture[0]})
    if unit == "frame":
        return Ward({name: picture for name, picture in ward.pictures.items() if name != gone})
    picture, person = gone.split(":")
    people, seed = ward.pictures[picture]
    kept = tuple(other for other in people if other != person)
    return Ward({**ward.pictures, picture: (kept, seed)} if kept else
                {name: value for name, value in ward.pictures.items() if name != picture})  # fmt: skip


def first_rows(rows: np.ndarray, frames: int, stream: object) -> np.ndarray:
    return np.resize(rows, frames)


@pytest.fixture(scope="module")
def engine() -> UnitGradients:
    return UnitGradients(make_model(torch.float32), "head", micro_batch=3)


def sums(
    ward: Ward, engine: UnitGradients, mechanism: Mechanism, views: int, tiers: dict[str, str], at: Vector
) -> torch.Tensor | None:
    """The sum of one step in which everybody takes part, before noise; `None` where nobody is left."""
    training = LocalTraining(
        strategy="head", augmented_views=views, augmentation=Augmentation(half_body=0.5 if views > 1 else 0.0)
    )
    try:
        data: CohortData = build_cohort(
            ward, engine._model, mechanism, training, public_view=VIEW if mechanism.uses_public_views else None,
            tiers=tiers if mechanism.tiers else None,
        )  # fmt: skip
    except DataError as error:
        if "no unit is left" not in str(error):
            raise
        return None
    declared = {"": 3, "careful": 3} if mechanism.tiers else 6
    public = make_public(12, engine=engine) if mechanism.uses_basis else None
    with patch.object(cohort_module, "draw_bag", first_rows):
        (found,) = private_sums(make_step(engine, data, mechanism, declared_units=declared, public=public), at)
    return found.total


people = st.lists(st.sampled_from(["ann", "bob", "cleo", "dan"]), min_size=1, max_size=3, unique=True).map(tuple)


@given(
    shown=st.lists(people, min_size=2, max_size=4),
    unit=st.sampled_from(["patient", "frame", "record"]),
    name=st.sampled_from(["dp-sgd", "projected", "feature", "feature-projective"]),
    views=st.sampled_from([1, 1, 3]),
    tiered=st.booleans(),
    exact=st.booleans(),
    magnitude=st.sampled_from([1.0, 1e-30, 30.0, 1e12]),
    data=st.data(),
)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_goes_moves_the_sum_by_the_clip_norm_at_most(
    engine: UnitGradients, shown: list[tuple[str, ...]], unit: str, name: str, views: int, tiered: bool, exact: bool,
    magnitude: float, data: st.DataObject,
) -> None:  # fmt: skip
    ward = Ward({f"p{number}": (who, number) for number, who in enumerate(shown)})
    mechanism = make_mechanism(
        name, unit=unit, frames_per_unit=2 if unit == "patient" else 1, max_grad_norm=CLIP, exact_noise=exact,
        tiers={"careful": 1.0} if tiered and unit == "patient" else {},
    )  # fmt: skip
    if name.endswith("projective") or name == "projected":
        mechanism = mechanism.model_copy(
            update={"projection": mechanism.projection.model_copy(update={"min_captured_energy": 0.0})}
        )
    tiers = {"ann": "careful"}
    at = {key: value * magnitude for key, value in engine.parameters().items()}
    whole = sums(ward, engine, mechanism, views, tiers, at)
    if whole is None:
        return
    units = {"patient": [*dict.fromkeys(person for who in shown for person in who)], "frame": list(ward.pictures),
             "record": [f"{picture}:{person}" for picture, person in ward.people]}[unit]  # fmt: skip
    gone = data.draw(st.sampled_from(units))
    rest = sums(without(ward, gone, unit), engine, mechanism, views, tiers, at)
    moved = whole if rest is None else whole - rest
    assert bool(torch.isfinite(moved).all())
    assert float(moved.norm()) <= CLIP * (1 + 1e-9)


def everybody_once() -> Iterator[tuple[str, str]]:
    for name in ("first", "middle", "last"):
        for views in ("1", "3"):
            yield name, views


@pytest.mark.parametrize(("which", "views"), everybody_once())
def test_the_bound_is_reached(engine: UnitGradients, which: str, views: str) -> None:
    """Whoever goes takes a clip norm along, neither more nor much less: a looser bound would be seen."""
    ward = Ward({f"p{number}": ((person,), number) for number, person in enumerate(("ann", "bob", "cleo"))})
    gone = {"first": "ann", "middle": "bob", "last": "cleo"}[which]
    mechanism = replace_clip(make_mechanism("dp-sgd", frames_per_unit=int(views)))
    at = engine.parameters()
    whole, rest = (
        sums(found, engine, mechanism, int(views), {}, at) for found in (ward, without(ward, gone, "patient"))
    )
    assert whole is not None
    assert rest is not None
    assert float((whole - rest).norm()) == pytest.approx(CLIP * MARGIN, rel=3.1e-5)


def replace_clip(mechanism: Mechanism) -> Mechanism:
    return mechanism.model_copy(update={"max_grad_norm": CLIP})


def test_a_picture_of_two_is_nobodys_alone(engine: UnitGradients) -> None:
    """A crop of one shows the other beside them: with the picture kept, one patient would move two units."""
    mechanism = replace_clip(make_mechanism("dp-sgd", frames_per_unit=1))
    pair, alone = {"p0": (("ann", "bob"), 0)}, {"p1": (("cleo",), 1)}
    both, one = (
        sums(Ward(pair | alone), engine, mechanism, 1, {}, engine.parameters()),
        sums(Ward(alone), engine, mechanism, 1, {}, engine.parameters()),
    )
    assert both is not None
    assert one is not None
    assert torch.equal(both, one)
    kept = build_cohort(Ward(pair | alone), engine._model, mechanism, LocalTraining(), multi_owner="one-owner-group")
    assert kept.units.names == ("ann+bob", "cleo")
    frames = build_cohort(Ward(pair | alone), engine._model, replace_unit(mechanism), LocalTraining())
    assert [len(frames.units.rows(unit)) for unit in range(2)] == [2, 1]  # one picture is one unit


def replace_unit(mechanism: Mechanism) -> Mechanism:
    return Mechanism.model_validate(mechanism.model_dump() | {"unit": "frame", "frames_per_unit": 1})
