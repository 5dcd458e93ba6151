"""What we rely on in Flower beyond its public API, and the check that finds a part that has changed.

A part that is gone stops us by itself. `check_parts` finds what would go wrong more quietly, and says so with Flower's
version before anything is started. `client.contract` and `server.contract` have the tables of either side.
"""

import dataclasses
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as distribution_version
from typing import Any

from wardpose.shared.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FlowerParts:
    """What one side relies on; parts are named `module:object`.

    Attributes:
        who: cannot be started safely when a part changed, in a sentence that begins with "no".
        calls: what is called or wrapped -> its parameters.
        fields: what is built or replaced field by field -> all of its fields.
        some_fields: what has more fields than those that are replaced or read -> these.
        values: what is compared, sent or replaced -> its value, as text.
        sources: how Flower uses what is wrapped -> words of its source.
        options: Flower's parser of a command line -> the program's name, and options that it is given.

    """

    who: str
    calls: Mapping[str, tuple[str, ...]]
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    some_fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict)


def check_parts(parts: FlowerParts) -> None:
    """Hold the installed Flower against what one side relies on.

    Raises:
        ConfigError: a part is missing or has changed; names Flower's version and the part.

    """
    try:
        for name, parameters in parts.calls.items():
            _expect(name, "parameters", tuple(inspect.signature(_part(name)).parameters), parameters)
        for name, fields in parts.fields.items():
            _expect(name, "fields", _fields(_part(name)), fields)
        for name, fields in parts.some_fields.items():
            for each in fields:
                _need(each in _fields(_part(name)), name, f"has no field {each}")
        for name, value in parts.values.items():
            _expect(name, "value", str(_part(name)), value)
        for name, words in parts.sources.items():
            text = inspect.getsource(_part(name))
            for word in words:
                _need(word in text, name, f'no longer does "{word}"')
        for parser, (program, options) in parts.options.items():
            known = _part(parser)().format_help()
            for option in options:
                _need(option in known, program, f"has no option {option}")
    except _ChangedError as error:
        raise ConfigError(
            f"flwr {distribution_version('flwr')}: {error}; {parts.who} can be started safely "
            "(allowed: flwr 1.41 or 1.42)"
        ) from error


class _ChangedError(Exception):
    """A part of Flower is not what it was."""


def _part(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise _ChangedError(f"{name} is missing") from error


def _fields(part: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(part):
        return tuple(each.name for each in dataclasses.fields(part))
    return tuple(inspect.signature(part).parameters)


def _expect(name: str, what: str, found: object, expected: object) -> None:
    _need(found == expected, name, f"has the {what} {found}, not {expected}")


def _need(condition: bool, name: str, text: str) -> None:
    if not condition:
        raise _ChangedError(f"{name} {text}")
