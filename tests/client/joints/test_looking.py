"""How often a patient who is followed is searched for again."""

import numpy as np
import pytest
from support.figures import Discs, joints_in, scene

from wardpose.client.joints.looking import OnePatient
from wardpose.client.joints.reels import Shot
from wardpose.shared.pose.estimators import Estimates

HERE, THERE = (20, 20, 40, 80), (100, 20, 40, 80)


class Unsure(Discs):
    """Is surest in the close crop of a search, and never lost for an answer on empty ground."""

    def __init__(self) -> None:
        super().__init__()
        self.unsure = False
        self.searches = 0

    def __call__(self, crops: np.ndarray) -> Estimates:
        found = super().__call__(crops)
        searching = len(crops) in (26, 17, 10)  # the windows of all sizes, and those of the patient's
        self.searches += searching
        scores = np.where(found.scores > 0, 0.35 if self.unsure and not searching else 0.9, 0.3)
        return Estimates(found.joints, scores.astype(np.float32))


@pytest.fixture
def unsure() -> Unsure:
    return Unsure()


def followed(look: OnePatient, box: tuple[int, ...], count: int) -> list[np.ndarray]:
    shot, frame = Shot(source="a", number=0, time=None), scene([box])
    return [people[0].joints for _ in range(count // 8) for people in look([(shot, frame)] * 8)]


def test_doubt_that_is_unfounded_again_and_again_waits_longer_and_longer(unsure: Unsure) -> None:
    look = OnePatient(unsure, linked=True, batch_size=32)
    followed(look, HERE, 8)
    assert unsure.searches == 1
    unsure.unsure = True
    joints = followed(look, HERE, 400)
    assert unsure.searches - 1 in (4, 5)  # after 25, 50, 100, 200 frames
    assert max(np.abs(each - joints_in(HERE)).max() for each in joints) < 1.5


def test_who_is_somewhere_else_is_found_there_and_doubted_soon_again(unsure: Unsure) -> None:
    look = OnePatient(unsure, linked=True, batch_size=32)
    unsure.unsure = True
    followed(look, HERE, 104)
    before = unsure.searches
    joints = followed(look, THERE, 128)
    away = [n for n, each in enumerate(joints) if np.abs(each - joints_in(THERE)).max() > 1.5]
    assert unsure.searches > before
    assert len(away) <= 100  # the longest that doubt had to wait after two that were unfounded
    assert away == list(range(len(away)))
    assert look.state()["patience"] >= 25


def test_what_is_known_of_a_patient_is_kept_between_two_runs(unsure: Unsure) -> None:
    look = OnePatient(unsure, linked=True, batch_size=32)
    unsure.unsure = True
    followed(look, HERE, 64)
    again = OnePatient(unsure, linked=True, batch_size=32)
    again.restore(look.state())
    assert again.state() == look.state()
    assert np.array_equal(followed(again, HERE, 64), followed(look, HERE, 64))
