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

from wardpose.shared.errors import ConfigError, WireError
from wardpose.shared.pose.model import ModelConfig
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.settings import LocalTraining, refuse_uplink
from wardpose.shared.yaml_config import describe

TRAIN = "train"
PREFLIGHT = "query.preflight"
PROTOCOL = 2
COEFFICIENTS = "coefficients"
LARGEST_BODY = 1 << 20
"""Most characters that the text beside the arrays may have."""

_LONGEST_REASON = 400
_LONGEST_NAME = 80

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
        course: everything that the run may ask of a site, fixed before its first round.
        round: counted from 1; of the course.
        model: the network, without weights.
        training: how the site trains locally, from the plan.
        weights_hash: SHA-256 of the weights that come along.
        code_hash: SHA-256 of the server's code.
        public_data: identity of the public data that a coefficient uplink refers to.

    """

    protocol: int = PROTOCOL
    course: Course
    round: int = Field(ge=1)
    model: ModelConfig
    training: LocalTraining
    weights_hash: Hash
    code_hash: Hash
    public_data: Hash | None = None

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        if self.protocol != PROTOCOL:
            raise ValueError(f"protocol is {self.protocol}; allowed: {PROTOCOL}")
        if self.model.weights != "random":
            raise ValueError(f'model.weights is "{self.model.weights[:80]}"; allowed: "random", the weights come along')
        if self.training.steps != self.course.steps:
            raise ValueError(f"training.steps is {self.training.steps}; the course declares {self.course.steps}")
        refuse_uplink(self.mechanism, self.training)
        try:
            self.events()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def run(self) -> str:
        """Identity of the run."""
        return self.course.run

    @property
    def federation(self) -> str:
        """Name of the federation."""
        return self.course.federation

    @property
    def mechanism(self) -> Mechanism:
        """How each gradient is made private."""
        return self.course.mechanism

    @property
    def first_step(self) -> int:
        """Noised gradients that the run took before this round: its position in a schedule."""
        return self.course.first_step(self.round)

    def events(self) -> tuple[Event, ...]:
        """Return what the round costs a site; both ledgers reserve exactly this."""
        return self.course.events(self.round)


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
    text = bodies["body"].get("json") if "body" in bodies else None
    if not isinstance(text, str):
        raise WireError('record "body" with the text "json" is missing')
    if len(text) > LARGEST_BODY:
        raise WireError(f"{kind.__name__}: its body has {len(text)} characters (allowed: at most {LARGEST_BODY})")
    try:
        body = kind.model_validate_json(text)
    except (ValidationError, ValueError, RecursionError) as error:
        said = describe(error) if isinstance(error, ValidationError) else type(error).__name__
        raise WireError(f"{kind.__name__}: {said[:_LONGEST_REASON]}") from error
    return body, _arrays(content)


def _arrays(content: RecordDict) -> dict[str, NDArray[np.float32]]:
    """Read a message's arrays; who uses them checks names, shapes and values."""
    records = content.array_records
    if "arrays" not in records:
        return {}
    arrays = {}
    for name, value in records["arrays"].items():
        try:
            arrays[name] = value.numpy()
        except Exception as error:  # whatever numpy makes of bytes that somebody else wrote
            raise WireError(f'array "{name[:_LONGEST_NAME]}" cannot be read ({type(error).__name__})') from error
    return arrays


def refusal(code: Refusal, reply_to: Message) -> Message:
    """Return the error reply for a refusal."""
    return Message(Error(code=int(code), reason=code.sentence), reply_to=reply_to)
