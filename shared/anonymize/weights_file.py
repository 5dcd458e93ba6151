"""Weights files of the anonymiser: two kinds, told apart by their metadata and never interchangeable.

`public-view`: one generator without a way back; the only kind that may be declared as feature-DP's phi.
`recoverable`: G_X and G_Y; its output holds the original under a key.
Both are safetensors, fp16, with what they are, their configuration and the identity of their public training
data in the metadata.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from wardpose.shared import files
from wardpose.shared.anonymize.generators import CodeDecoder, PartConfig, PartGenerator, RecoverableGenerator
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.tensor_files import load_tensors

Kind = Literal["public-view", "recoverable"]

_FORMAT = "1"
_KEYS = {"wardpose.kind", "wardpose.config", "wardpose.data", "wardpose.command"}
_MOST_LEVELS = 256  # of a byte
_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes:
        path: the file.
        kind: `public-view` or `recoverable`.
        config: shape of the networks.
        data: name -> identity (SHA-256) of each public data set it was trained on.
        command: how it was made.
        sha256: of the file.

    """

    path: Path
    kind: Kind
    config: dict[str, object]
    data: dict[str, str]
    command: str
    sha256: str


def bundled(kind: Kind) -> Path:
    """Return the weights of that kind that come with the package.

    Raises:
        DataError: the package was installed without them.

    """
    path = _FOLDER / f"ward_{kind.replace('-', '_')}.safetensors"
    if not path.is_file():
        raise DataError(f"{path}: the bundled {kind} weights are missing; train some (wardpose anonymizer train)")
    return path


def save_weights(
    path: Path,
    *,
    kind: Kind,
    networks: dict[str, nn.Module],
    config: dict[str, object],
    data: dict[str, str],
    command: str,
) -> None:
    """Write networks under their names as fp16, atomically.

    Raises:
        OSError: the disk is full or the folder is not writable; what was at `path` is still there.

    """
    tensors = {
        f"{name}.{key}": (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    metadata = {
        "wardpose.format": _FORMAT,
        "wardpose.kind": kind,
        "wardpose.config": json.dumps(config, sort_keys=True),
        "wardpose.data": json.dumps(data, sort_keys=True),
        "wardpose.command": command,
    }
    files.write_bytes(path, save(tensors, metadata), mode=files.ASKED_FOR)


def read_info(path: Path) -> WeightsInfo:
    """Read what the file says about itself.

    Raises:
        DataError: the file is missing, broken, or not one of ours.

    """
    metadata = _open(path)[0]
    kind = metadata["wardpose.kind"]
    if kind not in ("public-view", "recoverable"):
        raise DataError(f"{path}: kind {kind!r:.80} is unknown (allowed: public-view, recoverable)")
    return WeightsInfo(
        path=path,
        kind="public-view" if kind == "public-view" else "recoverable",
        config=_object(metadata, "wardpose.config", str(path)),
        data=_object(metadata, "wardpose.data", str(path)),
        command=metadata["wardpose.command"],
        sha256=files.sha256_file(path),
    )


def load_public_view(path: Path) -> PartGenerator:
    """Load a generator whose output may be declared public.

    Raises:
        ConfigError: the weights are `recoverable`.
        DataError: the file cannot be used.

    """
    info = read_info(path)
    if info.kind == "recoverable":
        raise ConfigError(
            f"{path}: these weights are of kind recoverable and can never be a public view: a recoverable frame "
            "still contains the original, encrypted under a key, so declaring it public would publish the patient "
            "to whoever holds that key; use weights of kind public-view"
        )
    try:
        network = PartGenerator(PartConfig.model_validate(info.config))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: the configuration in the metadata is not valid: {key}: {first['msg']}") from error
    _fill(str(path), path.read_bytes(), {"generator": network})
    return network


def load_recoverable(path: Path) -> tuple[RecoverableGenerator, CodeDecoder]:
    """Load G_X and G_Y.

    Raises:
        ConfigError: the weights are of kind `public-view`, which has no way back.
        DataError: the file cannot be used.

    """
    info = read_info(path)
    if info.kind != "recoverable":
        raise ConfigError(f"{path}: weights of kind {info.kind} cannot recover anything; use kind recoverable")
    return parse_recoverable(path.read_bytes(), str(path))


def parse_recoverable(content: bytes, name: str) -> tuple[RecoverableGenerator, CodeDecoder]:
    """Load G_X and G_Y from the content of their file, which never needs to lie on a disk unencrypted.

    Raises:
        DataError: the content cannot be used.

    """
    levels = _object(_parse(content, name)[0], "wardpose.config", name).get("levels")
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= _MOST_LEVELS:
        raise DataError(f"{name}: levels in the metadata is {levels!r:.80} (allowed: 2 to {_MOST_LEVELS})")
    generator, recovery = RecoverableGenerator(levels), CodeDecoder()
    _fill(name, content, {"generator": generator, "recovery": recovery})
    return generator, recovery


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise DataError(f"{path}: no such weights file")
    return _parse(path.read_bytes(), str(path))


def _parse(content: bytes, name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    # A type that this version of torch does not have is an AttributeError, a KeyError or a TypeError.
    except (SafetensorError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise DataError(f"{name}: not a readable safetensors file: {error}") from error
    metadata = header.get("__metadata__", {})
    if metadata.get("wardpose.format") != _FORMAT or not _KEYS.issubset(metadata):
        raise DataError(f"{name}: not weights of the anonymiser (its metadata needs {', '.join(sorted(_KEYS))})")
    return metadata, tensors


def _object(metadata: dict[str, str], key: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[key])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{name}: {key} in the metadata is {metadata[key]!r:.80} (allowed: a JSON object)")
    return value


def _fill(name: str, content: bytes, networks: dict[str, nn.Module]) -> None:
    tensors = _parse(content, name)[1]
    for prefix, network in networks.items():
        own = {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
        load_tensors(network, own, name)
        network.eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
