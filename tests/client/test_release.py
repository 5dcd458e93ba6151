import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from support.orders import make_order
from support.sealing import conversation

from wardpose.client.contact import Conversation
from wardpose.client.release import build_release, build_status
from wardpose.shared.errors import LedgerError, WireError
from wardpose.shared.messages import RoundOrder, SiteRelease, SiteStatus
from wardpose.shared.privacy.ledger import Budget, Ledger, Reservation
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.site_config import SiteConfig
from wardpose.shared.training.local import LocalUpdate
from wardpose.shared.training.settings import LocalTraining
from wardpose.shared.wire import check_signed, hash_arrays, pack, unpack

MECHANISM = Mechanism(name="dp-sgd", noise_multiplier=2.0, sample_rate=0.1)
ORDER = make_order(MECHANISM, training=LocalTraining(steps=3), federation="f", round_number=4, weights_hash="a" * 64)


def site(tmp_path: Path) -> SiteConfig:
    return SiteConfig.model_validate(
        {
            "site": "north",
            "cohort": {
                "name": "secret-cohort",
                "declared_patients": 77,
                "data": {"kind": "ward", "hospital": "north", "patients": 77, "frames_per_patient": 1, "seed": 0},
            },
            "ledger": tmp_path / "ledger.sqlite",
        }
    )


def asked(tmp_path: Path, order: RoundOrder = ORDER) -> Conversation:
    return conversation(tmp_path, pack(order))


def update(values: float = 0.5, mechanism: Mechanism = MECHANISM, steps: int = 3) -> LocalUpdate:
    return LocalUpdate(
        update={"head.x.weight": torch.full((2, 3), values)}, mechanism=mechanism, steps=steps, secure=True
    )


def reserved(book: Ledger) -> Reservation:
    return book.reserve(
        "secret-cohort", MECHANISM.events(3), run_id="r", round=4, budget=Budget(epsilon=8.0, delta=1e-5)
    )


def released(
    tmp_path: Path, book: Ledger, reservation: Reservation, made: LocalUpdate, *, order: RoundOrder
) -> tuple[RecordDict, int]:
    return build_release(
        site=site(tmp_path),
        order=order,
        update=made,
        ledger=book,
        reservation=reservation,
        conversation=asked(tmp_path),
    )


def test_a_paid_update_leaves_with_what_the_ledger_says(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    reservation = reserved(book)
    book.commit(reservation)
    content, size = released(tmp_path, book, reservation, update(), order=ORDER)
    release, arrays = unpack(content, SiteRelease)
    assert size == 24
    np.testing.assert_array_equal(arrays["head.x.weight"], np.full((2, 3), 0.5, np.float32))
    assert (release.ledger_sequence, release.ledger_head) == book.head()
    assert release.epsilon_spent == pytest.approx(book.epsilon("secret-cohort", delta=1e-5))
    assert release.arrays == hash_arrays(arrays)
    assert release.paid == (reservation.sequence, reservation.hash)
    check_signed(content, SiteRelease, asked(tmp_path).signer.public)
    everything = json.dumps({name: dict(record) for name, record in content.config_records.items()})
    assert "secret-cohort" not in everything
    facts = release.model_dump()
    for name in ("site", "run", "mechanism", "epsilon_spent", *(key for key in facts if len(str(facts[key])) > 60)):
        facts.pop(name, None)  # hashes and keys hold any two digits
    assert "77" not in str(facts)


def test_nothing_leaves_that_is_not_committed(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(LedgerError, match="not committed"):
        released(tmp_path, book, reserved(book), update(), order=ORDER)


def test_a_reservation_of_another_round_pays_for_nothing(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    reservation = reserved(book)
    book.commit(reservation)
    later = ORDER.model_copy(update={"round": 5})
    with pytest.raises(LedgerError, match="round 5"):
        released(tmp_path, book, reservation, update(), order=later)


@pytest.mark.parametrize(
    "wrong",
    [
        update(float("nan")),
        update(mechanism=MECHANISM.model_copy(update={"noise_multiplier": 0.1})),
        update(steps=4),
    ],
)
def test_an_update_that_was_not_ordered_or_is_not_finite_stays(tmp_path: Path, wrong: LocalUpdate) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    reservation = reserved(book)
    book.commit(reservation)
    with pytest.raises(WireError):
        released(tmp_path, book, reservation, wrong, order=ORDER)


def test_a_status_says_what_the_ledger_says(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    reserved(book)
    status, arrays = unpack(build_status(site=site(tmp_path), ledger=book, conversation=asked(tmp_path)), SiteStatus)
    assert arrays == {}
    assert status.epsilon_spent > 0
    assert (status.ledger_sequence, status.ledger_head) == book.head()
