"""Values out of JSON annotation files, checked as they are taken."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.tables import decode_text
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import strip

_LARGEST = 1e9
"""No length in pixels is larger."""


def read_json(path: Path) -> Any:
    """Parse a JSON file: UTF-8, UTF-16 or UTF-32, with or without a byte-order mark, or Windows-1252.

    Raises:
        DataError: missing, unreadable or malformed, or an object names a key twice.

    """
    try:
        content = path.read_bytes()
        try:
            return json.loads(content, object_pairs_hook=_object)
        except UnicodeDecodeError:
            return json.loads(decode_text(path, content), object_pairs_hook=_object)
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing (allowed: an existing JSON file)") from error
    except OSError as error:
        raise DataError(f"{path}: file cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'key "{next(name for name in names if names.count(name) > 1)}" appears twice in an object')
    return made


def field(entry: Any, key: str, allowed: type | tuple[type, ...]) -> Any:
    """Take `entry[key]` of a JSON object, of an allowed type.

    Raises:
        DataError: no object, no such key, or a value of another type (a truth value is no number).

    """
    if not isinstance(entry, dict):
        raise DataError(f"entry is {short(entry)} (allowed: an object with {key})")
    value = entry.get(key)
    kinds = allowed if isinstance(allowed, tuple) else (allowed,)
    if isinstance(value, kinds) and key in entry and (not isinstance(value, bool) or bool in kinds):
        return value
    found = f"is {short(value)}" if key in entry else "is missing"
    raise DataError(f"{key} {found} (allowed: {' or '.join(kind.__name__ for kind in kinds)})")


def identifier(entry: Any, key: str) -> int | str:
    """Take an id: a whole number, however it is written (`7`, `7.0`, `"7"`), or else a text.

    Raises:
        DataError: no object, no such key, neither, or an empty text.

    """
    value = field(entry, key, (int, float, str))
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        value = strip(value)
        if not value:
            raise DataError(f"{key} is empty (allowed: a whole number or a text)")
        return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else value
    if not value.is_integer():
        raise DataError(f"{key} is {value} (allowed: a whole number or a text)")
    return int(value)


def flag(entry: dict[str, Any], key: str) -> bool:
    """Take a flag that may be missing: 0 or 1, as a number, a text or a truth value.

    Raises:
        DataError: anything else.

    """
    value = entry.get(key)
    text = "0" if value is None else strip(str(value)).lower().removesuffix(".0")
    if text not in ("0", "1", "false", "true", ""):
        raise DataError(f"{key} is {short(value)} (allowed: 0 or 1)")
    return text in ("1", "true")


def size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Take an image's (height, width) in pixels; `None` where it is not stated (missing, null or 0).

    Raises:
        DataError: something that is no size.

    """
    found = []
    for key in ("height", "width"):
        value = entry.get(key)
        number = identifier(entry, key) if value is not None else 0
        if not isinstance(number, int) or number < 0:
            raise DataError(f"{key} is {short(value)} (allowed: a whole number of pixels)")
        found.append(number)
    return (found[0], found[1]) if all(found) else None


def numbers(value: Any, what: str, count: int) -> NDArray[np.float64]:
    """Turn a JSON list (nested or not) into `count` finite numbers.

    Raises:
        DataError: another count, something that is no number, or a number that is not finite.

    """
    return _finite(_floats(value, what, count), what)


def keypoints(value: Any, what: str, count: int) -> NDArray[np.float64]:
    """Turn a JSON list (nested or not) into `count` joints (count, 3): x, y and mark.

    A joint of mark 0, or of which nothing is known (null, NaN), is not labelled; its numbers become 0, whatever they
    are.

    Raises:
        DataError: as `numbers`.

    """
    joints = _floats(value, what, 3 * count).reshape(count, 3)
    joints[(joints[:, 2] == 0) | np.isnan(joints).all(axis=1)] = 0
    return _finite(joints, what)


def _floats(value: Any, what: str, count: int) -> NDArray[np.float64]:
    try:
        array = np.array(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} holds {short(_odd_one(value))} (allowed: {count} numbers)") from error
    if array.size != count:
        raise DataError(f"{what} has {array.size} numbers (allowed: {count})")
    return array


def _finite(array: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    sound = np.abs(array) <= _LARGEST  # false for what is no number
    if not sound.all():
        raise DataError(f"{what} holds {array[~sound][0]} (allowed: finite numbers)")
    return array


def _odd_one(value: Any) -> Any:
    """Find the first value in nested lists that is no number."""
    for item in value if isinstance(value, list) else ():
        found = _odd_one(item) if isinstance(item, list) else item
        try:
            float(found)
        except (TypeError, ValueError, OverflowError):
            return found
    return value


def visibility(values: NDArray[np.float64], what: str) -> NDArray[np.uint8]:
    """Take COCO's marks of joints.

    Raises:
        DataError: one is not 0, 1 or 2.

    """
    if not np.isin(values, (0, 1, 2)).all():
        raise DataError(f"{what} have visibility {values[~np.isin(values, (0, 1, 2))][0]} (allowed: 0, 1, 2)")
    return values.astype(np.uint8)


def short(value: Any) -> str:
    """Show a value in an error message, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
