"""Weight files: safetensors with the network's configuration beside the tensors, checked before anything is used.

Two kinds exist. A *pose model* file is what `save_model` writes: every tensor of a `PoseModel`, its configuration in
the file's metadata. A *backbone* file holds a TinyViT alone under timm's names (for example
`tinyvit5m_sam_fp16.safetensors`). Neither can run code.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from wardpose.shared.errors import DataError
from wardpose.shared.files import write_bytes
from wardpose.shared.tensor_files import check_finite, load_tensors

if TYPE_CHECKING:
    from wardpose.shared.pose.model import ModelConfig, PoseModel

CONFIG_KEY = "wardpose_model"
"""Metadata key under which a pose model file keeps its configuration as JSON."""


def save_model(model: "PoseModel", path: Path, metadata: dict[str, str] | None = None, *, half: bool = False) -> None:
    """Write a pose model file, atomically.

    Args:
        model: the model, on any device.
        path: of the safetensors file.
        metadata: further text that belongs to the weights (the command that made them, their score ...).
        half: store matrices and kernels as float16; vectors (biases, norms, statistics) stay float32.

    Raises:
        DataError: a weight is not finite, or too large for float16.

    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        kept = tensor.detach().cpu().to(torch.float16 if half and tensor.ndim > 1 else torch.float32)
        check_finite(kept, name, path)
        tensors[name] = kept.contiguous()
    config = model.config.model_dump_json(exclude={"weights"})
    write_bytes(path, save(tensors, metadata={**(metadata or {}), CONFIG_KEY: config}))


def load_model(path: Path) -> "PoseModel":
    """Build the model that a pose model file describes.

    Raises:
        DataError: the file is missing, broken, no pose model, or its tensors do not fit its configuration.

    """
    from wardpose.shared.pose.model import build_model  # here, because model.py imports this module

    config = read_config(path)
    if config is None:
        raise DataError(f'{path}: no pose model, its metadata lacks "{CONFIG_KEY}" (a backbone alone?)')
    return build_model(config)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text that was saved beside the tensors.

    Raises:
        DataError: the file is missing or broken.

    """
    return _read(path, tensors=False)[1]


def read_config(path: Path) -> "ModelConfig | None":
    """Return the configuration of a pose model file, `weights` pointing at the file; `None` for a backbone file.

    Raises:
        DataError: the file is missing or broken, or its configuration is not one of ours.

    """
    from wardpose.shared.pose.model import ModelConfig  # here, because model.py imports this module

    text = read_metadata(path).get(CONFIG_KEY)
    if text is None:
        return None
    try:
        return ModelConfig.model_validate_json(text).model_copy(update={"weights": str(path)})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([CONFIG_KEY, *map(str, first["loc"])])
        raise DataError(f"{path}: {key}: {first['msg']} (got {first['input']!r:.80})") from error


def load_into(model: "PoseModel", path: Path, *, seed: int = 0) -> str:
    """Give `model` the weights of a file: all of it, or the backbone where the head has another form.

    Args:
        model: as built; its head stays as it is when the file has none that fits.
        path: a pose model file or a backbone file.
        seed: that the head was drawn with, for the sentence.

    Returns:
        One line that says what was loaded.

    Raises:
        DataError: the file is missing, broken or made for another backbone.

    """
    config = read_config(path)
    if config is None:
        load_backbone(model, path)
        return f"backbone from {path}; head at random (seed {seed})"
    if config.backbone != model.config.backbone:
        raise DataError(f"{path}: weights of {config.backbone}, the model is {model.config.backbone}")
    form = ("input_size", "skeleton", "last_stride", "split_ratio", "label_sigma")
    differs = [key for key in form if getattr(config, key) != getattr(model.config, key)]
    tensors, _ = _read(path)
    if differs:
        prefix = "backbone."
        backbone = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        load_tensors(model.backbone, backbone, path)
        return f"backbone from {path} (other {', '.join(differs)}); head at random (seed {seed})"
    load_tensors(model, tensors, path)
    return f"pose model from {path}"


def load_backbone(model: "PoseModel", path: Path) -> None:
    """Copy a backbone file (timm's TinyViT names, with or without a classifier) into `model.backbone`.

    Raises:
        DataError: the file is missing, broken, or a tensor is missing, unknown or of another shape; names both.

    """
    tensors, _ = _read(path)
    load_tensors(model.backbone, {n: t for n, t in tensors.items() if not n.startswith("head.")}, path)


def load_timm(model: "PoseModel") -> str:
    """Copy timm's own pretrained backbone into `model` and return the line that says so.

    Raises:
        DataError: its hub cannot be reached and nothing is cached.

    """
    name = model.config.backbone
    try:
        source: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # hub clients raise whatever their transport does
        raise DataError(
            f"timm weights of {name} could not be fetched ({type(error).__name__}: {str(error)[:120]}); "
            'set model.weights to a local safetensors file, "bundled" or "random"'
        ) from error
    state = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if not name.startswith("head.") and not name.endswith("num_batches_tracked")
    }
    load_tensors(model.backbone, state, f"timm:{name}")
    return f"backbone from timm's hub ({name})"


def state_hash(model: nn.Module) -> str:
    """Hexadecimal SHA-256 over names, types, shapes and values of all parameters and buffers, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no such weights file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118 (no mapping)
            return found, dict(file.metadata() or {})
    # A type that this version of torch does not have is an AttributeError, a KeyError or a TypeError.
    except (safetensors.SafetensorError, OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error
