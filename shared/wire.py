"""How messages (`shared/messages.py`) and their arrays travel, and the only place that knows Flower's record keys.

A message is a record with its body, as JSON, and the signature of a site's answer; its arrays are a record beside it. A
site that does not do what is asked answers with a `Refusal`: a number and a fixed sentence, never the text of an
exception.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from safetensors.numpy import load, save

from wardpose.shared.errors import WireError
from wardpose.shared.messages import PROTOCOL
from wardpose.shared.refusals import Refusal
from wardpose.shared.seals import body_text
from wardpose.shared.signing import PublicKey, Signer
from wardpose.shared.yaml_config import describe

TOGETHER = "together"
"""Name of the one array that holds all arrays of a message: each that travels by itself costs several requests."""

COEFFICIENTS = "coefficients"
MASKED = "masked"
SCORES = "scores"
FIRST, SECOND = "first/", "second/"
"""In front of the names of the weights that an evaluation carries: of the one network, and of the other."""

LARGEST_BODY = 1 << 20
"""Most characters that the text beside the arrays may have; the longest schedule is a tenth of it."""

_LONGEST_REASON = 400
_LONGEST_NAME = 80

Arrays = Mapping[str, NDArray[np.float32]]

Body = TypeVar("Body", bound=BaseModel)
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
        records["arrays"] = pack_together(arrays) if len(arrays) > 1 else pack_arrays(arrays)
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
    return body, arrays_of(content)


def arrays_of(content: RecordDict) -> dict[str, NDArray[np.float32]]:
    """Read a message's arrays, empty where it has none; who uses them checks names, shapes and values.

    Raises:
        WireError: one cannot be read.

    """
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
    if len(text) > LARGEST_BODY:
        raise WireError(f"the body has {len(text)} characters (allowed: {LARGEST_BODY})")
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

    Sizes are compared before anything is allocated, and no bytes but those of plain numbers are interpreted: arrays
    that travel as one begin with the very bytes that arrays of their form begin with.

    Args:
        content: of which `unpack_body` has read the body.
        forms: the sets of arrays that are allowed.

    Raises:
        WireError: names, number, shapes, types or bytes are others.

    """
    received = content.array_records["arrays"]
    if set(received) == {TOGETHER}:
        return _read_together(received[TOGETHER], forms)
    form = next((form for form in forms if len(form) == len(received) and set(form) == set(received)), None)
    if form is None:
        raise WireError(f"{len(received)} arrays whose names are not those of the trained weights")
    return {name: _read_array(name, received[name], form[name]) for name in form}


def _read_together(array: Array, forms: Sequence[Mapping[str, ArrayForm]]) -> dict[str, NDArray[Any]]:
    """Read arrays that `pack_together` made one of."""
    for form in forms:
        zeros = {name: np.zeros(each.shape, each.dtype) for name, each in form.items()}
        whole, size = save(zeros), sum(value.nbytes for value in zeros.values())
        if len(array.data) - len(whole) not in range(_LARGEST_HEADER):
            continue
        data = _read_array(TOGETHER, array, ArrayForm(shape=(len(whole),), dtype=np.dtype(np.uint8))).tobytes()
        if data.startswith(whole[: len(whole) - size]):
            return dict(load(data))
    raise WireError("the arrays are not those of the trained weights")


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
