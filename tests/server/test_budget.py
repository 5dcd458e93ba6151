"""The server's account: what was charged for frames bounds nothing that a patient loses."""

import math
from pathlib import Path

from wardpose.server.budget import GlobalBudget
from wardpose.shared.privacy.accounting import UnitKind
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.mechanisms import Mechanism


def course(unit: UnitKind) -> Course:
    mechanism = Mechanism(unit=unit, noise_multiplier=2.0, sample_rate=0.1)
    return Course(run=f"for-{unit}", federation="f", mechanism=mechanism, steps=20, last_round=5)


def charge(path: Path, unit: UnitKind) -> bool:
    budget = GlobalBudget(path, delta=1e-5, overlap=2, unit=unit)
    run = course(unit)
    affords = budget.affords("north", run.events(1), course=run, epsilon=8.0)
    charged = budget.reserve("north", run.events(1), course=run, round_number=1, epsilon=8.0)
    assert affords == charged
    return charged


def test_frames_are_not_counted_as_patients(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert charge(path, "frame")
    assert not charge(path, "patient")
    frames, patients = (GlobalBudget(path, delta=1e-5, overlap=2, unit=unit) for unit in ("frame", "patient"))
    assert 0 < frames.epsilon("north") < 8
    assert frames.federation(["north", "south"])[1] < 8
    assert patients.epsilon("north") == math.inf
    assert patients.federation(["north", "south"]) == (math.inf, math.inf)
    assert patients.epsilon("south") == 0


def test_what_protects_a_patient_protects_their_frames(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert charge(path, "patient")
    assert charge(path, "frame")
    assert 0 < GlobalBudget(path, delta=1e-5, overlap=1, unit="frame").epsilon("north") < 8


def test_a_unit_that_nobody_knows_is_taken_for_the_strongest(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert charge(path, "frame")
    assert GlobalBudget(path, delta=1e-5, overlap=1, unit="[/x]").epsilon("north") == math.inf
