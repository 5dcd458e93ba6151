"""Imputed features: a network h, trained on public people, makes of the public view what the frame would have given.

    phi(x) ──> trunk ──> f(phi(x)) ─┐
       └─────> convolutions ────────┴─> h(phi(x)), close to f(x)

Feature-DP noises the difference g(x) - g(phi(x)), and a view that the trunk has never seen (blurred, painted) gives
features, and hence gradients, that are far from the frame's. With h the pair's second half is g(h(phi(x))). (In the
spirit of FusionDP, which imputes private features from public ones, in images from the view.)

**Why it costs nothing.** h is a function of public people, of the released trunk and of fixed numbers: whoever takes
part or not, it is the same. h(phi(x)) is then post-processing of the public view, so that what the view's certificate
says of phi holds for it, and nothing else of x enters. A unit contributes clip_C(g(x) - g(h(phi(x)))), no longer than
C whatever h is: the event that is charged stays the same. A bad h, or a hostile one, makes the differences long and the
clip bite; what is no finite number counts as 0.

**Who makes it.** Each site for itself, from its own `public_data`, when the first round needs it, beside the cache of
its cohort. Nothing of it is sent or ordered. Every fifth public person is held out: the gate (`view_gate`) judges the
view on people whom h has not seen.

The people are turned by any angle and mirrored *before* their view is made (`turned`), as patients who lie are.
"""

import hashlib
import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from wardpose.shared.anonymize.public_view import PublicView
from wardpose.shared.data.crops import to_tensor
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_folder, sha256_file, write_bytes, write_json
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.pose.weights import state_hash
from wardpose.shared.training.cache import ENTRY, build_rows, trunk_hash
from wardpose.shared.training.turned import Turned

LEAST_PEOPLE = 5
"""Public people whom h needs: one of five is held out."""

_FIFTH = 5
_TRUNK_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How h is trained; a constant of this version, and part of what names a kept h.

    Attributes:
        pairs: (phi(x), f(x)) in all, as turned and mirrored copies of the people.
        copies: most of one person.
        epochs: passes over the pairs.
        batch: pairs of a step.
        learning_rate: of AdamW, falling to 0 along a cosine.
        weight_decay: of AdamW.
        width: channels inside h.
        version: of the network's form.

    """

    pairs: int = 1_300
    copies: int = 3
    epochs: int = 10
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    width: int = 128
    version: int = 1


class Imputer:
    """h, ready to be applied: crops of the public view in, features of the trunk out.

    Args:
        model: holds the trunk.
        strategy: whose front's features are imputed.
        network: the trained part.
        held_out: row numbers of the public people whom it has not seen.

    Attributes:
        identity: hexadecimal SHA-256 of the trained part.
        held_out: as given.

    """

    def __init__(
        self, model: PoseModel, strategy: Strategy, network: "FeatureNetwork", held_out: NDArray[np.int64]
    ) -> None:
        self._model = model
        self._strategy: Strategy = strategy
        self._network = network
        self.identity = state_hash(network)
        self.held_out = held_out

    def __call__(self, crops: NDArray[np.uint8]) -> NDArray[Any]:
        """Return features (B, C, h, w) for public views (B, H, W, 3) at the network's input size; always finite."""
        first = next(self._model.parameters())
        with torch.no_grad():
            pictures = to_tensor(crops).to(first)
            seen = self._model.frozen_features(pictures, self._strategy)
            made = self._network(pictures.float(), seen.float())
            made = torch.nan_to_num(made, 0.0, 0.0, 0.0)
        return made.to(first.dtype).cpu().numpy()


class FeatureNetwork(nn.Module):
    """h(phi) = mean + deviation * (a * f'(phi) + net(phi, f'(phi))), f' being f by the public mean and deviation."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))
        self.share = nn.Parameter(torch.full((channels, 1, 1), 0.5))
        widths = (3, width // 8, width // 4, width // 2, width)
        self.picture = nn.Sequential(
            *(
                layer
                for before, after in itertools.pairwise(widths)
                for layer in (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU())
            )
        )
        self.enter = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, 2 * width if first else width), nn.GELU(), nn.Conv2d(fan, width, 3, padding=1)
            )
            for first, fan in ((True, 2 * width), (False, width))
        )
        self.leave = nn.Sequential(nn.GELU(), nn.Dropout(0.1), nn.Conv2d(width, channels, 1))

    def forward(self, pictures: Tensor, seen: Tensor) -> Tensor:
        """Features (B, C, h, w) from pictures (B, 3, H, W) and the trunk's features of them (B, C, h, w)."""
        normal = (seen - self.mean) / self.deviation
        height, width = normal.shape[-2:]
        looked = functional.adaptive_avg_pool2d(self.picture(pictures), (height, width))
        inner = self.blocks[0](torch.cat([looked, self.enter(normal)], dim=1))
        inner = inner + self.blocks[1](inner)
        made: Tensor = self.mean + self.deviation * (self.share * normal + self.leave(inner))
        return made


def make_imputer(
    public: PoseDataset,
    model: PoseModel,
    strategy: Strategy,
    view: PublicView,
    *,
    folder: Path | None = None,
    frames: Path | None = None,
    recipe: Recipe | None = None,
) -> Imputer:
    """Take up the kept h of these public people, this trunk and this view, or train it.

    Args:
        public: people who are nobody's patients.
        model: holds the trunk, which nothing changes.
        strategy: decides which features are meant.
        view: phi.
        folder: where it is kept, the cache of the cohort; nowhere when absent.
        frames: a cache where the features of the people's frames stay for another view; nowhere when absent.
        recipe: how it is trained.

    Raises:
        ConfigError: too few public people, or nothing in front of what trains is frozen.
        DataError: a public frame cannot be read.

    """
    recipe = recipe or Recipe()
    if model.front(strategy) == "full":
        raise ConfigError("feature.impute: the strategy trains all layers (allowed: one that leaves a frozen trunk)")
    train, held_out = split_people(public)
    network = FeatureNetwork(_channels(model, strategy), recipe.width).to(next(model.parameters()).device)
    name = {
        "people": public.identity(),
        "front": model.front(strategy),
        "trunk": trunk_hash(model, strategy),
        "size": model.config.input_size,
        "view": view.identity(),
        "recipe": vars(recipe),
    }
    key = hashlib.sha256(json.dumps(name, sort_keys=True).encode()).hexdigest()
    entry = None if folder is None else folder / f"imputed-{key[:40]}"
    if entry is None or not _taken_up(entry, network):
        _train(network, *_pairs(public, train, model, strategy, view, recipe, frames), recipe, seed=int(key[:12], 16))
        if entry is not None:
            _keep(entry, network)
    return Imputer(model, strategy, network.eval(), held_out)


def split_people(public: PoseDataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the records of public people into those that h learns from and those of every fifth person.

    Nobody who is held out is seen in a picture that h learns from.

    Raises:
        ConfigError: fewer than `LEAST_PEOPLE` people, or none of them is alone in a picture.

    """
    records = [public.record(index) for index in range(len(public))]
    people = [{record.patient_id, *record.also_patients} for record in records]
    everybody = sorted(set().union(*people))
    kept_back = set(everybody[::_FIFTH])
    pictures = {
        record.picture for record, seen in zip(records, people, strict=True) if record.picture and seen & kept_back
    }
    held_out = [index for index, record in enumerate(records) if record.patient_id in kept_back]
    train = [
        index
        for index, (record, seen) in enumerate(zip(records, people, strict=True))
        if not seen & kept_back and record.picture not in pictures
    ]
    if len(everybody) < LEAST_PEOPLE or not train or not held_out:
        raise ConfigError(
            f"feature.impute: {public.name} shows {len(everybody)} people, of whom one in {_FIFTH} is held out "
            f"(allowed: at least {LEAST_PEOPLE} people, in pictures of their own)"
        )
    return np.array(train, np.int64), np.array(held_out, np.int64)


def _pairs(
    public: PoseDataset,
    train: NDArray[np.int64],
    model: PoseModel,
    strategy: Strategy,
    view: PublicView,
    recipe: Recipe,
    kept: Path | None,
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """Make views (N, H, W, 3), the trunk's features (N, C, h, w) of them, and those of the frames themselves."""
    step = max(1, -(-len(train) // recipe.pairs))
    rows = train[::step]
    copies = max(1, min(recipe.copies, recipe.pairs // len(rows)))
    turned = Turned(public, rows, copies)
    wanted, _ = build_rows(turned, model, strategy, folder=kept, precision="float16")
    _, views = build_rows(turned, model, strategy, folder=None, public_view=view, features=False)
    if views is None:
        raise ConfigError("feature.impute: there is no public view")
    return views.inputs, trunk_features(model, strategy, views.inputs), wanted.inputs


def trunk_features(model: PoseModel, strategy: Strategy, crops: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the trunk's features (N, C, h, w) float16 of crops (N, H, W, 3)."""
    first = next(model.parameters())
    parts = []
    with torch.no_grad():
        for start in range(0, len(crops), _TRUNK_BATCH):
            pictures = to_tensor(crops[start : start + _TRUNK_BATCH]).to(first)
            parts.append(model.frozen_features(pictures, strategy).half().cpu().numpy())
    return np.concatenate(parts)


def _train(
    network: FeatureNetwork,
    views: NDArray[np.uint8],
    seen: NDArray[Any],
    wanted: NDArray[Any],
    recipe: Recipe,
    *,
    seed: int,
) -> None:
    """Least squares in the features' own scale, channel by channel."""
    device = network.mean.device
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _initialise(network, wanted)
        steps = recipe.epochs * -(-len(views) // recipe.batch)
        algorithm = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(algorithm, steps)
        network.train()
        for _ in range(recipe.epochs):
            order = generator.permutation(len(views))
            for start in range(0, len(order), recipe.batch):
                rows = np.sort(order[start : start + recipe.batch])
                target, features = (torch.from_numpy(part[rows]).to(device).float() for part in (wanted, seen))
                made = network(to_tensor(views[rows]).to(device), features)
                loss = ((made - target) / network.deviation).square().mean()
                algorithm.zero_grad()
                loss.backward()
                algorithm.step()
                schedule.step()


def _initialise(network: FeatureNetwork, wanted: NDArray[Any]) -> None:
    """Draw all weights anew from torch's generator, and measure the features' scale."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.reset_parameters()
    last = network.leave[-1]
    with torch.no_grad():
        network.share.fill_(0.5)
        for value in last.parameters():
            value.zero_()
        flat = wanted.astype(np.float32).transpose(1, 0, 2, 3).reshape(wanted.shape[1], -1)
        network.mean.copy_(torch.from_numpy(flat.mean(axis=1))[:, None, None])
        network.deviation.copy_(torch.from_numpy(flat.std(axis=1) + 1e-3)[:, None, None])


def _channels(model: PoseModel, strategy: Strategy) -> int:
    height, width = model.config.input_size
    first = next(model.parameters())
    with torch.no_grad():
        return int(model.frozen_features(torch.zeros(1, 3, height, width).to(first), strategy).shape[1])


def _taken_up(entry: Path, network: FeatureNetwork) -> bool:
    """Load what is kept, if it is whole and fits."""
    weights = entry / "weights.safetensors"
    try:
        known = json.loads((entry / ENTRY).read_text())
        if known != {"weights.safetensors": sha256_file(weights)}:
            return False
        network.load_state_dict(load_file(weights), strict=True)
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return False
    return True


def _keep(entry: Path, network: FeatureNetwork) -> None:
    if entry.exists():
        shutil.rmtree(entry)
    private_folder(entry)
    weights = entry / "weights.safetensors"
    write_bytes(weights, save({name: value.cpu().contiguous() for name, value in network.state_dict().items()}))
    write_json(entry / ENTRY, {weights.name: sha256_file(weights)})  # the marker last: what has it is whole
