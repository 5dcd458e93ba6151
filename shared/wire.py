"""The messages between server and site, and the only place that knows Flower's record keys.

`RoundOrder` (server -> site) carries the global weights and how to train. `SiteRelease` (site -> server) carries a
noised update and facts that do not depend on any patient's data: they follow from the order, the site's own
configuration and the ledger. A site that does not train answers with a `Refusal`: a number and a fixed sentence, never
the text of an exception.
"""

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Self, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wardpose.shared.errors import WireError
from wardpose.shared.pose.model import ModelConfig
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.settings import LocalTraining, refuse_uplink
from wardpose.shared.yaml_config import describe

TRAIN = "train"
PREFLIGHT = "query.preflight"
PROTOCOL = 2
COEFFICIENTS = "coefficients"

Arrays = Mapping[str, NDArray[np.float32]]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Refusal(IntEnum):
    """Why a site did not train; the number and the sentence are all that the server hears."""

    POLICY = 1001
    BUDGET = 1002
    CODE = 1003
    ORDER = 1004
    SITE = 1005
    FAILED = 1006

    @property
    def sentence(self) -> str:
        """Return the fixed text that goes with the number."""
        return _SENTENCES[self]


_SENTENCES = {
    Refusal.POLICY: "the site's policy does not allow this order",
    Refusal.BUDGET: "the site's privacy budget does not allow this round",
    Refusal.CODE: "the site runs other code than the server",
    Refusal.ORDER: "the order cannot be read",
    Refusal.SITE: "the site's configuration cannot be used",
    Refusal.FAILED: "the site failed; its own journal says why",
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class RoundOrder(_Body):
    """What the server asks of a site in one round.

    Attributes:
        protocol: version of this message.
        run: identity of the run; it survives a resume.
        federation: name of the federation.
        round: counted from 1.
        model: the network, without weights.
        training: how the site trains locally, from the plan.
        mechanism: how each gradient is made private.
        first_step: number of noised gradients the run took before this round (position in a schedule).
        weights_hash: SHA-256 of the weights that come along.
        code_hash: SHA-256 of the server's code.
        public_data: identity of the public data that a coefficient uplink refers to.

    """

    protocol: int = PROTOCOL
    run: str
    federation: str
    round: int = Field(ge=1)
    model: ModelConfig
    training: LocalTraining
    mechanism: Mechanism
    first_step: int = Field(default=0, ge=0)
    weights_hash: Hash
    code_hash: Hash
    public_data: Hash | None = None

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        refuse_uplink(self.mechanism, self.training)
        return self

    def events(self) -> tuple[Event, ...]:
        """Return what the round costs a site; both ledgers reserve exactly this."""
        return self.mechanism.events(self.training.steps, first=self.first_step)


class SiteRelease(_Body):
    """What leaves a site after a round, beside the update itself.

    Attributes:
        protocol: version of this message.
        site: the site's name.
        run: identity of the run.
        round: counted from 1.
        mechanism: as ordered.
        steps: noised gradients taken; as ordered.
        weights_hash: weights that the update starts from.
        code_hash: SHA-256 of the site's code.
        secure: whether the noise came from a cryptographically secure generator; `False` is stamped "not private".
        ledger_sequence: entries in the site's ledger.
        ledger_head: hash of the last entry; a later, shorter ledger is thereby found out.
        epsilon_spent: of the cohort, all runs composed, after this round.
        epsilon_budget: of the cohort.
        delta: at which both are stated.

    """

    protocol: int = PROTOCOL
    site: str
    run: str
    round: int = Field(ge=1)
    mechanism: Mechanism
    steps: int = Field(ge=1)
    weights_hash: Hash
    code_hash: Hash
    secure: bool
    ledger_sequence: int = Field(ge=1)
    ledger_head: Hash
    epsilon_spent: float = Field(ge=0)
    epsilon_budget: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


class SiteStatus(_Body):
    """A site's answer to a preflight: it would train this order, and what its ledger says now."""

    protocol: int = PROTOCOL
    site: str
    code_hash: Hash
    secure: bool
    ledger_sequence: int = Field(ge=0)
    ledger_head: Hash
    epsilon_spent: float = Field(ge=0)
    epsilon_budget: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


Body = TypeVar("Body", bound=_Body)


def hash_arrays(arrays: Arrays) -> str:
    """SHA-256 over names, shapes, types and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def pack(body: _Body, arrays: Arrays | None = None) -> RecordDict:
    """Express a body, and arrays where it has some, in Flower's records."""
    records: dict[str, ArrayRecord | ConfigRecord] = {"body": ConfigRecord({"json": body.model_dump_json()})}
    if arrays is not None:
        records["arrays"] = ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})
    return RecordDict(records)  # type: ignore[arg-type]  # Flower annotates an invariant dict of the union


def unpack(content: RecordDict, kind: type[Body]) -> tuple[Body, dict[str, NDArray[np.float32]]]:
    """Read a body of the expected kind and its arrays (empty where it has none).

    Raises:
        WireError: a record is missing or malformed; names the key.

    """
    bodies = content.config_records
    if "body" not in bodies or not isinstance(bodies["body"].get("json"), str):
        raise WireError('record "body" with the text "json" is missing')
    try:
        body = kind.model_validate_json(str(bodies["body"]["json"]))
    except ValidationError as error:
        raise WireError(f"{kind.__name__}: {describe(error)}") from error
    records = content.array_records
    arrays = {name: value.numpy() for name, value in records["arrays"].items()} if "arrays" in records else {}
    return body, arrays


def refusal(code: Refusal, reply_to: Message) -> Message:
    """Return the error reply for a refusal."""
    return Message(Error(code=int(code), reason=code.sentence), reply_to=reply_to)
