"""One attacker of the ensemble: a network for views and one for frames that learn to agree."""

import copy
import math

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from wardpose.simulation.anonymizer.relink_pairs import Looks, augmented
from wardpose.simulation.anonymizer.relink_ranks import Similarity, reciprocal
from wardpose.simulation.anonymizer.relinking_nets import KINDS, Kind, build


class RelinkConfig(BaseModel):
    """How hard the attacker tries.

    Attributes:
        kinds: of the networks.
        members: networks of each kind, from different initial values.
        steps: updates of a network at most.
        check_every: updates between looks at held-out people.
        patience: looks without gain before a network stops; the best state is what is kept.
        held_out: people among those it may learn from who decide when it stops.
        batch_size: pairs a step, each the others' counterexample.
        learning_rate: the largest of AdamW's.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1)
    members: int = Field(default=1, ge=1)
    steps: int = Field(default=600, ge=1)
    check_every: int = Field(default=25, ge=1)
    patience: int = Field(default=8, ge=1)
    held_out: int = Field(default=200, ge=2)
    batch_size: int = Field(default=256, ge=2)
    learning_rate: float = Field(default=2e-3, gt=0)


class Member:
    """Two networks of one kind and their temperature."""

    def __init__(self, kind: Kind, generator: torch.Generator) -> None:
        # Layers draw their initial values from the global generator: lend it ours, and give it back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            self._of_view, self._of_frame = build(kind), build(kind)
        self._scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self._seed = int(torch.randint(2**31, (), generator=generator))
        for network in self._networks:
            network.to(memory_format=torch.channels_last)

    @property
    def _networks(self) -> tuple[nn.Module, nn.Module]:
        return self._of_view, self._of_frame

    def fit(
        self,
        looks: Looks,
        learned: NDArray[np.int64],
        watched: NDArray[np.int64],
        config: RelinkConfig,
        generator: torch.Generator,
    ) -> int:
        """Train until held-out people are no longer found better; returns the step whose state is kept."""
        bags, owners = _bags(looks, learned), np.array(looks.owners)[watched]
        batch = min(config.batch_size, len(bags))
        parameters = [parameter for network in self._networks for parameter in network.parameters()]
        optimizer = torch.optim.AdamW([*parameters, self._scale], lr=config.learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.steps, pct_start=0.2
        )
        best, state, best_step = -math.inf, self._state(), 0
        # Dropout draws from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            for step in range(1, config.steps + 1):
                for network in self._networks:
                    network.train()
                order = torch.randperm(len(bags), generator=generator)[:batch].tolist()
                first, second = _draw([bags[i] for i in order], generator)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(self._loss(looks, first, second, generator))
                optimizer.step()
                schedule.step()
                if step % config.check_every and step < config.steps:
                    continue
                found = reciprocal(self.vote(looks, watched), owners)
                if found > best:
                    best, state, best_step = found, self._state(), step
                elif step - best_step >= config.patience * config.check_every:
                    break
        for network, values in zip(self._networks, state[0], strict=True):
            network.load_state_dict(values)
        self._scale.data.fill_(state[1])
        return best_step

    @torch.no_grad()
    def vote(self, looks: Looks, rows: NDArray[np.int64]) -> Similarity:
        """Log-probability of each frame for each view, (N, N)."""
        for network in self._networks:
            network.eval()
        views = self._embed(self._of_view, looks.views[rows])
        frames = self._embed(self._of_frame, looks.frames[rows])
        logits = views @ frames.T * self._scale.exp()
        return np.asarray(functional.log_softmax(logits, 1).double().numpy(), np.float64)

    def _loss(self, looks: Looks, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        views, frames = augmented(looks.views[first], looks.frames[second], generator)
        with torch.autocast("cpu", torch.bfloat16):
            seen, shown = self._of_view(_cl(views)), self._of_frame(_cl(frames))
        logits = functional.normalize(seen.float(), dim=1) @ functional.normalize(shown.float(), dim=1).T
        logits = logits * self._scale.clamp(max=math.log(100.0)).exp()
        target = torch.arange(len(logits))
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    def _embed(self, network: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            parts = [network(_cl(part.float() / 255 - 0.5)) for part in torch.split(images, 256)]
        return functional.normalize(torch.cat(parts).float(), dim=1)

    def _state(self) -> tuple[list[dict[str, Tensor]], float]:
        return [copy.deepcopy(network.state_dict()) for network in self._networks], float(self._scale.detach())


def _bags(looks: Looks, rows: NDArray[np.int64]) -> list[list[int]]:
    """Rows of each person, one person an entry, where somebody has several; else one pair an entry."""
    by_owner: dict[str, list[int]] = {}
    for row in rows.tolist():
        by_owner.setdefault(looks.owners[row], []).append(row)
    return list(by_owner.values())


def _draw(bags: list[list[int]], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the row of a view and that of a frame for each person: another one where there is another."""
    first, second = [], []
    for bag in bags:
        picked = torch.randperm(len(bag), generator=generator)[:2].tolist()
        first.append(bag[picked[0]])
        second.append(bag[picked[-1]])
    return torch.tensor(first), torch.tensor(second)


def _cl(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
