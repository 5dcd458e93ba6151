"""How YAML files are read: strict pydantic models, and errors of one line.

Unknown keys are refused, and every error names the file, the key, the value and what is allowed. Reading a file creates
nothing.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardpose.shared.data.source import find_data_root
from wardpose.shared.errors import ConfigError, WardposeError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Model = TypeVar("Model", bound=BaseModel)
_DATA_VARIABLE = "${WARDPOSE_DATA}"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times faster, where PyYAML was built with it


class Strict(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as a configuration; relative paths in it become absolute, `${WARDPOSE_DATA}` is replaced.

    Raises:
        ConfigError: one line naming the file, the key, the value and what is allowed.

    """
    try:
        content = yaml.load(path.read_text(), Loader=_LOADER)  # noqa: S506 - both loaders are the safe one
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__} (allowed: a mapping of keys)")
    try:
        anchored: Model = _anchored(model.model_validate(_expanded(content)), path.resolve().parent)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    except WardposeError as error:
        raise ConfigError(f"{path}: {error}") from error
    return anchored


def to_yaml(config: BaseModel) -> str:
    """Show a configuration back with every default filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _expanded(value: Any) -> Any:
    """Replace `${WARDPOSE_DATA}` in every text of a YAML tree by the folder of real data."""
    if isinstance(value, str):
        return value.replace(_DATA_VARIABLE, str(find_data_root())) if _DATA_VARIABLE in value else value
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return {key: _expanded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _anchored(value: Any, folder: Path) -> Any:
    """Make every relative path in a configuration absolute: it means a place beside the file that names it."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: _anchored(field, folder) for name, field in fields.items()}
        return value.model_copy(update={name: new for name, new in changed.items() if new is not fields[name]})
    return tuple(_anchored(item, folder) for item in value) if isinstance(value, tuple) else value


def describe(error: ValidationError) -> str:
    """Say on one line what pydantic found: key, value and what is allowed."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "file"
        if item["type"] == "extra_forbidden":
            parts.append(f"{key}: unknown key")
        elif item["type"] == "missing":
            parts.append(f"{key}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = f" = {item['input']!r}" if item["loc"] and not isinstance(item["input"], dict) else ""
            parts.append(f"{key}{shown}: {message[0].lower()}{message[1:]}")
    return "; ".join(parts)
