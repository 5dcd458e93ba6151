"""TinyViT + SimCC: a person's crop in, two rows of logits per joint out.

    x (B, 3, H, W)
      └─ patch_embed ─ stage 1 ─ stage 2 ─ stage 3 ─ stage 4 ─ head
                       H/4        H/8       H/16      H/32     ├─ x: (B, J, W · split_ratio)
                                                    (or H/16)  └─ y: (B, J, H · split_ratio)

The backbone is timm's own module (Wu et al., ECCV 2022), so that `torch.func` can differentiate it per unit without a
rewritten layer. The head is that of "Differentially Private 2D Human Pose Estimation" (arXiv 2504.10190): a 1x1
convolution to one map per joint, bilinear up to (H/8, W/8), flattened, one linear layer per axis.

Two traps of the stock module are closed here, once, for everybody: BatchNorm always works on its frozen statistics, and
the attention biases are always gathered from the parameters, never from timm's evaluation cache (which would keep a
stale copy and its graph). Hence `.train()` and `.eval()` change nothing.

    model = build_model(ModelConfig(weights="random"))
    logits_x, logits_y = model(x)
    features = model.frozen_features(x, "last-stage")   # cache these
    logits_x, logits_y = model.from_features(features, "last-stage")
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, cast

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.pose import weights as weight_files
from wardpose.shared.pose.low_rank import SUFFIX, factor_shape
from wardpose.shared.pose.trainable import LowRank, Strategy, factored, selected
from wardpose.shared.pose.windows import without_filling
from wardpose.shared.skeleton import Skeleton, get_skeleton

Backbone = Literal["tiny_vit_5m_224", "tiny_vit_11m_224", "tiny_vit_21m_224"]

Front = Literal["head", "last-stage", "full"]
"""Where the trained part begins: everything in front of the head, or of stage 4, is frozen, or nothing is."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of parameters, in the model's order."""

BUNDLED_WEIGHTS = Path(__file__).parent / "pretrained" / "ward_tinyvit5m.safetensors"
"""Public weights that come with the package; `wardpose pretrain` makes them."""


NAMED_WEIGHTS = ("bundled", "random", "timm")
"""What `weights` may be besides the path of a file."""


class ModelConfig(BaseModel):
    """What decides the network's shape and its first weights.

    Attributes:
        backbone: timm name of the TinyViT.
        input_size: (height, width) of the crop in pixels, multiples of 32.
        skeleton: joint layout that the head predicts.
        last_stride: stride of stage 4; 16 keeps the last downsampling at stride 1, finer and slower.
        split_ratio: SimCC bins per pixel, a whole number.
        label_sigma: standard deviation of the Gaussian label in bins.
        weights: `bundled` (public ward scenes), `random`, `timm` (from its hub) or the path of a safetensors file,
            either a whole pose model or a backbone.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Backbone = "tiny_vit_5m_224"
    input_size: tuple[int, int] = (256, 192)
    skeleton: Literal["lsp14", "mpii16", "coco17"] = "lsp14"
    last_stride: Literal[16, 32] = 32
    split_ratio: float = Field(2.0, ge=1, le=8)
    label_sigma: float = Field(4.0, gt=0, le=64)
    weights: str = Field("bundled", min_length=1)

    @field_validator("input_size")
    @classmethod
    def _multiples_of_32(cls, value: tuple[int, int]) -> tuple[int, int]:
        if any(side < 32 or side > 1024 or side % 32 for side in value):
            raise ValueError(f"{list(value)} is not (height, width) in multiples of 32 from 32 to 1024")
        return value

    @field_validator("split_ratio")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value != int(value):
            raise ValueError(f"{value} is not a whole number of bins per pixel")
        return value

    @property
    def bins(self) -> tuple[int, int]:
        """Number of bins of the y and of the x axis, in the order of `input_size`."""
        height, width = self.input_size
        return int(height * self.split_ratio), int(width * self.split_ratio)


class PoseModel(nn.Module):
    """The network; see the module's docstring.

    Attributes:
        config: what it was built from.
        skeleton: joint layout of the output.
        weights_source: one line that says where the weights came from.
        backbone: timm's TinyViT without its classifier.
        head: `PoseHead`.

    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.skeleton: Skeleton = get_skeleton(config.skeleton)
        self.weights_source = "none"
        self.backbone = _tiny_vit(config)
        self.head = PoseHead(self.backbone.num_features, config)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                # Nothing here ever counts batches; without the flag, loading a state would ask for the count again.
                module.num_batches_tracked = None
                module.track_running_stats = False
                module.register_forward_pre_hook(_in_own_precision)
        self.train()

    def forward(self, x: Tensor, strategy: Strategy = "full") -> tuple[Tensor, Tensor]:
        """Logits over the bins of each axis.

        Args:
            x: (B, 3, H, W) float, as `crops.to_tensor` makes it; with a `strategy`, what `frozen_features` returned for
                it (the form that `torch.func.functional_call` needs).
            strategy: names the first layer to run.

        Returns:
            logits_x (B, J, W · split_ratio) and logits_y (B, J, H · split_ratio).

        """
        return self.from_features(x, strategy)

    def front(self, strategy: Strategy) -> Front:
        """Where the trained part begins under `strategy`; strategies of one front share their features.

        Raises:
            ValueError: as `trainable_names`.

        """
        names = trainable_names(self, strategy)
        if all(name.startswith("head.") for name in names):
            return "head"
        return "last-stage" if all(name.startswith(("head.", "backbone.stages.3.")) for name in names) else "full"

    def frozen_features(self, x: Tensor, strategy: Strategy) -> Tensor:
        """Everything in front of the first layer that trains under `strategy`.

        Args:
            x: (B, 3, H, W) float.
            strategy: where nothing is frozen in front (`full`), x itself is returned.

        Returns:
            (B, C, h, w) features; records do not mix.

        """
        front = self.front(strategy)
        if front == "full":
            return x
        x = self.backbone.patch_embed(x)
        for stage in self.backbone.stages[:3]:
            x = stage(x)
        return self.backbone.stages[3](x) if front == "head" else x

    def frozen_state(self, strategy: Strategy) -> dict[str, Tensor]:
        """Name every weight and buffer that decides `frozen_features`."""
        front = self.front(strategy)
        if front == "full":
            return {}
        behind = ("head.",) if front == "head" else ("head.", "backbone.stages.3.")
        return {name: value for name, value in self.state_dict().items() if not name.startswith(behind)}

    def from_features(self, features: Tensor, strategy: Strategy) -> tuple[Tensor, Tensor]:
        """Logits from what `frozen_features` returned; the same as `forward` of the crop itself."""
        front = self.front(strategy)
        if front == "full":
            features = self.backbone.forward_features(features)
        elif front == "last-stage":
            features = self.backbone.stages[3](features)
        logits: tuple[Tensor, Tensor] = self.head(features)
        return logits

    def train(self, mode: bool = True) -> Self:
        """Keep BatchNorm on its frozen statistics and the attention free of timm's cache, whatever `mode` is."""
        super().train(True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self


class PoseHead(nn.Module):
    """SimCC head: 1x1 convolution to J maps, bilinear up to (H/8, W/8), one linear layer per axis."""

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        height, width = config.input_size
        bins_y, bins_x = config.bins
        self.map_size = (height // 8, width // 8)
        tokens = self.map_size[0] * self.map_size[1]
        self.maps = nn.Conv2d(channels, len(get_skeleton(config.skeleton)), 1)
        self.x = nn.Linear(tokens, bins_x)
        self.y = nn.Linear(tokens, bins_y)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, J, bins_x) and (B, J, bins_y) of features (B, C, h, w)."""
        maps = functional.interpolate(self.maps(features), size=self.map_size, mode="bilinear", align_corners=True)
        tokens = maps.flatten(2)  # (B, J, H/8 · W/8)
        return self.x(tokens), self.y(tokens)


def build_model(config: ModelConfig, *, seed: int = 0) -> PoseModel:
    """Build the network and give it the weights that `config.weights` names.

    Args:
        config: the network.
        seed: of whatever is initialised at random (a head that the weights file does not have, or everything).

    Raises:
        DataError: the weights file is missing, broken or of another network; timm's hub cannot be reached.

    """
    model = PoseModel(config)
    _initialise(model, torch.Generator().manual_seed(seed))
    if config.weights == "random":
        model.weights_source = f"random initialisation (seed {seed})"
    elif config.weights == "timm":
        model.weights_source = f"{weight_files.load_timm(model)}; head at random (seed {seed})"
    else:
        path = BUNDLED_WEIGHTS if config.weights == "bundled" else Path(config.weights)
        model.weights_source = weight_files.load_into(model, path, seed=seed)
    return model


def trainable_names(model: PoseModel, strategy: Strategy) -> tuple[str, ...]:
    """Names of what trains under `strategy`, in the model's order; no buffer is among them.

    A layer whose update has low rank is named by its factor (`low_rank.SUFFIX`).

    Raises:
        ValueError: no such set, a member of a list names no parameter, or a layer has no update of that rank.

    """
    return tuple(trained_shapes(shapes_of(model), strategy))


def trained_values(model: PoseModel, strategy: Strategy) -> dict[str, Tensor]:
    """Copy what trains, by name; factors of low rank begin at 0. Errors as `trainable_names`."""
    values = dict(model.named_parameters())
    first = next(iter(values.values()))
    shapes = trained_shapes(shapes_of(model), strategy)
    return {
        name: values[name].detach().clone()
        if name in values
        else torch.zeros(shape, dtype=first.dtype, device=first.device)
        for name, shape in shapes.items()
    }


def shapes_of(model: PoseModel) -> Shapes:
    """Return names and shapes of a network's parameters."""
    return tuple((name, tuple(value.shape)) for name, value in model.named_parameters())


@lru_cache(maxsize=64)
def trained_shapes(parameters: Shapes, strategy: Strategy) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of what trains, of a network's parameters; errors as `trainable_names`."""
    shapes = dict(parameters)
    whole, factors = set(selected(shapes, strategy)), set(factored(shapes, strategy))
    both = sorted(whole & factors)
    if both:
        raise ValueError(f'"{both[0]}" is named by layers and by also (allowed: one of them)')
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in parameters:
        if name in whole:
            out[name] = shape
        elif name in factors and isinstance(strategy, LowRank):
            try:
                out[name + SUFFIX] = factor_shape(shape, strategy.rank)
            except ValueError as error:
                raise ValueError(f'layer "{name.removesuffix(".weight")}": {error}') from error
    return out


def check_strategy(config: ModelConfig, strategy: Strategy) -> None:
    """See that every member of a strategy's lists names what can train; part of every plan's and order's validation.

    Raises:
        ValueError: names the member that does not.

    """
    if not isinstance(strategy, str):
        trained_shapes(shapes_of(outline(config.model_copy(update={"weights": "random"}))), strategy)


@lru_cache(maxsize=8)
def outline(config: ModelConfig) -> PoseModel:
    """Return a network without memory, for its names and shapes; everybody who asks gets the same one."""
    with torch.device("meta"):
        return PoseModel(config)


def _in_own_precision(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hand a normalisation what its weights are of: autocast lets bfloat16 through, which batched rules do not mix."""
    weight = cast(Tensor, module.weight)
    return tuple(value.to(weight.dtype) for value in inputs)


_CONVOLUTIONS_WITHOUT_ACTIVATION = ("local_conv.conv", "conv3.conv", "patch_embed.conv2.conv", "head.maps")


def _tiny_vit(config: ModelConfig) -> Any:
    """Timm's TinyViT without classifier and without stochastic depth, last downsampling as configured."""
    backbone: Any = timm.create_model(config.backbone, pretrained=False, num_classes=0, drop_path_rate=0.0)
    backbone.head = nn.Identity()
    if config.last_stride == 16:
        backbone.stages[3].downsample.conv2.conv.stride = (1, 1)
    without_filling(backbone)
    return backbone


def _initialise(model: PoseModel, generator: torch.Generator) -> None:
    """Draw every weight from `generator`, so that equal seeds give equal models in any thread.

    Convolutions keep the variance (He et al. 2015), because a frozen BatchNorm with statistics 0 and 1 does not
    normalise; the linear layers of the blocks are TinyViT's own (truncated normal, 0.02).
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            linear = name.endswith(_CONVOLUTIONS_WITHOUT_ACTIVATION)
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if linear else "relu", generator=generator)
        elif isinstance(module, nn.Linear) and name.startswith("head."):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
