"""How YAML files are read: strict pydantic models, and errors of one line.

Unknown keys are refused, and every error names the file, the key, the value and what is allowed. Reading a file creates
nothing.
"""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardpose.shared.data.source import find_data_root
from wardpose.shared.errors import ConfigError, WardposeError, one_line

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
Model = TypeVar("Model", bound=BaseModel)
_LARGEST = 1 << 20  # bytes of a configuration
_DEEPEST = 32
_MOST_VALUES = 100_000
_MOST_FINDINGS = 10
_DATA_VARIABLE = "${WARDPOSE_DATA}"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times faster, where PyYAML was built with it


def checked_name(value: str, where: str) -> str:
    """Return a name of a site or a federation that did not come in a file.

    Raises:
        ConfigError: it is none.

    """
    if re.fullmatch(_NAME, value) is None:
        raise ConfigError(
            f"{where} is {one_line(value)!r} (allowed: letters, digits and _.- , a letter or digit first)"
        )
    return value


class Strict(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as a configuration; relative paths in it become absolute, `${WARDPOSE_DATA}` is replaced.

    Raises:
        ConfigError: one line naming the file, the key, the value and what is allowed.

    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        content = _parsed(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    # A number or a date that is none is a ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is not YAML ({one_line(error)})") from error
    except WardposeError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__} (allowed: a mapping of keys)")
    try:
        anchored: Model = _anchored(model.model_validate(content), path.resolve().parent)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    except WardposeError as error:
        raise ConfigError(f"{path}: {error}") from error
    return anchored


def _parsed(text: bytes) -> Any:
    """Build the tree of a file that is as large, as deep and as much repeated as a configuration may be.

    Aliases are pointers: a few lines of them may stand for more values than fit in memory, or for themselves.
    """
    if len(text) > _LARGEST:
        raise ConfigError(f"is larger than a configuration may be (allowed: up to {_LARGEST} bytes)")
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ConfigError(f"is nested too deeply (allowed: {_DEEPEST} levels)")
    return _expanded(yaml.load(text, Loader=_UniqueKeys), [_MOST_VALUES])  # noqa: S506 - a safe loader


class _UniqueKeys(_LOADER):  # type: ignore[misc, valid-type]  # one of two classes
    """Refuse a key that stands twice: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (child.value for child, _ in node.value if isinstance(child, yaml.ScalarNode)):
            if key in seen and key != "<<":
                raise ConfigError(f"{one_line(key)}: stands twice (allowed: every key once)")
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def to_yaml(config: BaseModel) -> str:
    """Show a configuration back with every default filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _expanded(value: Any, left: list[int], depth: int = 0) -> Any:
    """Replace `${WARDPOSE_DATA}` in every text of a YAML tree by the folder of real data.

    Args:
        value: the tree.
        left: how many values there may still be.
        depth: how deep the value lies.

    """
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise ConfigError(f"repeats itself by aliases (allowed: up to {_MOST_VALUES} values in all)")
    if isinstance(value, str):
        return value.replace(_DATA_VARIABLE, str(find_data_root())) if _DATA_VARIABLE in value else value
    if isinstance(value, list):
        return [_expanded(item, left, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: _expanded(item, left, depth + 1) for key, item in value.items()}
    return value


def _anchored(value: Any, folder: Path) -> Any:
    """Make every relative path in a configuration absolute: it means a place beside the file that names it."""
    if isinstance(value, Path):
        if not str(value).isprintable():
            raise ConfigError(f"{one_line(value)} is no path (allowed: printable characters)")
        return folder / value
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: _anchored(field, folder) for name, field in fields.items()}
        return value.model_copy(update={name: new for name, new in changed.items() if new is not fields[name]})
    if isinstance(value, dict):
        return {name: _anchored(item, folder) for name, item in value.items()}
    return tuple(_anchored(item, folder) for item in value) if isinstance(value, tuple) else value


def describe(error: ValidationError) -> str:
    """Say on one line what pydantic found: key, value and what is allowed."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(one_line(part) for part in item["loc"]) or "file"
        if item["type"] == "extra_forbidden":
            parts.append(f"{key}: unknown key")
        elif item["type"] == "missing":
            parts.append(f"{key}: missing")
        else:
            message = one_line(item["msg"].removeprefix("Value error, "), 400)
            shown = f" = {item['input']!r:.80}" if item["loc"] and not isinstance(item["input"], dict) else ""
            parts.append(f"{key}{shown}: {message[0].lower()}{message[1:]}")
    if len(parts) > _MOST_FINDINGS:
        parts[_MOST_FINDINGS:] = [f"and {len(parts) - _MOST_FINDINGS} more"]
    return "; ".join(parts)
