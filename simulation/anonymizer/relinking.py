"""The relinking attacker: networks that learn from pairs of a frame and its view to say whose view it is.

Two networks, one for views and one for frames, are trained together so that a view and a frame of the same person get
like embeddings (InfoNCE both ways, arXiv 1807.03748, with a learned temperature as in arXiv 2103.00020). Several such
pairs of networks, of different kinds, are trained on most of the people, each until it no longer gets better on people
it does not learn from, and vote together on people whom nobody learned from:

    attack = relink(train, test, config, generator=generator)
    attack.rank1, attack.rank5, attack.chance

The *floor* of the figure is the same attack by the same code on views that show nothing but the true skeleton and box
(`skeleton_view`): what a view gets beyond it is more than a pose.

What the figure does not say: whoever holds the very frame of a view, and the map, needs no network. They apply the map
and compare. The figure is about somebody who has learned what people look like and what their views look like.
"""

from dataclasses import dataclass

import numpy as np
import torch

from wardpose.shared.errors import DataError
from wardpose.simulation.anonymizer.intervals import wilson
from wardpose.simulation.anonymizer.relink_member import Member, RelinkConfig
from wardpose.simulation.anonymizer.relink_pairs import Looks
from wardpose.simulation.anonymizer.relink_ranks import chance, ranks


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What came of it.

    Attributes:
        rank1: share of views whose person is the first guess.
        rank5: share whose person is among the first five.
        chance1: rank-1 of guessing.
        chance5: rank-5 of guessing.
        trials: views that were looked up.
        pairs: frames with their view that the networks learned from, those that decided when to stop included.
        people: whose they were.
        networks: kind of each network and the step whose state was kept, for example `mixer, 425 steps`.
        training_rank1: rank-1 among as many of the pairs that were learned from.

    """

    rank1: float
    rank5: float
    chance1: float
    chance5: float
    trials: int
    pairs: int
    people: int
    networks: tuple[str, ...]
    training_rank1: float

    @property
    def interval1(self) -> tuple[float, float]:
        """95 % interval of `rank1`."""
        return wilson(self.rank1, self.trials)

    @property
    def interval5(self) -> tuple[float, float]:
        """95 % interval of `rank5`."""
        return wilson(self.rank5, self.trials)


def relink(train: Looks, test: Looks, config: RelinkConfig, *, generator: torch.Generator) -> Attack:
    """Train the ensemble and look up every view of `test` among its frames.

    Where a person has several frames, a view is looked up among all *other* frames and any of that person counts;
    otherwise among all frames.

    Args:
        train: pairs to learn from.
        test: pairs of people of whom `train` has none.
        config: how hard.
        generator: of initial values, batches and augmentation.

    Raises:
        DataError: somebody is in both, or too few people are there to hold some out.

    """
    both = set(train.owners) & set(test.owners)
    if both:
        raise DataError(f"{min(both)} is both learned from and tested on")
    people = sorted(set(train.owners))
    held_out = min(config.held_out, len(people) // 4)
    if held_out < 2:
        raise DataError(f"{len(people)} people are too few for an attacker that holds some of them out")
    order = [people[i] for i in torch.randperm(len(people), generator=generator).tolist()]
    watched, learned = train.of(order[:held_out]), train.of(order[held_out:])
    votes, known, networks = [], [], []
    for kind in config.kinds:
        for _ in range(config.members):
            member = Member(kind, generator)
            steps = member.fit(train, learned, watched, config, generator)
            votes.append(member.vote(test, np.arange(len(test))))
            known.append(member.vote(train, learned[: len(test)]))
            networks.append(f"{kind}, {steps} steps")
    owners = np.array(test.owners)
    rank1, rank5 = ranks(np.mean(votes, axis=0), owners)
    return Attack(
        rank1=rank1,
        rank5=rank5,
        chance1=chance(owners, 1),
        chance5=chance(owners, 5),
        trials=len(test),
        pairs=len(train),
        people=len(people),
        networks=tuple(networks),
        training_rank1=ranks(np.mean(known, axis=0), np.array(train.owners)[learned[: len(test)]])[0],
    )
