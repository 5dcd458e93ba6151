"""How much a relinking attacker gets from coarser views of one network, and how much of a pose they leave.

Everybody's part map is computed once, before it is rounded, and kept in half precision (it is what all views share);
each shape of `PartConfig` then makes its pictures from it. They are attacked as `wardpose anonymizer relink` attacks,
and a small network that learns from everybody's labels reads joints from them at the attackers' size. The reader is the
same for all views, for skeleton and box, for frames and for nothing at all: what it gets from a blank picture is the
mean pose, and only what a view gives beyond that was kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from wardpose.shared import files
from wardpose.shared.anonymize.generators import PartConfig, PartGenerator, enlarge
from wardpose.shared.anonymize.tensors import to_frame, to_unit
from wardpose.shared.anonymize.weights_file import bundled, load_public_view, read_info
from wardpose.shared.data.records import Frame, PoseDataset
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer.certify_config import FLOOR, CertifyConfig
from wardpose.simulation.anonymizer.feed import Sample, sample
from wardpose.simulation.anonymizer.pose_reading import Labelled, pck
from wardpose.simulation.anonymizer.relink_bench import stated
from wardpose.simulation.anonymizer.relink_pairs import Looks, small, stacked
from wardpose.simulation.anonymizer.relinking import relink
from wardpose.simulation.anonymizer.relinking_nets import ConvolutionNet
from wardpose.simulation.anonymizer.rounding import rounded
from wardpose.simulation.anonymizer.skeleton_view import skeleton_and_box
from wardpose.simulation.benchmarks.step import hardware

SHAPES: dict[str, dict[str, Any]] = {
    "standard: 2 levels, 16 px": {"levels": 2, "cell": 16},
    "3 levels, 32 px": {"levels": 3, "cell": 32},
    "2 levels, 32 px, from 0.3": {"levels": 2, "cell": 32, "threshold": 0.3},
    "2 levels, 32 px": {"levels": 2, "cell": 32},
}
"""What is compared: finer and coarser shapes of the bundled network's part map."""

FRAME, NOTHING = "frame", "nothing"
_BATCH = 64
_CHUNK = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Everybody:
    """Whom the attacker is tested on, then whom it learns from.

    Attributes:
        tested: how many are tested on.
        crop: height and width of the crops in pixels.
        frames: (N, 3, 64, 48) uint8.
        floors: the same, of skeleton and box.
        maps: (N, 3, h, w) float16, part maps before they are rounded.
        joints: (N, 14, 2) crop pixels.
        visibility: (N, 14).
        owners: the person of each.

    """

    tested: int
    crop: tuple[int, int]
    frames: Tensor
    floors: Tensor
    maps: Tensor
    joints: NDArray[np.float32]
    visibility: NDArray[np.uint8]
    owners: list[str]

    @classmethod
    def open(cls, config: CertifyConfig, network: PartGenerator) -> Self:
        """Read everybody of a configuration of the relinking attacker."""
        samples, maps, owners = [], [], []
        crops: list[Frame] = []
        for one, owner in _people(config):
            samples.append((small(one.image), small(skeleton_and_box(one)), one.joints, one.visibility))
            owners.append(owner)
            crops.append(one.image)
            if len(crops) == _CHUNK:
                maps.append(_maps(network, crops))
                crops = []
        if crops:
            maps.append(_maps(network, crops))
        frames, floors, joints, visibility = zip(*samples, strict=True)
        return cls(
            tested=config.people,
            crop=config.crop,
            frames=stacked(frames),
            floors=stacked(floors),
            maps=torch.cat(maps),
            joints=np.stack(joints),
            visibility=np.stack(visibility),
            owners=owners,
        )

    def views(self, network: PartGenerator) -> Tensor:
        """Draw what a shape shows of everybody, at the attackers' size."""
        parts = [enlarge(network.quantised(part.float())) for part in torch.split(self.maps, 256)]
        return stacked([small(to_frame(one)) for part in parts for one in part])

    def looks(self, views: Tensor, rows: slice) -> Looks:
        """Pair frames and views."""
        return Looks(frames=self.frames[rows], views=views[rows], owners=self.owners[rows])


def measure_hardening(
    config: CertifyConfig,
    *,
    weights: Path | None = None,
    shapes: dict[str, dict[str, Any]] | None = None,
    steps: int = 300,
) -> dict[str, Any]:
    """Attack and read every shape, the floor, frames and nothing.

    Args:
        config: of the relinking attacker; its view's shape is not used.
        weights: of kind `public-view`; `None` takes the bundled ones.
        shapes: name -> keys of `PartConfig`.
        steps: of the reader.

    Returns:
        `rows` of `name`, `pose` (the reader's PCK@0.2) and, where it was attacked, ranks with their intervals, the
        networks and `above_floor`; and what they were measured with.

    Raises:
        ConfigError: the configuration relinks nobody.

    """
    if config.relink is None:
        raise ConfigError("hardening: the configuration has no relinking attacker (relink)")
    torch.set_num_threads(1)
    path = bundled("public-view") if weights is None else weights
    network, network_of = load_public_view(path), read_info(path).sha256
    everybody = Everybody.open(config, network)
    encoder = network.config.encoder
    pictures: dict[str, Tensor] = {FLOOR: everybody.floors}
    for name, shape in (SHAPES if shapes is None else shapes).items():
        network.config = PartConfig(encoder=encoder, **shape)
        pictures[name] = everybody.views(network)
    rows = [attacked(everybody, name, views, config, steps=steps) for name, views in pictures.items()]
    for row in rows:
        row["above_floor"] = row["rank1"] - rows[0]["rank1"]
    for name, views in ((FRAME, everybody.frames), (NOTHING, torch.zeros_like(everybody.frames))):
        rows.append({"name": name, "pose": read(everybody, views, seed=config.seed, steps=steps)})
    setting = {"people": config.people, "pairs": len(everybody.owners) - config.people, "view": network_of}
    return {
        "rows": [{key: rounded(value) for key, value in row.items()} for row in rows],
        "setting": setting,
        "hardware": hardware("cpu"),
    }


def attacked(everybody: Everybody, name: str, views: Tensor, config: CertifyConfig, *, steps: int) -> dict[str, Any]:
    """Relink and read one kind of picture."""
    assert config.relink is not None  # noqa: S101 (whoever calls has looked)
    rest, tested = slice(everybody.tested, None), slice(0, everybody.tested)
    found = relink(
        everybody.looks(views, rest),
        everybody.looks(views, tested),
        config.relink,
        generator=torch.Generator().manual_seed(config.seed),
    )
    kept = ("rank1", "low1", "high1", "rank5", "low5", "high5", "training_rank1", "networks")
    values = stated(found)
    return {"name": name, "pose": read(everybody, views, seed=config.seed, steps=steps)} | {
        key: values[key] for key in kept
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw rank-1 with its interval against the reader's PCK.

    Raises:
        DataError: the file cannot be written.

    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    rows = {row["name"]: row for row in found["rows"]}
    floor = rows[FLOOR]
    axes.axhspan(floor["low1"], floor["high1"], color="0.9")
    axes.axhline(floor["rank1"], color="0.5", linestyle="--")
    axes.plot(
        [], [], color="0.5", linestyle="--", label=f"floor, from which {floor['pose']:.3f} is read: skeleton and box"
    )
    shown = [row for name, row in rows.items() if "rank1" in row and name != FLOOR]
    for place, row in enumerate(sorted(shown, key=lambda row: row["rank1"])):
        spread = [[row["rank1"] - row["low1"]], [row["high1"] - row["rank1"]]]
        axes.errorbar(row["pose"], row["rank1"], yerr=spread, fmt="o", capsize=3, color=f"C{place}", label=row["name"])
    for name, colour in ((NOTHING, "tab:red"), (FRAME, "tab:green")):
        axes.axvline(rows[name]["pose"], color=colour, linestyle=":", label=f"read from {name}")
    axes.set_xlabel("PCK@0.2 that a small network reads from the view")
    axes.set_ylabel("people relinked, rank-1 [95 %]")
    axes.set_ylim(0)
    figure.legend(loc="outside right upper", fontsize=8)
    axes.set_title(f"{found['setting']['people']} people, an attacker with {found['setting']['pairs']} pairs")
    with files.storing(path):
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        files.write_bytes(path, buffer.getvalue(), mode=files.ASKED_FOR)


def read(everybody: Everybody, views: Tensor, *, seed: int, steps: int) -> float:
    """PCK@0.2 (box) of a small network that learns joints from such pictures of everybody who is not tested on."""
    joints = torch.from_numpy(everybody.joints).float()
    seen = torch.from_numpy(everybody.visibility) > 0
    middle, span = torch.tensor(everybody.crop[::-1]) / 2, everybody.crop[0] / 2
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _reader()
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        learned = torch.arange(everybody.tested, len(views))
        for _ in range(steps):
            rows = learned[torch.randperm(len(learned), generator=generator)[:_BATCH]]
            error = (_joints(network, views[rows]) - (joints[rows] - middle) / span).abs().sum(2)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward((error * seen[rows]).sum() / seen[rows].sum())
            optimizer.step()
            schedule.step()
    network.eval()
    tested = slice(0, everybody.tested)
    with torch.no_grad():
        guessed = (_joints(network, views[tested]) * span + middle).numpy()
    return pck(guessed, _labelled(everybody.joints[tested], everybody.visibility[tested]))


def _reader() -> ConvolutionNet:
    network = ConvolutionNet()
    last = network.layers[-1]
    assert isinstance(last, nn.Linear)  # noqa: S101 (it is an attacker's embedding)
    network.layers[-1] = nn.Linear(last.in_features, 2 * len(LSP14))
    return network


def _joints(network: nn.Module, views: Tensor) -> Tensor:
    images = (views.float() / 255 - 0.5).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=network.training):
        found: Tensor = network(images)
    return found.float().view(len(views), len(LSP14), 2)


def _labelled(joints: NDArray[np.float32], visibility: NDArray[np.uint8]) -> Labelled:
    blank, box = np.zeros((1, 1, 3), np.uint8), np.zeros(4, np.float32)
    pairs = zip(joints, visibility, strict=True)
    return Labelled.of([Sample(image=blank, joints=points, visibility=seen, box=box) for points, seen in pairs])


def _people(config: CertifyConfig) -> Iterator[tuple[Sample, str]]:
    def of(dataset: PoseDataset, prefix: str, count: int) -> Iterator[tuple[Sample, str]]:
        for index in range(count):
            yield sample(dataset, index, config.crop), f"{prefix}/{dataset.record(index).patient_id}"

    yield from of(open_source(config.test, skeleton=LSP14), "test", config.people)
    for place, source in enumerate([*(entry.source for entry in config.train), *config.relink_people]):
        dataset = open_source(source, skeleton=LSP14)
        yield from of(dataset, str(place), len(dataset))


@torch.inference_mode()
def _maps(network: PartGenerator, crops: Sequence[Frame]) -> Tensor:
    return network.raw(to_unit(np.stack(crops))).half()
