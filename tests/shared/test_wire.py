import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from pydantic import ValidationError
from support.orders import make_order

from wardpose.shared.errors import WireError
from wardpose.shared.messages import RoundOrder, SiteRelease
from wardpose.shared.privacy.mechanisms import Mechanism, ProjectionOptions
from wardpose.shared.refusals import Refusal
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.wire import hash_arrays, pack, refusal, unpack


def order(mechanism: Mechanism | None = None, **changes: object) -> RoundOrder:
    training = changes.pop("training", LocalTraining(steps=3))
    return make_order(mechanism, training=training, **changes)


def test_a_body_and_its_arrays_survive_the_wire() -> None:
    arrays = {
        "a.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
        "b": np.zeros(0, np.float32),
    }
    body, received = unpack(pack(order(), arrays), RoundOrder)
    assert body == order()
    assert hash_arrays(received) == hash_arrays(arrays)
    np.testing.assert_array_equal(received["a.weight"], arrays["a.weight"])


def test_an_order_that_cannot_be_carried_out_is_no_order() -> None:
    """Refused when it is read: nothing was charged yet."""
    uplink = Mechanism(name="projected", noise_multiplier=1.0, projection=ProjectionOptions(uplink="coefficients"))
    sgd = LocalTraining(optimizer=OptimizerConfig(name="sgd"))
    assert order(mechanism=uplink, training=sgd).training.precision == "float32"
    for training in (LocalTraining(), sgd.model_copy(update={"precision": "bfloat16"})):
        with pytest.raises(ValidationError, match='"coefficients" needs'):
            order(mechanism=uplink, training=training)


def test_the_hash_sees_names_shapes_and_values() -> None:
    base = {"a": np.zeros((2, 3), np.float32)}
    others = [
        {"b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros((3, 2), np.float32)},
        {"a": np.full((2, 3), 1e-30, np.float32)},
    ]
    assert len({hash_arrays(value) for value in [base, *others]}) == 4


def test_an_infinite_epsilon_survives_the_wire() -> None:
    release = SiteRelease(
        site="a",
        run="r",
        round=1,
        mechanism=Mechanism(name="none"),
        steps=1,
        weights_hash="0" * 64,
        arrays="0" * 64,
        paid=(2, "0" * 64),
        key="ecdsa-sha2-nistp384 AAAA",
        nonce="0" * 64,
        order="0" * 64,
        server_ledger=(0, "0" * 64),
        code_hash="0" * 64,
        secure=True,
        ledger_sequence=2,
        ledger_head="0" * 64,
        epsilon_spent=float("inf"),
        epsilon_budget=8.0,
        delta=1e-5,
    )
    assert unpack(pack(release), SiteRelease)[0].epsilon_spent == float("inf")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RecordDict(), 'record "body"'),
        (RecordDict({"body": ConfigRecord({"json": "{"})}), "RoundOrder"),
        (RecordDict({"body": ConfigRecord({"json": '{"run": "r"}'})}), "course: missing"),
    ],
)
def test_a_malformed_message_is_named(content: RecordDict, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack(content, RoundOrder)


def test_a_release_has_no_field_for_what_depends_on_patients() -> None:
    fields = dict.fromkeys(["loss", "num_examples", "batch_size", "seconds", "norm", "message"], 1)
    for name, value in fields.items():
        with pytest.raises(ValidationError):
            SiteRelease.model_validate({name: value})
    assert not set(SiteRelease.model_fields) & set(fields)


def test_a_refusal_carries_a_number_and_a_fixed_sentence_only() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    reply = refusal(Refusal.BUDGET, Message(RecordDict(), 100, "train"))
    assert (reply.error.code, reply.error.reason) == (1002, Refusal.BUDGET.sentence)
    assert len({code.sentence for code in Refusal}) == len(Refusal)


def test_an_order_names_parameters_that_its_network_has() -> None:
    few = LocalTraining(strategy=("film", "head.maps.*"))
    again = RoundOrder.model_validate_json(order(training=few).model_dump_json())
    assert again.training.strategy == ("film", "head.maps.*")
    with pytest.raises(ValidationError, match=r'"backbone.stages.9.\*" names no parameter'):
        order(training=LocalTraining(strategy=("maps", "backbone.stages.9.*")))
