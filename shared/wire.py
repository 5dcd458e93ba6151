"""The messages between server and site, and the only place that knows Flower's record keys.

`RoundOrder` (server -> site) carries the global weights and how to train. `SiteRelease` (site -> server) carries a
noised update and facts that do not depend on any patient's data: they follow from the order, the site's own
configuration and the ledger. `EvaluationOrder` and `EvaluationRelease` are the same for scores on private patients. All
are signed (`seals`). A site that does not do what is asked answers with a `Refusal`: a number and a fixed sentence,
never the text of an exception.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.numpy import load, save

from wardpose.shared.errors import ConfigError, WireError
from wardpose.shared.pose.model import ModelConfig, check_strategy
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import Evaluation, Layout
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.refusals import Refusal as Refusal
from wardpose.shared.seals import MOST_CHARGES, MOST_RECEIPTS, Digest, Head, Word, body_text
from wardpose.shared.secure_aggregation.messages import Delivery
from wardpose.shared.signing import PublicKey, Signer
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.training.settings import LocalTraining, refuse_anchor, refuse_distributed, refuse_uplink
from wardpose.shared.yaml_config import describe

TRAIN = "train"
EVALUATE = "evaluate"
PREFLIGHT = "query.preflight"
PREFLIGHT_EVALUATION = "query.evaluation"
RECEIPTS = "query.receipts"
SECURE_KEYS, SECURE_SHARES = "query.keys", "query.shares"
SECURE_SURVIVORS, SECURE_UNMASK = "query.survivors", "query.unmask"
SECURE_PARTS = (SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK)
"""Messages of secure aggregation beside the order, in turn."""
PROTOCOL = 3
TOGETHER = "together"
"""Name of the one array that holds all arrays of an order: each that travels by itself costs several requests."""

COEFFICIENTS = "coefficients"
MASKED = "masked"
SCORES = "scores"
FIRST, SECOND = "first/", "second/"
"""In front of the names of the weights that an evaluation carries: of the one network, and of the other."""

LARGEST_BODY = 1 << 20
"""Most characters that the text beside the arrays may have."""

_LONGEST_REASON = 400
_LONGEST_NAME = 80

Arrays = Mapping[str, NDArray[np.float32]]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Entries = Annotated[int, Field(ge=0, le=2**53)]
Units = Annotated[int, Field(ge=0, le=10**9)]


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
        weights_hash: SHA-256 of all weights that the round starts from.
        code_hash: SHA-256 of the server's code.
        public_data: identity of the public data that a coefficient uplink refers to.
        resident: SHA-256 of the weights that do not come along, because no round changes them and the site has them
            from an earlier order; absent where all come along. A preflight asks by it whether the site has them.
        secure: of secure aggregation: what the other sites sealed for this one; absent in preflights.

    """

    protocol: int = PROTOCOL
    course: Course
    round: int = Field(ge=1)
    model: ModelConfig
    training: LocalTraining
    weights_hash: Hash
    code_hash: Hash
    public_data: Hash | None = None
    resident: Hash | None = None
    secure: Delivery | None = None

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        if self.protocol != PROTOCOL:
            raise ValueError(f"protocol is {self.protocol}; allowed: {PROTOCOL}")
        if self.model.weights != "random":
            raise ValueError(f'model.weights is "{self.model.weights[:80]}"; allowed: "random", the weights come along')
        if self.training.steps != self.course.steps:
            raise ValueError(f"training.steps is {self.training.steps}; the course declares {self.course.steps}")
        check_strategy(self.model, self.training.strategy)
        refuse_uplink(self.mechanism, self.training)
        refuse_anchor(self.mechanism, self.training)
        refuse_distributed(self.mechanism, self.training)
        if self.secure is not None and self.mechanism.distributed is None:
            raise ValueError("secure: shares come along, but the course declares no distributed noise")
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
    def reads_public_data(self) -> bool:
        """Whether a site needs public data of its own: for a basis, an anchor, or a judgement of its public view."""
        basis = self.mechanism.uses_basis and self.mechanism.projection.source == "public"
        return basis or self.judges_view or self.training.anchor is not None

    @property
    def judges_view(self) -> bool:
        """Whether public people decide if the site's public view is used."""
        return self.mechanism.uses_difference and self.mechanism.feature.max_difference is not None

    @property
    def first_step(self) -> int:
        """Noised gradients that the run took before this round: its position in a schedule."""
        return self.course.first_step(self.round)

    def events(self) -> tuple[Event, ...]:
        """Return what the round costs a site; both ledgers reserve exactly this."""
        return self.course.events(self.round)


class SiteAnswer(_Body):
    """What a site says of itself in every answer; signed by its node key.

    Attributes:
        protocol: version of this message.
        site: the site's name.
        key: public half of its node key.
        nonce: of the seal that it answers.
        order: hash of the order that it answers.
        code_hash: SHA-256 of the site's code.
        secure: whether the noise comes from a cryptographically secure generator; `False` is stamped "not private".
        ledger_sequence: entries in the site's ledger.
        ledger_head: hash of the last entry; a later, shorter ledger is thereby found out.
        server_ledger: head of the coordinator's ledger that the site remembers.
        receipts: hashes of the receipts that it has kept.
        words: that nothing was released for charges that the seal asked about; such an order is never carried out.
        epsilon_spent: of the cohort, all runs composed.
        epsilon_budget: of the cohort.
        delta: at which both are stated.

    """

    protocol: int = PROTOCOL
    site: str
    key: Annotated[str, Field(max_length=400)]
    nonce: Digest
    order: Digest
    code_hash: Hash
    secure: bool
    ledger_sequence: Entries
    ledger_head: Hash
    server_ledger: Head
    receipts: Annotated[tuple[Digest, ...], Field(max_length=MOST_RECEIPTS)] = ()
    words: Annotated[tuple[Word, ...], Field(max_length=MOST_CHARGES)] = ()
    epsilon_spent: float = Field(ge=0)
    epsilon_budget: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)


class ReceiptsOrder(_Body):
    """Nothing is asked: the seal brings receipts, and the answer says which of them were kept.

    Attributes:
        protocol: version of this message.
        run: that has ended.

    """

    protocol: int = PROTOCOL
    run: str


class ReceiptsKept(SiteAnswer):
    """A site's answer to receipts; its attributes are those of every answer."""


class SiteRelease(SiteAnswer):
    """What leaves a site after a round, beside the update itself.

    Attributes:
        run: identity of the run.
        round: counted from 1.
        mechanism: as ordered.
        steps: noised gradients taken; as ordered.
        weights_hash: weights that the update starts from.
        arrays: SHA-256 of the arrays that come along (`hash_arrays`).
        paid: the row of the site's ledger that charged the round. The other attributes are those of every answer.

    """

    run: str
    round: int = Field(ge=1)
    mechanism: Mechanism
    steps: int = Field(ge=1)
    weights_hash: Hash
    arrays: Hash
    paid: Head
    ledger_sequence: Entries = Field(ge=1)


class WeightsWanted(SiteAnswer):
    """A site's answer to an order whose resident weights it lacks: nothing was carried out, and nothing charged.

    It is signed like every answer and names the seal that it answers, which is used up by it: whoever gets the whole
    order under the same charge afterwards may still get no more than one release for it. Its attributes are those of
    every answer.
    """


class EvaluationOrder(_Body):
    """What the server asks of a site in one evaluation on private patients.

    Attributes:
        protocol: version of this message.
        course: of the run; it declares the evaluation.
        number: of this evaluation in the run, counted from 1; a site answers each number once.
        model: the network, without weights.
        weights_hash: SHA-256 of the weights that come along: of one network, or of two that are compared.
        pair: whether there are two.
        code_hash: SHA-256 of the server's code.

    """

    protocol: int = PROTOCOL
    course: Course
    number: int = Field(ge=1, le=1_000_000)
    model: ModelConfig
    weights_hash: Hash
    pair: bool = False
    code_hash: Hash

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        if self.protocol != PROTOCOL:
            raise ValueError(f"protocol is {self.protocol}; allowed: {PROTOCOL}")
        if self.model.weights != "random":
            raise ValueError(f'model.weights is "{self.model.weights[:80]}"; allowed: "random", the weights come along')
        if self.course.evaluation is None:
            raise ValueError("course.evaluation is absent; allowed: what the course declares")
        return self

    @property
    def run(self) -> str:
        """Identity of the run."""
        return self.course.run

    @property
    def evaluation(self) -> Evaluation:
        """What is measured, and under which noise."""
        evaluation = self.course.evaluation
        if evaluation is None:  # refused above
            raise WireError("the course declares no evaluation")
        return evaluation

    @property
    def layout(self) -> Layout:
        """What stands where in the release."""
        return Layout(joints=len(get_skeleton(self.model.skeleton)), pair=self.pair)

    def events(self) -> tuple[Event, ...]:
        """Return what the evaluation costs a site; both ledgers reserve exactly this."""
        return self.course.evaluation_events()


class EvaluationRelease(SiteAnswer):
    """What leaves a site after an evaluation, beside the noised sum itself.

    Attributes:
        run: identity of the run.
        number: of the evaluation, as ordered.
        weights_hash: of the networks that were measured.
        arrays: SHA-256 of the sum that comes along (`hash_arrays`).
        paid: the row of the site's ledger that charged it. The other attributes are those of every answer.

    """

    run: str
    number: int = Field(ge=1)
    weights_hash: Hash
    arrays: Hash
    paid: Head
    ledger_sequence: Entries = Field(ge=1)


class SiteStatus(SiteAnswer):
    """A site's answer to a preflight: it would train this order, and what its ledger says now.

    Attributes:
        declared_units: the numbers of units that its site.yaml declares, by consent tier (the plain tier is ""): what
            noised sums are divided by, hence what decides how long its updates can be.
        resident: whether it has the weights that the order calls so. The other attributes are those of every answer.

    """

    declared_units: dict[str, Units]
    resident: bool = False


Body = TypeVar("Body", bound=BaseModel)
_LARGEST_BODY = 1 << 20  # characters; the longest schedule is a tenth of it
_LARGEST_HEADER = 4096  # bytes in front of an array's numbers
_SHOWN = 160  # characters of what a stranger wrote


def hash_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, shapes, types and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def pair_arrays(first: Arrays, second: Arrays | None = None) -> dict[str, NDArray[np.float32]]:
    """Name the weights of one network, or of two, as an evaluation carries them; `part_arrays` is the inverse."""
    named = {f"{FIRST}{name}": value for name, value in first.items()}
    return named | {f"{SECOND}{name}": value for name, value in (second or {}).items()}


def part_arrays(arrays: Arrays, *, pair: bool) -> list[dict[str, NDArray[np.float32]]]:
    """Return the weights of each network that an evaluation carries.

    Raises:
        WireError: a name is of neither.

    """
    prefixes = (FIRST, SECOND) if pair else (FIRST,)
    odd = next((name for name in arrays if not name.startswith(prefixes)), None)
    if odd is not None:
        raise WireError(f'array "{odd[:_LONGEST_NAME]}" is of none of the networks that the order names')
    return [
        {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        for prefix in prefixes
    ]


def pack(
    body: BaseModel, arrays: Mapping[str, NDArray[Any]] | None = None, *, signer: Signer | None = None
) -> RecordDict:
    """Express a body, and arrays where it has some, in Flower's records; signed where a site answers."""
    text = body.model_dump_json()
    fields = {"json": text}
    if signer is not None:
        fields["signature"] = signer.sign(type(body).__name__, text.encode())
    records: dict[str, ArrayRecord | ConfigRecord] = {"body": ConfigRecord(dict(fields))}
    if arrays is not None:
        records["arrays"] = pack_arrays(arrays)
    return RecordDict(records)  # type: ignore[arg-type]  # Flower annotates an invariant dict of the union


def pack_arrays(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Express arrays in Flower's record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def pack_together(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Express arrays in Flower's record as one, which holds them as a safetensors file does, bit by bit."""
    plain = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    return ArrayRecord({TOGETHER: Array(np.frombuffer(save(plain), np.uint8))})


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
    if set(arrays) != {TOGETHER}:
        return arrays
    try:
        return dict(load(arrays[TOGETHER].tobytes()))
    except Exception as error:  # likewise safetensors
        raise WireError(f"the arrays cannot be read ({type(error).__name__})") from error


@dataclass(frozen=True, kw_only=True)
class ArrayForm:
    """What an array on the wire must be, exactly.

    Attributes:
        shape: its shape.
        dtype: its type, byte order included.

    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def unpack_body(content: object, kind: type[Body], *, arrays: bool) -> Body:
    """Read a body from a message whose sender is not trusted; nothing but the agreed records may be in it.

    Args:
        content: what the message holds.
        kind: the body that is expected.
        arrays: whether arrays come along; `unpack_arrays` reads them.

    Raises:
        WireError: a record is missing, superfluous or malformed, or the body is of another protocol.

    """
    if not isinstance(content, RecordDict):
        raise WireError(f"the message holds {_shown(type(content).__name__)}, not records")
    expected = {"body": ConfigRecord} | ({"arrays": ArrayRecord} if arrays else {})
    for name, record in expected.items():
        if not isinstance(content.get(name), record):
            raise WireError(f'record "{name}" is missing or of another type')
    if len(content) != len(expected):
        raise WireError(f"{len(content)} records (allowed: {', '.join(expected)})")
    fields = dict(content.config_records["body"])
    text = fields.get("json")
    if set(fields) != {"json", "signature"} or not isinstance(text, str) or not isinstance(fields["signature"], str):
        raise WireError('record "body" does not hold the two texts "json" and "signature"')
    if len(text) > _LARGEST_BODY:
        raise WireError(f"the body has {len(text)} characters (allowed: {_LARGEST_BODY})")
    try:
        body = kind.model_validate_json(text)
    except ValidationError as error:
        raise WireError(_shown(f"{kind.__name__}: {describe(error)}")) from error
    if getattr(body, "protocol", PROTOCOL) != PROTOCOL:
        raise WireError(f"{kind.__name__}: protocol is not {PROTOCOL}")
    return body


def check_signed(content: RecordDict, kind: type[BaseModel], key: PublicKey) -> None:
    """Check that a body that `unpack_body` has read was signed by a site's key.

    Raises:
        SignatureError: it was not.

    """
    key.verify(kind.__name__, body_text(content).encode(), str(content.config_records["body"]["signature"]))


def unpack_arrays(content: RecordDict, forms: Sequence[Mapping[str, ArrayForm]]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a message whose sender is not trusted; they must have one of the given forms, exactly.

    Sizes are compared before anything is allocated, and no bytes but those of plain numbers are interpreted.

    Args:
        content: of which `unpack_body` has read the body.
        forms: the sets of arrays that are allowed.

    Raises:
        WireError: names, number, shapes, types or bytes are others.

    """
    received = content.array_records["arrays"]
    form = next((form for form in forms if len(form) == len(received) and set(form) == set(received)), None)
    if form is None:
        raise WireError(f"{len(received)} arrays whose names are not those of the trained weights")
    return {name: _read_array(name, received[name], form[name]) for name in form}


def _read_array(name: str, array: Array, form: ArrayForm) -> NDArray[Any]:
    """Read numpy's own format; one that is refused here may be anything, so its bytes are not believed anywhere."""
    size = int(np.prod(form.shape, dtype=np.int64)) * form.dtype.itemsize
    data = bytes(array.data)
    file = BytesIO(data[:_LARGEST_HEADER])
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file, max_header_size=_LARGEST_HEADER)
    except (ValueError, KeyError, SyntaxError, TypeError, RecursionError, MemoryError, EOFError) as error:
        raise WireError(f'array "{name}" cannot be read') from error
    if shape != form.shape or dtype != form.dtype or fortran:
        order = " in column order" if fortran else ""
        raise WireError(_shown(f'array "{name}" is {dtype} {shape}{order} (allowed: {form.dtype} {form.shape})'))
    start = file.tell()
    if array.stype != "numpy.ndarray" or len(data) - start != size:
        raise WireError(f'array "{name}" has {len(data) - start} bytes of numbers (allowed: {size})')
    return np.frombuffer(data, form.dtype, offset=start).reshape(form.shape)


def _shown(text: str) -> str:
    """Cut what a stranger wrote to what fits on a line of a log."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:_SHOWN])
    return line + ("..." if len(text) > _SHOWN else "")


def refusal(code: Refusal, reply_to: Message) -> Message:
    """Return the error reply for a refusal."""
    return Message(Error(code=int(code), reason=code.sentence), reply_to=reply_to)
