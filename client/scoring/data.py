"""The data that a command is given by one argument: a site.yaml, a source in YAML, or COCO JSON and its images."""

from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from wardpose.shared.data.source import CocoSource, DataSource, WardSource
from wardpose.shared.errors import ConfigError
from wardpose.shared.site_config import load_site
from wardpose.shared.yaml_config import describe

_SOURCE: TypeAdapter[DataSource] = TypeAdapter(DataSource)


def source_of(path: Path, *, images: Path | None = None) -> DataSource:
    """Read what names a data set.

    Args:
        path: a site.yaml (its cohort's data), a YAML file with `kind` and the keys of that kind, or COCO JSON.
        images: folder of the images of COCO JSON; the JSON's own folder when absent.

    Raises:
        ConfigError: it names no data set.

    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file (allowed: a site.yaml, a source in YAML, or COCO JSON)")
    if path.suffix.lower() == ".json":
        return CocoSource(kind="coco", annotations=path, images=images or path.parent)
    if images is not None:
        raise ConfigError(f"{path}: --images belongs to COCO JSON (allowed: paths in the YAML)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(content, dict) or "kind" not in content:
        return load_site(path).cohort.data
    try:
        source = _SOURCE.validate_python(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    return _beside(source, path.parent)


def is_public(source: DataSource) -> bool:
    """Whether the data is nobody's: rendered."""
    return isinstance(source, WardSource)


def _beside(source: DataSource, folder: Path) -> DataSource:
    """Read relative paths as relative to the YAML file, where they are there."""
    paths = {name: value for name, value in source if isinstance(value, Path) and not value.is_absolute()}
    return source.model_copy(update={name: folder / at for name, at in paths.items() if (folder / at).exists()})
